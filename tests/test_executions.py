"""Several steps in one call: which steps, on which batches, and that they are the same steps."""

import functools
import itertools

import chex
import jax
import numpy as np
import pytest
from conftest import slow_but

from bagssl_jax.data.pipeline import TrainBatch
from bagssl_jax.parallel import batch_sharded, make_mesh, replicated, stack_sharded
from bagssl_jax.training.executions import executions, make_execute, make_look, stacked
from bagssl_jax.training.setup import make_program


def ends(start, total, longest, *pauses):
    planned = list(executions(start, total, longest=longest, pauses=pauses))
    assert list(itertools.chain(*planned)) == list(range(start + 1, total + 1))
    return [steps[-1] for steps in planned]


def test_an_execution_ends_where_something_is_due():
    assert ends(0, 12, 4) == [4, 8, 12]
    assert ends(0, 10, 4) == [4, 8, 10]
    assert ends(0, 12, 4, 6) == [4, 6, 10, 12]
    assert ends(0, 12, 4, 6, 5) == [4, 5, 6, 10, 12]
    assert ends(7, 12, 4, 6) == [11, 12]
    assert ends(0, 3, 1, 20) == [1, 2, 3]
    assert ends(12, 12, 4, 6) == []


def batches_of(numbers):
    for i in numbers:
        yield TrainBatch({'x': np.full((2, 3), i)}, np.array([i, -1]))


def test_batches_are_stacked_and_the_rest_is_zero():
    [(first, of_first), (second, of_second)] = stacked(batches_of(range(5)), [3, 1], longest=3)
    assert (first['x'].shape, second['x'].shape) == ((3, 2, 3), (3, 2, 3))
    assert first['x'][:, 0, 0].tolist() == [0, 1, 2]
    assert second['x'][:, 0, 0].tolist() == [3, 0, 0]
    assert (of_first.tolist(), of_second.tolist()) == ([0, -1, 1, -1, 2, -1], [3, -1])


def test_single_batches_stay_as_they_are():
    [(inputs, unreadable)] = stacked(batches_of([7]), [1], longest=1)
    assert inputs['x'].shape == (2, 3)
    assert unreadable.tolist() == [7, -1]


@pytest.fixture(scope='module', params=slow_but((8,), (1, 8)))
def execute(request, shrunk):
    """Runs the same four steps: the state, all metrics and the look at the last, on the host."""
    mesh = make_mesh(jax.devices()[: request.param])
    program = make_program(shrunk(), mesh, images=96, image_shape=None)
    fresh = jax.device_get(program.init())
    shape = 4, *program.inputs['patches'].shape
    patches = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    @functools.cache
    def functions(longest):
        return (
            make_execute(program.step, longest=longest),
            make_look(program.spread, longest=longest),
        )

    def run(counts, longest):
        state = jax.device_put(fresh, replicated(mesh))
        execute, look = functions(longest)
        sharding = (batch_sharded if longest == 1 else stack_sharded)(mesh)
        batches = (TrainBatch({'patches': batch}, np.array([-1])) for batch in patches)
        planned = zip(counts, stacked(batches, counts, longest=longest), strict=True)
        rows = []
        for count, (inputs, _) in planned:
            inputs, before = jax.device_put(inputs, sharding), state
            state, metrics = execute(state, inputs, count, {})
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
            assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves((state, metrics)))
            rows += [{name: np.ravel(x)[i] for name, x in metrics.items()} for i in range(count)]
        return jax.device_get((state, rows, look(state, inputs, count, {})))

    return run


def test_an_execution_is_its_steps_one_after_the_other(execute):
    found, expected = execute([4], 4), execute([1, 1, 1, 1], 1)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for leaf, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        # float32 rounding of sums is relative to the largest element; 5.1e-6 on one kind of CPU
        np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-5 * max(abs(other).max(), 1))


def test_how_steps_fall_into_executions_changes_no_bit(execute):
    expected = execute([4], 4)
    for counts in ([3, 1], [1, 2, 1]):
        chex.assert_trees_all_equal(execute(counts, 4), expected)
