"""What is shown of linear probes on perturbed images: a printed table, and figures.

Its rows are those of `robustness` in results.json: of a probe on a part of the test images, with
'attack', 'norm' and 'radius', or with 'corruption' and 'severity'.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bagssl_jax.evaluation.adversarial import NONE
from bagssl_jax.evaluation.corrupted import CLEAN
from bagssl_jax.evaluation.paired import MEAN

Row = Mapping[str, Any]
NORMS = {'linf': ('L-infinity radius (grey levels of 255)', 255), 'l2': ('L2 radius', 1)}


class Subject(NamedTuple):
    """Whose accuracy it is: a curve of the figures, a line of the table."""

    encoder: str
    space: str
    view: str
    patches: int
    aggregation: str

    @property
    def name(self) -> str:
        bag = f'bag of {self.patches}' if self.view == 'bag' else self.view
        return f'{self.encoder}, {bag}'

    @property
    def order(self) -> tuple:
        """Trained before untrained; bags by their size, other views last."""
        return self.encoder != 'trained', self.space, self.view != 'bag', self.view, self[3:]


def table(rows: Sequence[Row]) -> str:
    """A line for each way to represent images: top-1 by radius, and by severity."""
    parts = []
    attacked = [row for row in rows if 'attack' in row]
    if attacked:
        columns = {
            'clean': _chosen(attacked, attack=NONE),
            **{
                f'{norm} {radius * NORMS[norm][1]:g}': _chosen(
                    attacked, attack='pgd', norm=norm, radius=radius
                )
                for norm, radius in dict.fromkeys(
                    (row['norm'], row['radius']) for row in attacked if row['norm']
                )
            },
        }
        title = 'projected gradient descent (linf in grey levels of 255)'
        parts.append(_lines(title, columns))
    if corrupted := [row for row in rows if 'corruption' in row]:
        perturbed = [row for row in corrupted if row['corruption'] != CLEAN]
        columns = {'clean': _chosen(corrupted, corruption=CLEAN)}
        columns |= {
            f'severity {severity}': _chosen(perturbed, severity=severity)
            for severity in sorted({row['severity'] for row in perturbed})
        }
        kinds = len({row['corruption'] for row in perturbed})
        parts.append(_lines(f'mean over {kinds} corruptions', {**columns, 'all': perturbed}))
    return '\n'.join(parts)


def table_of_differences(rows: Sequence[Row]) -> str:
    """A line for each bag and what it is compared with: differences in points, by condition.

    Of attacks and clean images, and of means over all corruptions.
    """
    lines = ['bag less whole or center, of the same images, in points, with 95% intervals']
    for row in rows:
        if 'attack' in row and row['attack'] in ('pgd', NONE):
            name = 'clean'
            if row['norm']:
                name = f'{row["norm"]} {row["radius"] * NORMS[row["norm"]][1]:g}'
        elif row.get('corruption') == MEAN:
            name = 'corrupted' if row['severity'] is None else f'severity {row["severity"]}'
        else:
            continue
        low, high = (100 * end for end in row['interval'])
        who = f'{row["encoder"]:<11}{row["space"]:<9}{row["patches"]:>7}  {row["aggregation"]:<11}'
        lines.append(
            f'{who}less {row["less"]:<8}{name:<12}{100 * row["difference"]:>+7.1f}'
            f'  [{low:+.1f}, {high:+.1f}]'
        )
    return '\n'.join(lines)


def figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """By name: accuracy against radius, against severity, and by corruption, of what there is.

    Of means of the first space alone, and by corruption of the trained encoder alone; shades are
    95% intervals.
    """
    spaces = sorted({row['space'] for row in rows})
    rows = [row for row in rows if row['space'] == spaces[0] and row['aggregation'] == 'mean']
    attacked = [row for row in rows if 'attack' in row]
    corrupted = [row for row in rows if 'corruption' in row]
    found = {}
    if any(row['norm'] for row in attacked):
        found['robustness_pgd'] = _by_radius(attacked)
    if perturbed := [row for row in corrupted if row['severity']]:
        found['robustness_severity'] = _by_severity(corrupted)
        if any(row['encoder'] == 'trained' for row in perturbed):
            found['robustness_corruptions'] = _by_corruption(corrupted)
    return found


def _chosen(rows: Iterable[Row], **values: Any) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in values.items())]


def _by_subject(rows: Iterable[Row]) -> dict[Subject, list[Row]]:
    found = {}
    for row in rows:
        found.setdefault(Subject(*(row[key] for key in Subject._fields)), []).append(row)
    return dict(sorted(found.items(), key=lambda item: item[0].order))


def _mean(rows: Sequence[Row]) -> float:
    return float(np.mean([row['top1'] for row in rows]))


def _lines(title: str, columns: Mapping[str, Sequence[Row]]) -> str:
    grouped = {name: _by_subject(rows) for name, rows in columns.items()}
    first = next(iter(columns.values()))
    lines = [f'{title}: top-1 of linear probes on {first[0]["n_test"]:,} test images']
    head = f'{"encoder":<11}{"space":<9}{"view":<8}{"patches":>7}  {"of":<11}'
    lines.append(head + ''.join(f'{name:>12}' for name in columns))
    for subject in _by_subject(first):
        encoder, space, view, patches, aggregation = subject
        values = ''.join(f'{_mean(rows[subject]):>12.3f}' for rows in grouped.values())
        lines.append(f'{encoder:<11}{space:<9}{view:<8}{patches:>7}  {aggregation:<11}{values}')
    return '\n'.join(lines)


def _by_radius(rows: Sequence[Row]) -> Figure:
    norms = [norm for norm in NORMS if any(row['norm'] == norm for row in rows)]
    figure = Figure(figsize=(1.5 + 4.2 * len(norms), 4.2), dpi=150, layout='constrained')
    colors = _colors(rows)
    for axes, norm in zip(figure.subplots(1, len(norms), squeeze=False)[0], norms, strict=True):
        label, unit = NORMS[norm]
        for attack, style in (('pgd', {}), ('noise', {'linestyle': ':', 'marker': ''})):
            subjects = _by_subject(row for row in rows if row['attack'] in (attack, NONE))
            for subject, own in subjects.items():
                if attack == 'noise' and subject.encoder != 'trained':
                    continue
                own = [row for row in own if row['norm'] in (norm, None)]
                places = [unit * row['radius'] for row in own]
                name = None if attack == 'noise' else subject.name
                _curve(axes, places, own, subject, colors, label=name, **style)
        axes.plot([], [], ':', color='0.4', label='trained, random noise')
        _dress(axes, label)
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f'Linear probes under attack, {rows[0]["n_test"]:,} test images', fontsize=10)
    return figure


def _by_severity(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(6, 4.2), dpi=150, layout='constrained')
    axes, colors = figure.subplots(), _colors(rows)
    kinds = len({row['corruption'] for row in rows} - {CLEAN})
    for subject, own in _by_subject(rows).items():
        severities = sorted({row['severity'] for row in own})
        means = [_mean(_chosen(own, severity=severity)) for severity in severities]
        points = [{'top1': mean} for mean in means]
        _curve(axes, severities, points, subject, colors, label=subject.name)
    axes.set_xticks(severities)
    _dress(axes, f'severity (mean over {kinds} corruptions; 0: not corrupted)')
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(f'Corrupted images, {rows[0]["n_test"]:,} of the test split', fontsize=10)
    return figure


def _by_corruption(rows: Sequence[Row]) -> Figure:
    names = list(dict.fromkeys(row['corruption'] for row in rows if row['corruption'] != CLEAN))
    subjects = _by_subject(row for row in rows if row['encoder'] == 'trained')
    figure = Figure(figsize=(3 + 0.55 * len(names), 4.2), dpi=150, layout='constrained')
    axes, colors = figure.subplots(), _colors(rows)
    width = 0.8 / len(subjects)
    for i, (subject, own) in enumerate(subjects.items()):
        means = [100 * _mean(_chosen(own, corruption=name)) for name in names]
        places = np.arange(len(names)) + (i + 0.5) * width - 0.4
        color = colors[subject.view, subject.patches]
        axes.bar(places, means, 0.9 * width, color=color, label=subject.name)
        level = 100 * _mean(_chosen(own, corruption=CLEAN))
        axes.axhline(level, color=color, linestyle='--', linewidth=1)
    clean = axes.axhline(np.nan, color='0.4', linestyle='--', linewidth=1, label='not corrupted')
    axes.set_xticks(range(len(names)), [name.replace('_', '\n', 1) for name in names], fontsize=7)
    _dress(axes, '')
    axes.set_xlim(-0.6, len(names) - 0.4)
    handles = [*axes.containers, clean]
    figure.legend(handles=handles, frameon=False, fontsize=8, ncols=5, loc='outside lower center')
    axes.set_title(
        f'Corrupted images, {rows[0]["n_test"]:,} of the test split, mean over the severities',
        fontsize=10,
    )
    return figure


def _colors(rows: Sequence[Row]) -> dict[tuple[str, int], Any]:
    """Of (view, patches): shades of blue for bags, the largest darkest."""
    bags = sorted({row['patches'] for row in rows if row['view'] == 'bag'})
    shades = np.linspace(0.35, 0, len(bags)) if len(bags) > 1 else np.zeros(len(bags))
    blue = np.array([0.12, 0.35, 0.62])
    colors = {
        ('bag', count): tuple(blue + shade * (1 - blue) * 1.6)
        for count, shade in zip(bags, shades, strict=True)
    }
    return colors | {('whole', 1): 'C1', ('center', 1): 'C2'}


def _curve(
    axes: Axes,
    places: Sequence[float],
    rows: Sequence[Row],
    subject: Subject,
    colors: Mapping[tuple[str, int], Any],
    **options: Any,
) -> None:
    is_trained = subject.encoder == 'trained'
    style = {'marker': 'o' if is_trained else 's', 'linestyle': '-' if is_trained else '--'}
    style |= {'color': colors[subject.view, subject.patches], 'markersize': 4, 'linewidth': 1.4}
    if not is_trained:
        style |= {'alpha': 0.6, 'markerfacecolor': 'none'}
    axes.plot(places, [100 * row['top1'] for row in rows], **(style | options))
    if is_trained and options.get('label') and 'interval' in rows[0]:
        lower, upper = 100 * np.array([row['interval'] for row in rows]).T
        axes.fill_between(places, lower, upper, color=style['color'], alpha=0.12, linewidth=0)


def _dress(axes: Axes, label: str) -> None:
    axes.set_xlabel(label)
    axes.set_ylabel('top-1 accuracy (%)')
    axes.set_ylim(bottom=0)
    axes.grid(axis='y', color='0.9')
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
