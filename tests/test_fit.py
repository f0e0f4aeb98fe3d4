"""What does not fit into memory is refused before anything is written, and never twice compiled."""

import logging
import math
import types

import jax
import numpy as np
import pytest
from conftest import save_run, slow_but

import bagssl_jax
from bagssl_jax import memory
from bagssl_jax.data.datasets import open_dataset
from bagssl_jax.errors import InputError
from bagssl_jax.evaluation.monitor import make_monitor
from bagssl_jax.evaluation.plan import make_plan
from bagssl_jax.runs import Run
from bagssl_jax.training import fit, loop

GIB = 2**30


def train(config, workdir):
    loop.train(config, Run.at(workdir), open_dataset(config.data))


@pytest.fixture
def free(monkeypatch):
    """Sets how many bytes are free on this host."""
    return lambda size: monkeypatch.setattr(memory, 'host_bytes', lambda: size)


def refused(function, *arguments):
    with pytest.raises(InputError) as error:
        function(*arguments)
    assert '\n' not in str(error.value)
    return str(error.value)


def test_a_state_that_does_not_fit_is_refused_before_it_is_made(shrunk, tmp_path, free):
    free(20 * GIB)
    config = shrunk('--config.encoder.width=8192')
    line = refused(train, config, tmp_path / 'run')
    assert line.startswith('this training (parameters, statistics and optimiser 2268.')
    assert 'more than the 20.00 that are free here: fewer images or patches' in line
    assert 'encoder.width' in line
    assert not (tmp_path / 'run').exists()


def test_a_step_that_does_not_fit_is_refused_before_anything_is_written(
    shrunk, tmp_path, free, monkeypatch
):
    free(16 * GIB)
    compiled = []

    def told(program, platform):
        compiled.append((program, platform))
        return 3 * GIB  # on each of eight devices

    monkeypatch.setattr(fit, 'program_bytes', told)
    line = refused(train, shrunk(), tmp_path / 'run')
    assert 'the rest of a step 24.00' in line
    assert '24.00 GiB of memory are needed, 8.00 more than the 16.00 that are free here' in line
    assert compiled[0][1] == 'cpu'
    assert 0 < memory.program_bytes(*compiled[0]) < GIB / 8
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('count', slow_but((4,), (1, 4)))
def test_nothing_is_compiled_twice(shrunk, tmp_path, caplog, count):
    config = shrunk('--config.train.steps=4', f'--config.train.steps_per_execution={count}')
    with caplog.at_level(logging.WARNING, 'jax'), jax.log_compiles():
        train(config, tmp_path)
    compiled = [text for text in caplog.messages if text.startswith('Compiling jit(')]
    executions = [text for text in compiled if 'jit(update)' in text or 'jit(execute)' in text]
    assert len(executions) == 1


def test_workers_need_memory_of_their_own(shrunk, tmp_path, free):
    free(20 * GIB)
    line = refused(train, shrunk('--config.data.workers=200'), tmp_path / 'run')
    assert 'data.workers 23.' in line


@pytest.mark.parametrize('size', [2 * GIB, math.inf])
def test_embedding_is_refused_where_it_does_not_fit(tmp_path, free, size):
    encoder = bagssl_jax.load(save_run(tmp_path), chunk=200_000)
    free(size)
    images = np.zeros((1, 16, 16, 3), np.uint8)
    if size < math.inf:
        line = refused(encoder.embed, images, 1)
        assert line.startswith('embedding 200,000 patches of 16x16 pixels at a time (')
    else:
        encoder.with_chunk(8).embed(images, 1)


def test_what_the_probe_and_the_monitor_need_is_known_before_the_training(shrunk, free):
    config = shrunk('--config.probe.batch_size=800000', '--config.train.monitor_every=1')
    dataset = open_dataset(config.data)
    free(100_000)
    assert refused(make_plan, config, dataset).startswith('probing (')
    free(GIB)
    plan = make_plan(config, dataset)  # of 96 images, which fill no chunk of 800,000 patches
    assert [one.chunk for one in plan.passes] == [96 * 5, 96]
    assert 'embedding 800,000 patches of 8x8' in refused(make_monitor, config, dataset)


def test_an_accelerator_has_memory_of_its_own(free):
    free(10)
    device = types.SimpleNamespace(
        platform='tpu', memory_stats=lambda: {'bytes_limit': 100, 'bytes_in_use': 40}
    )
    parts = {'on_device': {'a step': 70}, 'on_host': {'batches': 9}, 'devices': [device] * 2}
    memory.refuse_shortage('this', **parts, held=10)
    with pytest.raises(InputError, match='of a device'):
        memory.refuse_shortage('this', **parts, held=9)
    parts['on_host'] = {'batches': 11}
    with pytest.raises(InputError, match=r'this \(a little\): .* that are free here'):
        memory.refuse_shortage('this', **parts, held=10)


def test_a_control_group_limits_what_is_free(tmp_path, monkeypatch):
    assert memory.left_in_group(tmp_path) == math.inf
    (tmp_path / 'memory.stat').write_text('anon 5\ninactive_file 20\n')
    (tmp_path / 'memory.current').write_text('70\n')
    (tmp_path / 'memory.max').write_text('max\n')
    assert memory.left_in_group(tmp_path) == math.inf
    (tmp_path / 'memory.max').write_text('100\n')
    assert memory.left_in_group(tmp_path) == 50
    monkeypatch.setattr(memory, 'left_in_group', lambda group: 1000)
    assert memory.host_bytes() == 1000
