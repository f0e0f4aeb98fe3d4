"""How fast a frozen encoder is here: its forward pass alone, and from images to embeddings."""

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from bagssl_jax.benchmarks.measured import compile_measured, print_rate
from bagssl_jax.benchmarks.timing import (
    clocked,
    core_seconds,
    print_row,
    summary,
)
from bagssl_jax.data.datasets import open_dataset
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.embedding.encoder import CHUNKS, FrozenEncoder, embed_chunk
from bagssl_jax.embedding.folder import CutBag, cut_ahead
from bagssl_jax.errors import InputError
from bagssl_jax.models import init_variables, make_networks
from bagssl_jax.parallel import batch_sharded, make_mesh, replicated
from bagssl_jax.progress import waiting

SPACE = 'h'


def run(config: ConfigDict) -> None:
    """Embeds images of `data.train_split`, `benchmark.embed.patches` of each, and prints JSON.

    The encoder is untrained: trained parameters take the same time. `probe.batch_size` patches
    are one forward pass, and `benchmark.embed.steps` passes are measured.

    'matmul', the rate of a matrix product on the same devices, of `encoder.dtype`: what the others'
    utilisation is of; see `matrix_rate`. 'forward', passes over patches that lie on the devices.
    'total', what `bagssl_jax.embed` does but for the file: images are read, decoded and cut in
    threads, embedded, and the embeddings fetched; the data set is gone through again where it has
    fewer images than are measured.

    Of both: 'seconds' a forward pass; 'images_per_s' and 'patches_per_s'; 'operations' a pass and
    'utilisation', as in `benchmark train`; the memory, as `peak_memory` has it;
    'compile_seconds'. Of 'forward', seconds are the median, with their 'quartiles', of 'total' the
    mean; that has also 'share_waiting', of the time in which the next bags were waited for (on an
    accelerator, in part at work on those before), 'patches_per_s_per_core', and 'times_forward',
    its seconds over those of 'forward'.

    Raises:
      InputError: the configuration cannot be carried out, an image cannot be read, or the forward
        pass does not fit into memory.
    """
    settings = config.benchmark.embed
    source = open_dataset(config.data).images(config.data.train_split).source
    encoder, count = untrained_encoder(config), settings.patches
    encoder.check(count, SPACE)
    mesh, chunk = encoder.mesh, encoder.chunk
    [first] = _patches(cut_ahead(source, encoder, count, [0]), [])
    rate = print_rate('embed', mesh, config.encoder.dtype)
    of_pass = {'images': chunk / count, 'patches': chunk}

    patches = np.resize(first, (chunk, *first.shape[1:]))
    patches = jax.device_put(patches, batch_sharded(mesh))
    traced = embed_chunk.trace(
        encoder.networks, encoder.variables, patches, spaces=(SPACE,), flip=False
    )
    forward = compile_measured(traced, f'{chunk} patches', mesh=mesh, rate=rate)
    with waiting(f'timing {settings.steps:,} forward passes'):
        advance = functools.partial(forward.run, encoder.variables, patches)
        alone = summary(clocked(advance, warm=2, steps=settings.steps))
    print_row('embed', 'forward', {**alone, **forward.row(alone['seconds'], **of_pass)})

    list(encoder.embed_each(itertools.repeat(first, math.ceil(CHUNKS * chunk / count)), SPACE))
    images, waits = math.ceil(settings.steps * chunk / count), []
    start, start_cores = time.perf_counter(), core_seconds()
    numbers = [i % len(source) for i in range(images)]
    with (
        waiting(f'embedding {images:,} images'),
        contextlib.closing(cut_ahead(source, encoder, count, numbers)) as bags,
    ):
        done = sum(1 for _ in encoder.embed_each(_patches(bags, waits), SPACE))
    elapsed = time.perf_counter() - start
    seconds = elapsed / (done * count / chunk)
    row = {
        **forward.row(seconds, **of_pass),
        'share_waiting': sum(waits) / elapsed,
        'patches_per_s_per_core': done * count / (core_seconds() - start_cores),
        'times_forward': seconds / alone['seconds'],
    }
    print_row('embed', 'total', row)


def untrained_encoder(config: ConfigDict) -> FrozenEncoder:
    """What a training of the configuration begins with."""
    mesh, networks = make_mesh(), make_networks(config)
    geometry = PatchGeometry.of(config.patches)
    variables = init_variables(networks, config.seed, side=geometry.input_side)
    chunk = math.ceil(config.probe.batch_size / mesh.size) * mesh.size
    return FrozenEncoder(
        networks, jax.device_put(variables, replicated(mesh)), geometry, mesh, chunk, step=0
    )


def _patches(bags: Iterator[CutBag], waits: list[float]) -> Iterator[np.ndarray]:
    """The patches of the bags; to `waits` go the seconds that each was waited for."""
    while True:
        start = time.perf_counter()
        bag = next(bags, None)
        waits.append(time.perf_counter() - start)
        if bag is None:
            return
        if bag.patches is None:
            raise InputError(bag.failure)
        yield bag.patches
