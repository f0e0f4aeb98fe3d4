import contextlib
import itertools
import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import REPOSITORY
from flax import traverse_util
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torchvision_weights import (
    EMP_SSL_PROJECTOR,
    LAYOUTS,
    MEAN,
    OUTPUTS,
    STD,
    VICREG_PROJECTOR,
    flags,
    flat,
    head,
    images,
    imported_output,
    momentum,
    prefixed,
    weights,
)

from bagssl_jax import command_line, load
from bagssl_jax.checkpoints import Checkpoints, restore_items
from bagssl_jax.errors import InputError
from bagssl_jax.interop import export_run, import_run
from bagssl_jax.interop.layouts import find_backbone
from bagssl_jax.interop.names import from_torchvision, to_torchvision
from bagssl_jax.models import ENCODERS, Networks, init_variables, make_encoder
from bagssl_jax.runs import Run


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
    """The workdir of an imported encoder, and the file that it was imported from."""
    place = tmp_path_factory.mktemp('imported')
    file = place / 'vicreg.safetensors'
    save_file(flat(LAYOUTS['vicreg'][0](weights('resnet18'))), file)
    import_run(**flags(place / 'run', checkpoint=str(file)))
    return place / 'run', file


def shapes(name='resnet18', stem='imagenet'):
    """The shapes of the variables of an encoder of width 4."""
    settings = {'width': 4, 'stem': stem, 'zero_init_last': False}
    networks = Networks(make_encoder(name, settings, dtype='float32'))
    return jax.eval_shape(lambda: init_variables(networks, 0, side=32))['encoder']


def linen(arrays, name='resnet18', stem='imagenet'):
    return jax.tree.map(jnp.asarray, from_torchvision(arrays, shapes(name, stem)))


@pytest.mark.parametrize(('name', 'stem', 'padding', 'expected'), OUTPUTS)
def test_outputs_are_those_that_pytorch_had(name, stem, padding, expected):
    arrays = weights(name, stem=stem)
    h = imported_output(name, arrays, images(stem), stem=padding, mean=MEAN, std=STD)
    np.testing.assert_allclose(h[1, : len(expected)], expected, atol=1e-5)


def test_pixel_statistics_are_applied_to_pixels():
    arrays, x = weights('resnet18', stem='cifar'), images('cifar')
    standardised = (x - np.float32(MEAN)) / np.float32(STD)
    plain = {'stem': 'cifar', 'mean': (0.0,) * 3, 'std': (1.0,) * 3}
    expected = imported_output('resnet18', arrays, standardised, **plain)
    h = imported_output('resnet18', arrays, x, stem='cifar', mean=MEAN, std=STD)
    np.testing.assert_allclose(h, expected, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'stem'),
    [
        *itertools.product(('resnet18', 'resnet50'), ('cifar', 'imagenet')),
        pytest.param('resnet200', 'imagenet', marks=pytest.mark.slow),
    ],
)
def test_there_and_back_is_exact(name, stem):
    arrays = weights(name, stem=stem)
    variables = linen(arrays, name, stem)
    back = to_torchvision(variables)
    assert back.keys() == {key for key in arrays if not key.endswith('num_batches_tracked')}
    assert all((back[key] == arrays[key]).all() for key in back)
    again = from_torchvision(back, variables)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), variables, again))


@pytest.mark.parametrize('project', LAYOUTS)
def test_the_backbone_is_found_in_the_layout_of_every_project(project):
    nest, prefix, left_out = LAYOUTS[project]
    arrays = weights('resnet18')
    found = find_backbone(flat(nest(arrays)))
    assert (found.prefix, found.left_out) == (prefix, left_out)
    assert found.arrays.keys() == arrays.keys()
    assert all((found.arrays[key] == arrays[key]).all() for key in arrays)


@pytest.mark.parametrize(
    ('project', 'prefix'),
    [
        ('moco', 'state_dict.module.encoder_k.'),
        ('dino', 'student.module.backbone'),
        ('solo-learn', 'state_dict.momentum_backbone'),
    ],
)
def test_the_other_backbone_can_be_asked_for(project, prefix):
    arrays = weights('resnet18')
    found = find_backbone(flat(LAYOUTS[project][0](arrays)), prefix)
    assert (found.arrays['conv1.weight'] == momentum(arrays)['conv1.weight']).all()


def test_a_network_alone_is_taken_whatever_its_name():
    arrays = weights('resnet18')
    assert find_backbone(prefixed('student.', arrays)).prefix == 'student.'
    assert find_backbone(arrays, '.').arrays.keys() == arrays.keys()


