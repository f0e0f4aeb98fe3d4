"""Pictures of neighbours: the patches themselves, and of what image and class they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import PercentFormatter

from bagssl_jax.analysis import drawing
from bagssl_jax.analysis.look import Picture
from bagssl_jax.analysis.queries import Query
from bagssl_jax.analysis.sample import Sample

AROUND = 3  # sides of a patch: what of an image is drawn around it, if there is as much


def of_patches(
    queries: Sequence[Query], nearest: Mapping[str, np.ndarray], sample: Sample, boxes: np.ndarray
) -> Picture:
    """Each query, and beside it a row of its neighbours in each space.

    Args:
      queries: the patches.
      nearest: space -> int [q k], as `neighbours.Search.nearest` gives them.
      sample: the images that were searched.
      boxes: int [p 4], of the patches of each.
    """
    spaces = list(nearest)
    s, k, p = len(spaces), nearest['h'].shape[1], len(boxes)
    tile = 5 / (s + k + 0.45)
    size = 5, tile * (s + 0.15) * len(queries) + 0.55
    figure = Figure(figsize=size, dpi=drawing.DPI)
    bottom, top = 0.3 / size[1], 1 - 0.25 / size[1]
    blocks = figure.add_gridspec(
        len(queries), 1, left=0.005, right=0.995, bottom=bottom, top=top, hspace=0.15 / s
    )
    labelled = sample.labels.max() >= 0
    for n, query in enumerate(queries):
        left, right = blocks[n].subgridspec(1, 2, width_ratios=(s, k), wspace=0.45 / (s + k) * 2)
        axes = figure.add_subplot(left)
        _tile(axes, query.pixels, query.box)
        if n == 0:
            axes.set_title('patch', fontsize=9)
        grid = right.subgridspec(s, k, wspace=0.06, hspace=0.06)
        for row, (space, found) in enumerate(nearest.items()):
            for column, number in enumerate(found[n].tolist()):
                image = number // p
                axes = figure.add_subplot(grid[row, column])
                _tile(axes, sample.pixels[image], boxes[number % p])
                if image == query.image:
                    _frame(axes, drawing.ORANGE)
                elif labelled and sample.labels[image] == query.label:
                    _frame(axes, drawing.BLUE)
                if column == 0:
                    axes.set_ylabel(space, rotation=0, fontsize=10, labelpad=8, va='center')
                if n == row == 0 and column == k // 2:
                    axes.set_title(f'nearest {k}, the nearest first', fontsize=9)
    handles = [Patch(color=drawing.ORANGE, label="of the patch's own image")]
    if labelled:
        handles.append(Patch(color=drawing.BLUE, label='of its class'))
    figure.legend(
        handles=handles, loc='lower center', ncols=2, frameon=False, fontsize=drawing.SMALL
    )
    counts = []
    for space, found in nearest.items():
        images = found // p  # [q k]
        is_own = images == np.array([[query.image] for query in queries])
        counts.append(f'{space}: {is_own.sum()} of the own image')
        if labelled:
            same = sample.labels[images] == np.array([[query.label] for query in queries])
            counts[-1] += f', {(same & ~is_own).sum()} of the own class in other images'
    return Picture(
        figure,
        alt=(
            f'{len(queries)} patch{"es" if len(queries) > 1 else ""}, and the {k} nearest in '
            f'{" and in ".join(spaces)}, bright in their images. Of {k * len(queries)} neighbours '
            f'in {"; in ".join(counts)}.'
        ),
        caption=(
            'Left a patch, bright in its image; right the patches of the data set that are nearest '
            'to it: look for what they share with it, the same pattern and place, or the same '
            'thing in another form.'
        ),
    )


def _tile(axes: Axes, pixels: np.ndarray, box: np.ndarray) -> None:
    """A patch, bright, in the part of its image that is around it."""
    y, x, side = drawing.surroundings(pixels, box, AROUND)
    inside = box - [y, x, 0, 0]
    drawing.panel(axes, drawing.dimmed(pixels[y : y + side, x : x + side], inside))
    top, left, height, width = inside  # a line, as the dark ones of dark images are hard to see
    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor='white', lw=0.5))


def _frame(axes: Axes, color: str) -> None:
    for spine in axes.spines.values():
        spine.set(visible=True, color=color, linewidth=1.4)


def of_shares(rows: Sequence[Mapping[str, Any]]) -> Picture:
    """The rows of `neighbours.shares` as points with intervals, beside chance."""
    kinds = list(dict.fromkeys(row['of'] for row in rows))
    titles = {'image': 'of the own image', 'class': 'of the own class,\nin other images'}
    lines = list(dict.fromkeys((row['encoder'], row['space']) for row in rows))
    figure, every = drawing.chart(5, 0.95 + 0.27 * len(lines), len(kinds))
    for axes, of in zip(every, kinds, strict=True):
        shown = [row for row in rows if row['of'] == of]
        for row in shown:
            y = -lines.index((row['encoder'], row['space']))
            color = drawing.STYLES[row['encoder'], row['space']]['color']
            filled = color if row['encoder'] == 'trained' else 'white'
            axes.plot(row['interval'], [y, y], color=color, linewidth=1.5)
            axes.plot(row['share'], y, 'o', color=color, mfc=filled, ms=5)
        chance = np.mean([row['chance'] for row in shown])
        axes.axvline(chance, color='0.6', linestyle='--', linewidth=0.8, zorder=0)
        axes.set_title(titles[of], fontsize=9)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_yticks([-y for y in range(len(lines))], [f'{s}, {e}' for e, s in lines])
        axes.set_ylim(0.5 - len(lines), 0.5)
    figure.supxlabel(f'share of the {rows[0]["neighbours"]} nearest (dashed: chance)', fontsize=9)
    said = '; '.join(
        f'{row["encoder"]} {row["space"]} {row["share"]:.1%} of the own {row["of"]} (chance '
        f'{100 * row["chance"]:.2g}%)'
        for row in rows
    )
    return Picture(
        figure,
        alt=f'Shares of nearest patches. {said}.',
        caption=(
            'How many of the nearest patches are of the same image, and of the same class '
            'elsewhere, with 95% intervals over images: what goes together has been learned where '
            'they are far to the right of chance and of the untrained encoder.'
        ),
    )
