import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from bagssl_jax.errors import InputError
from bagssl_jax.records import Recorder
from bagssl_jax.runs import Run


def read_events(path):
    """The events of the only file of them, by the format's own words: length, crc, data, crc."""
    [file] = path.glob('events.out.tfevents.*')
    content, found = file.read_bytes(), []
    while content:
        (length,) = struct.unpack('<Q', content[:8])
        data = content[12 : 12 + length]
        assert struct.unpack('<I', content[8:12]) == (masked_crc32c(content[:8]),)
        assert struct.unpack('<I', content[12 + length : 16 + length]) == (masked_crc32c(data),)
        found.append(Event.FromString(data))
        content = content[16 + length :]
    return found


def events(path):
    values = [(event.step, value) for event in read_events(path) for value in event.summary.value]
    return [(step, value.tag, value.simple_value) for step, value in values]


def rows(path):
    return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def record(workdir, start, steps, **options):
    recorder = Recorder(Run.at(workdir), start=start, total=10, images_per_step=4, **options)
    for step in steps:
        recorder.advance()
        recorder.log(step, {'loss': step / 10})
    recorder.close()


def test_rows_are_objects_with_their_step(tmp_path):
    record(tmp_path, 0, [1, 2])
    assert rows(tmp_path) == [{'step': 1, 'loss': 0.1}, {'step': 2, 'loss': 0.2}]


def test_the_bar_moves_by_several_steps_at_once(tmp_path, capsys):
    recorder = Recorder(Run.at(tmp_path), start=2, total=10, images_per_step=4)
    recorder.advance(8)
    recorder.close()
    assert '40.0/40.0' in capsys.readouterr().err


def test_a_resumed_run_drops_what_it_will_write_again(tmp_path):
    record(tmp_path, 0, [1, 2, 3, 4])
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 5, "lo')  # cut off by a kill
    record(tmp_path, 2, [3, 4, 5])
    assert [row['step'] for row in rows(tmp_path)] == [1, 2, 3, 4, 5]


def test_what_a_monitor_saw_at_the_step_of_the_start_is_written_again(tmp_path):
    seen = '{"step": 2, "knn_top1": 0.5}\n'
    record(tmp_path, 0, [1, 2])
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write(seen)
    record(tmp_path, 2, [], monitors=False)
    assert len(rows(tmp_path)) == 3
    record(tmp_path, 2, [3], monitors=True)
    assert [row['step'] for row in rows(tmp_path)] == [1, 2, 3]
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write(seen.replace('2', '3'))
    record(tmp_path, 4, [], monitors=True)
    assert len(rows(tmp_path)) == 4


@pytest.mark.parametrize(
    'damage', ['"step": 2}', '\xff\xfe', '[2]', '2', '{"loss": 1}', '{"step": "2"}']
)
def test_a_damaged_row_costs_no_other_and_the_file_is_kept(tmp_path, caplog, damage):
    record(tmp_path, 0, [1, 2, 3])
    path = tmp_path / 'metrics.jsonl'
    first, _, last = path.read_bytes().splitlines()
    before = b'\n'.join(
        [first, damage.encode('latin-1'), last]
    )  # the last is whole without its end
    path.write_bytes(before)
    record(tmp_path, 3, [4])
    assert [row['step'] for row in rows(tmp_path)] == [1, 3, 4]
    assert (tmp_path / 'metrics.jsonl.damaged').read_bytes() == before
    [message] = caplog.messages
    assert f'{path}: 1 of 2 lines are damaged' in message


def test_a_folder_in_the_place_of_the_rows_is_named(tmp_path):
    (tmp_path / 'metrics.jsonl').mkdir()
    with pytest.raises(InputError, match=r'metrics\.jsonl cannot be read: Is a directory'):
        record(tmp_path, 0, [1])


def test_rows_and_events_are_in_their_files_at_once(tmp_path):
    recorder = Recorder(Run.at(tmp_path), start=0, total=10, images_per_step=4)
    for step in (1, 2):
        recorder.log(step, {'loss': step / 4})
        assert rows(tmp_path)[-1] == {'step': step, 'loss': step / 4}
        assert events(tmp_path)[-1] == (step, 'loss', step / 4)
    recorder.close()


def test_tensorboard_hides_what_is_told_again(tmp_path):
    record(tmp_path, 5, [6])
    begun = [event for event in read_events(tmp_path) if event.HasField('session_log')]
    assert [(event.step, event.session_log.status) for event in begun] == [(6, SessionLog.START)]


def test_the_bar_shows_loss_speed_and_time_left(tmp_path, capsys):
    record(tmp_path, 5, range(6, 11))
    shown = capsys.readouterr().err
    assert 'loss 1' in shown
    assert '40.0/40.0' in shown
    assert 'images/s' in shown


def test_tensorboard_gets_every_metric(tmp_path):
    record(tmp_path, 0, [1, 2])
    [events] = tmp_path.glob('events.out.tfevents.*')
    assert b'loss' in events.read_bytes()


def test_other_processes_write_nothing(tmp_path, capsys):
    record(tmp_path, 0, [1], enabled=False)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err == ''
