import json

from bagssl_jax.records import Recorder
from bagssl_jax.runs import Run


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
