import json
import sys
import threading

import pytest
from conftest import SHRUNK

from bagssl_jax import processes, tracking
from bagssl_jax.errors import InputError, Interrupted
from bagssl_jax.runs import Run
from bagssl_jax.tracking import make_tracker, tracker
from bagssl_jax.tracking.summary import summary_of
from bagssl_jax.tracking.tracker import Tracker

TRACKED = '--config.train.tracker=wandb'
REPORT = '<!DOCTYPE html>\n<title>a report</title>\n'
ROW = {'encoder': 'trained', 'space': 'h', 'aggregation': 'mean', 'labels': 'all', 'flip': False}
RESULTS = {
    'dataset': 'photos',
    'step': 4,
    'rows': [
        {**ROW, 'view': 'bag', 'patches': 16, 'probe': 'linear', 'top1': 0.5},
        {**ROW, 'view': 'bag', 'patches': 1, 'probe': 'knn', 'top1': 0.25, 'space': 'z'},
        {**ROW, 'view': 'whole', 'patches': 1, 'probe': 'knn', 'top1': 0.75, 'labels': '1%'},
        {**ROW, 'view': 'bag', 'patches': 4, 'probe': 'rankme', 'top1': None, 'value': 9.5},
        {**ROW, 'view': 'bag', 'patches': 4, 'probe': 'knn', 'top1': None},
    ],
}
NUMBERS = {
    'probe/linear/16 patches': 0.5,
    'probe/knn/1 patch/z': 0.25,
    'probe/knn/whole/1%': 0.75,
    'probe/rankme/4 patches': 9.5,
}


class Book:
    """A service that writes down what it is told."""

    def __init__(self):
        self.heard = []

    def open(self, run, known, config):
        self.heard.append(('open', known, config))
        return known or 'the-first', 'a book'

    def log(self, step, row):
        self.heard.append(('log', step, row))

    def conclude(self, step, numbers, report):
        self.heard.append(('conclude', step, numbers, report))

    def close(self, status):
        self.heard.append(('close', status))

    def abandon(self):
        self.heard.append(('abandon',))


class Stuck(Book):
    """A service that does not come back from its first call."""

    def open(self, run, known, config):
        threading.Event().wait()


class Broken(Book):
    def log(self, step, row):
        super().log(step, row)
        raise ConnectionError('no route to host\nand more')


@pytest.fixture
def run_of(shrunk):
    """Makes a run that has been probed and reported, and its configuration."""

    def make(workdir, name=''):
        config = shrunk(f'--config.train.tracker={name}').to_dict()
        run = Run.at(workdir)
        run.write_json('config.json', config)
        run.write_json('results.json', RESULTS)
        run.write('report.html', REPORT.encode())
        return run, config

    return make


def follow(tracker, steps=(2, 4)):
    with tracker:
        for step in steps:
            tracker.log(step, {'loss': step / 8, 'h_std': None})
        tracker.conclude()


def test_a_service_is_told_everything_in_its_order_and_a_resumed_run_is_the_same(tmp_path, run_of):
    run, config = run_of(tmp_path)
    books = Book(), Book()
    for book in books:
        follow(Tracker(run, 'book', book, config))
    (_, known, told), *rest = books[0].heard
    assert known is None
    assert told['encoder']['tiny'] == config['encoder']['tiny']
    assert 'resnet18' not in told['encoder']
    assert rest == [
        ('log', 2, {'loss': 0.25, 'h_std': None}),
        ('log', 4, {'loss': 0.5, 'h_std': None}),
        ('conclude', 4, NUMBERS, REPORT.encode()),
        ('close', 'finished'),
    ]
    assert books[1].heard[0][1] == 'the-first'
    assert run.read_json('tracker.json') == {'book': 'the-first'}


