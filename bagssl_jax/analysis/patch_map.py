"""Maps: the patches of a data set in the plane, and the places of photographs in colours."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from bagssl_jax.analysis import colours, drawing
from bagssl_jax.analysis.bootstrap import mean_intervals
from bagssl_jax.analysis.look import Inapplicable, Look, Picture
from bagssl_jax.analysis.planes import METHODS, principal_components, trustworthiness
from bagssl_jax.analysis.queries import drawn_queries
from bagssl_jax.analysis.sample import take_sample
from bagssl_jax.analysis.windows import (
    dense_boxes,
    embed_windows,
    notes_of,
    unit,
    with_small_chunks,
)
from bagssl_jax.data.cut import resized
from bagssl_jax.data.datasets import Images
from bagssl_jax.embedding.encoder import FrozenEncoder
from bagssl_jax.errors import check_known
from bagssl_jax.progress import waiting

THUMBNAIL, GAP = 30, 1  # pixels
NEIGHBOURS = 10  # of a patch, that should be so in the map


def look(
    trained: FrozenEncoder,
    untrained: FrozenEncoder,
    images: Images,
    *,
    seed: int,
    on_error: str,
    method: str,
    max_images: int,
    patches: int,
    cells: int,
    shown: int,
    shown_windows: int,
) -> Look:
    """Draws patches where their embeddings lie in two dimensions, and places in colours by three.

    Args:
      trained, untrained: encoders of one geometry, which is that of the patches.
      images: of one size.
      seed: of the choice of images, and of the projection.
      on_error: 'stop' at an unreadable image, or 'skip' it.
      method: one of `METHODS`, of the map.
      max_images: whose patches are in the map, drawn at random where there are more.
      patches: of each of them, on a grid.
      cells: along a side of the map; each has one thumbnail at most.
      shown: photographs that are coloured.
      shown_windows: of each, at most.

    Returns:
      Rows as in `described` and `colours.paint`, and the figures 'h', 'z' and 'colours'.

    Raises:
      Inapplicable: there are too few patches for a map.
      InputError: the method is unknown or what it needs is not installed, or an image cannot be
        read.
    """
    check_known('analysis.map.method', method, METHODS)
    sample = take_sample(images, max_images, seed=seed, on_error=on_error)
    if len(sample.pixels) * patches < 20:
        raise Inapplicable(f'{images.title} has too few patches for a map')
    boxes = trained.geometry.grid_boxes(*images.image_shape, patches)
    encoders = with_small_chunks(trained, untrained)
    vectors = embed_windows(encoders, sample.pixels, boxes)
    rows, figures = [], {}
    for (name, space), own in vectors.items():
        points = unit(own).reshape(-1, own.shape[-1])  # [b p d] -> [n d]
        with waiting(f'placing {len(points):,} patches in a plane by {method}'):
            plane = METHODS[method](points, seed)
        rows.append(
            {
                'part': 'map',
                'encoder': name,
                'space': space,
                'method': method,
                **described(unit(own), plane, seed=seed),
            }
        )
        if name == 'trained':
            figures[space] = _picture(plane, sample.pixels, boxes, cells, rows[-1])
    dense = dense_boxes(trained, images.image_shape, most=shown_windows)
    chosen = [query.image for query in drawn_queries(sample, boxes, shown, seed=seed)]
    painted, figures['colours'] = colours.paint(encoders, sample.pixels[chosen], dense, seed=seed)
    return Look(rows + painted, table(rows), figures, notes_of(trained))


def described(vectors: np.ndarray, plane: np.ndarray, *, seed: int) -> dict[str, Any]:
    """What a row says of embeddings of patches [b p d], and of their places in a plane [b p, 2].

    Returns:
      'within' (the share of the embeddings' variance that lies within images, not between them: 1
      where patches of an image have no more in common than any) and 'within_interval' (of 95%,
      over images, by the bootstrap); both None of one patch an image; 'variance' (the shares of
      the first three principal components), 'trustworthiness' (of the plane, as in `planes`),
      'images', 'patches' (of each).
    """
    b, p, d = vectors.shape
    flat = vectors.reshape(-1, d)
    total = flat.var(axis=0, dtype=np.float64).sum()
    found = {'within': None, 'within_interval': None}
    if p > 1:
        within = vectors.var(axis=1, ddof=1, dtype=np.float64).sum(axis=-1) / max(total, 1e-12)
        found = {'within': float(within.mean()), 'within_interval': mean_intervals(within).tolist()}
    return {
        **found,
        'variance': principal_components(flat, 3, seed=seed)[1].tolist(),
        'trustworthiness': trustworthiness(flat, plane, NEIGHBOURS),
        'images': b,
        'patches': p,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each encoder and space."""
    first = rows[0]
    lines = [
        f'{first["patches"]} patches of {first["images"]} images, by {first["method"]}: share of '
        'the variance that is within images,',
        'and of the first components; how far neighbours in the map are true ones (random: 0.5)',
        f'{"encoder":<11}{"space":<7}{"within images":>24}{"first two":>12}{"first three":>13}'
        f'{"true":>8}',
    ]
    for row in rows:
        within = ''
        if row['within'] is not None:
            low, high = row['within_interval']
            within = f'{row["within"]:.3f} [{low:.3f}, {high:.3f}]'
        lines.append(
            f'{row["encoder"]:<11}{row["space"]:<7}{within:>24}{sum(row["variance"][:2]):>12.3f}'
            f'{sum(row["variance"]):>13.3f}{row["trustworthiness"]:>8.3f}'
        )
    return '\n'.join(lines)


