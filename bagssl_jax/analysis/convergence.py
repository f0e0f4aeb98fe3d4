"""Convergence: how near the mean of N patch embeddings comes to the whole image's embedding.

BagSSL (arXiv 2206.08954) finds that the mean of the embeddings of an image's patches converges to
the embedding of the whole image as patches are added. Whether that says something is seen beside
two other things: the same curve against other images, and that of an untrained encoder.
"""

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from bagssl_jax import processes
from bagssl_jax.analysis.bootstrap import mean_intervals
from bagssl_jax.analysis.convergence_curves import pictures, table
from bagssl_jax.analysis.look import Inapplicable, Look
from bagssl_jax.analysis.sample import take_sample
from bagssl_jax.data.datasets import Images
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.data.views import RandomPatches
from bagssl_jax.embedding.encoder import FrozenEncoder
from bagssl_jax.errors import InputError


def look(
    trained: FrozenEncoder,
    untrained: FrozenEncoder,
    images: Images,
    *,
    seed: int,
    on_error: str,
    max_images: int,
    patches: int,
    scales: Sequence[float],
    spaces: Sequence[str],
) -> Look:
    """Compares means of 1, 2, 4, ... patches with the whole image's embedding, by their cosine.

    Patches lie at random; those of a smaller bag are among those of a larger one. The whole image
    is one input, as the probe's view 'whole' has it. As embeddings of all images can have much in
    common (those of an untrained network all but coincide), every cosine is also taken 'centered':
    less the mean over the images, of whole images and of bags each their own.

    Args:
      trained, untrained: the encoders, of one geometry.
      images: of one size.
      seed: of the choice of images, and of the patches' places.
      on_error: 'stop' at an unreadable image, or 'skip' it.
      max_images: drawn at random, where there are more.
      patches: the largest bag.
      scales: shares of the image's area that patches have, which keep their pixels; beside the
        run's own patches, which are resized as the run says.
      spaces: 'h', 'z', 'hidden1', ...; those that the encoder lacks are left out.

    Returns:
      The rows have 'encoder', 'space', 'side' (of the patches, in pixels), 'scale' (their share of
      the image's area), 'resized' (to how many pixels; None where they are not), 'patches',
      'centered'; 'own' (the mean cosine with the whole of the same image), 'other'
      (with the wholes of all others), 'own_interval', 'other_interval' (of 95%, over images, by
      the bootstrap), 'found' (the share of bags that are nearest to their own image of all), and
      'images'.

    Raises:
      Inapplicable: there are fewer than two images.
      InputError: an image cannot be read, none of the spaces is there, or a patch of the run does
        not fit into the images.
    """
    spaces, notes = _present(spaces, trained)
    pixels = take_sample(images, max_images, seed=seed, on_error=on_error).pixels
    if len(pixels) < 2:
        raise Inapplicable(f'{images.title} has one image, and others are needed to compare with')
    geometries = _geometries(trained.geometry, scales, pixels.shape[1:3])
    counts = [2**i for i in range(patches.bit_length())]
    rows = []
    encoders = {'trained': trained, 'untrained': untrained}
    total = len(encoders) * (1 + len(geometries)) * len(pixels)
    with tqdm.tqdm(
        total=total,
        desc='convergence',
        unit=' images',
        file=sys.stderr,
        disable=not processes.is_first(),
    ) as progress:
        for name, encoder in encoders.items():
            wholes = _wholes(encoder, pixels, spaces)
            progress.update(len(pixels))
            for (side, input_side), geometry in geometries.items():
                view = RandomPatches(geometry, counts[-1], seed)
                means = _means(encoder, pixels, view, counts, spaces, progress)
                about = {
                    'side': side,
                    'scale': side**2 / float(np.prod(pixels.shape[1:3])),
                    'resized': None if input_side == side else input_side,
                }
                for space, centered in itertools.product(spaces, (False, True)):
                    found = _curves(wholes[space], means[space], centered=centered)
                    rows += [
                        {
                            'encoder': name,
                            'space': space,
                            **about,
                            'patches': count,
                            'centered': centered,
                            **curve,
                            'images': len(pixels),
                        }
                        for count, curve in zip(counts, found, strict=True)
                    ]
    return Look(rows, table(rows), pictures(rows), notes)


