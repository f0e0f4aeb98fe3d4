"""Scales: how well bags tell classes apart, against the size of their patches and their number."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from bagssl_jax.analysis.accuracy import PROBES, Splits, Taken, patch_sizes, score_taken
from bagssl_jax.analysis.look import Look, Picture
from bagssl_jax.data.datasets import Images
from bagssl_jax.data.views import Whole
from bagssl_jax.embedding.bags import grid_layout, single_layout
from bagssl_jax.embedding.encoder import FrozenEncoder

COLORS = ('#9ecae1', '#5aa2cf', '#2171b5', '#08478f', '#041f4a')  # of bags; more patches are darker


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
    patches: Sequence[int],
    probes: Sequence[str],
    resize: bool,
) -> Look:
    """Probes means of patches of several sizes, on grids, and whole images beside them.

    This is the probe program's protocol, of a sample of the images: its rows are as good as those
    of results.json, but of fewer images, so that they are not kept there.

    Args:
      trained, untrained: the encoders, of one geometry.
      images: with labels, of one size; to learn from.
      test: likewise; to be scored on.
      seed: of the sample.
      on_error: 'stop' at an unreadable image, or 'skip' it.
      max_train, max_test: images of each split at most, drawn at random.
      scales: shares of the image's area that patches have, beside the run's own patches.
      patches: sizes of the bags.
      probes: 'linear', 'knn'.
      resize: whether patches are resized as the run's are; if not, all but those keep their pixels.

    Returns:
      The rows of `accuracy.score_taken`, with 'side' (of the patches, in pixels) and 'scale' (their
      share of the image's area); of whole images both are None.

    Raises:
      InputError: as for `score_taken`, or a patch of the run does not fit into the images.
    """
    shape = images.image_shape
    area = shape[0] * shape[1]
    taken = [Taken(single_layout(Whole(*shape)), area, {'side': None, 'scale': None})]
    for side, geometry in patch_sizes(trained.geometry, scales, shape, resize=resize).items():
        layout = grid_layout(geometry, patches, ('mean',))
        about = {'side': side, 'scale': side**2 / area}
        taken.append(Taken(layout, (geometry.resize or side) ** 2, about))
    rows = score_taken(
        {'trained': trained, 'untrained': untrained},
        Splits(images, test).part(max_train, max_test, seed=seed),
        taken,
        probes=probes,
        seed=seed,
        on_error=on_error,
        title='scales',
    )
    own = trained.geometry.side(*shape)
    return Look(rows, table(rows), {'accuracy': _picture(rows, own)})


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each encoder, probe and size of patches."""
    counts = sorted({row['patches'] for row in rows if row['side']})
    lines = [
        f'top-1 of means of N patches on {rows[0]["n_test"]:,} test images, {rows[0]["n_train"]:,} '
        'to train on',
        f'{"encoder":<11}{"probe":<8}{"patch":<9}' + ''.join(f'{f"N={n}":>8}' for n in counts),
    ]
    for (encoder, probe, side), points in _grouped(rows).items():
        name = f'{side} px' if side else 'whole'
        lines.append(
            f'{encoder:<11}{probe:<8}{name:<9}'
            + ''.join(f'{points[n]["top1"]:>8.3f}' for n in (counts if side else points))
        )
    return '\n'.join(lines)


def _grouped(
    rows: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str, int | None], dict[int, Mapping[str, Any]]]:
    """(encoder, probe, side) -> number of patches -> row; whole images last."""
    found = {}
    for row in sorted(rows, key=lambda row: (row['encoder'], row['probe'], row['side'] or 1e9)):
        key = row['encoder'], row['probe'], row['side']
        found.setdefault(key, {})[row['patches']] = row
    return found


def _picture(rows: Sequence[Mapping[str, Any]], own: int) -> Picture:
    said = [
        f'{encoder}, {PROBES[probe]}, {f"{side}-pixel patches" if side else "whole images"}: '
        + ', '.join(f'{100 * row["top1"]:.0f}% with {n}' for n, row in points.items())
        for (encoder, probe, side), points in _grouped(rows).items()
    ]
    return Picture(
        _figure(rows, own),
        alt=f'Accuracy by the size of patches and the bag. {"; ".join(said)}.',
        caption=(
            'Higher is better: where a curve of many patches passes the dotted line, their mean '
            'tells classes apart better than the whole image as one input; bars are 95% intervals, '
            f'and the encoder was trained on patches of {own} pixels.'
        ),
    )


def _figure(rows: Sequence[Mapping[str, Any]], own: int) -> Figure:
    """A panel for each encoder and probe; a curve for each number of patches."""
    probes = list(dict.fromkeys(row['probe'] for row in rows))
    sides = sorted({row['side'] for row in rows if row['side']})
    counts = sorted({row['patches'] for row in rows if row['side']})
    figure = Figure(figsize=(0.7 + 2.8 * len(probes), 5.4), dpi=150, layout='constrained')
    grid = figure.subplots(2, len(probes), sharex=True, sharey='row', squeeze=False)
    curves = _grouped(rows)
    for line, encoder in enumerate(('trained', 'untrained')):
        for axes, probe in zip(grid[line], probes, strict=True):
            for i, count in enumerate(counts):
                points = [curves[encoder, probe, side][count] for side in sides]
                top1 = [100 * row['top1'] for row in points]
                ends = [[100 * end for end in row['interval']] for row in points]
                errors = [[abs(e[i] - y) for e, y in zip(ends, top1, strict=True)] for i in (0, 1)]
                axes.errorbar(
                    sides,
                    top1,
                    errors,
                    color=COLORS[i * (len(COLORS) - 1) // max(1, len(counts) - 1)],
                    linewidth=1.6,
                    elinewidth=0.8,
                    marker='o',
                    markersize=4,
                    label=f'mean of {count}' if count > 1 else '1 patch',
                )
            [whole] = curves[encoder, probe, None].values()
            axes.axhline(100 * whole['top1'], color='#c45a00', linestyle=':', label='whole image')
            axes.axvline(own, color='0.85', linewidth=4, zorder=0)
            axes.set_title(f'{encoder}, {PROBES[probe]}', fontsize=10)
            axes.set_xscale('log')
            axes.set_xticks(sides, [str(side) for side in sides])
            axes.minorticks_off()
            axes.spines[['top', 'right']].set_visible(False)
    figure.supxlabel("side of a patch, pixels (grey: the training's)", fontsize=10)
    figure.supylabel('top-1 accuracy (%)', fontsize=10)
    whole, *bags = zip(*grid[0, 0].get_legend_handles_labels(), strict=True)
    figure.legend(
        *zip(*bags, whole, strict=True),
        loc='outside upper center',
        ncols=4,
        frameon=False,
        fontsize=9,
    )
    return figure
