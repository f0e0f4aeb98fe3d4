"""What the run is, how far it is, and its main figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from bagssl_jax.reporting.found import Found, Row
from bagssl_jax.reporting.markup import Element, element, is_number, number, share, shown


def overview(runs: Sequence[Found]) -> list[Element]:
    """A column for each run."""
    parts = [_of_run(run, several=len(runs) > 1) for run in runs]
    return [element('div', {'class': 'sides'}, parts)] if len(runs) > 1 else parts


def progress(run: Found) -> tuple[int, int]:
    """Steps that are done as far as is known, and all of the training's; 0 of what is not known."""
    logged = [row['step'] for row in run.metrics]
    done = max([*logged, *run.steps], default=0)
    train, data = (run.config.get(group) for group in ('train', 'data'))
    if not (isinstance(train, Mapping) and isinstance(data, Mapping)):
        return done, 0
    steps, epochs = train.get('steps'), train.get('epochs')
    images, batch = run.data.get('images'), data.get('batch_size')
    if is_number(steps) and steps:
        return done, int(steps)
    if all(map(is_number, (epochs, images, batch))) and batch:
        total = epochs * (images // batch)
        return done, round(total) if is_number(total) else 0
    return done, 0


def _of_run(run: Found, *, several: bool) -> Element:
    facts = [
        element('div', {}, element('dt', {}, name), element('dd', {}, value))
        for name, value in facts_of(run).items()
        if value
    ]
    figures = [
        element(
            'div',
            {},
            element('dt', {}, name),
            element('dd', {}, value, element('small', {}, beside)),
        )
        for name, value, beside in _figures(run)
    ]
    return element(
        'div',
        {'class': 'run'},
        element('h3', {}, run.name) if several else None,
        element('p', {'class': 'status'}, status_of(run)),
        element('dl', {'class': 'figures'}, figures) if figures else None,
        element('dl', {'class': 'facts'}, facts) if facts else None,
    )


def status_of(run: Found) -> str:
    """How far it is, in a sentence."""
    imported = run.config.get('imported')
    if isinstance(imported, Mapping):
        checksum = shown(imported.get('sha256'))[:12]
        return (
            f'Imported from {shown(imported.get("file"))} (SHA-256 begins with {checksum}), not '
            'trained here.'
        )
    done, total = progress(run)
    if not done:
        return 'No step has been logged or saved yet.'
    if not total:
        return f'Trained to step {done:,}; how many there are to be is not known.'
    if done < total:
        return f'At step {done:,} of {total:,}: the training is under way, or was interrupted.'
    return f'Finished: {done:,} steps.'


def facts_of(run: Found) -> dict[str, str]:
    """What a person asks first, as far as the files say it."""

    def of(key: str) -> Any:
        found = run.config
        for name in key.split('.'):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    classes = run.data.get('classes')
    known = f' of {len(classes):,} classes' if isinstance(classes, list) and classes else ''
    images = run.data.get('images')
    images = f', {number(images)} training images{known}' if is_number(images) else ''
    name = shown(of('encoder.name'))
    width = of(f'encoder.{name}.width')
    objective = shown(of('objective.name'))
    optimizer = shown(of('optimizer.name'))
    rate = of('optimizer.learning_rate')
    facts = {
        'Data': f'{shown(of("data.name"))}{images}' if of('data.name') else '',
        'Patches': _patches(of),
        'Encoder': f'{name}{f" of width {width}" if width else ""}' if name else '',
        'Projector': shown(of('projector.widths')).replace(', ', ' \N{RIGHTWARDS ARROW} '),
        'Objective': objective,
        'Optimiser': f'{optimizer}, learning rate {shown(rate)}' if optimizer else '',
        'Batch': f'{shown(of("data.batch_size"))} images' if of('data.batch_size') else '',
    }
    if of('imported'):  # whose training is not known
        facts = {key: facts[key] for key in ('Encoder', 'Projector')}
    return facts


def _patches(of: Any) -> str:
    if not of('patches.count'):
        return ''
    count, size, resize = (of(f'patches.{key}') for key in ('count', 'size', 'resize'))
    if of('crops') == 'multicrop':
        some, side = (of(f'multicrop.{key}') for key in ('global_count', 'global_resize'))
        large, small = (shown(of(f'multicrop.{key}_scale')) for key in ('global', 'local'))
        times = '\N{MULTIPLICATION SIGN}'
        return (
            f'{count} an image: {some} global crops of {large} of the area, resized to '
            f'{side}{times}{side}, and local ones of {small}, resized to {resize}{times}{resize}'
        )
    if of('crops') == 'multiscale':
        cut = f'of {shown(of("multiscale.scale"))} of the area (multi-scale crops)'
    elif size:
        cut = f'of {size}\N{MULTIPLICATION SIGN}{size} pixels'
    else:
        cut = f'of {shown(of("patches.scale"))} of the area'
    resized = (
        f', resized to {resize}\N{MULTIPLICATION SIGN}{resize}' if resize and resize != size else ''
    )
    return f'{count} an image, {cut}{resized}'


def _figures(run: Found) -> list[tuple[str, str, str]]:
    """Name, value and what stands beside it."""
    made = []
    rows = run.results[0].get('rows', []) if run.results else []
    for probe, name in (('linear', 'linear probe'), ('knn', 'kNN')):
        made += _accuracy(rows, probe, name)
    for key, name in (
        ('knn_top1', 'kNN during training'),
        ('h_effective_rank', 'effective rank of h'),
    ):
        values = [row[key] for row in run.metrics if is_number(row.get(key))]
        if values and (key != 'knn_top1' or not made):
            value = f'{share(values[-1])}%' if key == 'knn_top1' else number(round(values[-1], 1))
            made.append((name, value, f'at first {number(round(values[0], 3))}'))
    return made


def _accuracy(rows: Sequence[Row], probe: str, name: str) -> list[tuple[str, str, str]]:
    """Of the mean of h over the largest bag, or the whole image; beside it, untrained."""
    views = {row.get('view') for row in rows if isinstance(row.get('view'), str)}
    view = 'bag' if 'bag' in views else 'whole'
    bags = [
        row
        for row in rows
        if row.get('probe') == probe
        and row.get('view') == view
        and row.get('space') == 'h'
        and row.get('labels', 'all') == 'all'
        and row.get('aggregation', 'mean') == 'mean'
        and is_number(row.get('top1'))
        and is_number(row.get('patches'))
    ]
    most = max((row['patches'] for row in bags), default=0)
    found = {shown(row.get('encoder')): row['top1'] for row in bags if row['patches'] == most}
    if 'trained' not in found:
        return []
    beside = f'untrained {share(found["untrained"])}%' if 'untrained' in found else ''
    what = 'whole image' if view == 'whole' else 'one patch' if most == 1 else f'{most:,} patches'
    return [(f'{name}, {what}', f'{share(found["trained"])}%', beside)]
