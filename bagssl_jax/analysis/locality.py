"""Locality: how alike a patch and the places around it are.

BagSSL (arXiv 2206.08954) finds that the embedding h keeps locality and that the projection z is
more invariant: with the distance between two patches of an image, their similarity should then
fall more in h than in z.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter

from bagssl_jax.analysis import drawing, heat_maps
from bagssl_jax.analysis.bootstrap import mean_intervals
from bagssl_jax.analysis.look import Inapplicable, Look, Picture
from bagssl_jax.analysis.queries import chosen_queries, drawn_queries
from bagssl_jax.analysis.sample import take_sample
from bagssl_jax.analysis.windows import (
    center_of,
    centered,
    dense_boxes,
    embed_windows,
    notes_of,
    with_small_chunks,
)
from bagssl_jax.data.datasets import Images
from bagssl_jax.embedding.encoder import FrozenEncoder

REFERENCES = 1000  # patches of other images, which similarities are ranked among, at most
BIN = 0.25  # of distances, in patch sides
LEAST = 1 / REFERENCES  # share of patches that is drawn
SHARES = 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5  # beside the axis


def look(
    trained: FrozenEncoder,
    untrained: FrozenEncoder,
    images: Images,
    *,
    seed: int,
    on_error: str,
    max_images: int,
    windows: int,
    shown: int,
    shown_windows: int,
    chosen: Sequence[int],
) -> Look:
    """How alike the windows of one image are, by the distance between them.

    Args:
      trained, untrained: encoders of one geometry, which is that of the windows.
      images: of one size.
      seed: of the choice of images and patches.
      on_error: 'stop' at an unreadable image, or 'skip' it.
      max_images: that the numbers are of, drawn at random where there are more.
      windows: of each of them, at most, on a dense grid.
      shown: patches, drawn at random, of which heat maps are made.
      shown_windows: of an image in a heat map, at most.
      chosen: of the patches of the heat maps, instead: as in `windows.chosen_queries`.

    Returns:
      Rows as in `by_distance` and `summary`, and the figures 'maps' and 'distance'.

    Raises:
      Inapplicable: there are fewer than two images, or patches are as large as images.
      InputError: an image cannot be read, or `chosen` is not of these images.
    """
    boxes = dense_boxes(trained, images.image_shape, most=windows).reshape(-1, 4)
    distance = distances(boxes)
    if len(boxes) == 1:
        raise Inapplicable('the patches are as large as the images, which have one place for them')
    sample = take_sample(images, max_images, seed=seed, on_error=on_error)
    if len(sample.pixels) < 2:
        raise Inapplicable(f'{images.title} has one image, and others are needed to compare with')
    if chosen:
        key = 'analysis.locality.chosen'
        queries = chosen_queries(chosen, images, sample, trained, key=key)
    else:
        queries = drawn_queries(sample, boxes, shown, seed=seed)
    encoders = with_small_chunks(trained, untrained)
    vectors = embed_windows(encoders, sample.pixels, boxes)
    centers = {key: center_of(own) for key, own in vectors.items()}
    ranks = {key: ranks_of(centered(own, centers[key]), seed=seed) for key, own in vectors.items()}
    short, rows = summary(ranks, distance), by_distance(ranks, distance)
    maps = heat_maps.compare(
        queries,
        sample,
        encoders,
        centers,
        dense_boxes(trained, images.image_shape, most=shown_windows),
        seed=seed,
    )
    return Look(
        rows=short + rows,
        table=table(short),
        figures={'maps': heat_maps.picture(maps), 'distance': _picture(rows, short)},
        notes=notes_of(trained),
    )


def ranks_of(vectors: np.ndarray, *, seed: int) -> np.ndarray:
    """How alike the windows of each image are, as ranks among the patches of other images.

    The rank of windows a and b of one image is the share of patches of other images that are less
    like a than b is (of equally alike ones, half): 1 where none is more alike, 0.5 where b is to a
    as any other patch, and in a collapsed space, whose patches are all alike. Cosines of two
    networks, or of spaces of different width, do not mean the same; ranks do: whatever stretches or
    bends all similarities of a space leaves them as they are.

    Args:
      vectors: float [b p d], of unit length; b >= 2.
      seed: of the choice of `REFERENCES` patches, which all windows are compared with, but for
        those of the same image.

    Returns:
      float32 [b p p], in [0, 1].
    """
    b, p, d = vectors.shape
    flat = vectors.reshape(-1, d)  # [b p d] -> [n d]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(flat))[:REFERENCES])
    ranks = np.empty((b, p, p), np.float32)
    for i, own in enumerate(vectors):
        others = flat[chosen[chosen // p != i]]
        cosines = np.sort(own @ others.T, axis=1)  # [p r]
        for a, similarity in enumerate(own @ own.T):
            below, above = (
                np.searchsorted(cosines[a], similarity, side) for side in ('left', 'right')
            )
            ranks[i, a] = (below + above) / (2 * len(others))
    return ranks


def distances(boxes: np.ndarray) -> np.ndarray:
    """Between the centers of equal square boxes [p 4], in their sides: float [p p].

    The vertical or the horizontal distance, whichever is larger: from 1 on, two windows share no
    pixel.
    """
    corners = boxes[:, :2]
    return np.abs(corners[:, None] - corners[None]).max(axis=-1) / boxes[0, 2]


def by_distance(
    ranks: Mapping[tuple[str, str], np.ndarray], distance: np.ndarray
) -> list[dict[str, Any]]:
    """The mean rank of windows that lie so far apart.

    Args:
      ranks: of each encoder and space, [b p p].
      distance: between the windows, [p p].

    Returns:
      A row for every encoder, space and `BIN` of distances: 'part' ('distance'), 'encoder',
      'space', 'distance' (the mean, in patch sides), 'rank', 'interval' (of 95%, over images, by
      the bootstrap), 'images', 'windows' (of each).
    """
    bins = np.rint(distance / BIN)
    rows = []
    for (name, space), rank in ranks.items():
        for place in np.unique(bins[distance > 0]):
            pairs = (bins == place) & (distance > 0)
            of_images = rank[:, pairs].mean(axis=1, dtype=np.float64)
            rows.append(
                {
                    'part': 'distance',
                    'encoder': name,
                    'space': space,
                    'distance': float(distance[pairs].mean()),
                    'rank': float(of_images.mean()),
                    'interval': mean_intervals(of_images).tolist(),
                    'images': len(rank),
                    'windows': len(distance),
                }
            )
    return rows


def summary(
    ranks: Mapping[tuple[str, str], np.ndarray], distance: np.ndarray
) -> list[dict[str, Any]]:
    """The fall of similarity in a few numbers, and whether it is another in z than in h.

    Returns:
      Rows with 'part' ('summary'), 'encoder', 'space', 'overlapping' (the mean rank of different
      windows that share pixels), 'apart' (of those that share none; None where there are none),
      'fall' (from the one to the other) and their '..._interval', as in `by_distance`, 'images';
      and where there is z, for each encoder one whose 'space' is 'z-h', with the differences,
      image by image.
    """
    near, far = (distance > 0) & (distance < 1), distance >= 1
    rows, found = [], {}
    for (name, space), rank in ranks.items():
        values = {
            'overlapping': rank[:, near].mean(axis=1, dtype=np.float64) if near.any() else None,
            'apart': rank[:, far].mean(axis=1, dtype=np.float64) if far.any() else None,
        }
        both = near.any() and far.any()
        values['fall'] = values['overlapping'] - values['apart'] if both else None
        found[name, space] = values
        rows.append(_summary_row(name, space, values, len(rank)))
    for name in dict.fromkeys(name for name, _ in ranks):
        if (name, 'z') in found:
            h, z = found[name, 'h'], found[name, 'z']
            values = {key: None if h[key] is None else z[key] - h[key] for key in h}
            rows.append(_summary_row(name, 'z-h', values, len(ranks[name, 'z'])))
    return rows


def _summary_row(
    encoder: str, space: str, values: Mapping[str, np.ndarray | None], images: int
) -> dict[str, Any]:
    row = {'part': 'summary', 'encoder': encoder, 'space': space}
    for key, of_images in values.items():
        row[key] = None if of_images is None else float(of_images.mean())
        row[f'{key}_interval'] = None if of_images is None else mean_intervals(of_images).tolist()
    return {**row, 'images': images}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `summary`."""
    lines = [
        f'share of the patches of other images that are less alike than windows of an image are, '
        f'{rows[0]["images"]} images',
        f'{"encoder":<11}{"space":<7}{"overlapping":>25}{"apart":>25}{"fall":>25}',
    ]
    for row in rows:
        cells = [_with_interval(row, key) for key in ('overlapping', 'apart', 'fall')]
        lines.append(
            f'{row["encoder"]:<11}{row["space"]:<7}' + ''.join(f'{cell:>25}' for cell in cells)
        )
    return '\n'.join(lines)


