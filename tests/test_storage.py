import contextlib
import errno
import os
import re
import resource

import pytest
from etils import epath

from bagssl_jax.errors import InputError, out_of_memory
from bagssl_jax.storage import Log, check_writable, unwritable, write


@contextlib.contextmanager
def room_for(size):
    """Files of this process can have so many bytes, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_has_no_room_leaves_the_one_before_it(tmp_path):
    path = epath.Path(tmp_path / 'results.json')
    write(path, b'first')
    with room_for(100), pytest.raises(InputError, match=r'results\.json cannot be written: File'):
        write(path, bytes(1000))
    assert path.read_bytes() == b'first'
    assert [file.name for file in tmp_path.iterdir()] == ['results.json']


def test_a_log_that_has_no_room_ends_with_a_whole_piece(tmp_path):
    path = epath.Path(tmp_path / 'metrics.jsonl')
    log = Log(path)
    log.append(b'1' * 80)
    with room_for(100), pytest.raises(InputError, match='cannot be written'):
        log.append(b'2' * 80)
    assert path.read_bytes() == b'1' * 80
    log.append(b'3' * 80)
    log.close()
    assert path.read_bytes() == b'1' * 80 + b'3' * 80


def test_a_log_is_on_the_disk_at_once_and_goes_on(tmp_path):
    path = epath.Path(tmp_path / 'metrics.jsonl')
    for number in range(3):
        log = Log(path)
        log.append(b'%d' % number)
        assert path.read_bytes() == b'012'[: number + 1]
        log.close()


def test_a_log_of_a_folder_that_was_deleted_is_not_written_into_nowhere(tmp_path):
    log = Log(epath.Path(tmp_path / 'run.jsonl'))
    os.unlink(tmp_path / 'run.jsonl')
    with pytest.raises(InputError, match='cannot be written'):
        log.append(b'1')
    log.close()


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (OSError(errno.ENOSPC, 'full'), 'No space left on device: .* make room'),
        (OSError(errno.EROFS, 'read-only'), 'Read-only file system: give another place'),
        (ValueError('RESOURCE_EXHAUSTED: Error writing "x" [OS error 28: ENOSPC]'), 'No space'),
        (OSError(errno.EIO, 'Input/output error'), 'Input/output error'),
    ],
)
def test_what_is_wrong_with_a_disk_is_said_in_one_line(error, expected):
    assert re.match(expected, unwritable(error))


def test_a_full_disk_is_no_lack_of_memory():
    assert out_of_memory(ValueError('RESOURCE_EXHAUSTED: No space left on device')) is None
    assert out_of_memory(ValueError('RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes'))


def test_other_errors_are_not_the_disks():
    assert unwritable(ValueError('a bug')) is None
    assert unwritable(InputError('wrong')) is None


def test_where_nothing_can_be_written_is_found_out(tmp_path):
    check_writable(epath.Path(tmp_path / 'new' / 'run'))
    assert list((tmp_path / 'new' / 'run').iterdir()) == []
    (tmp_path / 'file').write_text('')
    for place in (
        '/proc/run',
        tmp_path / 'file' / 'run',
        tmp_path / ('n' * 300),
        f'{tmp_path}/' + 'n/' * 3000,
    ):
        with pytest.raises(InputError, match='cannot be written') as error:
            check_writable(epath.Path(place))
        assert '\n' not in str(error.value)
