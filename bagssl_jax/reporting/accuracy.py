"""What the probes found: accuracy against the number of patches, and tables."""

import math
from collections.abc import Mapping, Sequence

from bagssl_jax.reporting.charts import Series, chart
from bagssl_jax.reporting.found import Found, Row
from bagssl_jax.reporting.markup import Content, Element, element, is_number, number, share, shown
from bagssl_jax.reporting.scores import NAMES, all_rows, interval, pivot, rows_of, varying_keys

# What a chart may differ in from the others; its whole and center have no patches.
SETTING = ('space', 'labels', 'flip')
OF_BAGS = ('aggregation', 'positions', 'patch')
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
    made += [pivot(runs)]
    for run in probed:
        made += all_rows(run, several=len(runs) > 1)
    return made


def _subjects(runs: Sequence[Found], *, several: bool) -> list[Content]:
    said = []
    for run in runs:
        latest = run.results[0]
        who = f'{run.name}: ' if several else ''
        sizes = [row.get('n_test') for row in rows_of(run) if is_number(row.get('n_test'))]
        images = f', {number(max(sizes))} test images' if sizes else ''
        step = latest.get('step')
        step = f', step {number(step)}' if is_number(step) else ''
        said.append(f'{who}{shown(latest.get("dataset"))}{step}{images}. ')
    if len({sentence.partition(': ')[2].split(', step')[0] for sentence in said}) > 1:
        said.append('They were probed on different images: accuracies do not compare.')
    return said


def _charts(runs: Sequence[Found]) -> list[Element]:
    """One for each probe and way to make a bag, those of most points first."""
    bags = [
        row
        for run in runs
        for row in rows_of(run)
        if row.get('view') == 'bag'
        and shown(row.get('encoder')) in STYLES[0]
        and is_number(row.get('top1'))
        and is_number(row.get('patches'))
    ]
    groups = {}
    for row in bags:
        setting = tuple(shown(row.get(key)) for key in ('probe', *SETTING, *OF_BAGS))
        groups.setdefault(setting, set()).add(row['patches'])
    varying = varying_keys(bags, (*SETTING, *OF_BAGS))
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
            rows = [row for row in rows_of(run) if row.get('encoder') == encoder]
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
