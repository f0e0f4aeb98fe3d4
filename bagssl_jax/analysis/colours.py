"""Places of photographs in colours: the first three components of their embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from bagssl_jax.analysis import drawing
from bagssl_jax.analysis.look import Picture
from bagssl_jax.analysis.planes import principal_components
from bagssl_jax.analysis.windows import compared, embed_windows, unit
from bagssl_jax.embedding.encoder import FrozenEncoder

EDGES = 2, 98  # percentiles of a component that reach the ends of its colours


def paint(
    encoders: Mapping[str, FrozenEncoder], pixels: np.ndarray, boxes: np.ndarray, *, seed: int
) -> tuple[list[dict[str, Any]], Picture]:
    """Colours every place of some photographs by its embedding.

    Args:
      encoders: by name, of the places.
      pixels: of the photographs, uint8 [b h w 3].
      boxes: the places, int [rows columns 4].
      seed: of the components, where they are not computed exactly.

    Returns:
      A row for each encoder and space: 'part' ('colours'), 'encoder', 'space', 'variance' (the
      shares of the first three components), 'images', 'patches' (of each); and the picture.
    """
    rows, painted = [], {}
    vectors = embed_windows(encoders, pixels, boxes.reshape(-1, 4))
    names = compared(vectors)
    for (name, space), own in vectors.items():
        flat = unit(own).reshape(-1, own.shape[-1])  # [b p d] -> [n d]
        components, shares = principal_components(flat, 3, seed=seed)
        if (name, space) in names:
            shape = len(pixels), *boxes.shape[:2], 3
            painted[names[name, space]] = colours_of(components).reshape(shape)
        rows.append(
            {
                'part': 'colours',
                'encoder': name,
                'space': space,
                'variance': shares.tolist(),
                'images': len(pixels),
                'patches': int(np.prod(boxes.shape[:2])),
            }
        )
    return rows, _picture(pixels, boxes, painted, rows)


def colours_of(components: np.ndarray) -> np.ndarray:
    """Three components [n 3] as colours in [0, 1]: float32 [n 3].

    In CIELAB: the first is the lightness, the second runs from blue to yellow, the third from green
    to red. So those who cannot tell green from red lose the third alone.
    """
    low, high = np.percentile(components, EDGES, axis=0)
    share = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    lightness, yellow, red = share.T
    lab = np.stack([25 + 65 * lightness, 100 * (red - 0.5), 100 * (yellow - 0.5)], axis=-1)
    return np.clip(cv2.cvtColor(lab[None].astype(np.float32), cv2.COLOR_LAB2RGB)[0], 0, 1)


def _picture(
    pixels: np.ndarray,
    boxes: np.ndarray,
    painted: Mapping[str, np.ndarray],
    rows: Sequence[Mapping[str, Any]],
) -> Picture:
    figure = drawing.photographs(len(pixels), 1 + len(painted), pixels.shape[1:3], below=0.02)
    grid = np.reshape(figure.axes, (len(pixels), -1))
    for i, row in enumerate(grid):
        drawing.panel(row[0], pixels[i])
        for axes, colours in zip(row[1:], painted.values(), strict=True):
            drawing.lay_over(axes, pixels[i], boxes, colours[i])
    for axes, title in zip(grid[0], ('photograph', *painted), strict=True):
        axes.set_title(title, fontsize=9)
    shares = ', '.join(
        f'{sum(row["variance"]):.0%} of {row["space"]} {row["encoder"]}' for row in rows
    )
    return Picture(
        figure,
        alt=(
            f'{len(pixels)} photographs, every place of which is coloured by the first three '
            'principal components of the embedding of the patch around it. They are, of the '
            f'variance, {shares}.'
        ),
        caption=(
            'Places of one colour have like embeddings, in all photographs of a column: the first '
            'component is the lightness, the second runs from blue to yellow, the third from green '
            'to red.'
        ),
    )
