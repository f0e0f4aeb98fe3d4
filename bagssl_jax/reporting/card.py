"""A model card in Markdown, of what a run's files say."""

import datetime
import shlex
from typing import Any

from bagssl_jax.configurations import flat, without_unchosen
from bagssl_jax.defaults import get_config
from bagssl_jax.provenance import code_version
from bagssl_jax.reporting.found import Found, Row
from bagssl_jax.reporting.markup import is_number, markdown_table, number, share, shown
from bagssl_jax.reporting.overview import facts_of, status_of
from bagssl_jax.reporting.scores import NAMES, image_as, interval, order, rows_of

PAPER = 'https://arxiv.org/abs/2206.08954'
# Of the YAML in front, as the Hub has them. A license is for the owner to give.
FRONT = """\
---
library_name: timm
pipeline_tag: image-feature-extraction
tags:
- timm
- image-feature-extraction
- self-supervised-learning
- bagssl
# license: not given here; the owner of the weights chooses one
---
"""
NOT_IN_COMMAND = ('analysis.', 'benchmark.', 'probe.')


def model_card(found: Found, *, step: int, usage: str) -> str:
    """What the encoder is, how it is used, was trained and scored.

    Args:
      found: the run.
      step: of the checkpoint whose encoder it is.
      usage: Python that makes `model`.
    """
    config = found.config
    encoder = config['encoder']
    name = encoder['name']
    mean, std = (', '.join(f'{x:g}' for x in encoder[key]) for key in ('mean', 'std'))
    parts = [
        f'# {name}, {shown(config["data"]["name"]) or "imported"}',
        f'An encoder of image patches, trained without labels ([BagSSL]({PAPER})): of a patch it '
        'gives an embedding h, and an image is represented by the mean of h over its patches.'
        if 'imported' not in config
        else 'An encoder that was imported, and exported again.',
        '## Use',
        f'```python\n{usage}\n\nh = model(images)  # float32 [b 3 h w] -> [b d]\n```',
        f'`images` are RGB in [0, 1], less {mean} and divided by {std}, by channel.',
        '## Training',
        status_of(found),
        '\n'.join(f'- {key}: {value}' for key, value in facts_of(found).items() if value),
        *_command(found),
        *_accuracies(found, step),
        '## Origin',
        f'The encoder after step {step:,}; exported on {datetime.date.today()} by bagssl_jax '
        f'{code_version()}. License: none is given here; it is for the owner of the weights to '
        'choose.',
    ]
    return FRONT + '\n' + '\n\n'.join(part for part in parts if part) + '\n'


def _command(found: Found) -> list[str]:
    """What trains such an encoder: what differs from the defaults; nothing of an import."""
    if 'imported' in found.config:
        return []
    own, defaults = (flat(without_unchosen(c)) for c in (found.config, get_config().to_dict()))
    defaults |= flat(get_config().to_dict())
    special = {
        key: 'DIR' if key == 'data.dir' else value
        for key, value in own.items()
        if value != defaults.get(key) and not key.startswith(NOT_IN_COMMAND)
    }
    flags = [shlex.quote(f'--config.{key}={_typed(value)}') for key, value in special.items()]
    words = ['--config=configs/default.py', *flags, '--workdir=WORKDIR']
    lines = ' \\\n    '.join(['python -m bagssl_jax.main', *words])
    return [
        'The command, with every setting that differs from the defaults:',
        f'```sh\n{lines}\n```',
    ]


def _typed(value: Any) -> str:
    return ','.join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _accuracies(found: Found, step: int) -> list[str]:
    """A table of the newest probe's rows of all labels and plain means; nothing without any."""
    rows = [row for row in rows_of(found) if is_number(row.get('top1'))]
    rows = [row for row in rows if row.get('labels', 'all') == 'all']
    rows = [row for row in rows if row.get('aggregation', 'mean') == 'mean']
    if not rows:
        return ['## Accuracy', 'Not measured.']
    probes = list(dict.fromkeys(shown(row.get('probe')) for row in rows))
    lines: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in sorted(rows, key=order):
        key = shown(row.get('encoder')), image_as(row), shown(row.get('space'))
        lines.setdefault(key, {})[shown(row.get('probe'))] = row
    body = [[*key, *(_cell(of.get(probe)) for probe in probes)] for key, of in lines.items()]
    results = found.results[0]
    test, train = (max(row.get(key, 0) for row in rows) for key in ('n_test', 'n_train'))
    at = '' if results.get('step') == step else f', of step {shown(results.get("step"))}'
    return [
        '## Accuracy',
        f'Top-1 in percent on {number(test)} test images of {shown(results.get("dataset"))}, '
        f'{number(train)} to learn from{at}, with 95% intervals over the test images.',
        markdown_table(
            ['encoder', 'image as', 'features', *(NAMES.get(p, p) for p in probes)], body
        ),
    ]


def _cell(row: Row | None) -> str:
    if row is None:
        return ''
    ends = interval(row)
    return share(row['top1']) + (f' ({share(ends[0])} to {share(ends[1])})' if ends else '')
