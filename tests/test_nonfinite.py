"""What a training does about updates that are not finite, and about a collapse."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bagssl_jax import objectives
from bagssl_jax.checkpoints import Checkpoints, restore_items
from bagssl_jax.data.datasets import open_dataset
from bagssl_jax.errors import InputError
from bagssl_jax.runs import Run
from bagssl_jax.training import loop
from bagssl_jax.training.collapse import is_collapsed
from bagssl_jax.training.nonfinite import read_rows
from bagssl_jax.training.setup import set_up
from bagssl_jax.training.state import to_items

SKIP = ('--config.train.on_nonfinite=skip', '--config.train.steps=6', '--config.train.keep=9')


def train(config, workdir):
    loop.train(config, Run.at(workdir), open_dataset(config.data))


def rows(workdir):
    def refuse(word):
        raise AssertionError(f'{word} is no JSON')

    lines = (pathlib.Path(workdir) / 'metrics.jsonl').read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def break_steps(monkeypatch, config, *steps, by=jnp.nan):
    """The loss of these steps, from 0, is multiplied; of no other is it touched."""
    usual = objectives.OBJECTIVES['tcr'].loss
    key = jax.random.fold_in(jax.random.key(config.seed), 1000)
    key = jax.random.fold_in(key, 2**32 - 1)  # the objective's, of which each step's is folded
    keys = jnp.stack([jax.random.key_data(jax.random.fold_in(key, step)) for step in steps])

    def loss(z, *, axis_name, key, **settings):
        value, terms = usual(z, axis_name=axis_name, key=key, **settings)
        is_one = jnp.any(jnp.all(keys == jax.random.key_data(key)[None], axis=1))
        return jnp.where(is_one, by, 1) * value, terms

    monkeypatch.setitem(objectives.OBJECTIVES, 'tcr', objectives.Objective(loss))


def states(config, workdir):
    """Step of a checkpoint -> all that it holds, on the host."""
    targets = to_items(set_up(config, open_dataset(config.data)).state)
    run, found = Run.at(workdir), {}
    for step in reversed(run.steps()):
        found[step] = jax.device_get(restore_items(run, targets)[1])
        (run.checkpoints / str(step)).rename(run.checkpoints / f'{step}.seen')
    for step in found:
        (run.checkpoints / f'{step}.seen').rename(run.checkpoints / str(step))
    return found


def assert_equal(tree, other):
    for leaf, expected in zip(*map(jax.tree.leaves, (tree, other)), strict=True):
        np.testing.assert_array_equal(leaf, expected)


def test_a_skipped_update_leaves_nothing_but_the_number_of_the_step(shrunk, tmp_path, monkeypatch):
    config = shrunk(*SKIP, '--config.train.checkpoint_every=1', '--config.train.log_every=1')
    # The gradient is finite, but its norm, of squares, is not.
    break_steps(monkeypatch, config, 2, by=1e25)
    train(config, tmp_path)
    found = states(config, tmp_path)
    before, after = found[2], found[3]
    assert (before['training'].pop('step'), after['training'].pop('step')) == (2, 3)
    assert_equal(before, after)
    assert not np.array_equal(
        *(jax.tree.leaves(found[step]['encoder']['params'])[0] for step in (3, 4))
    )
    logged = rows(tmp_path)
    assert [row['skipped'] for row in logged] == [0, 0, 1, 1, 1, 1]
    assert 'loss' not in logged[2]
    assert all(np.isfinite(row['loss']) for row in logged if 'loss' in row)


@pytest.mark.slow
def test_an_interrupted_run_with_skipped_updates_resumes_exactly(shrunk, tmp_path, monkeypatch):
    options = (
        *SKIP, '--config.train.steps_per_execution=4', '--config.train.accumulate=2',
        '--config.train.log_every=5', '--config.train.checkpoint_every=3',
    )  # fmt: skip
    config = shrunk(*options)
    break_steps(monkeypatch, config, 1, 3)
    train(config, tmp_path / 'whole')
    shutil.copytree(tmp_path / 'whole', tmp_path / 'stopped')
    shutil.rmtree(tmp_path / 'stopped' / 'checkpoints' / '6')  # as if killed after step 3
    train(config, tmp_path / 'stopped')
    assert rows(tmp_path / 'stopped') == rows(tmp_path / 'whole')
    assert [row['skipped'] for row in rows(tmp_path / 'whole')] == [2, 2]
    ends = [states(config, tmp_path / name)[6] for name in ('whole', 'stopped')]
    assert_equal(*ends)


@pytest.mark.slow
def test_skipping_and_stopping_learn_the_same_where_all_is_finite(shrunk, tmp_path):
    # A rate at which rounding, which may differ between two programs, stays rounding.
    slowly = '--config.optimizer.learning_rate=0.00001'
    train(shrunk('--config.train.steps=6', slowly), tmp_path / 'stop')
    train(shrunk(*SKIP, slowly), tmp_path / 'skip')
    stopping = rows(tmp_path / 'stop')
    assert len(stopping) == 3
    for row, other in zip(rows(tmp_path / 'skip'), stopping, strict=True):
        assert row.pop('skipped') == 0
        assert row == pytest.approx(other, rel=1e-4)


def test_too_many_skipped_updates_stop_the_run():
    steps = range(1, 4), {'loss': np.array([1, np.nan, 2]), 'update_skipped': np.array([0, 1, 0])}
    rows, skipped = read_rows([steps], skipped=4, at_most=5)
    assert (rows, skipped) == ([{'loss': 1}, {}, {'loss': 2}], 5)
    with pytest.raises(InputError, match=r'step 2: loss is not finite, and train\.most_skipped=4'):
        read_rows([steps], skipped=4, at_most=4)


@pytest.mark.slow
def test_a_run_that_stopped_goes_on_by_skipping(shrunk, tmp_path, monkeypatch):
    config = shrunk('--config.train.steps=6')
    break_steps(monkeypatch, config, 4)
    with pytest.raises(InputError, match=r'step 5: .* is not finite.*train\.on_nonfinite=skip'):
        train(config, tmp_path)
    train(shrunk(*SKIP), tmp_path)
    assert rows(tmp_path)[-1]['skipped'] == 1


def test_a_run_that_diverges_keeps_a_checkpoint_from_before(shrunk, tmp_path):
    config = shrunk(
        '--config.optimizer.learning_rate=1e9', '--config.train.checkpoint_every=1',
        '--config.train.keep=1',
    )  # fmt: skip
    with pytest.raises(InputError, match=r'step \d+: .*h_std.* is not finite'):
        train(config, tmp_path)
    assert all(np.isfinite(list(row.values())).all() for row in rows(tmp_path))
    for state in states(config, tmp_path).values():
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


def test_collapsed_checkpoints_do_not_displace_the_last_good_one(shrunk, tmp_path, monkeypatch):
    config = shrunk('--config.train.checkpoint_every=2')
    usual = loop.make_look

    def look(spread, *, longest):
        measured = usual(spread, longest=longest)
        return lambda state, *arguments: (
            measured(state, *arguments) | {'h_effective_rank': 9.0 if state.step < 6 else 1.5}
        )

    monkeypatch.setattr(loop, 'make_look', look)
    train(config, tmp_path)
    assert Run.at(tmp_path).steps() == [4, 10, 12]


def test_a_spared_step_is_kept_beside_the_newest(tmp_path):
    checkpoints = Checkpoints(Run.at(tmp_path), keep=2)
    for step in range(1, 6):
        checkpoints.save(step, {'encoder': jnp.ones(2)}, {}, spared=min(step, 2))
    checkpoints.close()
    assert Run.at(tmp_path).steps() == [2, 4, 5]
    checkpoints = Checkpoints(Run.at(tmp_path), keep=2)
    checkpoints.save(6, {'encoder': jnp.ones(2)}, {}, spared=6)
    checkpoints.close()
    assert Run.at(tmp_path).steps() == [5, 6]


@pytest.mark.parametrize(
    ('std', 'rank', 'collapsed'),
    [(1, 5, False), (1, 2.4, True), (0, 5, True), (np.inf, 5, True), (1, np.nan, True)],
)
def test_a_collapse_is_a_low_rank_or_none(std, rank, collapsed):
    found = {'h_std': std, 'h_effective_rank': rank}
    assert is_collapsed(found, highest=10.0) is collapsed
