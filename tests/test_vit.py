import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import timm_weights
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from timm_weights import MEAN, OUTPUTS, STD

import bagssl_jax
from bagssl_jax.errors import InputError
from bagssl_jax.import_torch import OPTIONS
from bagssl_jax.interop import export_run, import_run
from bagssl_jax.interop.layouts import find_backbone
from bagssl_jax.interop.vit import from_timm, settings_of, to_timm
from bagssl_jax.models import Networks, init_variables, make_encoder, make_projector
from bagssl_jax.objectives import make_objective
from bagssl_jax.parallel import batch_sharded, make_mesh, replicated
from bagssl_jax.runs import Run
from bagssl_jax.training.state import create_state
from bagssl_jax.training.steps import make_train_step

SMALL = {'width': 8, 'depth': 2, 'heads': 2, 'patch': 4}


def encoder_of(dtype='float32', **settings):
    return make_encoder('vit_ti', {**SMALL, **settings}, dtype=dtype, mean=MEAN, std=STD)


@functools.cache
def imported(kind):
    """The encoder of timm's weights, and its variables."""
    arrays = timm_weights.weights_of(*kind)
    encoder = encoder_of(**settings_of(arrays, heads=2))
    like = jax.eval_shape(lambda: init_variables(Networks(encoder), 0, side=8))['encoder']
    return encoder, from_timm(arrays, encoder, like)


@pytest.mark.parametrize(
    ('name', 'width', 'heads', 'parameters'),
    [
        # timm's counts of vit_*_patch16_224 less those of the classifier, 1000 * d + 1000
        ('vit_ti', 192, 3, 5_717_416 - 193_000),
        ('vit_s', 384, 6, 22_050_664 - 385_000),
        ('vit_b', 768, 12, 86_567_656 - 769_000),
    ],
)
def test_vits_have_as_many_parameters_as_timm(name, width, heads, parameters):
    settings = {'width': width, 'depth': 12, 'heads': heads, 'patch': 16, 'class_token': True}
    networks = Networks(make_encoder(name, settings, dtype='float32'))
    shapes = jax.eval_shape(lambda: init_variables(networks, 0, side=224))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters


@pytest.mark.parametrize('kind', timm_weights.TIMM)
def test_outputs_are_those_that_timm_had_of_every_size(kind):
    encoder, variables = imported(kind)
    for (of, size), expected in OUTPUTS.items():
        if of == kind:
            x = timm_weights.images(size)
            h, _ = jax.jit(lambda v, x: encoder.apply(v, x, train=False))(variables, x)
            np.testing.assert_allclose(h[1, :5], expected, atol=1e-5)


def test_pixels_that_fill_no_token_are_left_out():
    encoder, variables = imported((True, 'class'))
    x = jnp.asarray(timm_weights.images((18, 23)))
    embed = jax.jit(functools.partial(encoder.apply, train=False))
    h, intermediates = embed(variables, x)
    np.testing.assert_allclose(h, embed(variables, x[:, :16, :20])[0], atol=1e-6)
    assert intermediates['map'].shape == (2, 4, 5, 8)


@pytest.mark.parametrize('kind', timm_weights.TIMM)
def test_there_and_back_is_exact(kind):
    encoder, variables = imported(kind)
    arrays, back = timm_weights.weights_of(*kind), to_timm(variables, encoder)
    assert back.keys() == arrays.keys()
    assert all((back[name] == arrays[name]).all() for name in arrays)


def test_how_a_vit_begins():
    encoder = encoder_of(width=64, depth=1, class_token=True)
    params = init_variables(Networks(encoder), 0, side=64)['encoder']['params']
    for kernel in (params['positions'], params['block1']['dense1']['kernel']):
        np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.05)
    attention = params['block1']['attention']
    np.testing.assert_allclose(attention['query']['kernel'].std(), 0.02, rtol=0.05)
    assert not attention['out']['bias'].any()
    embed = params['embed']
    for uniform in embed['kernel'], embed['bias']:
        assert 0.9 * 48**-0.5 < jnp.abs(uniform).max() <= 48**-0.5


def test_bfloat16_keeps_parameters_and_outputs_in_float32():
    encoder, variables = imported((True, 'class'))
    x = timm_weights.images((16, 16))
    expected, (h, intermediates) = (
        jax.jit(functools.partial(encoder.clone(dtype=dtype).apply, train=False))(variables, x)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    expected, _ = expected
    assert (h.dtype, intermediates['map'].dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(h, expected, atol=0.05)
    fresh = jax.eval_shape(lambda: init_variables(Networks(encoder_of('bfloat16')), 0, side=8))
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype('float32')}


@pytest.mark.slow
def test_what_is_computed_again_changes_what_is_kept_alone():
    x = jnp.asarray(timm_weights.images((16, 16)))
    encoder, variables = imported((True, 'class'))

    def loss(variables, encoder):
        return jnp.sum(jnp.sin(encoder.apply(variables, x, train=True)[0]))

    found, kept = [], []
    for remat in ('none', 'blocks'):
        own = functools.partial(loss, encoder=encoder.clone(remat=remat))
        pull_back = jax.eval_shape(lambda variables, own=own: jax.vjp(own, variables)[1], variables)
        kept.append(sum(leaf.size for leaf in jax.tree.leaves(pull_back)))
        found.append(jax.jit(jax.grad(own))(variables))
    chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-5)
    assert kept[1] < kept[0] / 2


