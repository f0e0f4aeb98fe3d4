"""Aggregation: ways to make one vector of an image, compared by the classes that they tell apart.

BagSSL (arXiv 2206.08954) finds that averaging patch embeddings improves encoders that were trained
on crops of many scales, whose published accuracies are those of a single center crop.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from bagssl_jax.analysis.accuracy import PROBES, Splits, Taken, patch_sizes, score_taken
from bagssl_jax.analysis.look import Look, Picture
from bagssl_jax.data.datasets import Images
from bagssl_jax.data.views import Center, Whole
from bagssl_jax.embedding.bags import AGGREGATIONS, grid_layout, single_layout
from bagssl_jax.embedding.encoder import FrozenEncoder
from bagssl_jax.errors import check_known

COLORS = {'trained': '#2171b5', 'untrained': '0.55'}
WORDS = {
    'mean': 'mean',
    'mean_unit': 'mean at unit length',
    'grid2': '2x2 means',
    'grid4': '4x4 means',
}


def look(
    trained: FrozenEncoder,
    untrained: FrozenEncoder,
    images: Images,
    *,
    test: Images,
    seed: int,
    on_error: str,
    max_train: int,
    max_test: int,
    scales: Sequence[float],
    patches: int,
    aggregations: Sequence[str],
    probes: Sequence[str],
    resize: bool,
) -> Look:
    """Probes center crops, whole images, and bags of patches aggregated in several ways.

    The protocol and its arguments are those of `scales.look`, but for:

    Args:
      scales: shares of the image's area that patches have, beside the run's own patches.
      patches: of a bag, on a grid.
      aggregations: of `embedding.bags.AGGREGATIONS`.

    Returns:
      The rows of `accuracy.score_taken`, with 'view' ('center', 'whole' or 'bag') and 'side' (of
      the patches, in pixels; None of whole images and center crops).

    Raises:
      InputError: as for `scales.look`, an unknown aggregation, or fewer patches than cells.
    """
    for name in aggregations:
        check_known('analysis.aggregation.aggregations', name, AGGREGATIONS)
    shape = images.image_shape
    views = {'center': Center(*shape), 'whole': Whole(*shape)}
    taken = [
        Taken(single_layout(view), shape[0] * shape[1], {'view': name, 'side': None})
        for name, view in views.items()
    ]
    for side, geometry in patch_sizes(trained.geometry, scales, shape, resize=resize).items():
        layout = grid_layout(geometry, (patches,), aggregations)
        about = {'view': 'bag', 'side': side}
        taken.append(Taken(layout, (geometry.resize or side) ** 2, about))
    rows = score_taken(
        {'trained': trained, 'untrained': untrained},
        Splits(images, test).part(max_train, max_test, seed=seed),
        taken,
        probes=probes,
        seed=seed,
        on_error=on_error,
        title='aggregation',
    )
    return Look(rows, table(rows), {'accuracy': _picture(rows)})


def _name(row: Mapping[str, Any]) -> str:
    if row['view'] != 'bag':
        return {'center': 'center crop', 'whole': 'whole image'}[row['view']]
    return f'{row["side"]} px: {WORDS[row["aggregation"]]}'


def _grouped(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[tuple[str, str], dict]]:
    """Name -> (encoder, probe) -> row."""
    found = {}
    for row in rows:
        found.setdefault(_name(row), {})[row['encoder'], row['probe']] = row
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each way, a column for each encoder and probe."""
    found = _grouped(rows)
    columns = list(dict.fromkeys((row['encoder'], row['probe']) for row in rows))
    lines = [
        f'top-1 on {rows[0]["n_test"]:,} test images, {rows[0]["n_train"]:,} to train on; bags of '
        f'{rows[-1]["patches"]} patches',
        f'{"":<27}' + ''.join(f'{" ".join(column):>18}' for column in columns),
    ]
    for name, row in found.items():
        cells = (f'{row[column]["top1"]:>18.3f}' for column in columns)
        lines.append(f'{name:<27}' + ''.join(cells))
    return '\n'.join(lines)


def _picture(rows: Sequence[Mapping[str, Any]]) -> Picture:
    said = [
        f'{name}: '
        + ', '.join(
            f'{encoder} {PROBES[probe]} {100 * row["top1"]:.0f}%'
            for (encoder, probe), row in ways.items()
        )
        for name, ways in _grouped(rows).items()
    ]
    return Picture(
        _figure(rows),
        alt=f'Accuracy of several ways to represent an image. {"; ".join(said)}.',
        caption=(
            f'Further right is better: bags of {rows[-1]["patches"]} patches, of the side that '
            "stands before the colon, help where their point lies right of the center crop's by "
            'more than the bars, which are 95% intervals.'
        ),
    )


def _figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """A panel for each probe, a line for each way; colour stands for the encoder."""
    ways = _grouped(rows)
    probes = list(dict.fromkeys(row['probe'] for row in rows))
    size = 2.3 + 2.3 * len(probes), 1.3 + 0.32 * len(ways)
    figure = Figure(figsize=size, dpi=150, layout='constrained')
    grid = figure.subplots(1, len(probes), sharex=True, sharey=True, squeeze=False)[0]
    for axes, probe in zip(grid, probes, strict=True):
        for encoder, color in COLORS.items():
            points = [of_way[encoder, probe] for of_way in ways.values()]
            top1 = [100 * row['top1'] for row in points]
            low, high = zip(*(row['interval'] for row in points), strict=True)
            errors = [
                [y - 100 * end for y, end in zip(top1, low, strict=True)],
                [100 * end - y for y, end in zip(top1, high, strict=True)],
            ]
            axes.errorbar(
                top1,
                range(len(ways)),
                xerr=errors,
                fmt='o',
                color=color,
                markersize=5,
                elinewidth=1.2,
                label=encoder,
            )
        axes.set_title(PROBES[probe], fontsize=10)
        axes.set_yticks(range(len(ways)), list(ways))
        axes.grid(axis='x', color='0.92')
        axes.spines[['top', 'right']].set_visible(False)
    grid[0].invert_yaxis()
    figure.supxlabel('top-1 accuracy (%)', fontsize=10)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside upper center', ncols=2, frameon=False, fontsize=9)
    return figure
