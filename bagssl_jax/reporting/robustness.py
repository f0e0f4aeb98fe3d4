"""How linear probes stand attacked and corrupted test images."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bagssl_jax.reporting.charts import Series, chart
from bagssl_jax.reporting.found import Found, Row
from bagssl_jax.reporting.markup import Element, element, is_number, number, share, shown
from bagssl_jax.reporting.scores import interval, outcome
from bagssl_jax.reporting.tables import details, table

CLEAN, ATTACK, NOISE = 'none', 'pgd', 'noise'
NORMS = {'linf': ('L-infinity', 255, 'grey levels of 255'), 'l2': ('L2', 1, 'L2 distance')}
STYLES = {'trained': ('a', 'b', 'c'), 'untrained': ('rest', 'rest2')}
LEDE = (
    'The linear probes on perturbed test images. Compare how fast curves fall, not only where they '
    'begin; an encoder that tells little of clean images has little to lose.'
)
ATTACKED = (
    'An adversary who knows encoder, places of the patches and classifier moves the pixels by this '
    'much at most, by projected gradient descent. A curve that falls later is more robust; random '
    'noise of the same size should do less.'
)
CORRUPTED = (
    'Mean over {} kinds of corruption, such as noise, blur, weather and compression; at 0 the '
    'images as they are. A flatter curve is more robust.'
)


class Subject(NamedTuple):
    """Whose accuracy it is."""

    run: int
    encoder: str
    view: str
    patches: str

    @property
    def name(self) -> str:
        bag = f'{self.patches} patches' if self.view == 'bag' else self.view
        return f'{self.encoder}, {bag}'


def robustness_section(runs: Sequence[Found]) -> list[Element]:
    """Charts and tables of 'robustness' in results.json; nothing where there is nothing."""
    found = _by_subject(runs)
    if not found:
        return []
    styles = _styles(found)
    names = {
        subject: f'{runs[subject.run].name}, {subject.name}' if len(runs) > 1 else subject.name
        for subject in found
    }
    charts = [_by_radius(found, names, styles, norm) for norm in NORMS]
    charts = [one for one in [*charts, _by_severity(found, names, styles)] if one is not None]
    tables = [_differences(runs), _radii(found, names), _corruptions(found, names)]
    return [
        element('p', {'class': 'lede'}, LEDE),
        element('div', {'class': 'charts'}, charts),
        *filter(None, tables),
    ]


def _by_subject(runs: Sequence[Found]) -> dict[Subject, list[Row]]:
    """The rows of the mean in the first space, the largest bag of each encoder first."""
    found = {}
    for place, run in enumerate(runs):
        rows = run.results[0].get('robustness', []) if run.results else []
        rows = [row for row in rows if is_number(row.get('top1'))]
        spaces = sorted({shown(row.get('space')) for row in rows})
        for row in rows:
            if shown(row.get('space')) == spaces[0] and row.get('aggregation') == 'mean':
                keys = (shown(row.get(key)) for key in ('encoder', 'view', 'patches'))
                found.setdefault(Subject(place, *keys), []).append(row)
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def _styles(found: Mapping[Subject, Any]) -> dict[Subject, str]:
    """Of as many as can be told apart: the largest bags, then other views, then smaller bags."""
    styles = {}
    for encoder, known in STYLES.items():
        subjects = [subject for subject in found if subject.encoder == encoder]
        styles |= dict(zip(subjects, known, strict=False))
    return styles


def _order(subject: Subject) -> tuple[Any, ...]:
    """The largest bag of each view of each run, trained before untrained, then smaller bags."""
    is_small = subject.view == 'bag' and subject.patches == '1'
    return is_small, subject.encoder != 'trained', subject.view != 'bag', subject.run, subject


def _by_radius(
    found: Mapping[Subject, Sequence[Row]],
    names: Mapping[Subject, str],
    styles: Mapping[Subject, str],
    norm: str,
) -> Element | None:
    title, unit, x_title = NORMS[norm]
    series, said = [], []

    def add(subject: Subject, attack: str, name: str, style: str) -> bool:
        rows = [
            row
            for row in found[subject]
            if (row.get('attack') == attack and row.get('norm') == norm)
            or row.get('attack') == CLEAN
        ]
        points = {unit * row['radius']: row for row in rows if is_number(row.get('radius'))}
        if len(points) > 1:
            points = dict(sorted(points.items()))
            series.append(_series(name, points, style))
            values = ', '.join(f'{number(x)}: {share(row["top1"])}' for x, row in points.items())
            said.append(f'{name} {values}')
        return len(points) > 1

    for subject, style in styles.items():
        add(subject, ATTACK, names[subject], style)
    for subject, style in styles.items():
        if add(subject, NOISE, f'{names[subject]}, random noise', f'{style} dashed'):
            break  # one tells what is to be told
    if not series:
        return None
    return _chart(f'Attacked, {title}', series, ATTACKED, said, x_title=f'radius, {x_title}')


def _by_severity(
    found: Mapping[Subject, Sequence[Row]],
    names: Mapping[Subject, str],
    styles: Mapping[Subject, str],
) -> Element | None:
    series, said, kinds = [], [], set()
    for subject, style in styles.items():
        rows = [row for row in found[subject] if is_number(row.get('severity'))]
        kinds |= {shown(row.get('corruption')) for row in rows} - {CLEAN}
        means = {
            severity: {'top1': _mean([row for row in rows if row['severity'] == severity])}
            for severity in sorted({row['severity'] for row in rows})
        }
        if len(means) > 1:
            series.append(_series(names[subject], means, style))
            values = ', '.join(f'{number(x)}: {share(row["top1"])}' for x, row in means.items())
            said.append(f'{names[subject]} {values}')
    if not series:
        return None
    how = CORRUPTED.format(len(kinds))
    return _chart('Corrupted', series, how, said, x_title='severity')


def _series(name: str, points: Mapping[float, Row], style: str) -> Series:
    values = [(x, row['top1']) for x, row in points.items()]
    intervals = [interval(row) for row in points.values()]
    return Series(name, values, style, intervals=intervals, marked=True)


def _chart(
    title: str, series: Sequence[Series], how: str, said: Sequence[str], *, x_title: str
) -> Element:
    xs = sorted({x for one in series for x, _ in one.points})
    return chart(
        title,
        series,
        how=how,
        description=f'{title}, top-1 in percent by {x_title}: {"; ".join(said)}.',
        x_title=x_title,
        x_ticks=[(x, number(x)) for x in xs],
        label=lambda y: f'{100 * y:g}%',
    )


def _radii(found: Mapping[Subject, Sequence[Row]], names: Mapping[Subject, str]) -> Element | None:
    """A line for each attack and radius, a column for each subject."""
    lines = {}
    for subject, rows in found.items():
        for row in rows:
            if 'attack' in row and is_number(row.get('radius')):
                key = tuple(shown(row.get(name)) for name in ('norm', 'attack'))
                lines.setdefault((*key, row['radius']), {})[subject] = row
    if not lines:
        return None
    body = []
    for (norm, attack, radius), of in lines.items():
        title, unit, _ = NORMS.get(norm, (norm, 1, ''))
        name = 'as they are' if attack == CLEAN else f'{title} {number(unit * radius)}, {attack}'
        body.append([name, *(outcome(of.get(subject)) for subject in found)])
    caption = 'Top-1 in percent under attack; L-infinity radii in grey levels of 255'
    head = ['images', *(names[subject] for subject in found)]
    return details('Attacks in numbers', table(caption, head, body))


def _corruptions(
    found: Mapping[Subject, Sequence[Row]], names: Mapping[Subject, str]
) -> Element | None:
    """A line for each corruption, a column for each subject: means over severities."""
    lines = {}
    for subject, rows in found.items():
        for row in rows:
            if 'corruption' in row:
                of = lines.setdefault(shown(row['corruption']), {})
                of.setdefault(subject, []).append(row)
    if not lines:
        return None
    body = [
        [
            'as they are' if name == CLEAN else name.replace('_', ' '),
            *(share(_mean(of[s])) if s in of else '\N{EN DASH}' for s in found),
        ]
        for name, of in lines.items()
    ]
    caption = 'Top-1 in percent by corruption, mean over severities'
    head = ['images', *(names[subject] for subject in found)]
    return details('Corruptions in numbers', table(caption, head, body))


def _differences(runs: Sequence[Found]) -> Element | None:
    """A line for each condition, a column for each bag and what it is compared with."""
    lines, columns = {}, {}
    for place, run in enumerate(runs):
        rows = run.results[0].get('differences', []) if run.results else []
        spaces = sorted({shown(row.get('space')) for row in rows})
        for row in rows:
            condition = _condition(row)
            if (
                condition
                and row.get('encoder') == 'trained'
                and row.get('aggregation') == 'mean'
                and shown(row.get('space')) == spaces[0]
                and is_number(row.get('difference'))
                and is_number(row.get('patches'))
            ):
                column = place, row['patches'], shown(row.get('less'))
                run_name = f'{run.name}, ' if len(runs) > 1 else ''
                columns[column] = f'{run_name}{row["patches"]} patches less {column[2]}'
                lines.setdefault(condition, {})[column] = row
    if not lines:
        return None
    body = [
        [condition, *(_points(of.get(column)) for column in columns)]
        for condition, of in lines.items()
    ]
    caption = (
        'Top-1 of bags less that of whole images or center crops, trained, in points, with 95% '
        'intervals of the differences on the same images (Agresti and Min 2005): one that leaves '
        'out 0 tells which of the two is better'
    )
    return details(
        'Differences, image by image', table(caption, ['images', *columns.values()], body)
    )


def _condition(row: Row) -> str:
    """Of attacked, of clean images and of means over corruptions; '' of others."""
    norm = shown(row.get('norm'))
    if row.get('attack') == ATTACK and norm in NORMS and is_number(row.get('radius')):
        title, unit, _ = NORMS[norm]
        return f'{title} {number(unit * row["radius"])}'
    if row.get('attack') == CLEAN or row.get('corruption') == CLEAN:
        return 'as they are'
    if row.get('corruption') == 'mean':
        severity = row.get('severity')
        which = f'severity {number(severity)}' if is_number(severity) else 'all severities'
        return f'corrupted, {which}'
    return ''


def _points(row: Row | None) -> str:
    if row is None:
        return '\N{EN DASH}'
    ends = interval(row)
    between = f' [{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]' if ends else ''
    return f'{100 * row["difference"]:+.1f}{between}'.replace('-', '\N{MINUS SIGN}')


def _mean(rows: Sequence[Row]) -> float:
    return sum(row['top1'] for row in rows) / len(rows)
