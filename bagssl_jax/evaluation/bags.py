"""Bags: the representation of an image by the embeddings of its patches."""

import functools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil
from flax import linen as nn
from jax.sharding import Mesh

from bagssl_jax.data.geometry import grid_places
from bagssl_jax.data.pipeline import Bags
from bagssl_jax.errors import InputError
from bagssl_jax.parallel import batch_sharded

Variables = Mapping[str, Any]
Embed = Callable[[Variables, jax.Array], dict[str, jax.Array]]
AGGREGATIONS = ('mean', 'mean_unit', 'grid2', 'grid4')


class Representation(NamedTuple):
    """How the patches of an image become one vector.

    Attributes:
      patches: how many of them.
      aggregation: 'mean'; 'mean_unit', of the embeddings at length 1; or 'grid2' and 'grid4', the
        means in 2x2 or 4x4 cells of the image, one after the other.
    """

    patches: int
    aggregation: str


def share_places(
    counts: Sequence[int], aggregations: Sequence[str]
) -> tuple[np.ndarray, dict[Representation, np.ndarray]]:
    """Which patches to embed, once, for bags of several sizes on grids.

    Where grids have places in common, these are embedded once: the corners of the grids of 4 are
    among those of 16, which has 12 more.

    Args:
      counts: patches of the bags.
      aggregations: of `AGGREGATIONS`. A grid of cells is left out for bags that leave a cell empty.

    Returns:
      Places [u 2] without repetition, and of every representation the weights [cells u] of the
      patches at those places, whose rows sum to 1.
    """
    grids = {count: [tuple(place) for place in grid_places(count)] for count in counts}
    union = list(dict.fromkeys(place for grid in grids.values() for place in grid))
    index = {place: i for i, place in enumerate(union)}
    weights = {}
    for count, grid in grids.items():
        members = [index[place] for place in grid]
        for aggregation in aggregations:
            across = int(aggregation.removeprefix('grid')) if 'grid' in aggregation else 1
            cell = np.minimum((np.array(grid) * across).astype(int), across - 1)
            cell = cell[:, 0] * across + cell[:, 1]
            sizes = np.bincount(cell, minlength=across**2)
            if sizes.all():
                matrix = np.zeros((across**2, len(union)), np.float32)
                matrix[cell, members] = 1 / sizes[cell]
                weights[Representation(count, aggregation)] = matrix
    return np.array(union), weights


def prefix_weights(
    counts: Sequence[int], aggregations: Sequence[str]
) -> dict[Representation, np.ndarray]:
    """The weights of bags of random patches: the first ones of the largest bag.

    Raises:
      InputError: an aggregation by cells, of patches that lie in other cells in every image.
    """
    weights = {}
    for aggregation in aggregations:
        if 'grid' in aggregation:
            raise InputError(f'probe.aggregations={aggregation} needs probe.positions=grid')
        for count in counts:
            matrix = np.zeros((1, max(counts)), np.float32)
            matrix[0, :count] = 1 / count
            weights[Representation(count, aggregation)] = matrix
    return weights


def make_embed(
    encoder: nn.Module,
    projector: nn.Module | None,
    spaces: tuple[str, ...],
    *,
    flip: bool = False,
) -> Embed:
    """The frozen forward pass, jitted.

    Args:
      encoder, projector: Linen modules; None where there is no projector.
      spaces: 'h', the encoder's output; 'hidden1', 'hidden2', ..., the projector's; and 'z'.
      flip: whether every patch is embedded mirrored too, and the mean of both is taken.

    Returns:
      (variables {'encoder', 'projector'}, uint8 patches [n h w c]) -> space -> float32 [n d]; each
      patch on its own, with the running statistics.
    """

    def outputs(variables: Variables, x: jax.Array) -> dict[str, jax.Array]:
        h, _ = encoder.apply(variables['encoder'], x, train=False)
        found = {'h': h}
        if projector is not None:
            z, hidden = projector.apply(variables['projector'], h, train=False)
            found |= {'z': z, **hidden}
        return {space: found[space].astype(jnp.float32) for space in spaces}

    @jax.jit
    def embed(variables: Variables, patches: jax.Array) -> dict[str, jax.Array]:
        x = patches.astype(jnp.float32) / 255
        vectors = outputs(variables, x)
        if flip:
            mirrored = outputs(variables, x[:, :, ::-1])
            vectors = jax.tree.map(lambda a, b: (a + b) / 2, vectors, mirrored)
        return vectors

    return embed


