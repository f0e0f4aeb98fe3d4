"""Whatever happens to the files of a checkpoint is found, and never restored as something else."""

import contextlib
import gc
import json
import logging
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bagssl_jax.checkpoints import Checkpoints, restore_items
from bagssl_jax.defaults import get_config
from bagssl_jax.errors import InputError
from bagssl_jax.runs import Run

CONFIG = get_config().to_dict()
DATA = {'images': 96, 'classes': ['a', 'b'], 'fingerprint': '12ab'}


def items(number, width=4):
    kernel = jnp.asarray(np.random.default_rng(number).normal(size=(3, width)), jnp.float32)
    return {
        'encoder': {'params': {'kernel': kernel}, 'batch_stats': {'mean': kernel[0] * 2}},
        'training': {'step': jnp.int32(number), 'opt_state': (kernel * 3, ())},
    }


def save(workdir, steps, *, width=4, seed=0):
    run = Run.at(workdir)
    run.claim({**CONFIG, 'seed': seed}, DATA)
    with contextlib.closing(Checkpoints(run, keep=9)) as checkpoints:
        for step in steps:
            checkpoints.save(step, items(step, width), {'unlogged': [{'loss': step + 0.1}]})
    return run


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A run with checkpoints 3 and 8."""
    workdir = tmp_path_factory.mktemp('saved')
    save(workdir, [3, 8])
    return workdir


@pytest.fixture
def run(saved, tmp_path):
    """A copy of it, to be damaged."""
    shutil.copytree(saved, tmp_path / 'run')
    return Run.at(tmp_path / 'run')


def newest(run, targets=None):
    """(step, items, position) that a training would go on from."""
    with contextlib.closing(Checkpoints(run, keep=9)) as checkpoints:
        return checkpoints.restore_newest(targets or items(0), ['unlogged'])


def assert_goes_back_to_3(run, caplog):
    with caplog.at_level(logging.WARNING):
        step, found, position = newest(run)
        gc.collect()  # then asyncio tells what no one asked its tasks
    assert step == 3
    assert position == {'unlogged': [{'loss': 3.1}]}
    for leaf, other in zip(*map(jax.tree.leaves, (found, items(3))), strict=True):
        np.testing.assert_array_equal(leaf, other)
    [message] = caplog.messages
    assert 'checkpoint 8 is damaged' in message
    assert message.endswith('using checkpoint 3')
    assert '\n' not in message
    assert (run.checkpoints / '8.damaged').exists()


def files_of(directory):
    return sorted(path for path in pathlib.Path(directory).rglob('*') if path.is_file())


def flip(path, rng, _):
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    path.write_bytes(bytes(data))


def truncate(path, rng, _):
    path.write_bytes(path.read_bytes()[: rng.integers(path.stat().st_size)])


def zero(path, rng, _):
    path.write_bytes(bytes(path.stat().st_size))


def lengthen(path, rng, _):
    path.write_bytes(path.read_bytes() + b'\x00')


def remove(path, rng, _):
    path.unlink()


def swap(path, rng, files):
    other = next(
        other for other in rng.permutation(files) if other.read_bytes() != path.read_bytes()
    )
    contents = path.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    path.write_bytes(contents[1])


@pytest.mark.parametrize('damage', [flip, truncate, zero, lengthen, remove, swap])
@pytest.mark.parametrize('seed', range(9))
def test_damage_to_a_random_file_is_found(run, caplog, damage, seed):
    rng = np.random.default_rng(seed)
    files = files_of(run.checkpoints / '8')
    damage(files[rng.integers(len(files))], rng, files)
    assert_goes_back_to_3(run, caplog)


@pytest.mark.parametrize('name', ['meta/metadata', 'manifest.json'])
@pytest.mark.parametrize('seed', range(5))
def test_flipped_bits_of_the_position_and_of_the_manifest_are_found(run, caplog, name, seed):
    flip(pathlib.Path(run.checkpoints / '8' / name), np.random.default_rng(seed), [])
    assert_goes_back_to_3(run, caplog)


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def make_a_file(step):
    shutil.rmtree(step)
    step.write_bytes(b'')


def put_another_step_there(step):
    shutil.rmtree(step)
    shutil.copytree(step.with_name('3'), step)


def exchange_items(step):
    (step / 'encoder').rename(step / 'other')
    (step / 'training').rename(step / 'encoder')
    (step / 'other').rename(step / 'training')


def lose_an_item(step):
    shutil.rmtree(step / 'training')


def lock_a_folder_up(step):
    shutil.rmtree(step / 'meta')
    (step / 'meta').write_bytes(b'')


@pytest.mark.parametrize(
    'damage',
    [empty, make_a_file, put_another_step_there, exchange_items, lose_an_item, lock_a_folder_up],
)
def test_damage_to_folders_is_found(run, caplog, damage):
    damage(pathlib.Path(run.checkpoints / '8'))
    assert_goes_back_to_3(run, caplog)


def test_files_beside_those_of_the_checkpoint_do_not_matter(run):
    (run.checkpoints / '8' / 'notes.txt').write_text('the good one')
    (run.checkpoints / 'README').write_text('')
    assert newest(run)[0] == 8


def test_where_all_are_damaged_one_line_says_so_and_nothing_goes(run):
    for step in ('3', '8'):
        remove(pathlib.Path(run.checkpoints / step / 'meta' / 'metadata'), None, None)
    before = files_of(run.directory)
    for _ in range(2):  # the second start must not find an empty directory and begin anew
        with pytest.raises(InputError, match=r'every checkpoint .* is damaged: 8 .*, 3 ') as error:
            newest(run)
        assert '\n' not in str(error.value)
    assert files_of(run.directory) == before


@pytest.mark.parametrize(
    ('other', 'difference'), [({'seed': 1}, 'seed=1, not 0'), ({'width': 6}, None)]
)
def test_a_checkpoint_of_another_run_is_a_mismatch_and_not_damage(run, tmp_path, other, difference):
    foreign = save(tmp_path / 'foreign', [9], **other)
    shutil.copytree(foreign.checkpoints / '9', run.checkpoints / '9')
    expected = f'is of another run, with {difference}' if difference else 'networks that this run'
    with pytest.raises(InputError, match=expected) as error:
        newest(run)
    assert 'damaged' not in str(error.value)
    assert str(run.checkpoints / '9') in str(error.value)
    assert run.steps() == [3, 8, 9]


def test_another_tree_is_a_mismatch(run):
    targets = {'encoder': {'params': {'other': jnp.zeros(3)}}}
    with pytest.raises(InputError, match='is not of the networks that this run has') as error:
        restore_items(run, targets)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['9.unfinished', '9.unfinished.orbax-checkpoint-tmp', '9.removed'])
def test_an_unfinished_save_is_named_and_removed(run, caplog, name):
    shutil.copytree(run.checkpoints / '8' / 'encoder', run.checkpoints / name / 'encoder')
    with caplog.at_level(logging.WARNING):
        assert newest(run)[0] == 8
    assert not (run.checkpoints / name).exists()
    assert [name in message for message in caplog.messages] == [True] * (name != '9.removed')


@pytest.fixture
def older(run):
    """The run as a version without manifests would have saved it."""
    for step in ('3', '8'):
        (run.checkpoints / step / 'manifest.json').unlink()
        meta = run.checkpoints / step / 'meta' / 'metadata'
        content = json.loads(meta.read_text())
        del content['manifest']
        meta.write_text(json.dumps(content))
    return run


def test_checkpoints_of_older_versions_are_read(older):
    step, found, position = newest(older)
    assert (step, position) == (8, {'unlogged': [{'loss': 8.1}]})
    np.testing.assert_array_equal(
        found['encoder']['params']['kernel'], items(8)['encoder']['params']['kernel']
    )


def test_of_older_versions_too_another_width_is_a_mismatch(older):
    with pytest.raises(InputError, match='is not of the networks that this run has'):
        newest(older, items(0, width=6))
    assert older.steps() == [3, 8]


def test_of_older_versions_a_position_without_its_keys_is_damaged(older, caplog):
    path = older.checkpoints / '8' / 'meta' / 'metadata'
    path.write_text(path.read_text().replace('unlogged', 'unloggee'))
    assert_goes_back_to_3(older, caplog)


@pytest.mark.parametrize('text', ['{}', '[]', '{"digests": {}, "position": {}}', '{"digests": 3}'])
def test_of_older_versions_what_lacks_its_digests_is_damaged(older, caplog, text):
    (older.checkpoints / '8' / 'meta' / 'metadata').write_text(text)
    assert_goes_back_to_3(older, caplog)


@pytest.mark.parametrize('damage', [truncate, remove])
@pytest.mark.parametrize('item', ['encoder', 'training'])
def test_of_older_versions_damaged_arrays_are_found(older, caplog, damage, item):
    for path in files_of(older.checkpoints / '8' / item):
        if path.parent.name == 'd':
            damage(path, np.random.default_rng(0), None)
    assert_goes_back_to_3(older, caplog)


def test_without_its_config_a_run_is_still_known(run):
    (run.directory / 'config.json').unlink()
    (run.directory / 'data.json').unlink()
    with pytest.raises(InputError, match='holds a run with seed=0, not 1'):
        run.claim({**CONFIG, 'seed': 1}, DATA)
    with pytest.raises(InputError, match='the training images are not those'):
        run.claim(CONFIG, {**DATA, 'fingerprint': '0'})
    run.claim(CONFIG, DATA)
    assert (run.read_config(), run.read_data()) == (CONFIG, DATA)


def test_without_its_config_an_older_run_is_refused(older):
    (older.directory / 'config.json').unlink()
    with pytest.raises(InputError, match=r'holds checkpoints, but no config\.json'):
        older.claim(CONFIG, DATA)
