import contextlib
import json
import shutil

import numpy as np
import pytest
from conftest import REPOSITORY

import bagssl_jax
from bagssl_jax import command_line
from bagssl_jax.checkpoints import Checkpoints
from bagssl_jax.configurations import over_defaults, without_unchosen
from bagssl_jax.data.datasets import open_dataset
from bagssl_jax.defaults import get_config
from bagssl_jax.errors import InputError
from bagssl_jax.evaluation.plan import make_plan
from bagssl_jax.models import ENCODERS, init_variables, make_networks
from bagssl_jax.objectives import OBJECTIVES
from bagssl_jax.runs import Run
from bagssl_jax.training.optimizers import OPTIMIZERS

# Written by version 0.1, before encoders and optimisers had groups of their own.
OLD = REPOSITORY / 'tests' / 'data' / 'config_of_0_1.json'


def old(**changes):
    """That configuration with other values: group__key=value; None takes a key away."""
    config = json.loads(OLD.read_text())
    for path, value in changes.items():
        *groups, key = path.split('__')
        group = config
        for name in groups:
            group = group[name]
        group[key] = value
        if value is None:
            del group[key]
    return config


@pytest.fixture
def old_run(tmp_path):
    shutil.copy(OLD, tmp_path / 'config.json')
    return str(tmp_path)


@pytest.mark.parametrize(
    ('group', 'registry'),
    [('encoder', ENCODERS), ('optimizer', OPTIMIZERS), ('objective', OBJECTIVES)],
)
def test_every_entry_of_a_registry_has_its_group(group, registry):
    settings = get_config().to_dict()[group]
    assert {key for key, value in settings.items() if isinstance(value, dict)} == registry.keys()


def test_a_key_that_does_not_exist_cannot_be_set():
    with pytest.raises(AttributeError, match='cuont'):
        get_config().patches.cuont = 3


def test_the_defaults_over_themselves_are_the_defaults():
    config = get_config().to_dict()
    assert over_defaults(config) == over_defaults(json.loads(json.dumps(config))) == config


def test_an_older_run_is_read(old_run):
    config = Run.at(old_run).read_config()
    assert config['encoder']['tiny'] == {'width': 16}
    assert not {'width', 'stem', 'zero_init_last'} & config['encoder'].keys()
    assert config['optimizer']['adamw'] == {}
    assert not {'momentum', 'trust_coefficient'} & config['optimizer'].keys()
    assert config['probe']['sgd'] == config['probe']['sgd_augmented'] == {'epochs': 100}
    assert 'sgd_epochs' not in config['probe']
    assert (config['patches']['size'], config['train']['epochs']) == (16, 24.0)
    assert config['projector']['widths'] == (256, 64)


def test_an_older_run_is_probed(old_run):
    argv = ['probe', f'--workdir={old_run}', '--config.probe.sgd.epochs=3']
    config, _ = command_line.parse(argv, config_file=False)
    assert (config.probe.sgd.epochs, config.probe.sgd_augmented.epochs) == (3, 100)
    assert config.encoder.tiny.width == 16
    plan = make_plan(config, open_dataset(config.data))
    assert (len(plan.train), len(plan.test), len(plan.passes)) == (3200, 800, 2)


def test_an_older_run_is_embedded(old_run):
    run = Run.at(old_run)
    networks = make_networks(run.read_config())
    with contextlib.closing(Checkpoints(run, keep=1)) as checkpoints:
        checkpoints.save(7, init_variables(networks, 0, side=16), {})
    encoder = bagssl_jax.load(old_run)
    assert (encoder.step, encoder.widths) == (7, {'h': 128, 'hidden1': 256, 'z': 64})
    assert encoder.embed(np.zeros((1, 20, 20, 3), np.uint8), 4).shape == (1, 128)


