"""Bags: the representation of an image by the embeddings of its patches."""

import dataclasses
import functools
import itertools
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import psutil

from bagssl_jax import processes
from bagssl_jax.data.geometry import PatchGeometry, grid_places
from bagssl_jax.data.pipeline import Bags
from bagssl_jax.data.views import GridPatches, RandomPatches, View
from bagssl_jax.embedding.encoder import FrozenEncoder
from bagssl_jax.errors import InputError
from bagssl_jax.parallel import all_rows, own_part
from bagssl_jax.storage import writing

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

    Of several processes, each embeds its share of every batch, on its own devices, and all get all
    vectors.

    A patch is embedded once, whatever the bags that it is in. The devices hold one chunk's
    activations and one batch's embeddings; the host one batch of pixels, and the vectors: in
    memory, or where they would take more than half of what is free, in a file that goes with
    them.

    Args:
      encoders: by name.
      batches: of the pipeline, cut by the layout's view: this process's parts, of the images that
        `parallel.dealt` gives it.
      layout: which representations are wanted.
      images: so many in all, of which some may be unreadable.
      batch_size: images a batch, of all processes, at most: fewer where the data ends, or some
        cannot be read.
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
    keys = [(n, s, r) for n in encoders for s in spaces for r in layout.weights]
    own, batches = own_part(batch_size), iter(batches)
    for turn in itertools.count():
        batch = next(batches, None)  # a process may have no part of the last one
        b = 0 if batch is None else len(batch.patches)
        found = _represent_batch(encoders, batch.patches, layout, own, spaces, flip) if b else []
        widths = None if batch is None else [array.shape[1] for array in found]
        said = processes.gathered(f'widths {turn % 2}', widths)
        if all(widths is None for widths in said):
            break
        known = [widths for widths in said if widths]
        if not known:
            continue  # no image of this batch can be read
        if not b:
            found = [np.zeros((own, width), np.float32) for width in known[0]]
        own_labels = np.zeros(own, np.int32)
        own_labels[:b] = batch.labels if b else 0
        taken, batch_labels, *found = all_rows([np.arange(own) < b, own_labels, *found])
        if not features:
            features = _allocate(images, dict(zip(keys, known[0], strict=True)), directory)
        rows = slice(done, done + int(taken.sum()))
        for key, array in zip(keys, found, strict=True):
            features[key][rows] = array[taken]
        labels.append(batch_labels[taken].astype(np.int64))
        done = rows.stop
    if not done:
        raise InputError('no image of the split can be read')
    return {key: array[:done] for key, array in features.items()}, np.concatenate(labels)


def _represent_batch(
    encoders: Mapping[str, FrozenEncoder],
    patches: np.ndarray,
    layout: Layout,
    batch_size: int,
    spaces: Sequence[str],
    flip: bool,
) -> list[jax.Array]:
    """[batch_size d] of each encoder, space and representation; zeros behind the b bags."""
    # As many bags as in a full batch, so that one program serves smaller ones too.
    if len(patches) < batch_size:
        patches = np.pad(patches, [(0, batch_size - len(patches)), *[(0, 0)] * 4])
    found = []
    for encoder in encoders.values():
        vectors = encoder.embed_bags(patches, spaces, flip=flip)
        for space in spaces:
            for representation, matrix in layout.weights.items():
                unit = representation.aggregation == 'mean_unit'
                found.append(aggregate(vectors[space], matrix, unit=unit))
    return found


@functools.partial(jax.jit, static_argnames='unit')
def aggregate(vectors: jax.Array, weights: jax.Array, *, unit: bool) -> jax.Array:
    """Weighted sums of [b p d] by [cells p], of vectors at length 1 if `unit`: [b cells*d]."""
    if unit:
        squares = jnp.sum(jnp.square(vectors), axis=-1, keepdims=True)
        vectors = vectors / jnp.sqrt(jnp.maximum(squares, 1e-24))  # has a gradient at 0 too
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
        place = directory or tempfile.gettempdir()
        with writing(place), tempfile.TemporaryFile(dir=place) as file:
            # Room is taken now: a mapped file that meets a full disk ends the process.
            os.posix_fallocate(file.fileno(), 0, 4 * rows * width)
            arrays[key] = np.memmap(file, np.float32, 'w+', shape=(rows, width))
    return arrays
