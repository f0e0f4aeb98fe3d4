"""The compiler as a bench, on the eight CPU devices and for a TPU slice that is not there."""

import importlib.util
import json
import math
import types

import jax
import pytest
from conftest import SHRUNK

from bagssl_jax.benchmarks import benchmark
from bagssl_jax.benchmarks.peaks import PEAKS, device_peaks
from bagssl_jax.data import pipeline
from bagssl_jax.data.datasets import open_dataset
from bagssl_jax.parallel import make_mesh
from bagssl_jax.training.setup import make_program, set_up

HAS_LIBTPU = importlib.util.find_spec('libtpu') is not None
needs_libtpu = pytest.mark.skipif(not HAS_LIBTPU, reason="the TPU's compiler is not installed")


def rows(out):
    return {row['stage']: row for row in map(json.loads, out.splitlines())}


def test_the_devices_at_hand(shrunk, capsys):
    config = shrunk('--config.benchmark.compile.stages=train_step,spread_step,forward')
    benchmark(config, 'compile')
    found = rows(capsys.readouterr().out)
    assert list(found) == ['train_step', 'spread_step', 'forward']
    for row in found.values():
        assert (row['what'], row['device'], row['devices']) == ('compile', 'cpu', 8)
        assert row['seconds'] > 0
        assert row['peak_gib'] >= row['argument_gib'] > 0
        assert row['temporary_gib'] > 0
        assert row['operations'] > 0
        assert row['bytes_accessed'] > 0
        assert 'least_seconds' not in row  # nobody knows a CPU's peaks
    parameters = set_up(config, open_dataset(config.data)).state.params
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(parameters))
    step = found['train_step']
    assert step['gradient_bytes'] == size
    assert size < step['collectives']['all-reduce'] < 2 * size
    assert step['collective_ratio'] == pytest.approx(step['collectives']['all-reduce'] / size, 1e-3)
    assert found['forward']['collectives'] == {}


def test_the_probes_of_the_devices_at_hand(shrunk, capsys):
    benchmark(shrunk('--config.benchmark.compile.stages=knn_search,sgd_update'), 'compile')
    found = rows(capsys.readouterr().out)
    assert list(found) == ['knn_search', 'sgd_update']
    assert all(row['peak_gib'] > 0 for row in found.values())
    assert 'operations' not in found['knn_search']  # XLA would count one block of the gallery
    # Logits and their gradient: two products of [256 d] and [d s*c].
    assert found['sgd_update']['operations'] > 2 * 2 * 256 * 16 * 16 * 8
    assert found['sgd_update']['collectives'] == {}


def test_a_step_in_parts_has_memory_but_no_counts(shrunk, capsys):
    config = shrunk('--config.train.accumulate=2', '--config.benchmark.compile.stages=spread_step')
    benchmark(config, 'compile')
    [row] = rows(capsys.readouterr().out).values()
    assert row['temporary_gib'] > 0
    assert not row.keys() & {'operations', 'bytes_accessed', 'collectives'}


@pytest.mark.parametrize('crop_on', pipeline.CROP_ON)
def test_a_program_has_the_shapes_of_what_training_runs(shrunk, crop_on):
    config = shrunk(f'--config.data.crop_on={crop_on}', '--config.patches.size=0')
    images = open_dataset(config.data).images(config.data.train_split)
    mesh = make_mesh()
    program = make_program(config, mesh, images=len(images), image_shape=images.image_shape)
    training = set_up(config, open_dataset(config.data))
    expected = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), training.state)
    shapes = program.state_shapes(mesh)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), shapes) == expected
    assert program.total_steps == training.program.total_steps
    batches = pipeline.train_batches(
        images.source, training.crops, seed=0, batch_size=16, crop_on=crop_on
    )
    inputs = {**next(batches).inputs, **training.shared}
    batches.close()
    assert {k: (x.shape, x.dtype) for k, x in program.inputs.items()} == {
        k: (x.shape, x.dtype) for k, x in inputs.items()
    }


def test_no_data_is_needed_where_the_size_of_the_patches_is_given(shrunk, capsys):
    config = shrunk(
        '--config.data.name=imagenet2012', '--config.data.dir=/nowhere',
        '--config.data.train_split=train', '--config.benchmark.compile.stages=train_step',
    )  # fmt: skip
    benchmark(config, 'compile')
    assert rows(capsys.readouterr().out)['train_step']['operations'] > 0


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--config.benchmark.compile.stages=train,forward',), "compile.stages 'train': choose"),
        (('--config.data.batch_size=12',), 'data.batch_size=12 cannot be shared by 8 devices'),
        (
            ('--config.data.name=cifar10', '--config.patches.size=0', '--config.patches.resize=0'),
            'cifar10',
        ),
    ],
)
def test_what_cannot_be_compiled(refusal, arguments, message):
    assert message in refusal('benchmark', 'compile', *SHRUNK, *arguments)


def test_the_topology_is_of_compile_alone(refusal):
    line = refusal('benchmark', 'data', *SHRUNK, '--topology=v5e:2x4')
    assert '--topology=v5e:2x4 is of compile alone' in line


@pytest.mark.skipif(HAS_LIBTPU, reason="the TPU's compiler is installed")
def test_without_the_compiler_of_tpus(refusal):
    line = refusal('benchmark', 'compile', *SHRUNK, '--topology=v5e:2x4')
    assert "--topology=v5e:2x4 needs the TPU's compiler: pip install '.[tpu]'" in line


def test_v4_has_two_devices_a_chip_only_where_there_is_none():
    v4 = PEAKS['TPU v4']
    cores = [types.SimpleNamespace(device_kind='TPU v4', core_on_chip=i) for i in (0, 1)]
    assert device_peaks(cores[:1]) == v4
    assert device_peaks(cores).operations == v4.operations / 2
    assert device_peaks(cores).links is None
    assert device_peaks(jax.devices()) is None


@needs_libtpu
@pytest.mark.slow
def test_a_slice_that_is_not_there(program):
    status, out, err = program('benchmark', 'compile', *SHRUNK, '--topology=v5e:2x4')
    assert status == 0, err
    found = rows(out)
    assert list(found) == ['train_step', 'forward']
    step = found['train_step']
    assert (step['device'], step['devices']) == ('TPU v5 lite', 8)
    assert 1 <= step['collective_ratio'] < 2
    assert step['seconds_by'].keys() == {'operations', 'bytes', 'links'}
    assert step['least_seconds'] == max(step['seconds_by'].values())
    assert step['most_images_per_s'] == pytest.approx(16 / step['least_seconds'], rel=1e-3)
    usual = step['operations'] / (0.4 * 197e12)
    hours = 12 * 8 * max(usual, step['least_seconds']) / 3600
    assert step['chip_hours'] == pytest.approx(hours, rel=1e-3)
    assert math.isfinite(found['forward']['most_patches_per_s'])


@needs_libtpu
def test_an_unknown_slice(refusal):
    line = refusal('benchmark', 'compile', *SHRUNK, '--topology=v99:2x4')
    assert '--topology=v99:2x4: ' in line
    assert 'v5e:2x4' in line


@needs_libtpu
@pytest.mark.slow
def test_what_does_not_fit_on_a_chip(refusal):
    line = refusal(
        'benchmark', 'compile', *SHRUNK, '--topology=v5e:2x4', '--config.data.batch_size=80',
        '--config.encoder.width=256', '--config.patches.count=20000',
    )  # fmt: skip
    assert 'train_step of 80 images on 8 of TPU v5 lite: ' in line
    assert 'GiB of memory are needed' in line