def represent(
    embed: Embed,
    encoders: Mapping[str, Variables],
    batches: Iterable[Bags],
    *,
    images: int,
    batch_size: int,
    spaces: Sequence[str],
    weights: Mapping[Representation, np.ndarray],
    chunk: int,
    mesh: Mesh,
    directory: str | None = None,
) -> tuple[dict[tuple[str, str, Representation], np.ndarray], np.ndarray]:
    """The vectors of every image, by several encoders, in one pass over the data.

    A patch is embedded once, whatever the bags that it is in. The devices hold `chunk` patches'
    activations and one batch's embeddings; the host one batch of pixels, and the vectors: in
    memory, or where they would take more than half of what is free, in a file that goes with
    them.

    Args:
      embed: of `make_embed`.
      encoders: name -> variables for it.
      batches: of the pipeline.
      images: at most so many in all.
      batch_size: images a batch, at most: fewer where the data ends, or some cannot be read.
      spaces: those that `embed` gives.
      weights: of each representation, over the patches of a bag.
      chunk: patches a forward pass; the last of a batch is padded, so that one program serves all.
      mesh: the data mesh, whose size divides `chunk`.
      directory: for the file; None for the system's.

    Returns:
      (encoder, space, representation) -> float32 [n d], and the labels [n], in the order of
      `batches`.
    """
    features, labels, done = {}, [], 0
    for batch in batches:
        if not len(batch.patches):
            continue
        b, p = batch.patches.shape[:2]
        found = {}
        for name, variables in encoders.items():
            # As many rows as of a full batch, so that one program serves smaller ones too.
            vectors = embed_all(
                embed, variables, padded(batch.patches, chunk, batch_size * p), mesh, chunk
            )
            for space in spaces:
                bags = vectors[space][: batch_size * p].reshape(
                    batch_size, p, -1
                )  # [n d] -> [b p d]
                for representation, matrix in weights.items():
                    means = _aggregate(bags, matrix, unit=representation.aggregation == 'mean_unit')
                    found[name, space, representation] = means
        if not features:
            widths = {key: means.shape[1] for key, means in found.items()}
            features = _allocate(images, widths, directory)
        for key, means in found.items():
            features[key][done : done + b] = np.asarray(means)[:b]
        labels.append(batch.labels)
        done += b
    if not done:
        raise InputError('no image of the split can be read')
    return {key: array[:done] for key, array in features.items()}, np.concatenate(labels)


def embed_all(
    embed: Embed, variables: Variables, patches: np.ndarray, mesh: Mesh, chunk: int
) -> dict[str, jax.Array]:
    """The embeddings of any multiple of `chunk` patches, on the devices."""
    parts = [
        embed(variables, jax.device_put(patches[i : i + chunk], batch_sharded(mesh)))
        for i in range(0, len(patches), chunk)
    ]
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def padded(patches: np.ndarray, chunk: int, least: int = 0) -> np.ndarray:
    """uint8 [b p h w c] and zeros -> [n h w c], n a multiple of `chunk` and at least `least`."""
    flat = patches.reshape(-1, *patches.shape[2:])
    rows = -(-max(len(flat), least) // chunk) * chunk
    result = np.zeros((rows, *flat.shape[1:]), np.uint8)
    result[: len(flat)] = flat
    return result


@functools.partial(jax.jit, static_argnames='unit')
def _aggregate(vectors: jax.Array, weights: jax.Array, *, unit: bool) -> jax.Array:
    """Weighted sums of [b p d] by [cells p], of vectors at length 1 if `unit`: [b cells*d]."""
    if unit:
        vectors = vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    sums = jnp.einsum('cp,bpd->bcd', weights, vectors, precision=jax.lax.Precision.HIGHEST)
    return sums.reshape(len(vectors), -1)


def _allocate(rows: int, widths: Mapping[Any, int], directory: str | None) -> dict[Any, np.ndarray]:
    """A float32 array of each width, in memory or in files that have no name."""
    in_memory = 4 * rows * sum(widths.values()) < psutil.virtual_memory().available // 2
    if in_memory:
        return {key: np.empty((rows, width), np.float32) for key, width in widths.items()}
    arrays = {}
    for key, width in widths.items():
        with tempfile.TemporaryFile(dir=directory) as file:
            arrays[key] = np.memmap(file, np.float32, 'w+', shape=(rows, width))
    return arrays
