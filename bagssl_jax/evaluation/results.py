"""What a probe leaves: results.json, a printed table, a figure."""

import json
from typing import Any

from matplotlib.figure import Figure

from bagssl_jax.errors import InputError
from bagssl_jax.evaluation import perturbed_results
from bagssl_jax.runs import Run

Results = dict[str, Any]
OUTCOMES = (
    'top1',
    'top5',
    'value',
    'interval',
    'per_class',
    'chosen',
    'difference',
)  # keys of a row
STYLES = {  # of the probes that the figure shows
    'linear': ('linear', '-', 'o'),
    'sgd': ('linear by SGD', ':', 'd'),
    'knn': ('kNN', '--', 's'),
}


def read(run: Run, name: str = 'results.json') -> Results | None:
    """What earlier probes have left in a file; None where there is none.

    Raises:
      InputError: the file is damaged, or cannot be read.
    """
    results = run.read_json(name)
    rows = [] if results is None else results.get('rows')
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f'{run.directory / name} is damaged: it holds no rows: take it away')
    return results


def write(run: Run, results: Results) -> None:
    """Writes results.json and figures/accuracy_by_patches.png; no earlier row is lost.

    Rows of the same data set and step stay before the new ones, which replace those of the same
    measurement, and so do those of 'robustness' and 'differences', where there are any. Those of
    another data set or step go into results-DATASET-STEP.json. The figures are of the new rows
    alone: others may be of other patches.

    Raises:
      InputError: a file is damaged, or cannot be written.
    """
    earlier = read(run)
    if earlier and _subject(earlier) != _subject(results):
        name = f'results-{_subject(earlier)}.json'.replace('/', '-')
        run.write_json(name, _merged(read(run, name), earlier), indent=1)
        earlier = None
    run.write_json('results.json', _merged(earlier, results), indent=1)
    run.write_figure('accuracy_by_patches', accuracy_by_patches(results))
    for name, figure in perturbed_results.figures(results.get('robustness', [])).items():
        run.write_figure(name, figure)


def _subject(results: Results) -> str:
    return f'{results.get("dataset")}-{results.get("step")}'


def _merged(earlier: Results | None, results: Results) -> Results:
    """The results with those earlier rows that are not measured again."""
    merged = dict(results)
    for key in ('rows', 'robustness', 'differences'):
        new, rows = results.get(key, []), earlier.get(key, []) if earlier else []
        measured = {_measurement(row) for row in new}
        kept = [row for row in rows if _measurement(row) not in measured]
        if kept or new:
            merged[key] = kept + new
    return merged


def _measurement(row: dict[str, Any]) -> str:
    """All of a row but what came out."""
    return json.dumps({k: v for k, v in row.items() if k not in OUTCOMES}, sort_keys=True)


def table(results: Results) -> str:
    """A line for each way to represent images, a column for each probe."""
    lines, probes = {}, []
    for row in results['rows']:
        columns = 'encoder', 'space', 'view', 'patches', 'aggregation', 'labels', 'n_train'
        key = tuple(row[column] for column in columns)
        shown = row['value'] if row['top1'] is None else row['top1']
        lines.setdefault(key, {})[row['probe']] = shown
        probes += [row['probe']] if row['probe'] not in probes else []
    sizes = results['rows'][0]
    title = (
        f'{results["dataset"]}, step {results["step"]:,}: top-1 on {sizes["n_test"]:,} test '
        f'images, {max(row["n_train"] for row in results["rows"]):,} to train on'
    )
    head = f'{"encoder":<11}{"space":<9}{"view":<8}{"patches":>7}  {"of":<11}{"labels":<7}'
    body = [
        f'{encoder:<11}{space:<9}{view:<8}{patches:>7}  {aggregation:<11}{labels:<7}'
        + ''.join(f'{values[probe]:>14.3f}' if probe in values else ' ' * 14 for probe in probes)
        for (encoder, space, view, patches, aggregation, labels, _), values in sorted(
            lines.items(), key=_order
        )
    ]
    return '\n'.join([title, head + ''.join(f'{probe:>14}' for probe in probes), *body])


def accuracy_by_patches(results: Results) -> Figure:
    """Top-1 of the mean of h (or of the first space there is) against the number of patches.

    The whole image and the center crop stand beside it. Colour stands for the encoder, line style
    for the probe.
    """
    spaces = sorted({row['space'] for row in results['rows']})
    rows = [
        row
        for row in results['rows']
        if row['space'] == spaces[0]
        and row['aggregation'] == 'mean'
        and row['labels'] == 'all'
        and row['probe'] in STYLES
    ]
    counts = sorted({row['patches'] for row in rows if row['view'] == 'bag'}) or [1]
    others = [view for view in ('whole', 'center') if any(row['view'] == view for row in rows)]
    places = {view: counts[-1] * 4 ** (i + 1) for i, view in enumerate(others)}
    figure = Figure(figsize=(6, 4.2), dpi=150, layout='constrained')
    axes = figure.subplots()
    for encoder, color in (('trained', 'C0'), ('untrained', '0.55')):
        for probe, (name, style, marker) in STYLES.items():
            top1 = {
                (row['view'], row['patches']): 100 * row['top1']
                for row in rows
                if row['encoder'] == encoder and row['probe'] == probe
            }
            bags = [count for count in counts if ('bag', count) in top1]
            if not top1:
                continue
            axes.plot(
                bags,
                [top1['bag', count] for count in bags],
                linestyle=style,
                marker=marker,
                color=color,
                label=f'{encoder}, {name}',
            )
            for view in others:
                axes.plot(places[view], top1[view, 1], marker, color=color, markerfacecolor='none')
    if others:
        axes.axvline(2 * counts[-1], color='0.8', linewidth=0.8)
    axes.set_xscale('log', base=2)
    names = {'whole': 'whole\nimage', 'center': 'center\ncrop'}
    axes.set_xticks(
        [*counts, *places.values()], [*map(str, counts), *(names[view] for view in places)]
    )
    axes.minorticks_off()
    axes.set_xlabel('patches in the bag')
    axes.set_ylabel('top-1 accuracy (%)')
    axes.set_title(f'{results["dataset"]}: mean of {spaces[0]} over the patches', fontsize=10)
    axes.grid(axis='y', color='0.9')
    axes.spines[['top', 'right']].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
    return figure


def _order(item: tuple) -> tuple:
    """Trained before untrained; all labels first; bags by their size, other views last."""
    (encoder, space, view, patches, aggregation, labels, n_train), _ = item
    return encoder != 'trained', -n_train, labels, space, view != 'bag', view, patches, aggregation
