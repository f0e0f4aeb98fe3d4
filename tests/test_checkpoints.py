import contextlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from bagssl_jax.checkpoints import Checkpoints, digest, restore_items
from bagssl_jax.errors import InputError
from bagssl_jax.parallel import make_mesh, replicated
from bagssl_jax.runs import Run


def items(number):
    """A state with the kinds of leaves that a real one has."""
    rng = np.random.default_rng(number)
    kernel = jnp.asarray(rng.normal(size=(3, 4)), jnp.float32)
    return {
        'encoder': {'params': {'kernel': kernel}, 'batch_stats': {'mean': kernel[0] * 2}},
        'projector': {'params': {'bias': kernel[1].astype(jnp.bfloat16)}, 'batch_stats': {}},
        'training': {'step': jnp.int32(number), 'opt_state': (kernel * 3, ())},
    }


def saved(workdir, steps, keep=5):
    with contextlib.closing(Checkpoints(Run.at(workdir), keep=keep)) as checkpoints:
        for step in steps:
            checkpoints.save(step, items(step), {'unlogged': [{'loss': step + 0.1}]})
    return Run.at(workdir)


def newest(run):
    with contextlib.closing(Checkpoints(run, keep=5)) as checkpoints:
        return checkpoints.restore_newest(items(0))


def assert_equal(tree, expected):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for leaf, other in zip(*map(jax.tree.leaves, (tree, expected)), strict=True):
        assert leaf.dtype == other.dtype
        np.testing.assert_array_equal(leaf, other)


def largest_file(directory):
    return max((p for p in directory.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)


def test_the_newest_comes_back_bit_for_bit(tmp_path):
    step, restored, position = newest(saved(tmp_path, [3, 8]))
    assert step == 8
    assert position == {'unlogged': [{'loss': 8.1}]}
    assert_equal(restored, items(8))


def test_what_the_caller_does_after_saving_is_not_saved(tmp_path, monkeypatch):
    handed_over, json_save = [], ocp.args.JsonSave

    def recorded(item):
        handed_over.append(item)
        return json_save(item)

    monkeypatch.setattr(ocp.args, 'JsonSave', recorded)
    position = {'unlogged': [{'loss': 0.5}]}
    with contextlib.closing(Checkpoints(Run.at(tmp_path), keep=5)) as checkpoints:
        checkpoints.save(3, items(3), position)
        # A thread writes, which may start late: what it was given must not change.
        position['unlogged'].append({'loss': 0.25})
    assert handed_over[0]['position'] == {'unlogged': [{'loss': 0.5}]}


def test_nothing_saved_is_none(tmp_path):
    assert newest(Run.at(tmp_path)) is None


def test_older_ones_are_deleted(tmp_path):
    saved(tmp_path, [1, 2, 3, 4], keep=2)
    assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['3', '4']


def test_the_encoder_can_be_read_alone_onto_other_devices(tmp_path):
    run = saved(tmp_path, [4])
    target = jax.device_put({'encoder': items(0)['encoder']}, replicated(make_mesh()))
    step, restored = restore_items(run, target)
    assert step == 4
    assert_equal(restored, {'encoder': items(4)['encoder']})
    assert restored['encoder']['params']['kernel'].sharding == replicated(make_mesh())


def damage_by_one_bit(directory):
    """Flips a bit of the stored numbers where nothing but our digest would notice."""
    for path in sorted(p for p in directory.rglob('*') if p.is_file() and p.parent.name == 'd'):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))


def damage_by_truncation(directory):
    for path in [p for p in directory.rglob('*') if p.is_file() and p.parent.name == 'd']:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_by_removal(directory):
    for path in [p for p in directory.rglob('*') if p.is_file() and p.parent.name == 'd']:
        path.unlink()


@pytest.mark.parametrize('damage', [damage_by_one_bit, damage_by_truncation, damage_by_removal])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, caplog, damage):
    run = saved(tmp_path, [3, 8])
    damage(tmp_path / 'checkpoints' / '8' / 'encoder')
    with caplog.at_level(logging.WARNING):
        step, restored = restore_items(run, items(0))
        assert step == 3
        assert 'checkpoint 8 is damaged' in caplog.text
        assert (tmp_path / 'checkpoints' / '8').exists()  # reading changes nothing

        step, restored, _ = newest(run)
    assert step == 3
    assert_equal(restored, items(3))
    assert (tmp_path / 'checkpoints' / '8.damaged').exists()
    assert newest(saved(tmp_path, [8]))[0] == 8  # its number is free again
    damage(tmp_path / 'checkpoints' / '8' / 'encoder')
    assert newest(run)[0] == 3
    assert (tmp_path / 'checkpoints' / '8.damaged-2').exists()


def test_all_damaged_is_an_error(tmp_path):
    run = saved(tmp_path, [3])
    damage_by_removal(tmp_path / 'checkpoints' / '3' / 'encoder')
    with pytest.raises(InputError, match='every checkpoint'):
        restore_items(run, items(0))
    for _ in range(2):  # the second start must not find an empty directory and begin anew
        with pytest.raises(InputError, match='every checkpoint'):
            newest(run)


@pytest.mark.parametrize('place', range(24))
def test_any_flipped_bit_of_an_array_changes_the_digest(place):
    words = np.arange(24, dtype=np.float32) - 7
    flipped = words.copy()
    flipped.view(np.uint32)[place] ^= np.uint32(1 << (31 - place))
    assert int(digest({'x': jnp.asarray(words)})) != int(digest({'x': jnp.asarray(flipped)}))


def test_a_workdir_without_checkpoints_says_so(tmp_path):
    with pytest.raises(InputError, match=f'no checkpoint in {tmp_path}'):
        restore_items(Run.at(tmp_path), items(0))
    (tmp_path / 'checkpoints').mkdir()
    with pytest.raises(InputError, match=f'no checkpoint in {tmp_path}'):
        restore_items(Run.at(tmp_path), items(0))


def test_a_save_that_was_cut_off_is_not_seen(tmp_path):
    run = saved(tmp_path, [3])
    (tmp_path / 'checkpoints' / '5.orbax-checkpoint-tmp').mkdir()
    assert newest(run)[0] == 3