def _present(spaces: Sequence[str], encoder: FrozenEncoder) -> tuple[list[str], tuple[str, ...]]:
    """The spaces that the encoder has, and a line on those that it lacks."""
    there = [space for space in spaces if space in encoder.widths]
    lacking = [space for space in spaces if space not in encoder.widths]
    if not there:
        known = ', '.join(encoder.widths)
        raise InputError(f'no space of {", ".join(spaces)} in this run: choose from {known}')
    if not lacking:
        return there, ()
    return there, (f'{", ".join(there)} alone: the encoder has no {", ".join(lacking)}',)


def _geometries(
    own: PatchGeometry, scales: Sequence[float], shape: tuple[int, int]
) -> dict[tuple[int, int], PatchGeometry]:
    """Patches by their side, as cut and as embedded, in an image of that shape; small ones first.

    Those of the run are among them. The others keep their pixels, so that things are as large in
    them as in the whole image, which is what they are compared with.
    """
    found = {}
    for geometry in (own, *(PatchGeometry(0, scale, 0) for scale in scales)):
        side = geometry.side(*shape)
        found.setdefault((side, geometry.resize or side), geometry)
    return dict(sorted(found.items()))


def _wholes(
    encoder: FrozenEncoder, pixels: np.ndarray, spaces: Sequence[str]
) -> dict[str, np.ndarray]:
    """The embeddings of whole images: space -> float32 [b d]."""
    devices = encoder.mesh.size
    encoder = encoder.with_chunk(-(-min(len(pixels), encoder.chunk) // devices) * devices)
    vectors = encoder.embed_bags(pixels[:, None], spaces)
    return {space: np.asarray(vectors[space])[:, 0] for space in spaces}


def _means(
    encoder: FrozenEncoder,
    pixels: np.ndarray,
    view: RandomPatches,
    counts: Sequence[int],
    spaces: Sequence[str],
    progress: tqdm.tqdm,
) -> dict[str, np.ndarray]:
    """The means of the first 1, 2, 4, ... patches: space -> float64 [b n d]."""
    parts = {space: [] for space in spaces}
    step = max(1, encoder.chunk // view.count)
    for start in range(0, len(pixels), step):
        numbers = np.arange(start, min(start + step, len(pixels)))
        vectors = encoder.embed_bags(view.cut(pixels[numbers], numbers), spaces)
        for space in spaces:
            sums = np.cumsum(np.asarray(vectors[space]), axis=1, dtype=np.float64)  # [b p d]
            ends = np.array(counts)
            parts[space].append(sums[:, ends - 1] / ends[:, None])  # [b n d]
        progress.update(len(numbers))
    return {space: np.concatenate(part) for space, part in parts.items()}


def _curves(wholes: np.ndarray, means: np.ndarray, *, centered: bool) -> list[dict[str, Any]]:
    """For each size of bag, what a row says of cosines: of wholes [b d] and means [b n d]."""
    if centered:
        wholes, means = wholes - wholes.mean(axis=0), means - means.mean(axis=0)
    cosines = np.einsum('ind,kd->nik', _unit(means), _unit(wholes))  # [n b b]
    own = np.diagonal(cosines, axis1=1, axis2=2)  # [n b]
    other = (cosines.sum(axis=2) - own) / (cosines.shape[2] - 1)
    found = (cosines.argmax(axis=2) == np.arange(cosines.shape[1])).mean(axis=1)
    own_ends, other_ends = mean_intervals(np.stack([own.T, other.T], axis=1)).transpose(1, 2, 0)
    return [
        {
            'own': float(own[i].mean()),
            'own_interval': own_ends[i].tolist(),
            'other': float(other[i].mean()),
            'other_interval': other_ends[i].tolist(),
            'found': float(found[i]),
        }
        for i in range(len(own))
    ]


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)