def test_each_tracker_keeps_its_own_name_of_the_run(tmp_path, run_of):
    run, config = run_of(tmp_path)
    run.write_json('tracker.json', {'book': 'x'})
    book = Book()
    follow(Tracker(run, 'diary', book, config))
    assert book.heard[0][1] is None
    assert run.read_json('tracker.json') == {'book': 'x', 'diary': 'the-first'}


@pytest.mark.parametrize(
    ('error', 'status'),
    [(Interrupted(15, 3), 'stopped'), (KeyboardInterrupt(2), 'stopped'), (OSError(), 'failed')],
)
def test_a_service_hears_how_it_ended(tmp_path, run_of, error, status):
    run, config = run_of(tmp_path)
    book = Book()

    def end():
        with Tracker(run, 'book', book, config) as tracker:
            tracker.begin()
            raise error

    with pytest.raises(type(error)):
        end()
    assert book.heard[1:] == [('close', status)]


def test_a_service_that_fails_is_one_line_and_is_left_alone(tmp_path, run_of, capsys):
    run, config = run_of(tmp_path)
    broken = Broken()
    follow(Tracker(run, 'book', broken, config))
    assert [call[0] for call in broken.heard] == ['open', 'log']
    lines = capsys.readouterr().err.splitlines()
    assert [line.strip() for line in lines] == [
        'book: run the-first, a book',
        'book failed, and takes nothing more of this start: ConnectionError: no route to host',
    ]


def test_a_service_that_does_not_come_back_is_abandoned(tmp_path, run_of, capsys, monkeypatch):
    monkeypatch.setattr(tracker, 'PATIENCE', 0.1)
    run, config = run_of(tmp_path)
    stuck = Stuck()
    follow(Tracker(run, 'book', stuck, config))
    assert stuck.heard == [('abandon',)]
    assert 'book has not taken everything within 0 s' in capsys.readouterr().err


def test_a_directory_that_cannot_be_written_stops_nothing(tmp_path, run_of, capsys):
    run, config = run_of(tmp_path)
    (tmp_path / 'tracker.json').mkdir()
    follow(Tracker(run, 'book', Book(), config))
    assert 'book failed' in capsys.readouterr().err


def test_numbers_have_the_names_of_their_rows():
    assert summary_of(RESULTS) == NUMBERS
    assert summary_of({}) == {}


