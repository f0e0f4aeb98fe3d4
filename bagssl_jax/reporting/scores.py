"""Tables of what the probes found: one to read, and every row as it is."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bagssl_jax.reporting.found import Found, Row
from bagssl_jax.reporting.markup import Content, Element, element, is_number, share, shown
from bagssl_jax.reporting.tables import details, table

OUTCOMES = ('top1', 'top5', 'value', 'interval', 'per_class', 'chosen')  # keys of a row
NAMES = {
    'linear': 'Linear probe',
    'sgd': 'Linear probe by SGD',
    'sgd_augmented': 'Linear probe on fresh crops',
    'sgd_empssl': 'Linear probe, EMP-SSL\N{RIGHT SINGLE QUOTATION MARK}s',
    'sgd_vicreg': 'Linear probe, VICReg\N{RIGHT SINGLE QUOTATION MARK}s',
    'knn': 'kNN',
    'knn_chosen': 'kNN, k and temperature chosen',
}


def rows_of(run: Found) -> list[Row]:
    """Those of the newest probe's data set and step."""
    return run.results[0].get('rows', []) if run.results else []


def pivot(runs: Sequence[Found]) -> Element:
    """A line for each way to represent images, a column for each probe and run."""
    everything = [row for run in runs for row in rows_of(run)]
    keys = dict.fromkeys(key for row in everything for key in row)
    keys = [key for key in keys if key not in (*OUTCOMES, 'probe')]
    # Where two runs differ in all rows, as in their patches, lines still belong together.
    keys = [key for key in keys if any(_distinct(rows_of(run), key) > 1 for run in runs)]
    probes = list(dict.fromkeys(shown(row.get('probe')) for row in everything))
    found = [
        {(_key(row, keys), shown(row.get('probe'))): row for row in rows_of(run)} for run in runs
    ]
    lines = {_key(row, keys): row for row in everything}
    columns = _columns(everything, keys)
    body, encoder = [], None
    for key, row in sorted(lines.items(), key=lambda line: order(line[1])):
        if shown(row.get('encoder')) != encoder:
            encoder = shown(row.get('encoder'))
            body.append(encoder)
        cells = []
        for probe in probes:
            outcomes = [of_run.get((key, probe)) for of_run in found]
            cells += map(outcome, outcomes)
            cells += [_difference(*outcomes)] if len(runs) == 2 else []
        body.append([*(of(row) for of in columns.values()), *cells])
    head = [NAMES.get(probe, probe) for probe in probes]
    caption = 'Top-1 in percent, with 95% intervals over the test images'
    if len(runs) == 2:
        head = [words for name in head for words in (*_heads(name, runs), 'difference')]
        caption += '; differences are marked where the intervals do not touch'
    return table(caption, [*columns, *head], body, words=len(columns))


def _columns(
    rows: Sequence[Row], keys: Sequence[str]
) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """What tells the lines apart: heading -> what a row has there."""
    made = {'image as': image_as}
    for key in varying_keys(rows, keys):
        if key not in ('view', 'patches', 'encoder'):
            made[key] = lambda row, key=key: shown(row.get(key))
    return made


def image_as(row: Row) -> str:
    """What represents an image: a bag of patches, or another view."""
    if row.get('view') != 'bag':
        return shown(row.get('view'))
    return 'one patch' if row.get('patches') == 1 else f'{shown(row.get("patches"))} patches'


def _heads(name: str, runs: Sequence[Found]) -> list[str]:
    return [f'{name}: {run.name}' for run in runs]


def _distinct(rows: Sequence[Row], key: str) -> int:
    return len({shown(row.get(key)) for row in rows})


