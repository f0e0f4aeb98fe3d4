"""What a probe reports: results.json, a printed table, a figure."""

import json
import pathlib
from typing import Any

from matplotlib.figure import Figure

Results = dict[str, Any]


def write(workdir: str, results: Results) -> None:
    """Writes results.json and figures/accuracy_by_patches.png into `workdir`."""
    directory = pathlib.Path(workdir)
    (directory / 'results.json').write_text(json.dumps(results, indent=1) + '\n')
    (directory / 'figures').mkdir(exist_ok=True)
    accuracy_by_patches(results).savefig(directory / 'figures' / 'accuracy_by_patches.png')


def table(results: Results) -> str:
    """Top-1 accuracies: a line for each encoder, space and view, a column for each probe."""
    lines = {}
    for row in results['rows']:
        key = row['encoder'], row['space'], row['view'], row['patches']
        lines.setdefault(key, {})[row['probe']] = row['top1']
    sizes = results['rows'][0]
    title = (
        f'{results["dataset"]}, step {results["step"]:,}: top-1 on {sizes["n_test"]:,} test '
        f'images, {sizes["n_train"]:,} to train on'
    )
    head = f'{"encoder":<11}{"space":<7}{"view":<7}{"patches":>7}{"linear":>9}{"knn":>9}'
    body = [
        f'{encoder:<11}{space:<7}{view:<7}{patches:>7}{top1["linear"]:>9.3f}{top1["knn"]:>9.3f}'
        for (encoder, space, view, patches), top1 in sorted(lines.items(), key=_order)
    ]
    return '\n'.join([title, head, *body])


def accuracy_by_patches(results: Results) -> Figure:
    """Top-1 against the number of patches, and of the whole image beside it.

    Colour stands for the encoder, line style for the probe; of several spaces, h where it is
    there.
    """
    spaces = sorted({row['space'] for row in results['rows']})
    rows = [row for row in results['rows'] if row['space'] == spaces[0]]
    counts = sorted({row['patches'] for row in rows if row['view'] == 'bag'})
    whole_at = 4 * counts[-1]  # a place of its own, right of the bags on the logarithmic axis
    figure = Figure(figsize=(6, 4.2), dpi=150, layout='constrained')
    axes = figure.subplots()
    for encoder, color in (('trained', 'C0'), ('untrained', '0.55')):
        for probe, name, style, marker in (
            ('linear', 'linear', '-', 'o'),
            ('knn', 'kNN', '--', 's'),
        ):
            top1 = {
                (row['view'], row['patches']): 100 * row['top1']
                for row in rows
                if row['encoder'] == encoder and row['probe'] == probe
            }
            axes.plot(
                counts,
                [top1['bag', count] for count in counts],
                linestyle=style,
                marker=marker,
                color=color,
                label=f'{encoder}, {name}',
            )
            axes.plot(whole_at, top1['whole', 1], marker, color=color, markerfacecolor='none')
    axes.axvline(2 * counts[-1], color='0.8', linewidth=0.8)
    axes.set_xscale('log', base=2)
    axes.set_xticks([*counts, whole_at], [*map(str, counts), 'whole\nimage'])
    axes.minorticks_off()
    axes.set_xlabel('patches in the bag')
    axes.set_ylabel('top-1 accuracy (%)')
    axes.set_title(f'{results["dataset"]}: mean of {spaces[0]} over a grid of patches', fontsize=10)
    axes.grid(axis='y', color='0.9')
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure


def _order(item: tuple) -> tuple:
    """Trained before untrained, bags by their size, the whole image last."""
    (encoder, space, view, patches), _ = item
    return encoder != 'trained', space, view == 'whole', patches