def test_without_a_tracker_nothing_is_begun(tmp_path, run_of):
    run, config = run_of(tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    follow(make_tracker(config, run))
    assert {path.name for path in tmp_path.iterdir()} == before


def test_the_first_of_several_processes_alone_has_it(tmp_path, run_of, monkeypatch):
    def refuse():
        raise AssertionError

    monkeypatch.setitem(tracking.TRACKERS, 'wandb', refuse)
    monkeypatch.setattr(processes, 'is_first', lambda: False)
    run, config = run_of(tmp_path, 'wandb')
    follow(make_tracker(config, run))


@pytest.mark.parametrize('name', tracking.TRACKERS)
def test_a_library_that_is_missing_is_one_line(refusal, tmp_path, run_of, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    arguments = *SHRUNK, f'--config.train.tracker={name}', f'--workdir={tmp_path}/run'
    assert f"needs {name}: pip install '.[{name}]'" in refusal('main', *arguments)
    assert not (tmp_path / 'run').exists()
    # A probe says so, and goes on.
    run, config = run_of(tmp_path, name)
    follow(make_tracker(config, run, is_needed=False))
    with pytest.raises(InputError):
        make_tracker(config, run)


def test_a_tracker_that_is_unknown_is_one_line(refusal, tmp_path):
    arguments = *SHRUNK, '--config.train.tracker=wandbb', f'--workdir={tmp_path}/run'
    line = refusal('main', *arguments)
    assert "unknown train.tracker 'wandbb': choose from wandb, mlflow" in line


def test_a_training_and_a_probe_are_followed(program, tmp_path, monkeypatch):
    books = []

    def open_book():
        books.append(Book())
        return books[-1]

    monkeypatch.setitem(tracking.TRACKERS, 'wandb', open_book)
    workdir = tmp_path / 'run'
    once = '--config.train.epochs=1', '--config.probe.after_training=False'
    assert program('main', *SHRUNK, *once, TRACKED, f'--workdir={workdir}')[0] == 0
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    _, *logged, concluded, closed = books[0].heard
    assert [{'step': step, **row} for _, step, row in logged] == rows
    assert concluded == ('conclude', 0, {}, (workdir / 'report.html').read_bytes())
    assert closed == ('close', 'finished')
    few = ['patches=1', 'views=bag', 'probes=knn', 'encoders=trained,untrained']
    few = [f'--config.probe.{setting}' for setting in few]
    assert program('probe', f'--workdir={workdir}', *few)[0] == 0
    opened, concluded, _ = books[1].heard
    assert opened[1] == 'the-first'
    _, step, numbers, report = concluded
    assert step == rows[-1]['step']
    assert numbers.keys() >= {'probe/knn/1 patch', 'probe/knn/1 patch/untrained'}
    assert report == (workdir / 'report.html').read_bytes()


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))  # where accounts are written down
    for name in ('WANDB_API_KEY', 'WANDB_PROJECT', 'WANDB_DIR'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('WANDB_MODE', 'offline')
    library = pytest.importorskip('wandb', reason='wandb is not installed')
    yield library
    library.teardown()


def test_wandb_offline(wandb, tmp_path, run_of, capsys):
    run, config = run_of(tmp_path / 'run', 'wandb')
    for _ in range(2):
        follow(make_tracker(config, run))
    assert 'failed' not in capsys.readouterr().err
    name = run.read_json('tracker.json')['wandb']
    files = sorted((tmp_path / 'run').glob(f'wandb/offline-run-*/run-{name}.wandb'))
    assert files
    for file in files:
        content = file.read_bytes()
        for text in (
            b'loss',
            b'0.25',
            b'probe/linear/16 patches',
            b'objective',
            b'report-' + name.encode(),
        ):
            assert text in content


def test_wandb_online_needs_an_account(wandb, tmp_path, run_of, monkeypatch):
    monkeypatch.setenv('WANDB_MODE', 'online')
    wandb.teardown()
    run, config = run_of(tmp_path / 'run', 'wandb')
    with pytest.raises(InputError, match='needs an account: wandb login, or set WANDB_API_KEY'):
        make_tracker(config, run)


@pytest.mark.filterwarnings('ignore')  # of the database's library, at mlflow
def test_mlflow_in_a_database(tmp_path, run_of, monkeypatch, capsys):
    mlflow = pytest.importorskip('mlflow', reason='mlflow is not installed')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MLFLOW_TRACKING_URI', f'sqlite:///{tmp_path}/mlflow.db')
    mlflow.set_tracking_uri(None)
    run, config = run_of(tmp_path / 'run', 'mlflow')
    follow(make_tracker(config, run))
    follow(make_tracker(config | {'seed': 1}, run), steps=(6,))
    assert 'failed' not in capsys.readouterr().err
    client = mlflow.MlflowClient()
    [found] = client.search_runs([client.get_experiment_by_name('bagssl_jax').experiment_id])
    assert found.info.run_id == run.read_json('tracker.json')['mlflow']
    assert (found.info.run_name, found.info.status) == ('run', 'FINISHED')
    assert found.data.params['objective.name'] == config['objective']['name']
    losses = client.get_metric_history(found.info.run_id, 'loss')
    assert [(row.step, row.value) for row in losses] == [(2, 0.25), (4, 0.5), (6, 0.75)]
    assert found.data.metrics['probe/linear/16 patches'] == 0.5
    assert [file.path for file in client.list_artifacts(found.info.run_id)] == ['report.html']
    # A server that does not know the run gets a new one.
    client.delete_run(found.info.run_id)
    follow(make_tracker(config, run))
    assert run.read_json('tracker.json')['mlflow'] != found.info.run_id
