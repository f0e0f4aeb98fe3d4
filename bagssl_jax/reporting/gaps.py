"""What the report does not know, and what would tell it."""

from collections.abc import Sequence

from bagssl_jax.reporting.found import Found
from bagssl_jax.reporting.looks import LOOKS
from bagssl_jax.reporting.markup import Content, Element, element, is_number, number, shown
from bagssl_jax.reporting.overview import progress
from bagssl_jax.reporting.tables import details


def gaps_section(runs: Sequence[Found]) -> list[Element]:
    """A list for each run."""
    made = []
    for run in runs:
        if len(runs) > 1:
            made.append(element('h3', {}, run.name))
        items = [*_of_training(run), *_of_probe(run), *_of_looks(run)]
        items = [element('li', {}, *item) for item in items]
        made.append(element('ul', {'class': 'gaps'}, items))
    return made


def problems_section(runs: Sequence[Found], problems: Sequence[str]) -> list[Element]:
    """What could not be read, and what processes wrote down when they ended."""
    made = []
    listed = [*(problem for run in runs for problem in run.problems), *problems]
    if listed:
        items = [element('li', {}, problem) for problem in listed]
        made.append(element('ul', {'class': 'gaps'}, items))
    for run in runs:
        for name, end in run.logs.items():
            box = {'tabindex': '0', 'role': 'region', 'aria-label': f'end of errors/{name}'}
            text = element('pre', {'class': 'scroll', **box}, end or '(empty)')
            made.append(details(f'{run.name}: the end of errors/{name}', text))
    return made


def _of_training(run: Found) -> list[list[Content]]:
    items = []
    done, total = progress(run)
    if total and done < total:
        items.append(
            [f'The end of the training: step {done:,} of {total:,} is the last that was logged.']
        )
    imported = 'imported' in run.config
    if imported:
        items.append(['The training itself: the encoder was imported, and brought no curves.'])
    elif not run.metrics:
        items.append(['The training itself: metrics.jsonl has no row.'])
    if run.metrics and not any('knn_top1' in row for row in run.metrics):
        items.append(
            [
                'Accuracy during training: nothing monitored it. ',
                _code('--config.train.monitor_every=1'),
                ' of a training looks at kNN after every epoch.',
            ]
        )
    if not imported and run.metrics:
        items.append(
            [
                'How much other seeds would differ: this is one training of one seed, and '
                'intervals are over test images alone.'
            ]
        )
    return items


def _of_probe(run: Found) -> list[list[Content]]:
    command = _code(f'python -m bagssl_jax.probe --workdir={run.directory}')
    if not run.results and run.data.get('classes') == []:
        labelled = _code('--config.data.name=NAME --config.data.dir=DIR')
        said = 'Accuracy: the training images have no labels. A probe can take those of others: '
        return [[said, command, labelled]]
    if not run.results:
        return [['Accuracy: nothing was probed. ', command, ' does.']]
    latest = run.results[0]
    rows = latest.get('rows', [])
    items = []
    if run.steps and is_number(latest.get('step')) and latest['step'] != run.steps[-1]:
        items.append(
            [
                f'Accuracy of the newest checkpoint: step {number(latest["step"])} was probed, and '
                f'{run.steps[-1]:,} is the newest. ',
                command,
                ' probes that.',
            ]
        )
    if run.steps == [] and run.config:
        items.append(['Whatever else there is to know: the run has no checkpoint to measure.'])
    has = {key: {shown(row.get(key)) for row in rows} for key in ('encoder', 'view', 'space')}
    if 'untrained' not in has['encoder']:
        items.append(['The untrained encoder, which shows what training has added.'])
    views = [view for view in ('bag', 'whole', 'center') if view not in has['view']]
    if views:
        keys = _code(f'--config.probe.views={",".join(["bag", "whole", "center"])}')
        items.append([f'Views: {", ".join(views)} was not probed. ', keys, ' takes all three.'])
    projector = run.config.get('projector')
    widths = projector.get('widths') if isinstance(projector, dict) else None
    if run.config and not widths:
        items.append(['The projection z: there is no projector, so that all is of h alone.'])
    elif 'z' not in has['space'] and run.config:
        keys = _code('--config.probe.spaces=h,z')
        items.append(['The projection z was not probed: ', keys, ' does.'])
    if not latest.get('robustness'):
        keys = _code('--config.probe.robustness=pgd,corruptions')
        items.append(['Robustness against attacks and corruptions: ', keys, ' measures it.'])
    if rows and all(row.get('interval') is None for row in rows):
        items.append(['Intervals: the probe was that of a version that gave none.'])
    return items


def _of_looks(run: Found) -> list[list[Content]]:
    items, step = [], run.looked.get('step')
    if run.steps and run.looks and is_number(step) and step != run.steps[-1]:
        items.append(
            [f'Looks at the newest checkpoint, {run.steps[-1]:,}: they are of step {number(step)}.']
        )
    missing = [name for name in LOOKS if name not in run.looks]
    made_before = [name for name in missing if any(name in file for file in run.pictures)]
    missing = [name for name in missing if name not in made_before]
    if missing:
        command = f'python -m bagssl_jax.analyze --workdir={run.directory} --what={missing[0]}'
        listed = f'Looks that were not made: {", ".join(missing)}. '
        items.append([listed, _code(command), ' makes one.'])
    return items


def _code(command: str) -> Element:
    """A command whose lines break between its words, and not behind a hyphen."""
    words = [
        [' ' * (place > 0), element('span', {}, w)] for place, w in enumerate(command.split(' '))
    ]
    return element('code', {'class': 'command'}, words)
