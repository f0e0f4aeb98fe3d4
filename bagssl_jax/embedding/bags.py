"""Bags: the representation of an image by the embeddings of its patches."""

import dataclasses
import functools
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from bagssl_jax.data.geometry import PatchGeometry, grid_places
from bagssl_jax.data.pipeline import Bags
from bagssl_jax.data.views import GridPatches, RandomPatches, View
from bagssl_jax.embedding.encoder import FrozenEncoder
from bagssl_jax.errors import InputError

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


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which patches of an image are embedded, and what vectors are made of them.

    Attributes:
      view: cuts the patches, p of every image.
      weights: of each representation, over those patches: float32 [cells p].
    """

    view: View
    weights: Mapping[Representation, np.ndarray]

    @property
    def count(self) -> int:
        """Patches an image: p."""
        return next(iter(self.weights.values())).shape[1]


def grid_layout(
    geometry: PatchGeometry, counts: Sequence[int], aggregations: Sequence[str]
) -> Layout:
    """Bags of several sizes on even grids.

    Where grids have places in common, these are embedded once: the corners of the grids of 4 are
    among those of 16, which has 12 more.

    Args:
      geometry: of the patches.
      counts: patches of the bags.
      aggregations: of `AGGREGATIONS`. A grid of cells is left out for bags that leave a cell empty.

    Raises:
      InputError: nothing is left.
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
    if not weights:
        raise InputError(
            f'probe.aggregations={tuple(aggregations)} needs more patches than '
            f'probe.patches={tuple(counts)}: one in every cell'
        )
    return Layout(GridPatches(geometry, np.array(union)), weights)


def random_layout(
    geometry: PatchGeometry, counts: Sequence[int], aggregations: Sequence[str], *, seed: int
) -> Layout:
    """Bags of several sizes at random places: each is the first patches of the largest one.

    Args:
      geometry: of the patches.
      counts: patches of the bags.
      aggregations: of `AGGREGATIONS`.
      seed: the places depend on it and on the number of the image alone.

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
    return Layout(RandomPatches(geometry, max(counts), seed), weights)


def single_layout(view: View) -> Layout:
    """One patch an image, which is its representation."""
    return Layout(view, {Representation(1, 'mean'): np.ones((1, 1), np.float32)})


def represent(
    encoders: Mapping[str, FrozenEncoder],
    batches: Iterable[Bags],
    layout: Layout,
    *,
    images: int,
    batch_size: int,
    spaces: Sequence[str] = ('h',),
    flip: bool = False,
    directory: str | os.PathLike[str] | None = None,
) -> tuple[dict[tuple[str, str, Representation], np.ndarray], np.ndarray]:
    """The vectors of every image, by several encoders, in one pass over the data.

    A patch is embedded once, whatever the bags that it is in. The devices hold one chunk's
    activations and one batch's embeddings; the host one batch of pixels, and the vectors: in
    memory, or where they would take more than half of what is free, in a file that goes with
    them.

    Args:
      encoders: by name.
      batches: of the pipeline, cut by the layout's view.
      layout: which representations are wanted.
      images: at most so many in all.
      batch_size: images a batch, at most: fewer where the data ends, or some cannot be read.
      spaces: some of those that `embedding.encoder.forward` gives.
      flip: as for `FrozenEncoder.embed_bags`.
      directory: for the file; None for the system's.

    Returns:
      (encoder, space, representation) -> float32 [n d], and the labels [n], in the order of
      `batches`.

    Raises:
      InputError: no image can be read.
    """
    features, labels, done = {}, [], 0
    for batch in batches:
        b = len(batch.patches)
        if not b:
            continue
        # As many bags as in a full batch, so that one program serves smaller ones too.
        patches = batch.patches
        if b < batch_size:
            patches = np.zeros((batch_size, *patches.shape[1:]), np.uint8)
            patches[:b] = batch.patches
        found = {}
        for name, encoder in encoders.items():
            vectors = encoder.embed_bags(patches, spaces, flip=flip)
            for space in spaces:
                for representation, matrix in layout.weights.items():
                    unit = representation.aggregation == 'mean_unit'
                    means = _aggregate(vectors[space], matrix, unit=unit)
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


@functools.partial(jax.jit, static_argnames='unit')
def _aggregate(vectors: jax.Array, weights: jax.Array, *, unit: bool) -> jax.Array:
    """Weighted sums of [b p d] by [cells p], of vectors at length 1 if `unit`: [b cells*d]."""
    if unit:
        vectors = vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    sums = jnp.einsum('cp,bpd->bcd', weights, vectors, precision=jax.lax.Precision.HIGHEST)
    return sums.reshape(len(vectors), -1)


def _allocate(
    rows: int, widths: Mapping[Any, int], directory: str | os.PathLike[str] | None
) -> dict[Any, np.ndarray]:
    """A float32 array of each width, in memory or in files that have no name."""
    in_memory = 4 * rows * sum(widths.values()) < psutil.virtual_memory().available // 2
    if in_memory:
        return {key: np.empty((rows, width), np.float32) for key, width in widths.items()}
    arrays = {}
    for key, width in widths.items():
        with tempfile.TemporaryFile(dir=directory) as file:
            arrays[key] = np.memmap(file, np.float32, 'w+', shape=(rows, width))
    return arrays
