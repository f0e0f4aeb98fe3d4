"""Images in, fixed-scale patches out: the only part that knows grain and tensorflow-datasets."""
