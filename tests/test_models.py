import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from bagssl_jax.defaults import get_config
from bagssl_jax.errors import InputError
from bagssl_jax.models import (
    Networks,
    init_variables,
    make_encoder,
    make_networks,
    make_projector,
)
from bagssl_jax.models.convolution import convolve, convolve_by_xla
from bagssl_jax.models.layers import Conv
from bagssl_jax.models.resnet import ResNet, Tiny
from bagssl_jax.parallel import DATA_AXIS, make_mesh

PLAIN = {'width': 64, 'stem': 'imagenet', 'zero_init_last': False}


def count_parameters(name):
    encoder = make_encoder(name, PLAIN, dtype='float32')
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(lambda k, x: encoder.init(k, x, train=False), jax.random.key(0), x)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes['params']))


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [
        # torchvision's counts less those of the classifier, 1000 * d + 1000
        ('resnet18', 11_689_512 - 513_000),
        ('resnet34', 21_797_672 - 513_000),
        ('resnet50', 25_557_032 - 2_049_000),
    ],
)
def test_resnets_have_as_many_parameters_as_torchvision(name, parameters):
    assert count_parameters(name) == parameters


@pytest.mark.parametrize(
    ('name', 'stem', 'size', 'map_shape'),
    [
        ('resnet18', 'cifar', 16, (2, 2, 32)),
        ('resnet18', 'imagenet', 64, (2, 2, 32)),
        ('resnet50', 'cifar', 9, (2, 2, 128)),
        ('tiny', 'cifar', 16, (2, 2, 32)),
    ],
)
def test_shapes(name, stem, size, map_shape):
    settings = {} if name == 'tiny' else {'stem': stem, 'zero_init_last': False}
    encoder = make_encoder(name, {'width': 4, **settings}, dtype='float32')
    x = jax.ShapeDtypeStruct((3, size, size, 3), jnp.float32)
    variables = jax.eval_shape(lambda k, x: encoder.init(k, x, train=False), jax.random.key(0), x)
    h, intermediates = jax.eval_shape(lambda v, x: encoder.apply(v, x, train=False), variables, x)
    assert h.shape == (3, map_shape[-1])
    assert h.dtype == jnp.float32
    assert intermediates['map'].shape == (3, *map_shape)


