"""The benchmarks of what runs here: training, embedding and probing, as a person calls them."""

import json

import jax
import jax.numpy as jnp
import pytest
from conftest import SHRUNK, slow_but

from bagssl_jax.benchmarks.timing import clocked
from bagssl_jax.benchmarks.utilisation import matrix_operations, matrix_rate
from bagssl_jax.models.convolution import convolve, convolve_by_xla
from bagssl_jax.parallel import make_mesh


@pytest.fixture
def measured(program):
    """Runs a benchmark of the shrunk quickstart: its rows by stage."""

    def run(what, *arguments):
        status, out, err = program('benchmark', what, *SHRUNK, *arguments)
        assert status == 0, err
        rows = list(map(json.loads, out.splitlines()))
        assert {row['what'] for row in rows} == {what}
        return {row['stage']: row for row in rows}

    return run


def check_rates(row, rate, *, patches, images):
    """What every measured stage says of itself fits together."""
    assert (row['device'], row['devices'], row['peak_of']) == ('cpu', 8, 'program')
    assert 0 < row['peak_gib'] < row['resident_gib']
    assert row['compile_seconds'] > 0
    assert row['patches_per_s'] == pytest.approx(patches / row['seconds'], rel=1e-3)
    assert row['images_per_s'] == pytest.approx(images / row['seconds'], rel=1e-3)
    reached = row['operations'] / row['seconds']
    assert row['utilisation'] == pytest.approx(reached / rate['operations_per_s'], rel=2e-3)


@pytest.mark.parametrize('crop_on', slow_but(('host',), ('host', 'device')))
def test_train(measured, crop_on):
    found = measured(
        'train', '--config.benchmark.train.steps=4', f'--config.data.crop_on={crop_on}'
    )
    assert list(found) == ['matmul', 'step', 'total']
    rate = found['matmul']
    assert rate['dtype'] == 'float32'
    expected = 8 * 2 * rate['side'] ** 3 / rate['seconds']
    assert rate['operations_per_s'] == pytest.approx(expected, rel=1e-3)
    for name in ('step', 'total'):
        check_rates(found[name], rate, patches=32, images=16)
        first, third = found[name]['quartiles']
        assert 0 < first <= found[name]['seconds'] <= third
    assert found['step']['operations'] == found['total']['operations']
    total = found['total']
    assert 0 <= total['share_waiting'] <= 1
    assert total['workers'] == 0
    assert total['patches_per_s_per_core'] > 0
    ratio = total['seconds'] / found['step']['seconds']
    assert total['times_step'] == pytest.approx(ratio, rel=1e-2)


