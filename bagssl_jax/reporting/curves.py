"""What training logged, as curves."""

from collections.abc import Sequence

from bagssl_jax.reporting.charts import Series, chart
from bagssl_jax.reporting.found import Found
from bagssl_jax.reporting.markup import Element, element, is_number, number, shown
from bagssl_jax.reporting.tables import details, table

STYLES = ('a', 'b')
MOST_ROWS = 30  # of the table
# Title, the metrics that it shows, how to read it.
CHARTS = (
    (
        'Loss',
        ('loss',),
        'What training lowers. Read its course: where it levels off, more of the same teaches '
        'little. Its height means nothing between objectives, and may lie below zero.',
    ),
    (
        'Effective rank',
        ('h_effective_rank', 'z_effective_rank'),
        'Along how many directions the embeddings h and the projections z of a batch are spread. '
        'A fall towards 1 is collapse: all patches look alike to the encoder.',
    ),
    (
        'kNN during training',
        ('knn_top1',),
        'Share of held-out training images whose class their nearest neighbours tell, from 4 '
        'patches an image. Higher is better; the test images are not touched.',
    ),
    (
        'Spread',
        ('h_std', 'z_std'),
        'Standard deviation of the embeddings h and the projections z, on average over their '
        'dimensions. At 0 all patches would be the same point.',
    ),
    (
        'Similarity',
        ('similarity',),
        'Mean cosine of projections that belong together: 1 where patches of one image agree '
        'entirely, as they do to a collapsed encoder, too. Training weighs it against spread.',
    ),
    (
        'Coding rate',
        ('coding_rate',),
        'How much room the projections of different images take up: higher is more spread. It '
        'keeps similarity from being reached by collapse.',
    ),
    (
        'Invariance',
        ('invariance',),
        'Mean squared distance of projections that belong together: lower is more alike.',
    ),
    (
        'Variance',
        ('variance',),
        'How far the dimensions of the projections fall short of a standard deviation of 1: 0 is '
        'no shortfall.',
    ),
    (
        'Covariance',
        ('covariance',),
        'How much the dimensions of the projections repeat each other: 0 is not at all.',
    ),
    (
        'Joint term',
        ('joint',),
        'Mean inner product of projections that belong together: higher is more alike.',
    ),
    (
        'Independent term',
        ('independent',),
        'Mean squared inner product of projections of any two patches: lower is more spread.',
    ),
    (
        'Agreement of dimensions',
        ('on_diagonal',),
        'How far each dimension of the projection is from agreeing between patches of one image: '
        '0 is entire agreement.',
    ),
    (
        'Redundancy',
        ('off_diagonal',),
        'How much different dimensions of the projections correlate: 0 is not at all.',
    ),
    (
        'Gradient norm',
        ('gradient_norm',),
        'Length of the gradient. Single spikes are harmless; a steady rise warns of instability.',
    ),
    (
        'Learning rate',
        ('learning_rate',),
        'The step size that the schedule gave: a warm-up, then a cosine.',
    ),
    (
        'Skipped updates',
        ('skipped',),
        'How many updates were left out so far because they were not finite. It should stay at 0.',
    ),
)
_OTHER = 'Logged by the training under this name.'


def training_section(runs: Sequence[Found]) -> list[Element]:
    """Curves of everything that was logged; of two runs, in one drawing."""
    logged = [key for run in runs for row in run.metrics for key in row]
    logged = [key for key in dict.fromkeys(logged) if key != 'step' and _is_drawn(runs, key)]
    if not logged:
        return []
    known = {key for _, keys, _ in CHARTS for key in keys}
    groups = [*CHARTS, *((key, (key,), _OTHER) for key in logged if key not in known)]
    drawn = []
    for title, keys, how in groups:
        keys = [key for key in keys if key in logged]
        # Two runs of two spaces each would be four lines.
        parts = [keys] if len(runs) == 1 else [[key] for key in keys]
        for part in filter(None, parts):
            whole = title if part == keys else f'{title}, {part[0][:1]}'
            drawn.append(_chart(whole, part, runs, how))
    tables = [_table(run) for run in runs if run.metrics]
    return [element('div', {'class': 'charts'}, drawn), *tables]


def _chart(title: str, keys: Sequence[str], runs: Sequence[Found], how: str) -> Element:
    series, said, lost = [], [], 0
    for place, run in enumerate(runs):
        for key in keys:
            points = _points(run, key)
            known = [(x, y) for x, y in points if y is not None]
            lost += len(points) - len(known)
            if not known:
                continue
            style = STYLES[place] if len(keys) == 1 else ('a', 'c')[keys.index(key)]
            name = run.name if len(runs) > 1 else key[:1] if len(keys) > 1 else ''
            last = number(known[-1][1])
            series.append(Series(name or title, points, style, note=last))
            said.append(_course(name, known))
    if lost:
        how += f' Values that were not finite, and leave gaps: {lost:,}.'
    return chart(title, series, how=how, description=f'{title}: {"; ".join(said)}.')


def _course(name: str, points: Sequence[tuple[float, float]]) -> str:
    (start, first), (end, last) = points[0], points[-1]
    low, high = min(y for _, y in points), max(y for _, y in points)
    return (
        f'{name} {number(first)} at step {start:,}, {number(last)} at step {end:,}, between '
        f'{number(low)} and {number(high)}'
    ).strip()


def _is_drawn(runs: Sequence[Found], key: str) -> bool:
    return any(is_number(row.get(key)) for run in runs for row in run.metrics)


def _points(run: Found, key: str) -> list[tuple[float, float | None]]:
    """(step, value) of the rows that have the metric; what is not finite is None."""
    values = {row['step']: row[key] for row in run.metrics if key in row}
    return [(step, value if is_number(value) else None) for step, value in values.items()]


def _table(run: Found) -> Element:
    """Some of the rows, evenly, and always the last."""
    rows = {}
    for row in run.metrics:
        rows.setdefault(row['step'], {}).update(row)
    steps = list(rows)
    every = -(-len(steps) // MOST_ROWS)
    chosen = steps[::-1][::every][::-1]
    keys = list(dict.fromkeys(key for step in chosen for key in rows[step] if key != 'step'))
    cells = [[number(step), *(shown(rows[step].get(key)) for key in keys)] for step in chosen]
    part = f'{len(chosen):,} of {len(steps):,} logged steps'
    caption = f'{run.name}: {part}; all are in metrics.jsonl'
    return details(f'The numbers of {run.name}', table(caption, ['step', *keys], cells, words=0))
