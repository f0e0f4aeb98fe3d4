"""--help: every key, with its value and what it means."""

import pytest

from bagssl_jax import keys
from bagssl_jax.configurations import flat
from bagssl_jax.defaults import get_config
from bagssl_jax.errors import InputError


@pytest.fixture(scope='module')
def config():
    return get_config().to_dict()


def test_every_key_is_documented_in_the_order_of_the_source(config):
    documented = keys.documented()
    assert set(flat(config)) <= set(documented)
    in_order = [key for key in documented if key in ('seed', 'data.name', 'augment.hue', 'probe')]
    assert in_order == ['seed', 'data.name', 'augment.hue', 'probe']


def test_comments_above_and_behind_a_key_are_its_meaning():
    documented = keys.documented()
    assert documented['data.batch_size'] == 'images a step, over all devices'
    assert documented['encoder.resnet50.width'].startswith('Channels of the first stage; h is 8,')
    assert documented['multiscale'] == "as torchvision's RandomResizedCrop"


def test_the_overview_has_every_key_of_the_groups_once(config):
    words = keys.overview(config).split()
    assert words.count('batch_size=128') == 1
    assert 'warmup_epochs=1' in words
    assert 'encoder.resnet18.' in words
    assert 'encoder.resnet50.' not in words
    config = {**config, 'encoder': {**config['encoder'], 'name': 'resnet50'}}
    assert 'encoder.resnet50.' in keys.overview(config).split()
    of_probe = keys.overview(config, ['probe', 'data']).split()
    assert 'epochs=100' in of_probe
    assert 'learning_rate=0.3' not in of_probe


@pytest.mark.parametrize(
    ('word', 'found'),
    [
        ('probe.sgd', ['probe.sgd.epochs']),
        ('config.data.dir', ['data.dir']),
        ('warmup', ['optimizer.warmup_epochs']),
        ('umap-learn', ['analysis.map.method']),  # in its comment alone
    ],
)
def test_a_word_finds_a_group_a_key_or_a_meaning(config, word, found):
    lines = keys.explain(word, config).splitlines()
    assert [line.partition('=')[0] for line in lines if '=' in line.split(' ')[0]] == found


def test_a_word_that_finds_nothing_is_an_error(config):
    with pytest.raises(InputError, match='did you mean warmup_epochs'):
        keys.explain('warmup_epochz', config)
    with pytest.raises(InputError, match='no key'):
        keys.explain('learning_rate', config, ['probe', 'data'])


def test_help_of_a_program_has_its_keys_without_jax(program):
    status, out, _ = program('main', '--config=configs/cifar10.py', '--help')
    assert status == 0
    assert 'optimizer. name=larc' in out
    assert 'values in configs/cifar10.py' in out
    status, out, _ = program('probe', '--help')
    assert status == 0
    assert 'views=bag,whole' in out
    assert 'warmup_epochs' not in out
    status, out, _ = program('main', '--help=warmup')
    assert status == 0
    assert 'optimizer.warmup_epochs=1 ' in out
    assert 'python -m' not in out
    status, out, err = program('main', '--help=nonsense')
    assert status == 2
    assert err.startswith('error: --help=nonsense: no key')