@pytest.mark.slow
def test_training_measures_the_stages_that_are_asked_for(measured, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = measured(
        'train', '--config.benchmark.train.steps=2', '--config.benchmark.train.stages=total',
        '--config.encoder.dtype=bfloat16',
    )  # fmt: skip
    assert list(found) == ['matmul', 'total']
    assert found['matmul']['dtype'] == 'bfloat16'
    assert 'times_step' not in found['total']
    assert not list(tmp_path.iterdir())


def test_embed(measured):
    found = measured('embed', '--config.benchmark.embed.steps=3')
    assert list(found) == ['matmul', 'forward', 'total']
    for name in ('forward', 'total'):
        check_rates(found[name], found['matmul'], patches=64, images=4)
    assert found['forward']['quartiles'][0] <= found['forward']['seconds']
    assert 0 <= found['total']['share_waiting'] <= 1
    assert found['total']['patches_per_s_per_core'] > 0


@pytest.mark.slow
def test_probe(measured):
    found = measured(
        'probe', '--config.benchmark.probe.images=20', '--config.probe.labels=all,5',
        '--config.probe.probes=linear,knn,sgd_augmented,alignment',
        '--config.probe.aggregations=mean,mean_unit', '--config.probe.views=bag,center',
        '--config.probe.sgd_augmented.epochs=2', '--config.probe.encoders=trained,untrained',
    )  # fmt: skip
    probes = ['linear', 'knn', 'sgd_augmented', 'alignment']
    assert list(found) == ['embed_bag', 'embed_center', *probes]
    for name, patches in (('embed_bag', 5), ('embed_center', 1)):
        row = found[name]
        assert row['images'] == 20
        assert row['images_per_s'] == pytest.approx(20 / row['seconds'], rel=1e-3)
        assert row['patches_per_s'] == pytest.approx(patches * row['images_per_s'], rel=1e-3)
        assert row['splits_seconds'] == pytest.approx(136 / row['images_per_s'], rel=1e-3)
    for name in probes:
        row = found[name]
        assert row['first_seconds'] > 0
        assert row['seconds'] > 0
        assert row['rows'] == {'train': 96, 'test': 40}
        assert (row['width'], row['classes']) == (32, 8)
        assert row['cases'] == 2 * (2 * 2 + 1)


@pytest.mark.parametrize(
    ('what', 'arguments', 'message'),
    [
        ('train', ('--config.benchmark.train.stages=step,run',), "train.stages 'run': choose from"),
        ('train', ('--config.data.batch_size=12',), 'data.batch_size=12 cannot be shared by 8'),
        ('embed', ('--config.patches.size=999',), '999'),
        ('probe', ('--config.probe.probes=nothing',), "unknown probe.probes 'nothing'"),
        ('speed', (), "unknown benchmark 'speed': choose from compile, data, embed, probe, train"),
    ],
)
def test_what_cannot_be_measured(refusal, what, arguments, message):
    assert message in refusal('benchmark', what, *SHRUNK, *arguments)


@pytest.mark.parametrize('stride', [1, 2])
def test_convolutions_and_their_gradients_are_counted_as_the_compiler_does(stride):
    def traced(convolution):
        def loss(x, weights):
            return jnp.sum(jnp.square(convolution(x, weights, stride)))

        both = jax.grad(loss, argnums=(0, 1))
        return jax.jit(both).trace(jnp.ones((4, 8, 8, 16)), jnp.ones((3, 3, 16, 32)))

    by_xla = traced(convolve_by_xla)
    found = matrix_operations(by_xla.jaxpr)
    expected = by_xla.lower().cost_analysis()['flops']
    assert found == pytest.approx(expected, rel=0.01)  # which has the squares
    # By products on CPUs, with the padding; by XLA, without, for all else.
    assert matrix_operations(traced(convolve).jaxpr) == found


def test_products_in_loops_and_on_all_devices_are_counted():
    def product(x, _=None):
        return x @ x, None

    square = jnp.ones((8, 8))
    one = matrix_operations(jax.make_jaxpr(product)(square))
    assert one == 2 * 8**3
    looped = jax.make_jaxpr(lambda x: jax.lax.scan(product, x, length=5)[0])
    assert matrix_operations(looped(square)) == 5 * one
    spec = jax.sharding.PartitionSpec('data')
    over_devices = jax.shard_map(
        lambda x: x @ square, mesh=make_mesh(), in_specs=spec, out_specs=spec
    )
    traced = jax.jit(over_devices).trace(jnp.ones((64, 8)))
    assert matrix_operations(traced.jaxpr) == 8 * one
    batched = jax.make_jaxpr(jax.vmap(jnp.matmul))(jnp.ones((3, 8, 8)), jnp.ones((3, 8, 8)))
    assert matrix_operations(batched) == 3 * one


def test_the_rate_is_of_all_devices():
    rates = [matrix_rate(make_mesh(jax.devices()[:n]), jnp.float32) for n in (1, 8)]
    products = [rate['operations_per_s'] * rate['seconds'] for rate in rates]
    assert products[1] == pytest.approx(8 * products[0])


def test_steps_are_clocked_by_their_ends():
    taken = []
    seconds = clocked(lambda: taken.append(0), warm=2, steps=5)
    assert seconds.shape == (5,)
    assert (seconds >= 0).all()
    assert len(taken) == 8
