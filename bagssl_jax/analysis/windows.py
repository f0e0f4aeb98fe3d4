"""Windows of many images and what encoders make of them: where looks at single patches begin."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import tqdm

from bagssl_jax import processes
from bagssl_jax.data.cut import cut
from bagssl_jax.embedding.encoder import FrozenEncoder

Vectors = dict[tuple[str, str], np.ndarray]  # (encoder, space) -> float32 [b p d]
BATCH = 2048  # patches that are cut at a time, unless an image has more
CHUNK = 128  # patches a forward pass: one program serves all looks, and little of it stays empty


def with_small_chunks(trained: FrozenEncoder, untrained: FrozenEncoder) -> dict[str, FrozenEncoder]:
    """Both encoders by name, with forward passes for the few patches that looks have."""
    devices = trained.mesh.size
    chunk = min(trained.chunk, math.ceil(CHUNK / devices) * devices)
    return {'trained': trained.with_chunk(chunk), 'untrained': untrained.with_chunk(chunk)}


def embed_windows(
    encoders: Mapping[str, FrozenEncoder], pixels: np.ndarray, boxes: np.ndarray
) -> Vectors:
    """Embeds windows of several images.

    Args:
      encoders: by name, of one geometry.
      pixels: uint8 [b h w 3].
      boxes: int [b p 4], or [p 4] for the same of every image: (y, x, height, width), of the
        encoders' geometry.

    Returns:
      h, and where there is a projector z, by every encoder: (encoder, space) -> float32 [b p d].
    """
    first = next(iter(encoders.values()))
    spaces, b, p = spaces_of(first), len(pixels), boxes.shape[-2]
    boxes = np.broadcast_to(boxes, (b, p, 4))
    images = max(1, BATCH // p)  # at a time
    found = {(name, space): [] for name in encoders for space in spaces}
    with tqdm.tqdm(
        total=b,
        desc='patches',
        unit=' images',
        file=sys.stderr,
        leave=False,
        disable=not processes.is_first(),
    ) as progress:
        for start in range(0, b, images):
            part = slice(start, start + images)
            bags = cut(pixels[part], boxes[part], resize=first.geometry.resize)
            for name, encoder in encoders.items():
                vectors = encoder.embed_bags(bags, spaces)
                for space in spaces:
                    found[name, space].append(np.asarray(vectors[space]))
            progress.update(len(bags))
    return {key: np.concatenate(parts) for key, parts in found.items()}


def spaces_of(encoder: FrozenEncoder) -> tuple[str, ...]:
    """The spaces that are compared: h and z, or h alone where there is no projector."""
    return ('h', 'z') if 'z' in encoder.widths else ('h',)


def compared(vectors: Mapping[tuple[str, str], Any]) -> dict[tuple[str, str], str]:
    """Which of the (encoder, space) are drawn beside each other, and what each is called.

    h and z of the trained encoder; or where there is no projector, h of both encoders.
    """
    if ('trained', 'z') in vectors:
        return {('trained', 'h'): 'h', ('trained', 'z'): 'z'}
    return {('trained', 'h'): 'h', ('untrained', 'h'): 'h, untrained'}


def notes_of(encoder: FrozenEncoder) -> tuple[str, ...]:
    """What is said where z cannot be looked at."""
    return () if 'z' in encoder.widths else ('h alone: the encoder has no z',)


def dense_boxes(encoder: FrozenEncoder, shape: tuple[int, int], *, most: int) -> np.ndarray:
    """A dense grid of windows that reaches the edges of an image.

    They lie an eighth of their side apart, or as much more as `most` asks for, and alike in both
    directions, as far as whole pixels allow.

    Args:
      encoder: of whose geometry they are.
      shape: (height, width) of the image.
      most: windows, 1 or more.

    Returns:
      int [rows columns 4].
    """
    side = encoder.geometry.side(*shape)
    rooms = shape[0] - side, shape[1] - side
    step = max(1.0, side / 8)
    while (rooms[0] // step + 1) * (rooms[1] // step + 1) > most:
        step *= 1.02
    axes = [np.linspace(0, 1, int(room // step) + 1) if room else [0.5] for room in rooms]
    places = np.stack(np.meshgrid(*axes, indexing='ij'), axis=-1)  # [rows columns 2]
    boxes = encoder.geometry.boxes_at(places.reshape(-1, 2), *shape)
    return boxes.reshape(*places.shape[:2], 4)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [... d] at length 1; zeros stay."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def center_of(vectors: np.ndarray) -> np.ndarray:
    """The mean of vectors [b p d] at unit length: [d]."""
    return unit(vectors).mean(axis=(0, 1), dtype=np.float64).astype(np.float32)


def centered(vectors: np.ndarray, center: np.ndarray) -> np.ndarray:
    """Vectors [... d] at unit length, less the center [d], at unit length again.

    Their inner products are cosines around the mean of a data set, where those of patches of
    different images are about 0; plain ones of an untrained network are all near 1.
    """
    return unit(unit(vectors) - np.expand_dims(center, tuple(range(vectors.ndim - 1))))
