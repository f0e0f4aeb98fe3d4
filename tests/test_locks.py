import contextlib
import os
import subprocess
import sys

import pytest
from etils import epath

from bagssl_jax.errors import InputError
from bagssl_jax.locks import only_writer

HOLDER = """
import sys, time
from etils import epath
from bagssl_jax.locks import only_writer
with only_writer(epath.Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def held_elsewhere(directory):
    """Another process that holds the lock."""
    command = [sys.executable, '-c', HOLDER, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'held\n'
        yield process
        process.kill()


def test_the_second_is_refused_and_told_who_has_it(tmp_path):
    run = epath.Path(tmp_path / 'run')
    with held_elsewhere(run) as process:
        with pytest.raises(InputError, match=f'process {process.pid} on {os.uname().nodename}'):
            only_writer(run).__enter__()
        process.kill()
        process.wait()
        with only_writer(run):  # what a dead process has left is taken over
            assert f'process {os.getpid()}' in (run / 'run.lock').read_text()
    assert list(run.iterdir()) == []


def test_a_folder_that_goes_meanwhile_does_not_matter(tmp_path):
    with only_writer(epath.Path(tmp_path)):
        (tmp_path / 'run.lock').unlink()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='cannot be written'):
        only_writer(epath.Path(tmp_path / 'file' / 'run')).__enter__()
