"""Every number of the configuration has a range, and what is outside of it is refused by name."""

import json
import math

import pytest
from conftest import REPOSITORY
from flax.traverse_util import flatten_dict

from bagssl_jax import command_line
from bagssl_jax.configurations import over_defaults
from bagssl_jax.defaults import declared, get_config
from bagssl_jax.errors import InputError
from bagssl_jax.ranges import Range, above, within

DEFAULTS = flatten_dict(get_config().to_dict(), sep='.')
RANGES = flatten_dict(declared(), sep='.')


def holds_words(key, value):
    # An empty tuple is of numbers where a range is declared, else of words: as on the command line.
    return isinstance(value[0], str) if value else not isinstance(RANGES[key], Range)


NUMBERS = {
    key: value
    for key, value in DEFAULTS.items()
    if not isinstance(value, bool | str)
    and not (isinstance(value, tuple) and holds_words(key, value))
}


def overridden(key, text):
    argv = ['main', '--workdir=x', f'--config={REPOSITORY}/configs/default.py']
    return command_line.parse([*argv, f'--config.{key}={text}'], config_file=True)[0]


def test_every_number_has_a_range_that_holds_its_default():
    assert len(NUMBERS) > 60
    for key, value in NUMBERS.items():
        declaration = RANGES[key]
        assert isinstance(declaration, Range), f'{key}={value}: declare its range in defaults.py'
        declaration.check(key, value)


# One of each kind: a whole number, a share, and several of both.
KINDS = ('data.batch_size', 'augment.flip', 'probe.patches', 'encoder.mean')
WRONG = ('inf', '1e30', '1e400', '-1', str(10**30), 'many')
WRONG_OF_WHOLE_NUMBERS = ('1.5', str(-(10**30)), str(10**400))


@pytest.mark.parametrize(
    ('key', 'text'),
    [
        *((key, 'nan') for key in NUMBERS),
        *((key, text) for key in KINDS for text in WRONG),
        *((key, text) for key in KINDS[::2] for text in WRONG_OF_WHOLE_NUMBERS),
    ],
)
def test_numbers_beyond_every_sense_are_one_line_that_names_the_key(key, text):
    if isinstance(NUMBERS[key], tuple):
        text = f'{",".join([text] * max(1, len(NUMBERS[key])))},'
    with pytest.raises(InputError) as error:
        overridden(key, text)
    assert key in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('key', NUMBERS)
def test_the_ends_of_a_range_are_inside_and_what_follows_is_outside(key):
    declaration = RANGES[key]
    is_tuple = isinstance(NUMBERS[key], tuple)
    is_whole = isinstance((*NUMBERS[key], 0.5)[0] if is_tuple else NUMBERS[key], int)

    def held(number):
        return (number,) * max(1, declaration.items[0]) if is_tuple else number

    def next_to(number, towards):
        return number + (1 if towards > 0 else -1) if is_whole else math.nextafter(number, towards)

    declaration.check(key, held(declaration.most))
    if not declaration.above:
        declaration.check(key, held(declaration.least))
    below = declaration.least if declaration.above else next_to(declaration.least, -math.inf)
    for outside in (next_to(declaration.most, math.inf), below, math.nan):
        with pytest.raises(InputError, match='must be'):
            declaration.check(key, held(outside))


def test_what_a_run_has_stored_is_checked_too():
    stored = json.loads(json.dumps(get_config().to_dict()))
    stored['objective']['simclr']['temperature'] = 0
    with pytest.raises(InputError, match=r'objective\.simclr\.temperature=0.0 must be from 0.001'):
        over_defaults(stored)


def test_numbers_without_a_default_are_read_and_stored():
    config = overridden('augment.blur_by_index', '1,0.1')
    assert config.augment.blur_by_index == (1.0, 0.1)
    assert over_defaults(json.loads(config.to_json()))['augment']['blur_by_index'] == (1.0, 0.1)


@pytest.mark.parametrize(
    ('declaration', 'value', 'message'),
    [
        (within(8, 2, 4096), 1, 'x=1 must be from 2 to 4,096'),
        (above(0.5, 0, 1), 0.0, 'x=0.0 must be above 0 and at most 1'),
        (
            within((1, 4), 1, 9, items=(1, 8)),
            (),
            r'x=\(\) must be 1 to 8 numbers, each from 1',
        ),
        (within((0.5,) * 3, 0, 1, items=3), (0.5, 0.5), 'must be 3 numbers, each from 0 to 1'),
        (within((1, 2), 0, 9, items=2, ascending=True), (2, 1), 'to 9, the smallest first'),
    ],
)
def test_a_range_says_what_it_is(declaration, value, message):
    with pytest.raises(InputError, match=message):
        declaration.check('x', value)
