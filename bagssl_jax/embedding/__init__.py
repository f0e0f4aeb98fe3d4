"""A trained encoder for everyone: embeddings of arrays, and of folders of images."""