@pytest.mark.parametrize('kernel', [1, 3, 7])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [(7, 8), (8, 7)])
def test_convolution_and_its_gradients_equal_xla(kernel, stride, size):
    x = jax.random.normal(jax.random.key(0), (6, *size, 3))
    layer = Conv(5, kernel, stride)
    kernels = layer.init(jax.random.key(1), x)['params']['kernel']

    def loss(convolve, x, kernels):
        y = convolve(x, kernels, stride)
        return jnp.sum(jnp.sin(y)), y

    def of(convolve):
        return jax.value_and_grad(loss, argnums=(1, 2), has_aux=True)(convolve, x, kernels)

    found, expected = of(convolve), of(convolve_by_xla)
    assert found[0][1].shape == (6, -(-size[0] // stride), -(-size[1] // stride), 5)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer.apply({'params': {'kernel': kernels}}, x), found[0][1])


@pytest.mark.parametrize(
    ('shape', 'features', 'stride'),
    [
        ((6, 16, 16, 64), 64, 1),  # in tiles, forward and in both gradients
        ((5, 8, 32, 64), 96, 1),  # not square, and of a number of images that nothing divides
        ((4, 8, 8, 32), 48, 1),  # the weights' gradient alone
        ((2, 16, 15, 64), 64, 1),  # an odd side cannot be cut into tiles
        ((60, 16, 15, 20), 24, 1),  # products forward, of 30 images at a time
        ((130, 15, 16, 32), 16, 2),  # likewise, of 65
    ],
)
def test_convolutions_have_other_forms_on_cpus(shape, features, stride):
    """Against XLA's in float64; the largest error of float32 by XLA itself is 4e-7 here."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape)
    weights = jax.random.normal(keys[1], (3, 3, shape[-1], features))
    dy = jax.random.normal(keys[2], (shape[0], *(-(-x // stride) for x in shape[1:3]), features))

    def of(convolve, *arrays):
        @jax.jit
        def with_gradients(x, weights, dy):
            y, pull_back = jax.vjp(lambda x, weights: convolve(x, weights, stride), x, weights)
            return y, *pull_back(dy)

        return jax.device_get(with_gradients(*arrays))

    found = of(convolve, x, weights, dy)
    with jax.enable_x64(True):
        exact = (jnp.asarray(a, jnp.float64) for a in jax.device_get((x, weights, dy)))
        expected = of(convolve_by_xla, *exact)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * np.abs(b).max())


def test_the_gradient_is_written_for_the_platform_that_it_is_lowered_for():
    """Traced here, on a CPU host: matrix products in a CPU's program, convolutions in a TPU's."""
    x, kernels = jnp.zeros((4, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))
    gradient = jax.jit(jax.grad(lambda w, x: jnp.sum(convolve(x, w, 2)), argnums=(0, 1)))
    traced = gradient.trace(kernels, x)
    texts = {p: traced.lower(lowering_platforms=(p,)).as_text() for p in ('cpu', 'tpu')}
    assert {p: text.count('dot_general') > 0 for p, text in texts.items()} == {
        'cpu': True,
        'tpu': False,
    }
    assert 'stablehlo.while' not in texts['tpu']


@pytest.mark.slow
@pytest.mark.parametrize('bottleneck', [False, True])
def test_what_is_computed_again_changes_memory_alone(bottleneck):
    x = jax.random.uniform(jax.random.key(0), (64, 16, 16, 3))
    keep = ResNet(stages=(2, 2), bottleneck=bottleneck, width=8)
    variables = jax.jit(lambda key: keep.init(key, x, train=False))(jax.random.key(1))

    def compiled(remat):
        encoder = keep.clone(remat=remat)

        def loss(params, x):
            own = {**variables, 'params': params}
            (h, _), updates = encoder.apply(own, x, train=True, mutable=['batch_stats'])
            return jax.lax.pmean(jnp.sum(jnp.sin(h)), DATA_AXIS), updates

        def gradient(params, x):
            params = jax.lax.pcast(params, DATA_AXIS, to='varying')
            (value, updates), grads = jax.value_and_grad(loss, has_aux=True)(params, x)
            return value, updates, jax.lax.psum(grads, DATA_AXIS)

        specs = {'in_specs': (P(), P(DATA_AXIS)), 'out_specs': P()}
        sharded = jax.shard_map(gradient, mesh=make_mesh(jax.devices()[:1]), **specs)
        return jax.jit(sharded).lower(variables['params'], x).compile()

    programs = {remat: compiled(remat) for remat in ('none', 'norms', 'blocks')}
    expected = programs['none'](variables['params'], x)
    memory = {remat: p.memory_analysis().temp_size_in_bytes for remat, p in programs.items()}
    for remat in ('norms', 'blocks'):
        found = programs[remat](variables['params'], x)
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)
        assert memory[remat] < 0.95 * memory['none']


def test_zero_initialised_blocks_start_as_the_identity():
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    stages = []
    for zero in (True, False):
        encoder = ResNet(stages=(2,), width=4, zero_init_last=zero)
        variables = jax.jit(lambda key, e=encoder: e.init(key, x, train=False))(jax.random.key(0))
        _, captured = encoder.apply(
            variables, x, train=False, capture_intermediates=True, mutable=['intermediates']
        )
        first, second = (
            captured['intermediates'][f'stage1_block{i}']['__call__'][0] for i in (1, 2)
        )
        stages.append((first == second).all())
    assert stages == [True, False]


def test_bfloat16_keeps_parameters_statistics_and_outputs_in_float32():
    encoder = make_encoder('tiny', {'width': 4}, dtype='bfloat16')
    projector = make_projector(widths=(8, 6), dtype='bfloat16')
    variables = init_variables(Networks(encoder, projector), 0, side=8)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
    x = jax.random.uniform(jax.random.key(0), (4, 8, 8, 3))

    def forward():
        h, intermediates = encoder.apply(variables['encoder'], x, train=False)
        return h, intermediates, *projector.apply(variables['projector'], h, train=False)

    h, intermediates, z, hidden = jax.eval_shape(forward)
    assert h.dtype == z.dtype == jnp.float32
    assert intermediates['map'].dtype == hidden['hidden1'].dtype == jnp.bfloat16


def test_fresh_variables_depend_on_the_seed_alone():
    encoder = make_encoder('tiny', {'width': 4}, dtype='float32')
    projector = make_projector(widths=(8, 6), dtype='float32')
    networks = Networks(encoder, projector)
    first, again, other = (init_variables(networks, seed, side=8) for seed in (0, 0, 1))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), first, again)))
    kernel = first['encoder']['params']['conv1']['kernel']
    assert (kernel != other['encoder']['params']['conv1']['kernel']).any()


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        ('name', 'resnet19', 'resnet19.*resnet18, resnet34, resnet50, resnet101'),
        ('stem', 'cfar', 'cfar.*cifar, imagenet'),
        ('dtype', 'float16', 'float16.*float32, bfloat16'),
        ('remat', 'all', "encoder.remat 'all': choose from none, norms, blocks"),
    ],
)
def test_unknown_choices_list_the_known(key, value, message):
    choices = {'name': 'resnet18', 'dtype': 'float32', **PLAIN, key: value}
    name, dtype = choices.pop('name'), choices.pop('dtype')
    with pytest.raises(InputError, match=message):
        make_encoder(name, choices, dtype=dtype)


def test_networks_are_those_of_the_configuration():
    config = get_config()
    config.encoder.name = 'tiny'
    config.encoder.tiny.width = 4
    config.projector.widths = (16, 8)
    config.predictor.widths = (12, 8)
    encoder, projector, predictor = make_networks(config, predictor=True)
    assert (type(encoder), encoder.width) == (Tiny, 4)
    assert (projector.widths, predictor.widths) == ((16, 8), (12, 8))
    assert make_networks(config.to_dict()) == (encoder, projector, None)
    config.projector.widths = ()
    assert make_networks(config) == (encoder, None, None)


class Positioned(nn.Module):
    """Has a parameter for every pixel, as a ViT has for every token."""

    @nn.compact
    def __call__(self, x, *, train):
        places = self.param('pos_embedding', nn.initializers.zeros, x.shape[1:])
        return (x + places[None]).mean(axis=(1, 2)), {}


def test_what_depends_on_the_side_has_that_of_the_patches():
    projector = make_projector(widths=(6,), dtype='float32')
    variables = init_variables(Networks(Positioned(), projector), 0, side=8)
    assert variables['encoder']['params']['pos_embedding'].shape == (8, 8, 3)
    assert variables['projector']['params']['dense1']['kernel'].shape == (3, 6)
    assert 'predictor' not in variables


@pytest.mark.parametrize(
    ('init', 'variance'),
    # Times the inputs of a kernel: torchvision's goes by the outputs, which are as many here.
    [('he_normal', 2.0), ('torch', 1 / 3), ('lecun_normal', 1.0), ('haiku', 0.7737)],
)
def test_how_convolutions_begin(init, variance):
    encoder = ResNet(stages=(1,), width=64, stem_init=init, conv_init=init)
    kernels = jax.jit(encoder.init, static_argnames='train')(
        jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False
    )['params']
    kernel = kernels['stage1_block1']['conv1']['kernel']
    np.testing.assert_allclose(kernel.var() * 9 * 64, variance, rtol=0.03)
    stem = kernels['stem_conv']['kernel']
    inputs = 64 if init == 'he_normal' else 3
    np.testing.assert_allclose(stem.var() * 9 * inputs, variance, rtol=0.15)


def test_the_last_norm_has_a_scale_alone():
    projector = make_projector(
        widths=(6, 4), dtype='float32', init='normal', last_bias=False, last_norm=True
    )
    h = jax.random.normal(jax.random.key(0), (50, 8))
    variables = projector.init(jax.random.key(1), h, train=False)
    assert {k: v.keys() for k, v in variables['params'].items()} == {
        'dense1': {'kernel'},
        'norm1': {'scale', 'bias'},
        'dense2': {'kernel'},
        'norm2': {'scale'},
    }
    np.testing.assert_allclose(variables['params']['dense1']['kernel'].std(), 0.01, rtol=0.3)

    def forward(h):
        return projector.apply(variables, h, train=True, mutable=['batch_stats'])[0][0]

    mesh = make_mesh(jax.devices()[:1])
    z = jax.shard_map(forward, mesh=mesh, in_specs=P(DATA_AXIS), out_specs=P(DATA_AXIS))(h)
    np.testing.assert_allclose(z.mean(axis=0), np.zeros(4), atol=1e-5)
    for groups in (1, 5):
        grouped = projector.clone(norm_groups=groups)
        init = functools.partial(grouped.init, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), h)['params']
        assert jax.tree.structure(shapes) == jax.tree.structure(variables['params'])
