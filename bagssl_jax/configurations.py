"""Whole configurations: as older versions wrote them, flat, and without what was not chosen."""

from collections.abc import Mapping
from typing import Any

from bagssl_jax.defaults import check_ranges, get_config
from bagssl_jax.errors import InputError

# Groups that choose one of several entries by its `name`; an entry's own settings are GROUP.NAME.*.
CHOICES = ('encoder', 'optimizer', 'objective')
# What a run cannot be read without, and no default can stand for.
REQUIRED = (
    'data.name',
    'patches.size',
    'patches.scale',
    'patches.resize',
    'encoder.name',
    'projector.widths',
)


def over_defaults(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that some version wrote down, as this version has it.

    Keys that it lacks get their defaults; keys that have moved are taken to their new place, or
    dropped where the chosen entry does not have them; keys that the defaults lack stay. JSON's
    lists become tuples.

    Args:
      stored: nested, as in a run's config.json.

    Raises:
      InputError: a value is of another kind than the default or out of its range, or a key is
        missing without which the run cannot be read.
    """
    defaults = get_config().to_dict()
    config = _laid_over(defaults, stored, '')
    for key in REQUIRED:
        if not _holds(stored, key):
            raise InputError(f'{key} is missing, which has no default that fits every run')
    for group, keys in _MOVED_TO_ENTRY.items():
        name = config[group]['name']
        for key in [key for key in keys if key in config[group]]:
            value = config[group].pop(key)
            if key in defaults[group].get(name, {}):
                like = defaults[group][name][key]
                config[group][name][key] = _laid_over(like, value, f'{group}.{key}')
    if 'sgd_epochs' in config['probe']:
        epochs = _laid_over(100, config['probe'].pop('sgd_epochs'), 'probe.sgd_epochs')
        for name in ('sgd', 'sgd_augmented'):
            config['probe'][name]['epochs'] = epochs
    check_ranges(config)
    return config


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted key -> value, in the order of the tree; an empty group -> {}."""
    found = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            found |= {f'{name}.{key}': below for key, below in flat(value).items()}
        else:
            found[name] = dict(value) if isinstance(value, Mapping) else value
    return found


def without_unchosen(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the settings of encoders, optimisers and objectives that it lacks.

    They say nothing of a run, and may differ between two starts of it. In a group of `CHOICES`,
    the settings of the chosen entry come last.
    """
    settled = dict(config)
    for group in CHOICES:
        shared = {k: v for k, v in config[group].items() if not isinstance(v, Mapping)}
        name = config[group]['name']
        settled[group] = shared | {name: config[group].get(name, {})}
    return settled


_MOVED_TO_ENTRY = {
    'encoder': ('width', 'stem', 'zero_init_last'),
    'optimizer': ('momentum', 'trust_coefficient'),
}
_KINDS = {
    bool: ('true or false', bool),
    int: ('a whole number', int),
    float: ('a number', (int, float)),
    str: ('a text', str),
}


def _laid_over(default: Any, value: Any, key: str) -> Any:
    """`value` with what it lacks from `default`; InputError where it is of another kind."""
    if isinstance(default, Mapping):
        if not isinstance(value, Mapping):
            raise InputError(f'{key or "a configuration"}={value!r} must be a group of keys')
        prefix = f'{key}.' if key else ''
        known = {
            name: _laid_over(below, value[name], prefix + name) if name in value else below
            for name, below in default.items()
        }
        return known | {name: _tupled(value[name]) for name in value if name not in default}
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple):
            raise InputError(f'{key}={value!r} must be a list')
        like = default[0] if default else 0.0  # those without an item are of numbers
        return tuple(_laid_over(like, item, key) for item in value)
    words, kinds = _KINDS[type(default)]
    # Python takes True for 1.
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise InputError(f'{key}={value!r} must be {words}')
    try:
        return type(default)(value)
    except OverflowError:  # of a whole number with hundreds of digits
        raise InputError(f'{key} must be {words} of fewer digits') from None


def _tupled(tree: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(tree, Mapping):
        return {key: _tupled(value) for key, value in tree.items()}
    return tuple(map(_tupled, tree)) if isinstance(tree, list) else tree


def _holds(tree: Any, key: str) -> bool:
    for name in key.split('.'):
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True