@pytest.mark.slow
def test_eight_devices_equal_one():
    encoder = encoder_of(depth=1, class_token=True, image_size=16)  # positions are interpolated
    networks = Networks(encoder, make_projector(widths=(8,), dtype='float32'))
    patches = np.random.default_rng(0).integers(0, 256, (8, 2, 8, 8, 3), np.uint8)
    optimizer, found = optax.sgd(0.01), []
    for devices in (1, 8):
        mesh = make_mesh(jax.devices()[:devices])
        step = make_train_step(
            networks,
            make_objective('vicreg', {}),
            optimizer,
            lambda step: 1.0,
            cut=lambda patches: patches,
            augment=lambda key, patches, places: patches.astype(jnp.float32) / 255,
            key=jax.random.key(0),
            mesh=mesh,
        )
        state = create_state(networks, optimizer, 0, side=8)
        found.append(
            jax.device_get(
                step(
                    jax.device_put(jax.device_get(state), replicated(mesh)),
                    jax.device_put(patches, batch_sharded(mesh)),
                )
            )
        )
    (state, metrics), (expected, expected_metrics) = found
    chex.assert_trees_all_close(metrics, expected_metrics, rtol=2e-5)
    chex.assert_trees_all_close(state.online, expected.online, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'heads': 3}, 'encoder.width=8 cannot be shared by encoder.heads=3'),
        ({'pool': 'class'}, "encoder.pool='class' needs encoder.class_token=True"),
        ({'pool': 'max'}, "unknown encoder.pool 'max': choose from mean, mean_norm, class"),
        ({'remat': 'norms'}, "unknown encoder.remat 'norms': choose from none, blocks"),
        ({'image_size': 3}, 'encoder.image_size=3 is less than encoder.patch=4'),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(InputError) as error:
        encoder_of(**settings)
    assert str(error.value) == message


def test_an_input_smaller_than_a_token_is_refused():
    encoder, variables = imported((True, 'class'))
    with pytest.raises(InputError, match='3x9 pixels is smaller than a token of 4x4'):
        encoder.apply(variables, jnp.zeros((1, 3, 9, 3)), train=False)


def flags(workdir, **given):
    return {**OPTIONS, 'workdir': str(workdir), **given}


@pytest.fixture(scope='module')
def dino(tmp_path_factory):
    """A file as DINO saves it while training, of a shallow ViT of vit_ti's width."""
    arrays = timm_weights.weights(width=192, depth=1, side=32, patch=8)
    tree = {}
    for part, factor in (('student', 2), ('teacher', 1)):
        tree |= {f'{part}.module.backbone.{k}': factor * x for k, x in arrays.items()}
        tree[f'{part}.module.head.mlp.0.weight'] = np.zeros((2, 192), np.float32)
    file = tmp_path_factory.mktemp('dino') / 'dino.safetensors'
    save_file(tree, file)
    return str(file), arrays


def test_the_teacher_of_dino_is_imported_embedded_and_exported(dino, tmp_path, capsys):
    file, arrays = dino
    import_run(**flags(tmp_path / 'run', checkpoint=file, arch='vit_ti'))
    out = capsys.readouterr().out
    assert 'taken: teacher.module.backbone.' in out
    assert 'vit_ti of width 192, 8x8 pixels a token, h the class token' in out
    config = Run.at(tmp_path / 'run').read_config()
    assert (config['patches']['resize'], config['probe']['enlarge']) == (32, False)
    encoder = bagssl_jax.load(str(tmp_path / 'run'))
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    assert np.isfinite(encoder.embed(image, 4)).all()
    # Exported, it says of itself what an import needs.
    exported = tmp_path / 'vit.safetensors'
    export_run(workdir=str(tmp_path / 'run'), out=str(exported))
    back = load_file(exported)
    assert back.keys() == arrays.keys()
    assert all((back[name] == arrays[name]).all() for name in arrays)
    with safe_open(exported, 'numpy') as opened:
        assert opened.metadata()['name'] == 'vit_ti'
    import_run(**flags(tmp_path / 'again', checkpoint=str(exported)))
    again = bagssl_jax.load(str(tmp_path / 'again'))
    assert again.fingerprint() == encoder.fingerprint()


def test_the_student_can_be_asked_for(dino):
    file, arrays = dino
    found = find_backbone(load_file(file), 'student.module.backbone')
    assert (found.arrays['cls_token'] == 2 * arrays['cls_token']).all()


def without(name):
    def change(arrays):
        del arrays[name]

    return change


@pytest.mark.parametrize(
    ('arch', 'change', 'message'),
    [
        ('vit_s', None, '--arch=vit_s: the checkpoint holds a vit_ti: --arch=vit_ti'),
        ('resnet50', None, '--arch=resnet50: the checkpoint holds a vit_ti: --arch=vit_ti'),
        ('vit_xl', None, "unknown --arch 'vit_xl': choose from resnet18"),
        ('vit_ti', without('norm.bias'), 'missing: norm.bias'),
        ('vit_ti', without('pos_embed'), 'pos_embed has the shape ()'),
        (
            'vit_ti',
            lambda a: a.update({'blocks.0.ls1.gamma': np.ones(192, np.float32)}),
            'unknown: blocks.0.ls1.gamma',
        ),
        (
            'vit_ti',
            lambda a: a.update(pos_embed=a['pos_embed'][:, :-1]),
            'pos_embed has the shape (1, 16, 192): (1, positions',
        ),
    ],
)
def test_what_cannot_be_imported_is_one_line(refusal, tmp_path, dino, arch, change, message):
    arrays = dict(dino[1])
    if change:
        change(arrays)
    save_file(arrays, tmp_path / 'x.safetensors')
    given = [f'--checkpoint={tmp_path}/x.safetensors', f'--arch={arch}']
    line = refusal('import_torch', *given, f'--workdir={tmp_path}/run')
    assert message in line
    assert len(line) < 400
    assert not (tmp_path / 'run').exists()