@pytest.mark.parametrize(
    ('arrays', 'prefix', 'message'),
    [
        (
            {**prefixed('a.', weights('resnet18')), **prefixed('b.', weights('resnet18'))},
            '',
            'several encoders: give one by --prefix; there are encoders under a., b.',
        ),
        (prefixed('a.', weights('resnet18')), 'b', '--prefix=b.: no array.*encoders under a.'),
        (head('blocks.0.', 'attn.qkv.weight'), '', 'holds no ResNet.*blocks.0.attn.qkv.weight'),
        ({}, '', 'holds no ResNet.*it holds no arrays'),
        ({}, 'x', '--prefix=x.: no array.*it holds no arrays'),
    ],
)
def test_a_checkpoint_without_the_one_backbone_says_what_there_is(arrays, prefix, message):
    with pytest.raises(InputError, match=message):
        find_backbone(arrays, prefix)


def test_every_array_that_does_not_fit_is_listed():
    arrays = weights('resnet18')
    del arrays['layer1.0.bn1.weight'], arrays['layer4.1.conv2.weight']
    arrays['layer2.0.bn1.bias'] = np.zeros(9, np.float32)
    arrays['layer3.0.conv1.weight'] = arrays['layer3.0.conv1.weight'][:, :, :1]
    arrays |= {'layer1.0.se.weight': np.zeros(3), 'layer5.0.bn1.num_batches_tracked': np.array(1)}
    with pytest.raises(InputError) as error:
        from_torchvision(arrays, shapes())
    assert str(error.value) == (
        'the checkpoint does not fit the encoder that --arch names; '
        'unknown: layer1.0.se.weight, layer5.0.bn1.num_batches_tracked; '
        'missing: layer1.0.bn1.weight, layer4.1.conv2.weight; '
        'of another shape: layer2.0.bn1.bias (9,) instead of (8,), '
        'layer3.0.conv1.weight (16, 8, 1, 3) instead of (16, 8, 3, 3)'
    )


def test_of_many_arrays_that_do_not_fit_two_are_named():
    with pytest.raises(InputError) as error:
        from_torchvision({}, shapes())
    assert re.search(r'missing: bn1.bias, bn1.running_mean and 98 more$', str(error.value))


@pytest.mark.parametrize(
    ('beside', 'prefix', 'last_bias'),
    [
        (VICREG_PROJECTOR, 'model.module.backbone.', False),
        (EMP_SSL_PROJECTOR, 'module.backbone.', True),
    ],
)
def test_the_projector_comes_too(tmp_path, capsys, beside, prefix, last_bias):
    arrays = prefixed(prefix, weights('resnet18')) | beside
    save_file(arrays, tmp_path / 'x.safetensors')
    import_run(**flags(tmp_path / 'run', checkpoint=str(tmp_path / 'x.safetensors')))
    out = capsys.readouterr().out
    assert 'left out, with the number of arrays: nothing' in out
    assert 'with a projector of widths 16, 16, 8' in out
    config = Run.at(tmp_path / 'run').read_config()
    assert tuple(config['projector']['widths']) == (16, 16, 8)
    assert config['projector']['last_bias'] is last_bias
    encoder = load(str(tmp_path / 'run'))
    assert encoder.widths == {'h': 32, 'hidden1': 16, 'hidden2': 16, 'z': 8}
    assert np.isfinite(encoder.embed([np.zeros((40, 40, 3), np.uint8)], space='z')).all()


@pytest.mark.parametrize(
    'without', ['projector.6.weight', 'projector.1.running_var', 'projector.0.weight']
)
def test_a_projector_of_another_layout_is_left_out(tmp_path, capsys, without):
    beside = {key: x for key, x in VICREG_PROJECTOR.items() if not key.endswith(without)}
    save_file(
        prefixed('model.module.backbone.', weights('resnet18')) | beside, tmp_path / 'x.safetensors'
    )
    import_run(**flags(tmp_path / 'run', checkpoint=str(tmp_path / 'x.safetensors')))
    out = capsys.readouterr().out
    assert f'model.module.projector ({len(beside)})' in out
    assert 'with a projector' not in out
    assert Run.at(tmp_path / 'run').read_config()['projector']['widths'] == ()


def test_an_import_is_a_run_like_any_other(imported):
    workdir, file = imported
    config, _ = command_line.parse(
        ['probe', f'--workdir={workdir}', '--config.probe.patches=1,9'], config_file=False
    )
    encoder = config.encoder.to_dict()
    assert encoder['resnet18'] == {**encoder['resnet50'], 'width': 4, 'stem': 'imagenet'}
    shared = {'name': 'resnet18', 'dtype': 'float32', 'mean': MEAN, 'std': STD, 'norm_groups': 1}
    assert {key: encoder[key] for key in shared} == shared
    assert encoder.keys() - shared.keys() == ENCODERS.keys()
    assert (config.projector.widths, config.probe.patches) == ((), (1, 9))
    assert config.imported.prefix == 'model.module.backbone.'
    expected = linen(find_backbone(load_file(file)).arrays)
    step, items = restore_items(Run.at(workdir), {'encoder': expected})
    assert step == 0
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), items['encoder'], expected))


