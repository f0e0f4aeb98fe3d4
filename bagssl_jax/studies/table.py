"""The tables of a study: means, spreads, and differences with intervals."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy.stats import t as students_t

from bagssl_jax.reporting.markup import markdown_table
from bagssl_jax.studies.plan import Comparison, Measure, Study

CONFIDENCE = 0.95
Outcome = Mapping[str, Any]  # of a variant, as `outcome.outcome` returns it


def summarise(study: Study, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What a study comes to, as JSON can hold it.

    Args:
      study: that was run, in part or in whole.
      outcomes: of its variants, in their order.

    Returns:
      'variants': the outcomes, each with 'columns', by `Measure.column`: 'n', 'mean' and 'spread',
      the standard deviation over seeds, None of one; 'comparisons': each with its 'name', 'n',
      'of' what, 'mean' and 'interval', None of one; and 'missing': how many runs are.
    """
    return {
        'variants': [
            {**found, 'columns': {m.column: _of_seeds(found, m) for m in study.measures}}
            for found in outcomes
        ],
        'comparisons': [_compared(comparison, outcomes) for comparison in study.comparisons],
        'missing': sum(len(found['missing']) for found in outcomes),
    }


def paired(differences: Sequence[float]) -> dict[str, Any]:
    """The mean of differences, and Student's t interval around it, `CONFIDENCE` wide."""
    n = len(differences)
    found = {'n': n, 'mean': statistics.fmean(differences) if n else None, 'interval': None}
    if n > 1:
        error = statistics.stdev(differences) / math.sqrt(n)
        reach = float(students_t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
        found['interval'] = [found['mean'] - reach, found['mean'] + reach]
    return found


def markdown(title: str, study: Study, summary: Mapping[str, Any]) -> str:
    """A summary as text: a table for each heading of the measures, choices, comparisons, runs."""
    parts = [f'# {title}']
    if summary['missing']:
        parts.append(f'{summary["missing"]} runs are missing.')
    for heading in dict.fromkeys(measure.table for measure in study.measures):
        measures = [measure for measure in study.measures if measure.table == heading]
        head = ['', *(measure.name for measure in measures), 'seeds']
        body = [
            [
                found['variant'],
                *(_mean(found['columns'][measure.column]) for measure in measures),
                str(len(found['runs'])),
            ]
            for found in summary['variants']
            if found['runs']
        ]
        parts += [f'## {heading}', markdown_table(head, body)]
    parts.append('Means over seeds, with their standard deviation.')
    parts += _comparisons(summary) + _choices(study, summary) + _runs(summary)
    return '\n\n'.join(parts) + '\n'


def _of_seeds(found: Outcome, measure: Measure) -> dict[str, Any]:
    values = [run['values'][measure.column] for run in found['runs']]
    return {
        'n': len(values),
        'mean': statistics.fmean(values) if values else None,
        'spread': statistics.stdev(values) if len(values) > 1 else None,
    }


def _compared(comparison: Comparison, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    values = {
        (found['variant'], column): {run['seed']: run['values'][column] for run in found['runs']}
        for found in outcomes
        for column in (found['runs'][0]['values'] if found['runs'] else ())
    }
    by_pair = []
    for left, right in comparison.pairs:
        of_left, of_right = values.get(tuple(left), {}), values.get(tuple(right), {})
        by_pair.append([of_left[seed] - of_right[seed] for seed in of_left if seed in of_right])
    if len(by_pair) == 1:
        return {'name': comparison.name, 'of': 'seeds', **paired(by_pair[0])}
    means = [statistics.fmean(differences) for differences in by_pair if differences]
    return {'name': comparison.name, 'of': 'pairs', **paired(means)}


def _comparisons(summary: Mapping[str, Any]) -> list[str]:
    made = [found for found in summary['comparisons'] if found['n']]
    if not made:
        return []
    body = [
        [found['name'], _signed(found['mean']), _interval(found), f'{found["n"]} {found["of"]}']
        for found in made
    ]
    note = (
        f'Mean differences, with the {CONFIDENCE:.0%} interval of a paired t test: over seeds, or '
        'over pairs of variants, each a mean over its seeds.'
    )
    return ['## Differences', markdown_table(['', 'difference', 'interval', 'over'], body), note]


def _choices(study: Study, summary: Mapping[str, Any]) -> list[str]:
    made = [found for found in summary['variants'] if found['choices']]
    if not made:
        return []
    keys = {variant.name: variant.choices[0] for variant in study.variants if variant.choices}
    body = [
        [
            found['variant'],
            keys[found['variant']],
            ', '.join(f'{one["choice"]:g}: {_number(one["score"])}' for one in found['choices']),
            'open' if found['choice'] is None else f'{found["choice"]:g}',
        ]
        for found in made
    ]
    note = f'Each by one run, scored by {study.selection.measure.column}.'
    return ['## What was chosen', markdown_table(['', 'key', 'tried', 'chosen'], body), note]


def _runs(summary: Mapping[str, Any]) -> list[str]:
    body = [
        [run['name'], run['code'], run['date'], run['device'], f'{run["seconds"]:,.0f}']
        for found in summary['variants']
        for run in found['runs']
    ]
    lines = [
        f'    {line}'
        for found in summary['variants']
        for run in found['runs'][:1]
        for line in run['commands']
    ]
    if not body:
        return []
    return [
        '## Runs',
        markdown_table(['', 'code', 'date', 'on', 'seconds'], body),
        'The commands of the first seed of each:',
        '\n'.join(lines),
    ]


def _mean(column: Mapping[str, Any]) -> str:
    if column['mean'] is None:
        return ''
    spread = '' if column['spread'] is None else f' ±{_number(column["spread"])}'
    return f'{_number(column["mean"])}{spread}'


def _interval(found: Mapping[str, Any]) -> str:
    if found['interval'] is None:
        return ''
    low, high = map(_signed, found['interval'])
    return f'{low} to {high}'


def _number(value: float) -> str:
    text = f'{value:.3f}'
    return text.removeprefix('0') if text.startswith('0.') else text


def _signed(value: float) -> str:
    return ('+' if value >= 0 else '-') + _number(abs(value))
