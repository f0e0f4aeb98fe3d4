"""What the probes found: accuracy against the number of patches, and every row."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bagssl_jax.reporting.charts import Series, chart
from bagssl_jax.reporting.found import Found, Row
from bagssl_jax.reporting.markup import Content, Element, element, is_number, number, share, shown
from bagssl_jax.reporting.tables import details, table

OUTCOMES = ('top1', 'top5', 'value', 'interval', 'per_class', 'chosen')  # keys of a row
# What a chart may differ in from the others; its whole and center have no patches.
SETTING = ('space', 'labels', 'flip')
OF_BAGS = ('aggregation', 'positions', 'patch')
NAMES = {
    'linear': 'Linear probe',
    'sgd': 'Linear probe by SGD',
    'sgd_augmented': 'Linear probe on fresh crops',
    'sgd_empssl': 'Linear probe, EMP-SSL\N{RIGHT SINGLE QUOTATION MARK}s',
    'knn': 'kNN',
    'knn_chosen': 'kNN, k and temperature chosen',
}
MOST_CHARTS = 6
STYLES = {0: {'trained': 'a', 'untrained': 'rest'}, 1: {'trained': 'b', 'untrained': 'rest2'}}
LEDE = (
    'An image is represented by the embeddings of so many of its patches, or by that of the whole '
    'image as one input (hollow). Bars are 95% intervals over test images. Trained above untrained '
    'is what training has added; where a line levels off, further patches add nothing.'
)
HOW = {
    'linear': 'A linear classifier on the frozen embeddings: higher is better.',
    'knn': 'The 20 nearest training images vote, by cosine: higher is better.',
    'knn_chosen': 'The same, with k and temperature chosen on training images.',
}
OTHERWISE = 'Share of the test images that this probe tells: higher is better.'


def accuracy_section(runs: Sequence[Found]) -> list[Element]:
    """Charts and tables of results.json; of two runs, beside each other."""
    probed = [run for run in runs if run.results]
    if not probed:
        return []
    made = [element('p', {'class': 'lede'}, _subjects(probed, several=len(runs) > 1))]
    charts = _charts(runs)[:MOST_CHARTS]
    if charts:
        made += [element('p', {'class': 'lede'}, LEDE), element('div', {'class': 'charts'}, charts)]
    made += [_pivot(runs)]
    for run in probed:
        made += _all_rows(run, several=len(runs) > 1)
    return made


def _subjects(runs: Sequence[Found], *, several: bool) -> list[Content]:
    said = []
    for run in runs:
        latest = run.results[0]
        who = f'{run.name}: ' if several else ''
        sizes = [row.get('n_test') for row in _rows(run) if is_number(row.get('n_test'))]
        images = f', {number(max(sizes))} test images' if sizes else ''
        step = latest.get('step')
        step = f', step {number(step)}' if is_number(step) else ''
        said.append(f'{who}{shown(latest.get("dataset"))}{step}{images}. ')
    if len({sentence.partition(': ')[2].split(', step')[0] for sentence in said}) > 1:
        said.append('They were probed on different images: accuracies do not compare.')
    return said


def _rows(run: Found) -> list[Row]:
    """Those of the newest probe's data set and step."""
    return run.results[0].get('rows', []) if run.results else []


def _charts(runs: Sequence[Found]) -> list[Element]:
    """One for each probe and way to make a bag, those of most points first."""
    bags = [
        row
        for run in runs
        for row in _rows(run)
        if row.get('view') == 'bag' and is_number(row.get('top1')) and is_number(row.get('patches'))
    ]
    groups = {}
    for row in bags:
        setting = tuple(shown(row.get(key)) for key in ('probe', *SETTING, *OF_BAGS))
        groups.setdefault(setting, set()).add(row['patches'])
    varying = _varying(bags, (*SETTING, *OF_BAGS))
    keys = ('probe', *SETTING, *OF_BAGS)
    best = sorted(groups, key=lambda setting: -len(groups[setting]))
    return [
        _chart(runs, dict(zip(keys, setting, strict=True)), groups[setting], varying)
        for setting in best
        if len(groups[setting]) > 1
    ]