def test_an_import_has_the_keys_that_a_training_would_have_left(imported):
    argv = ['main', '--workdir=x', f'--config={REPOSITORY}/configs/default.py']
    training = command_line.parse(argv, config_file=True)[0].to_dict()
    config = Run.at(imported[0]).read_config()
    assert config.keys() - training.keys() == {'imported'}
    for group in config.keys() - {'imported', 'seed', 'crops'}:
        assert config[group].keys() == training[group].keys()


def test_what_was_exported_is_what_was_imported(imported, tmp_path, capsys):
    workdir, file = imported
    out = str(tmp_path / 'out.safetensors')
    export_run(workdir=str(workdir), out=out)
    assert 'step 0, resnet18 of width 4, imagenet stem' in capsys.readouterr().out
    arrays, before = load_file(out), find_backbone(load_file(file)).arrays
    assert arrays.keys() == {key for key in before if 'num_batches_tracked' not in key}
    assert all((arrays[key] == before[key]).all() for key in arrays)
    with safe_open(out, 'numpy') as opened:
        notes = opened.metadata()
    assert (notes['stem'], notes['mean'], notes['step']) == ('imagenet', str(MEAN), '0')


def test_what_was_exported_says_how_it_is_imported(tmp_path, program):
    file, out = str(tmp_path / 'vicreg.safetensors'), str(tmp_path / 'out.safetensors')
    save_file(flat(weights('resnet18', stem='cifar')), file)
    own = {'mean': (0.5, 0.25, 0.125), 'std': (0.25, 0.5, 0.75), 'stem': 'cifar_pad2'}
    import_run(**flags(tmp_path / 'run', checkpoint=file, **own))
    export_run(workdir=str(tmp_path / 'run'), out=out)
    first, second = tmp_path / 'first', tmp_path / 'second'
    assert program('import_torch', f'--checkpoint={out}', f'--workdir={first}')[0] == 0
    encoder = Run.at(first).read_config()['encoder']
    assert (encoder['mean'], encoder['std']) == (own['mean'], own['std'])
    assert (encoder['name'], encoder['resnet18']['stem']) == ('resnet18', 'cifar_pad2')
    status, said, _ = program(
        'import_torch', f'--checkpoint={out}', f'--workdir={second}', '--mean=0.5,0.5,0.5'
    )
    assert status == 0
    assert f'mean (0.5, 0.5, 0.5) as given, where {out} says (0.5, 0.25, 0.125)\n' in said
    encoder = Run.at(second).read_config()['encoder']
    assert (encoder['mean'], encoder['std']) == ((0.5, 0.5, 0.5), own['std'])


def test_the_encoder_of_a_training_is_exported(shrunk, tmp_path):
    config = shrunk('--config.encoder.name=resnet18')
    variables = linen(weights('resnet18', stem='cifar'), stem='cifar')
    (tmp_path / 'config.json').write_text(config.to_json())
    with contextlib.closing(Checkpoints(Run.at(tmp_path), keep=2)) as checkpoints:
        for step in (4, 8):
            items = {'encoder': variables, 'training': {'step': np.array(step)}}
            checkpoints.save(step, items, {'unlogged': []})
    out = str(tmp_path / 'out.safetensors')
    export_run(workdir=str(tmp_path), out=out)
    kernel = variables['params']['stage2_block1']['shortcut_conv']['kernel']
    exported = load_file(out)
    assert (exported['layer2.0.downsample.0.weight'][5, 2] == kernel[:, :, 2, 5]).all()
    assert len(exported) == len(traverse_util.flatten_dict(variables))


