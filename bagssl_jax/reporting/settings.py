"""How the run was configured: what is special about it first, then all of it."""

from collections.abc import Mapping, Sequence
from typing import Any

from bagssl_jax.configurations import CHOICES, flat, without_unchosen
from bagssl_jax.defaults import get_config
from bagssl_jax.reporting.found import Found
from bagssl_jax.reporting.markup import Element, element, shown
from bagssl_jax.reporting.tables import details, table

EMPTY = '(empty)'


def settings_section(runs: Sequence[Found]) -> list[Element]:
    """The keys that differ from the defaults, or between two runs, and every key."""
    configs = [_said(run.config) for run in runs]
    if not any(configs):
        return []
    defaults = flat(get_config().to_dict())
    keys = list(dict.fromkeys(key for config in configs for key in config))
    special = [key for key in keys if any(_at(c, key) != _at(defaults, key) for c in configs if c)]
    made = []
    if len(runs) == 2 and all(configs):
        different = [key for key in keys if _at(configs[0], key) != _at(configs[1], key)]
        if different:
            caption = f'{len(different):,} keys differ between the two runs'
            made.append(_table(caption, different, configs, runs, defaults))
        else:
            made.append(element('p', {}, 'The two runs have the same configuration.'))
        special = [key for key in special if key not in different]
    if special:
        of_both = 'Keys that both runs have other' if len(runs) == 2 else 'Keys that are other'
        made.append(_table(f'{of_both} than the defaults', special, configs, runs, defaults))
    elif len(runs) == 1:
        made.append(element('p', {}, 'Every key has its default.'))
    everything = _table('Every key', keys, configs, runs, defaults)
    return [*made, details(f'The whole configuration ({len(keys):,} keys)', everything)]


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """By dotted key, without the settings of encoders, optimisers and objectives not chosen."""
    whole = all(
        isinstance(config.get(group), Mapping) and isinstance(config[group].get('name'), str)
        for group in CHOICES
    )
    found = flat(without_unchosen(config) if whole else config)
    return {key: value for key, value in found.items() if value != {}}


def _table(
    caption: str,
    keys: Sequence[str],
    configs: Sequence[Mapping[str, Any]],
    runs: Sequence[Found],
    defaults: Mapping[str, Any],
) -> Element:
    names = [run.name for run in runs] if len(runs) > 1 else ['this run']
    rows, marked = [], []
    for key in keys:
        values = [_at(config, key) for config in configs]
        differs = len(set(values)) > 1
        cells = [element('mark', {}, value) if differs else value for value in values]
        default = _at(defaults, key) if key in defaults else 'no such key'
        # Both of two that differ are marked; of one run, what is not the default.
        if len(runs) == 1 and values[0] != default:
            cells = [element('mark', {}, values[0])]
            differs = True
        rows.append([element('code', {}, key), *cells, default])
        marked.append(differs)
    head = ['key', *names, 'default']
    return table(caption, head, rows, words=len(head), marked=marked)


def _at(config: Mapping[str, Any], key: str) -> str:
    if key not in config:
        return 'not known' if not config else 'not chosen'
    value = config[key]
    return shown(value) if shown(value) else EMPTY