def _chart(
    runs: Sequence[Found], setting: Mapping[str, str], counts: set[int], varying: Sequence[str]
) -> Element:
    places = {count: math.log2(max(count, 1)) for count in sorted(counts)}
    end, gap = max(places.values()), max(max(places.values()) / 5, 0.5)
    others = {view: end + gap * (i + 1) for i, view in enumerate(('whole', 'center'))}
    series, said = [], []
    for number_of_run, run in enumerate(runs):
        for encoder, style in STYLES[number_of_run].items():
            rows = [row for row in _rows(run) if row.get('encoder') == encoder]
            bags = _matching(rows, setting, ('probe', *SETTING, *OF_BAGS), view='bag')
            bags = [row for row in bags if is_number(row.get('patches'))]
            points = {places[row['patches']]: row for row in bags if row['patches'] in places}
            if not points:
                continue
            name = f'{run.name}, {encoder}' if len(runs) > 1 else encoder
            series.append(_series(name, dict(sorted(points.items())), style, joined=True))
            said.append(_said(name, series[-1], places))
            for view, x in others.items():
                if single := _matching(rows, setting, ('probe', *SETTING), view=view):
                    series.append(_series(name, {x: single[-1]}, style, joined=False))
                    said.append(f'{view} image {share(single[-1]["top1"])}')
    drawn = {x for one in series for x, _ in one.points}
    x_ticks = [(x, number(count)) for count, x in places.items()]
    x_ticks += [(x, view) for view, x in others.items() if x in drawn]
    probe = NAMES.get(setting['probe'], setting['probe'])
    title = ', '.join([probe, *(f'{key} {setting[key]}' for key in varying if setting[key])])
    return chart(
        title,
        series,
        how=HOW.get(setting['probe'], OTHERWISE),
        description=f'{title}, top-1 in percent by patches in the bag: {"; ".join(said)}.',
        x_title='patches in the bag',
        x_ticks=x_ticks,
        label=lambda y: f'{100 * y:g}%',
    )


def _matching(
    rows: Sequence[Row], setting: Mapping[str, str], keys: Sequence[str], *, view: str
) -> list[Row]:
    return [
        row
        for row in rows
        if row.get('view') == view
        and is_number(row.get('top1'))
        and all(shown(row.get(key)) == setting[key] for key in keys)
    ]


def _series(name: str, points: Mapping[float, Row], style: str, *, joined: bool) -> Series:
    return Series(
        name,
        [(x, row['top1']) for x, row in points.items()],
        style,
        intervals=[interval(row) for row in points.values()],
        joined=joined,
        marked=True,
    )


def _said(name: str, one: Series, places: Mapping[int, float]) -> str:
    values = dict(one.points)
    shares = [f'{count}: {share(values[x])}' for count, x in places.items() if x in values]
    return f'{name} {", ".join(shares)}'


def interval(row: Row) -> tuple[float, float] | None:
    """Of the top-1 of a row; None where it has none."""
    ends = row.get('interval')
    if isinstance(ends, list) and len(ends) == 2 and all(map(is_number, ends)):
        return ends[0], ends[1]
    return None


def _varying(rows: Sequence[Row], keys: Sequence[str]) -> list[str]:
    """The keys of which some rows say something else than others, which may not have them."""
    return [key for key in keys if len({shown(row.get(key)) for row in rows} - {''}) > 1]


def _pivot(runs: Sequence[Found]) -> Element:
    """A line for each way to represent images, a column for each probe and run."""
    everything = [row for run in runs for row in _rows(run)]
    keys = dict.fromkeys(key for row in everything for key in row)
    keys = [key for key in keys if key not in (*OUTCOMES, 'probe')]
    # Where two runs differ in all rows, as in their patches, lines still belong together.
    keys = [key for key in keys if any(_distinct(_rows(run), key) > 1 for run in runs)]
    probes = list(dict.fromkeys(shown(row.get('probe')) for row in everything))
    found = [
        {(_key(row, keys), shown(row.get('probe'))): row for row in _rows(run)} for run in runs
    ]
    lines = {_key(row, keys): row for row in everything}
    columns = _columns(everything, keys)
    body, encoder = [], None
    for key, row in sorted(lines.items(), key=lambda line: _order(line[1])):
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
    made = {'image as': _image_as}
    for key in _varying(rows, keys):
        if key not in ('view', 'patches', 'encoder'):
            made[key] = lambda row, key=key: shown(row.get(key))
    return made


def _image_as(row: Row) -> str:
    if row.get('view') != 'bag':
        return shown(row.get('view'))
    return 'one patch' if row.get('patches') == 1 else f'{shown(row.get("patches"))} patches'


def _heads(name: str, runs: Sequence[Found]) -> list[str]:
    return [f'{name}: {run.name}' for run in runs]


def _distinct(rows: Sequence[Row], key: str) -> int:
    return len({shown(row.get(key)) for row in rows})


def _key(row: Row, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(shown(row.get(key)) for key in keys)


def _order(row: Row) -> tuple[Any, ...]:
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


def _all_rows(run: Found, *, several: bool) -> list[Element]:
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
    rows = [row for row in _rows(run) if isinstance(row.get('per_class'), list)]
    rows = [row for row in rows if row.get('encoder') == 'trained'] or rows
    rows.sort(key=lambda row: (row.get('probe') != 'linear', _order(row)[4], -_size(row)))
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