def _with_interval(row: Mapping[str, Any], key: str) -> str:
    """'0.937 [0.921, 0.951]', or '' where there is none."""
    if row[key] is None:
        return ''
    low, high = row[f'{key}_interval']
    return f'{row[key]:.3f} [{low:.3f}, {high:.3f}]'


def _picture(rows: Sequence[Mapping[str, Any]], short: Sequence[Mapping[str, Any]]) -> Picture:
    """Rank against distance: a line for each encoder and space."""
    figure, [axes] = drawing.chart(5, 3.6)
    for (name, space), style in drawing.STYLES.items():
        points = [row for row in rows if (row['encoder'], row['space']) == (name, space)]
        if not points:
            continue
        distance = [row['distance'] for row in points]
        more = [max(LEAST, 1 - row['rank']) for row in points]
        ends = np.maximum(LEAST, 1 - np.transpose([row['interval'] for row in points]))
        axes.plot(distance, more, **style, ms=4, label=f'{space}, {name}')
        axes.fill_between(distance, *ends, color=style['color'], alpha=0.15, linewidth=0)
    axes.axhline(0.5, color='0.6', linewidth=0.8, zorder=0)
    axes.set_yscale('log')
    least = max(LEAST, min(1 - row['interval'][1] for row in rows))
    axes.set_ylim(0.8, least / 1.3)
    axes.set_xlim(left=0)
    texts = [('50%: as any patch of another image', (0, 0.5), (4, -2), 'top')]
    if axes.get_xlim()[1] > 1:
        axes.vlines(1, least / 1.3, 0.5, color='0.6', linewidth=0.8, zorder=0)
        texts.append(('no pixel in common', (1, least / 1.3), (4, -1), 'top'))
    for text, place, offset, side in texts:
        axes.annotate(
            text,
            place,
            xytext=offset,
            textcoords='offset points',
            va=side,
            fontsize=drawing.SMALL,
            color='0.35',
        )
    axes.set_xlabel('distance of two windows of an image (patch sides)', fontsize=9)
    axes.set_ylabel('patches of other images\nthat are more alike', fontsize=9)
    axes.set_yticks([share for share in SHARES if share >= least / 1.3])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f'{100 * share:g}%'))
    axes.minorticks_off()
    figure.legend(loc='outside lower center', ncols=4, frameon=False, fontsize=drawing.SMALL)
    ends = '; '.join(
        f'{row["encoder"]} {row["space"]}: {row["overlapping"]:.3f} of windows that overlap'
        + (f', {row["apart"]:.3f} of those that do not' if row['apart'] is not None else '')
        for row in short
        if row['space'] != 'z-h' and row['overlapping'] is not None
    )
    return Picture(
        figure,
        alt=f'Share of the patches of other images that are less alike, by distance. {ends}.',
        caption=(
            'How many patches of other images are more alike to a window than a window of its own '
            'image at a distance is: a steeper fall is more locality, a higher line more '
            'invariance; bands are 95% intervals over images.'
        ),
    )
