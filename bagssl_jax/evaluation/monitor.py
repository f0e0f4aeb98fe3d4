"""A look at what was learned while training goes on: kNN on a part of the training split."""

from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from bagssl_jax.data.datasets import Dataset
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.embedding.bags import grid_layout, represent
from bagssl_jax.embedding.encoder import FrozenEncoder, Variables
from bagssl_jax.errors import InputError
from bagssl_jax.models import init_variables, make_networks
from bagssl_jax.parallel import (
    check_batch_size,
    dealt,
    local_mesh,
    make_mesh,
    own_part,
    replicated,
    sharded_shapes,
    to_local,
)
from bagssl_jax.probes.knn import knn
from bagssl_jax.probes.labels import held_out

IMAGES = 5000
PATCHES = 4


def make_monitor(config: ConfigDict, dataset: Dataset) -> Callable[[Variables], dict[str, float]]:
    """What training calls now and then, with its encoder's variables.

    It gives {'knn_top1': ...}, or nothing where no class has two images.

    Of at most 5,000 images of the split that the probes learn from, the last fifth of each class
    is told by its 20 nearest neighbours (weighted, T = 0.07) among the others; an image is the
    mean of h over 4 patches. The test split is not touched, so that this may guide a choice.

    Raises:
      InputError: the split has no labels, or there is too little memory.
    """
    chunk = config.probe.batch_size
    check_batch_size(chunk, make_mesh(), 'probe.batch_size')
    split = config.probe.train_split or config.data.train_split
    images = dataset.images(split)
    if not images.class_names:
        raise InputError(f'train.monitor_every needs labels, and {dataset.name} {split} has none')
    part = images.part(IMAGES, seed=config.seed)
    geometry = PatchGeometry.of(config.patches)
    layout = grid_layout(geometry, (PATCHES,), ('mean',))
    networks, mesh = make_networks(config), local_mesh()
    side = geometry.resize or geometry.side(*images.example_shape())
    nothing = FrozenEncoder(networks, {}, geometry, mesh, own_part(chunk), step=0)
    shapes = jax.eval_shape(lambda: init_variables(networks, 0, side=geometry.input_side))
    shapes = sharded_shapes({'encoder': shapes['encoder']}, replicated(mesh))
    nothing.with_variables(shapes).check_memory((side, side))  # now, and not after an epoch
    batch_size = max(1, chunk // PATCHES)
    on_error = config.data.on_error

    def monitor(encoder: Variables) -> dict[str, float]:
        batches = part.bags(
            layout.view,
            batch_size=own_part(batch_size),
            on_error=on_error,
            numbers=dealt(len(part), batch_size),
        )
        features, labels = represent(
            {'online': nothing.with_variables({'encoder': to_local(encoder)})},
            batches,
            layout,
            images=len(part),
            batch_size=batch_size,
        )
        [h] = features.values()
        queries = held_out(labels, 0.2)
        if not queries.any():  # one image of every class
            return {}
        found = knn(
            h[~queries],
            labels[~queries],
            h[queries],
            labels[queries],
            num_classes=len(images.class_names),
        )
        return {'knn_top1': found.top1}

    return monitor