def _key(row: Row, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(shown(row.get(key)) for key in keys)


def varying_keys(rows: Sequence[Row], keys: Sequence[str]) -> list[str]:
    """The keys of which some rows say something else than others, which may not have them."""
    return [key for key in keys if len({shown(row.get(key)) for row in rows} - {''}) > 1]


def order(row: Row) -> tuple[Any, ...]:
    """Trained before untrained, bags by their size, other views last."""
    patches = row.get('patches')
    return (
        row.get('encoder') != 'trained',
        shown(row.get('encoder')),
        shown(row.get('space')),
        shown(row.get('labels')),
        row.get('view') != 'bag',
        shown(row.get('view')),
        patches if is_number(patches) else math.inf,
    )


def outcome(row: Row | None) -> Content:
    """A cell: top-1 in percent with its interval, or else the value of a row."""
    if row is None:
        return '\N{EN DASH}'
    if not is_number(row.get('top1')):
        return shown(row.get('value'))
    ends = interval(row)
    spread = f' {share(ends[0])}\N{EN DASH}{share(ends[1])}' if ends else ''
    return [share(row['top1']), element('small', {}, spread)]


def interval(row: Row) -> tuple[float, float] | None:
    """Of the top-1 of a row; None where it has none."""
    ends = row.get('interval')
    if isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends)):
        return ends[0], ends[1]
    return None


def _difference(one: Row | None, other: Row | None) -> Content:
    """Of the second from the first, in points."""
    if one is None or other is None:
        return ''
    if not (is_number(one.get('top1')) and is_number(other.get('top1'))):
        return ''
    points = f'{100 * (other["top1"] - one["top1"]):+.1f}'.replace('-', '\N{MINUS SIGN}')
    points = '0' if points[1:] == '0.0' else points
    ends = interval(one), interval(other)
    apart = None not in ends and (ends[0][1] < ends[1][0] or ends[1][1] < ends[0][0])
    return element('mark', {}, points) if apart else points


def all_rows(run: Found, *, several: bool) -> list[Element]:
    """Every row of every file, as it stands there; and the classes."""
    who = f' of {run.name}' if several else ''
    made = []
    for found in run.results:
        rows = [
            {key: value for key, value in row.items() if key != 'per_class'}
            for row in found.get('rows', [])
        ]
        keys = list(dict.fromkeys(key for row in rows for key in row))
        cells = [[_cell(key, row.get(key)) for key in keys] for row in rows]
        subject = f'{shown(found.get("dataset"))}, step {shown(found.get("step"))}'
        caption = f'{subject}: all that each row says'
        words = sum(key not in OUTCOMES and not key.startswith('n_') for key in keys)
        if rows:
            opened = f'All {len(rows):,} rows{who}: {subject}'
            made.append(details(opened, table(caption, keys, cells, words=words)))
    return [*made, *_classes(run, who)]


def _cell(key: str, value: Any) -> str:
    if key in ('top1', 'top5') and is_number(value):
        return share(value)
    if key == 'interval' and isinstance(value, list) and all(map(is_number, value)):
        return '\N{EN DASH}'.join(map(share, value))
    return shown(value)


def _classes(run: Found, who: str) -> list[Element]:
    """Accuracy by class of the linear probe (or the first one) of the largest bag."""
    names = run.data.get('classes')
    rows = [row for row in rows_of(run) if isinstance(row.get('per_class'), list)]
    rows = [row for row in rows if row.get('encoder') == 'trained'] or rows
    rows.sort(key=lambda row: (row.get('probe') != 'linear', order(row)[4], -_size(row)))
    if not rows:
        return []
    values = rows[0]['per_class']
    if not isinstance(names, list) or len(names) != len(values):
        names = list(range(len(values)))  # of another data set than the training's
    ordered = sorted(
        zip(names, values, strict=True), key=lambda item: item[1] if is_number(item[1]) else -1
    )
    cells = [[shown(name), share(x) if is_number(x) else shown(x)] for name, x in ordered]
    what = ', '.join(
        shown(rows[0].get(key)) for key in ('encoder', 'probe', 'view', 'patches', 'space')
    )
    caption = f'Top-1 in percent of each class, the hardest first ({what})'
    return [details(f'By class{who}', table(caption, ['class', 'top-1'], cells))]


def _size(row: Row) -> float:
    return row['patches'] if is_number(row.get('patches')) else 0