def test_it_says_what_it_took_and_what_it_left_out(tmp_path, capsys):
    file = tmp_path / 'emp-ssl.safetensors'
    save_file(flat(LAYOUTS['emp-ssl'][0](weights('resnet18', stem='cifar'))), file)
    half = {'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5)}
    import_run(**flags(tmp_path / 'run', checkpoint=str(file), **half))
    taken, left_out, settings, hint = capsys.readouterr().out.splitlines()
    assert taken == 'taken: module.backbone.'
    assert left_out.endswith(': module.pre_feature (2), module.projection (2)')
    assert 'resnet18 of width 4, cifar stem' in settings
    assert '(0.5, 0.5, 0.5)' in settings
    assert '--stem=cifar_pad2' in hint
    assert Run.at(tmp_path / 'run').read_config()['patches']['resize'] == 32


def test_another_import_is_refused_in_the_same_place_but_the_same_is_not(imported, tmp_path):
    workdir, file = imported
    before = json.dumps(Run.at(workdir).read_config())
    import_run(**flags(workdir, checkpoint=str(file)))
    other = tmp_path / file.name
    save_file(flat(LAYOUTS['vicreg'][0](weights('resnet18', seed=1))), other)
    with pytest.raises(InputError, match=r'holds a run with imported.sha256'):
        import_run(**flags(workdir, checkpoint=str(other)))
    assert json.dumps(Run.at(workdir).read_config()) == before


def test_a_training_in_the_same_place_is_left_alone(imported, tmp_path, shrunk):
    (tmp_path / 'config.json').write_text(shrunk().to_json())
    with pytest.raises(InputError, match='holds a run with'):
        import_run(**flags(tmp_path, checkpoint=str(imported[1])))
    (tmp_path / 'config.json').unlink()
    (tmp_path / 'checkpoints').mkdir()
    with pytest.raises(InputError, match='holds checkpoints already'):
        import_run(**flags(tmp_path, checkpoint=str(imported[1])))


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            ['--arch=resnet19'],
            "unknown --arch 'resnet19': choose from resnet18, resnet34, resnet50",
        ),
        (['--arch=tiny'], "unknown --arch 'tiny'"),
        (['--arch=resnet34'], '--arch=resnet34: the checkpoint holds a resnet18: --arch=resnet18'),
        (['--checkpoint=/no/such.safetensors'], '--checkpoint=/no/such.safetensors: no such file'),
        (['--checkpoint='], '--checkpoint is missing: give --checkpoint=FILE'),
        (['--workdir='], '--workdir is missing'),
        (['--stem=cifar'], 'conv1.weight (4, 3, 7, 7) instead of (4, 3, 3, 3)'),
        (['--stem=small'], "unknown encoder.stem 'small'"),
        (['--mean=0.5'], 'encoder.mean=(0.5,) must be 3 numbers, each from 0 to 1'),
        (['--std=1,0,1'], 'encoder.std=(1.0, 0.0, 1.0) must be 3 numbers, each above 0'),
        (['--mean=a,b,c'], '--mean=a,b,c must be three numbers'),
        (['--prefix=nowhere'], 'encoders under model.module.backbone.'),
        (['--architecture=resnet18'], "Unknown command line flag 'architecture'"),
        (['resnet18'], "'resnet18' is not a flag"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    refusal, tmp_path, imported, arguments, message
):
    given = [f'--checkpoint={imported[1]}', '--arch=resnet18', f'--workdir={tmp_path}/run']
    assert message in refusal('import_torch', *given, *arguments)
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('shape', [(4, 1, 7, 7), (4, 3, 5, 5), (4,)])
def test_a_stem_that_is_neither_is_refused(tmp_path, shape):
    arrays = weights('resnet18') | {'conv1.weight': np.zeros(shape, np.float32)}
    save_file(arrays, tmp_path / 'x.safetensors')
    with pytest.raises(InputError, match=re.escape(f'conv1.weight has the shape {shape}')):
        import_run(**flags(tmp_path / 'run', checkpoint=str(tmp_path / 'x.safetensors')))


def test_a_missing_stem_is_listed_with_the_rest(tmp_path):
    arrays = weights('resnet18', width=64)
    del arrays['conv1.weight'], arrays['bn1.bias']
    save_file(arrays, tmp_path / 'x.safetensors')
    with pytest.raises(InputError, match=r'missing: bn1\.bias, conv1\.weight$'):
        import_run(**flags(tmp_path / 'run', checkpoint=str(tmp_path / 'x.safetensors')))


def test_a_damaged_file_is_refused(refusal, tmp_path):
    (tmp_path / 'x.safetensors').write_bytes(b'<html>not found</html>')
    arguments = [f'--checkpoint={tmp_path}/x.safetensors', '--arch=resnet18', '--workdir=run']
    assert 'x.safetensors cannot be read' in refusal('import_torch', *arguments)


def test_a_pickle_without_pytorch_says_what_to_install(refusal, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'torch', None)
    (tmp_path / 'x.pth').write_bytes(b'')
    arguments = [f'--checkpoint={tmp_path}/x.pth', '--arch=resnet18', '--workdir=run']
    assert "pip install '.[torch]'" in refusal('import_torch', *arguments)


def test_help_says_how(program):
    assert '--arch=resnet50 --workdir=DIR' in program('import_torch', '--help')[1]