def test_an_older_run_is_gone_on_with(old_run):
    argv = ['main', f'--workdir={old_run}', f'--config={REPOSITORY}/configs/quickstart.py']
    config, _ = command_line.parse(argv, config_file=True)
    Run.at(old_run).claim(config.to_dict(), None)
    assert Run.at(old_run).read_config() == config.to_dict()
    config, _ = command_line.parse([*argv, '--config.encoder.width=32'], config_file=True)
    with pytest.raises(InputError, match=r'encoder.tiny.width=16, not 32'):
        Run.at(old_run).claim(config.to_dict(), None)


def test_moved_keys_are_those_of_the_chosen_entry():
    changes = {'encoder__name': 'resnet50', 'encoder__stem': 'imagenet', 'optimizer__name': 'lars'}
    config = over_defaults(old(**changes, optimizer__momentum=0.8, probe__sgd_epochs=7))
    defaults = get_config().to_dict()
    expected = {**defaults['encoder']['resnet50'], 'width': 16, 'stem': 'imagenet'}
    assert config['encoder']['resnet50'] == expected
    assert config['encoder']['resnet18'] == defaults['encoder']['resnet18']
    assert config['optimizer']['lars'] == {**defaults['optimizer']['lars'], 'momentum': 0.8}
    assert config['optimizer']['sgd'] == defaults['optimizer']['sgd']
    assert config['probe']['sgd'] == config['probe']['sgd_augmented'] == {'epochs': 7}


def test_what_an_older_run_lacks_is_what_was_done_before():
    config = over_defaults(old(augment=None, target=None, train=None, data__on_error=None))
    defaults = get_config().to_dict()
    assert [config[group] for group in ('augment', 'target', 'train')] == [
        defaults[group] for group in ('augment', 'target', 'train')
    ]
    assert config['data']['on_error'] == 'stop'


def test_keys_that_the_defaults_lack_stay():
    config = over_defaults(old(imported={'prefix': 'module.'}, data__new=[1, [2]]))
    assert (config['imported'], config['data']['new']) == ({'prefix': 'module.'}, (1, (2,)))


def test_whole_numbers_serve_as_floats():
    assert isinstance(over_defaults(old(train__epochs=24))['train']['epochs'], float)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'encoder__name': None}, 'encoder.name is missing'),
        ({'encoder': None}, 'encoder.name is missing'),
        ({'patches': None}, 'patches.size is missing'),
        ({'projector': None}, 'projector.widths is missing'),
        ({'data__name': None}, 'data.name is missing'),
        ({'encoder': 'tiny'}, "encoder='tiny' must be a group of keys"),
        ({'projector__widths': 64}, 'projector.widths=64 must be a list'),
        ({'projector__widths': [64, 'a']}, "projector.widths='a' must be a whole number"),
        ({'encoder__name': ['tiny']}, "encoder.name=['tiny'] must be a text"),
        ({'encoder__width': '16'}, "encoder.width='16' must be a whole number"),
        ({'probe__sgd_epochs': 1.5}, 'probe.sgd_epochs=1.5 must be a whole number'),
        ({'seed': True}, 'seed=True must be a whole number'),
        ({'train__epochs': {}}, 'train.epochs={} must be a number'),
        ({'probe__flip': 1}, 'probe.flip=1 must be true or false'),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, changes, message):
    (tmp_path / 'config.json').write_text(json.dumps(old(**changes)))
    with pytest.raises(InputError) as error:
        Run.at(tmp_path).read_config()
    assert str(error.value).startswith(f'{tmp_path}/config.json: {message}')
    assert '\n' not in str(error.value)


def test_a_file_that_holds_no_configuration_is_refused(tmp_path):
    (tmp_path / 'config.json').write_text('[1]')
    with pytest.raises(InputError, match=r'config\.json is damaged: it holds no JSON object'):
        Run.at(tmp_path).read_config()


def test_what_is_not_chosen_says_nothing():
    config = without_unchosen(get_config().to_dict())
    assert list(config['optimizer'])[-2:] == ['weight_decay', 'lars']
    assert 'sgd' not in config['optimizer']
    assert {'tcr', 'name'} == config['objective'].keys()
    assert config['encoder'].keys() == {'name', 'dtype', 'mean', 'std', 'norm_groups', 'resnet18'}