def cells_of(plane: np.ndarray, across: int) -> tuple[np.ndarray, np.ndarray]:
    """Which points of a plane are drawn in a square of cells, and where.

    Points are placed by their ranks in both coordinates: where half of all points lie close
    together, these have half of the square. Of the points in a cell the one nearest to its center
    is drawn, so that none lie over others.

    Args:
      plane: float [n 2].
      across: cells along a side.

    Returns:
      int [m], the points that are drawn; int [m 2], the row and column of each. The first
      coordinate runs to the right, the second upwards.
    """
    ranks = np.argsort(np.argsort(plane, axis=0, kind='stable'), axis=0)
    place = (ranks + 0.5) / len(plane) * across  # [n 2]
    cell = np.floor(place).astype(int)
    off_center = np.abs(place - cell - 0.5).max(axis=1)
    order = np.argsort(off_center, kind='stable')
    _, first = np.unique(cell[order] @ [1, across], return_index=True)
    drawn = order[first]
    return drawn, np.stack([across - 1 - cell[drawn, 1], cell[drawn, 0]], axis=1)


def _picture(
    plane: np.ndarray,
    pixels: np.ndarray,
    boxes: np.ndarray,
    cells: int,
    row: Mapping[str, Any],
) -> Picture:
    """The patches where they lie in the plane."""
    drawn, places = cells_of(plane, cells)
    side = THUMBNAIL + GAP
    canvas = np.full((cells * side, cells * side, 3), 255, np.uint8)
    for number, (i, j) in zip(drawn.tolist(), places.tolist(), strict=True):
        y, x, height, width = boxes[number % len(boxes)]
        patch = pixels[number // len(boxes), y : y + height, x : x + width]
        top, left = i * side, j * side
        canvas[top : top + THUMBNAIL, left : left + THUMBNAIL] = resized(
            patch, THUMBNAIL, THUMBNAIL
        )
    figure = Figure(figsize=(5, 5), dpi=drawing.DPI, layout='constrained')
    axes = figure.subplots()
    drawing.panel(axes, canvas)
    names = ('UMAP 1', 'UMAP 2')
    if row['method'] == 'pca':
        names = [f'component {i + 1} ({row["variance"][i]:.0%} of the variance)' for i in (0, 1)]
    axes.set_xlabel(names[0], fontsize=drawing.SMALL)
    axes.set_ylabel(names[1], fontsize=drawing.SMALL)
    return Picture(
        figure,
        alt=(
            f'{len(drawn)} of {len(plane)} patches where their embeddings {row["space"]} lie in '
            f'two dimensions, by {row["method"]}.'
        ),
        caption=(
            f'Patches that lie close to each other have like embeddings {row["space"]}; they are '
            'in the order of both coordinates, spread evenly, and of several in one place one is '
            'drawn.'
        ),
    )
