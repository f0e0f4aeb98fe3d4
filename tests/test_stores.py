"""A run in a store: checkpoints, rows, locks; in memory, and whole programs against moto's S3."""

import contextlib
import json
import logging
import os
import time

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SHRUNK, start
from conftest import run as run_program
from etils import epath

from bagssl_jax import locks
from bagssl_jax.checkpoints import Checkpoints, restore_items
from bagssl_jax.errors import InputError
from bagssl_jax.locks import only_writer
from bagssl_jax.records import Recorder
from bagssl_jax.runs import Run
from bagssl_jax.storage import PART

WORKDIR = 's3://bucket/runs/one'
HOST = os.uname().nodename


def items(number):
    kernel = np.random.default_rng(number).normal(size=(3, 4))
    return {'encoder': {'kernel': jnp.asarray(kernel, jnp.float32)}, 'rest': {'x': jnp.ones(2)}}


def save(*steps, keep=5):
    run = Run.at(WORKDIR)
    with contextlib.closing(Checkpoints(run, keep=keep)) as checkpoints:
        for step in steps:
            checkpoints.save(step, items(step), {'unlogged': [step]})
    return run


def newest(run):
    with contextlib.closing(Checkpoints(run, keep=5)) as checkpoints:
        return checkpoints.restore_newest(items(0))


def names(bucket, folder):
    return sorted(name.rpartition('/')[2] for name in bucket.ls(folder, detail=False))


def test_checkpoints_are_saved_restored_and_deleted(bucket):
    run = save(1, 2, 3, keep=2)
    assert names(bucket, '/bucket/runs/one/checkpoints') == ['2', '3']
    step, found, position = newest(run)
    assert (step, position) == (3, {'unlogged': [3]})
    np.testing.assert_array_equal(found['encoder']['kernel'], items(3)['encoder']['kernel'])
    step, found = restore_items(run, {'encoder': items(0)['encoder']})
    np.testing.assert_array_equal(found['encoder']['kernel'], items(3)['encoder']['kernel'])


def test_a_damaged_checkpoint_is_set_aside(bucket, caplog):
    run = save(1, 2)
    path = '/bucket/runs/one/checkpoints/2/meta/metadata'
    bucket.pipe_file(path, bucket.cat_file(path).replace(b'2', b'3'))
    with caplog.at_level(logging.WARNING):
        assert newest(run)[0] == 1
    assert 'checkpoint 2 is damaged' in caplog.text
    assert names(bucket, '/bucket/runs/one/checkpoints') == ['1', '2.damaged']


@pytest.mark.parametrize('lost', [['manifest.json', 'commit_success.txt'], ['manifest.json']])
def test_an_upload_that_was_cut_off_is_no_checkpoint(bucket, caplog, lost):
    run = save(1, 2)
    for name in lost:
        bucket.rm(f'/bucket/runs/one/checkpoints/2/{name}')
    with caplog.at_level(logging.WARNING):
        assert newest(run)[0] == 1
    assert len(caplog.messages) == 1
    assert newest(save(2))[0] == 2


def rows(bucket, name='metrics.jsonl'):
    return [json.loads(line) for line in bucket.cat_file(f'/bucket/runs/one/{name}').splitlines()]


def test_rows_are_written_in_parts_and_gathered(bucket):
    options = {'total': 10, 'images_per_step': 4}
    run = Run.at(WORKDIR)
    recorder = Recorder(run, start=0, **options)
    recorder.log(1, {'loss': 0.5})
    assert rows(bucket, 'metrics.jsonl.000001') == [{'step': 1, 'loss': 0.5}]
    recorder.log(2, {'loss': 0.25, 'x' * PART: 1.0})
    recorder.log(3, {'loss': 0.125})
    assert [row['step'] for row in rows(bucket, 'metrics.jsonl.000002')] == [3]
    # As after a kill: nothing was closed.
    recorder = Recorder(run, start=2, **options)
    assert [row['step'] for row in rows(bucket)] == [1, 2]
    recorder.log(3, {'loss': 0.5})
    recorder.close()
    assert [(row['step'], row['loss']) for row in rows(bucket)] == [(1, 0.5), (2, 0.25), (3, 0.5)]
    left = [name for name in names(bucket, '/bucket/runs/one') if not name.startswith('events.')]
    assert left == ['metrics.jsonl']


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(locks, 'BEAT', 0.01)
    monkeypatch.setattr(locks, 'SETTLED', 0.02)


def test_the_lease_of_a_living_process_is_refused(bucket, fast):
    path = epath.Path(WORKDIR)
    with only_writer(path):
        first = json.loads((path / 'run.lock').read_text())
        assert first['holder'] == f'process {os.getpid()} on {HOST}'
        with pytest.raises(InputError, match=f'is being written by {first["holder"]}'):
            only_writer(path).__enter__()
    assert not (path / 'run.lock').exists()


@pytest.mark.parametrize('holder', ['process 1 on elsewhere', f'process 999999999 on {HOST}'])
def test_the_lease_of_a_dead_process_is_taken_over(bucket, fast, holder):
    path = epath.Path(WORKDIR)
    (path / 'run.lock').write_text(json.dumps({'holder': holder, 'id': 'other', 'beat': 3}))
    with only_writer(path):
        assert f'process {os.getpid()} on {HOST}' in (path / 'run.lock').read_text()


@pytest.fixture(scope='module')
def s3():
    """A real S3 interface with an empty bucket, for programs of their own process."""
    server = pytest.importorskip('moto.server').ThreadedMotoServer(ip_address='127.0.0.1', port=0)
    s3fs = pytest.importorskip('s3fs')
    server.start()
    host, port = server.get_host_and_port()
    names = {
        'AWS_ENDPOINT_URL': f'http://{host}:{port}',
        'AWS_ACCESS_KEY_ID': 'any',
        'AWS_SECRET_ACCESS_KEY': 'any',
        'AWS_DEFAULT_REGION': 'us-east-1',
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in names.items():
            patch.setenv(name, value)
        logging.getLogger('werkzeug').setLevel(logging.ERROR)
        store = s3fs.S3FileSystem(use_listings_cache=False)
        store.mkdir('bucket')
        yield store
    server.stop()


@pytest.mark.slow
def test_a_run_on_s3_is_killed_gone_on_with_and_probed(s3):
    arguments = [*SHRUNK, f'--workdir={WORKDIR}', '--config.train.epochs=20']
    arguments += ['--config.train.checkpoint_every=20']
    with start('main', *arguments) as process:
        while process.poll() is None:
            if s3.exists('bucket/runs/one/checkpoints/20/manifest.json'):
                break
            time.sleep(0.1)
        process.kill()

    status, _, err = run_program('main', *arguments)
    assert status == 0, err
    assert 'from step ' in err
    names = [path.rpartition('/')[2] for path in s3.ls('bucket/runs/one', detail=False)]
    left = ['checkpoints', 'config.json', 'data.json', 'figures', 'metrics.jsonl', 'report.html']
    left += ['results.json']
    assert [name for name in sorted(names) if not name.startswith('events')] == left
    rows = [json.loads(line) for line in s3.cat('bucket/runs/one/metrics.jsonl').splitlines()]
    assert [row['step'] for row in rows] == list(range(2, 121, 2))
