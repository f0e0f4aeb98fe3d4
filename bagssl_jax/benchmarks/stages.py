"""The functions that training and probes run on the devices, lowered from shapes alone."""

import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding
from ml_collections import ConfigDict

from bagssl_jax.embedding.encoder import embed_chunk
from bagssl_jax.errors import InputError
from bagssl_jax.models import make_networks
from bagssl_jax.parallel import batch_sharded, replicated, sharded_shapes
from bagssl_jax.probes import nearest, sgd
from bagssl_jax.probes.knn import K
from bagssl_jax.training.setup import Program


class Work(NamedTuple):
    """A function that is ready to be compiled, and how much one call of it does."""

    lowered: jax.stages.Lowered
    count: int  # over all devices
    unit: str  # of `count`: 'images' or 'patches'
    counted: bool = True  # whether XLA's counts hold: a loop's body counts once


class Split(NamedTuple):
    """What is known of the training split, which need not be here: or None."""

    images: int | None
    classes: int | None


def _train_step(config: ConfigDict, mesh: Mesh, program: Program, split: Split) -> Work:
    lowered = program.step.lower(program.state_shapes(mesh), program.inputs)
    return Work(lowered, config.data.batch_size, 'images', config.train.accumulate == 1)


def _spread_step(config: ConfigDict, mesh: Mesh, program: Program, split: Split) -> Work:
    lowered = program.spread.lower(program.state_shapes(mesh), program.inputs)
    return Work(lowered, config.data.batch_size, 'images', config.train.accumulate == 1)


def _forward(config: ConfigDict, mesh: Mesh, program: Program, split: Split) -> Work:
    probe = config.probe
    count = math.ceil(probe.batch_size / mesh.size) * mesh.size
    lowered = embed_chunk.lower(
        *_frozen(config, mesh, program, count), spaces=probe.spaces, flip=probe.flip
    )
    return Work(lowered, count, 'patches')


def _frozen(config: ConfigDict, mesh: Mesh, program: Program, count: int) -> tuple[Any, ...]:
    """What `embed_chunk` takes: networks, and the shapes of variables and `count` patches."""
    online = program.state_shapes(mesh).online
    variables = {name: online[name] for name in ('encoder', 'projector')}
    shape = count, program.side, program.side, 3
    patches = jax.ShapeDtypeStruct(shape, np.uint8, sharding=batch_sharded(mesh))
    return make_networks(config), variables, patches


def _knn_search(config: ConfigDict, mesh: Mesh, program: Program, split: Split) -> Work:
    if not split.images:
        raise InputError(f'knn_search needs {config.data.name}, or its number of images')
    width = _width(config, mesh, program)
    rows, length = nearest.blocks(split.images, nearest.CHUNK, mesh)
    sharded, whole = batch_sharded(mesh), replicated(mesh)
    queries = min(nearest.CHUNK, split.images)
    lowered = nearest.search.lower(
        jax.ShapeDtypeStruct((queries, width), np.float32, sharding=whole),
        jax.ShapeDtypeStruct((length, width), np.float32, sharding=sharded),
        jax.ShapeDtypeStruct((length,), bool, sharding=sharded),
        k=min(K, split.images),
        rows=rows,
        mesh=mesh,
    )
    return Work(lowered, queries, 'images', counted=False)


def _sgd_update(config: ConfigDict, mesh: Mesh, program: Program, split: Split) -> Work:
    if not split.classes:
        raise InputError(f'sgd_update needs {config.data.name}, or its number of classes')
    width, size = _width(config, mesh, program), sgd.BATCH_SIZE
    sweep = jax.eval_shape(
        functools.partial(
            sgd.start,
            sgd.SETTINGS,
            width=width,
            num_classes=split.classes,
            batch_size=size,
            steps=1,
        )
    )
    # On one device, as the probe runs it.
    alone = SingleDeviceSharding(mesh.devices.flat[0])
    arguments = sharded_shapes(
        (
            sweep,
            jax.ShapeDtypeStruct((size, width), np.float32),
            jax.ShapeDtypeStruct((size,), int),
        ),
        alone,
    )
    return Work(sgd.update.lower(*arguments), size, 'images')


def _width(config: ConfigDict, mesh: Mesh, program: Program) -> int:
    """Of h."""
    frozen = _frozen(config, mesh, program, mesh.size)
    return embed_chunk.eval_shape(*frozen, spaces=('h',), flip=False)['h'].shape[-1]


STAGES = {
    'train_step': _train_step,
    'spread_step': _spread_step,
    'forward': _forward,
    'knn_search': _knn_search,
    'sgd_update': _sgd_update,
}
