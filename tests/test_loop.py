"""The training loop, by the shrunk quickstart: 12 steps, checkpoints after 4, 8 and 12."""

import json
import pathlib
import signal

import jax
import numpy as np
import pytest
from conftest import slow_but

from bagssl_jax.checkpoints import restore_items
from bagssl_jax.data import pipeline
from bagssl_jax.data.datasets import Images, open_dataset
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.data.sources import ArraySource
from bagssl_jax.errors import InputError, Interrupted, UnreadableImage
from bagssl_jax.evaluation.monitor import make_monitor
from bagssl_jax.models import init_variables, make_networks
from bagssl_jax.parallel import make_mesh, replicated
from bagssl_jax.records import Recorder
from bagssl_jax.runs import Run
from bagssl_jax.training import loop
from bagssl_jax.training.setup import set_up


def train(config, workdir, monitor=None):
    loop.train(config, Run.at(workdir), open_dataset(config.data), monitor)


def encoder_and_projector(config, workdir):
    """The step and the parameters and statistics of the newest checkpoint, on the host."""
    fresh = init_variables(
        make_networks(config), 9, side=PatchGeometry.of(config.patches).input_side
    )
    target = jax.device_put(fresh, replicated(make_mesh()))
    step, items = restore_items(Run.at(workdir), target)
    return step, jax.device_get(items)


def rows(workdir):
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


def assert_same_run(config, workdir, expected):
    assert (workdir / 'metrics.jsonl').read_text() == (expected / 'metrics.jsonl').read_text()
    (step, tree), (expected_step, expected_tree) = (
        encoder_and_projector(config, directory) for directory in (workdir, expected)
    )
    assert step == expected_step
    assert jax.tree.structure(tree) == jax.tree.structure(expected_tree)
    for leaf, other in zip(*map(jax.tree.leaves, (tree, expected_tree)), strict=True):
        np.testing.assert_array_equal(leaf, other)


def assert_near(config, workdir, expected):
    """Float32 rounding apart, which training amplifies."""
    trees = (encoder_and_projector(config, directory)[1] for directory in (workdir, expected))
    for leaf, other in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-5 * max(abs(other).max(), 1))


def interrupt_at(monkeypatch, call, number=signal.SIGTERM, method='advance'):
    """Sends this process a signal at that call (from 1) of a method of the recorder."""
    original, calls = getattr(Recorder, method), []

    def interrupted(self, *arguments):
        calls.append(None)
        if len(calls) == call:
            signal.raise_signal(number)
        original(self, *arguments)

    monkeypatch.setattr(Recorder, method, interrupted)


@pytest.fixture(scope='module')
def config(shrunk):
    return shrunk()


@pytest.fixture(scope='module')
def finished(config, tmp_path_factory):
    """The workdir of a training that nothing interrupted."""
    workdir = tmp_path_factory.mktemp('finished')
    train(config, workdir)
    return workdir


def test_leaves_what_a_run_should_leave(finished, config):
    assert json.loads((finished / 'config.json').read_text())['patches']['size'] == 8
    assert sorted(p.name for p in (finished / 'checkpoints').iterdir()) == ['12', '8']
    assert len(list(finished.glob('events.out.tfevents.*'))) == 1
    logged = rows(finished)
    assert [row['step'] for row in logged] == [2, 4, 6, 8, 10, 12]
    assert logged[0].keys() == {
        *('step', 'loss', 'similarity', 'coding_rate', 'gradient_norm', 'learning_rate'),
        *('h_std', 'h_effective_rank', 'z_std', 'z_effective_rank'),
    }


def test_training_lowers_the_loss(shrunk, tmp_path):
    config = shrunk('--config.train.epochs=6', '--config.optimizer.learning_rate=0.05')
    train(config, tmp_path)
    losses = [row['loss'] for row in rows(tmp_path)]
    # Batches of 16 images differ by several units; the last third lies below them all.
    assert max(losses[-6:]) < min(losses[:2])


# With and without an unlogged step behind it.
@pytest.mark.parametrize('step', slow_but((5,), (4, 5)))
def test_interrupted_and_resumed_equals_uninterrupted(
    finished, config, tmp_path, monkeypatch, step
):
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(Interrupted, match=f'SIGTERM at step {step}, which is saved'):
            train(config, tmp_path)
    assert encoder_and_projector(config, tmp_path)[0] == step
    train(config, tmp_path)
    assert_same_run(config, tmp_path, finished)


@pytest.mark.parametrize(('row', 'saved'), [(3, 6), (6, 12)])
def test_a_signal_between_steps_saves_the_last_one(config, tmp_path, monkeypatch, row, saved):
    # Row 3 is written after step 6, which is not due to be saved.
    with monkeypatch.context() as patch:
        interrupt_at(patch, row, method='log')
        with pytest.raises(Interrupted, match=f'at step {saved}, which is saved'):
            train(config, tmp_path)
    assert encoder_and_projector(config, tmp_path)[0] == saved


@pytest.mark.slow
def test_a_target_network_resumes_as_exactly(shrunk, tmp_path, monkeypatch):
    config = shrunk(
        '--config.objective.name=byol',
        '--config.crops=multiscale',
        '--config.train.accumulate=2',
    )
    train(config, tmp_path / 'uninterrupted')
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(Interrupted):
            train(config, tmp_path / 'resumed')
    train(config, tmp_path / 'resumed')
    assert_same_run(config, tmp_path / 'resumed', tmp_path / 'uninterrupted')


@pytest.fixture(scope='module')
def together(shrunk, tmp_path_factory):
    """Steps 1-4, 5-6, 7-8, 9-12 in one call each, from resident images, and their workdir."""
    config = shrunk(
        '--config.train.steps_per_execution=4',
        '--config.train.log_every=6',
        '--config.data.crop_on=resident',
    )
    workdir = tmp_path_factory.mktemp('together')
    train(config, workdir)
    return config, workdir


def test_several_steps_at_once_from_resident_images_learn_the_same(finished, config, together):
    _, workdir = together
    assert sorted(p.name for p in (workdir / 'checkpoints').iterdir()) == ['12', '8']
    singly = rows(finished)
    for i, row in enumerate(rows(workdir)):
        assert row['step'] == 6 * (i + 1)
        of_these = singly[3 * i : 3 * i + 3]  # each the mean of two steps
        for name in ('loss', 'coding_rate', 'gradient_norm'):
            assert row[name] == pytest.approx(np.mean([x[name] for x in of_these]), rel=1e-5)
        for name in ('h_std', 'z_effective_rank', 'learning_rate'):
            assert row[name] == pytest.approx(of_these[-1][name], rel=1e-4)
    assert_near(config, workdir, finished)


@pytest.mark.slow
def test_interrupted_between_executions_and_resumed_equals_uninterrupted(
    together, tmp_path, monkeypatch
):
    config, workdir = together
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(Interrupted, match='SIGTERM at step 6, which is saved'):
            train(config, tmp_path)
    train(config, tmp_path)
    assert_same_run(config, tmp_path, workdir)


class Damaged(ArraySource):
    """Tiles that lie somewhere, of which one cannot be read."""

    in_memory = False
    damaged = -1

    def read(self, numbers):
        if self.damaged in numbers:
            raise UnreadableImage(f'tile {self.damaged} is damaged')
        return super().read(numbers)


class Opened:
    """A data set of which both splits are these images."""

    def __init__(self, source):
        self._images = Images('tiles', source, in_memory=False)

    def images(self, split):
        return self._images


@pytest.mark.slow
def test_an_unreadable_image_inside_an_execution(shrunk, tmp_path, monkeypatch, capsys):
    options = ('--config.train.steps_per_execution=4', '--config.train.log_every=6')
    config = shrunk(*options)
    tiles = open_dataset(config.data).images('train[:96]').source
    source = Damaged(tiles.images, tiles.labels, tiles.class_names)
    batches = pipeline.batch_dataset(
        source, set_up(config, Opened(source)).crops, seed=0, batch_size=16, crop_on='resident'
    )
    in_step_6 = int(batches[5].inputs['numbers'][2])
    monkeypatch.setattr(Damaged, 'damaged', in_step_6)
    with pytest.raises(InputError, match=r'is damaged. --config.* goes on from step 4 without'):
        loop.train(config, Run.at(tmp_path / 'host'), Opened(source))
    for crop_on in ('host', 'resident'):
        skipping = shrunk(
            *options, '--config.data.on_error=skip', f'--config.data.crop_on={crop_on}'
        )
        loop.train(skipping, Run.at(tmp_path / crop_on), Opened(source))
        shown = capsys.readouterr().err
        assert f'left out: tile {in_step_6} is damaged' in shown
        assert 'trained to step 12; 1 unreadable images were left out' in shown
    assert_near(config, tmp_path / 'host', tmp_path / 'resident')


# A future of tensorstore's, which nobody awaits, may report the damage once more.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_resumes_from_the_checkpoint_before_a_damaged_one(finished, config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt_at(patch, 7, signal.SIGINT)
        with pytest.raises(Interrupted):
            train(config, tmp_path)
    for path in (tmp_path / 'checkpoints' / '7').rglob('*'):
        if path.is_file() and path.parent.name == 'd':
            path.write_bytes(path.read_bytes()[::-1])
    train(config, tmp_path)
    assert (tmp_path / 'checkpoints' / '7.damaged').is_dir()
    assert_same_run(config, tmp_path, finished)


def test_a_finished_run_is_left_as_it_is(finished, config):
    before = (finished / 'metrics.jsonl').read_text()
    train(config, finished)
    assert (finished / 'metrics.jsonl').read_text() == before


@pytest.mark.slow
def test_a_monitor_is_logged_and_changes_nothing(finished, shrunk, config, tmp_path):
    monitored = shrunk('--config.train.monitor_every=0.5')
    train(monitored, tmp_path, make_monitor(monitored, open_dataset(monitored.data)))
    looks = [row for row in rows(tmp_path) if 'knn_top1' in row]
    assert [row['step'] for row in looks] == [3, 6, 9, 12]  # an epoch has 6 steps
    assert all(0 < row['knn_top1'] <= 1 for row in looks)
    others = [row for row in rows(tmp_path) if 'knn_top1' not in row]
    assert others == rows(finished)


@pytest.mark.slow
def test_what_a_monitor_could_not_finish_it_does_again(shrunk, tmp_path):
    config, looks = shrunk('--config.train.monitor_every=0.5'), []

    def monitor(variables):
        looks.append(variables)
        if len(looks) == 4:  # of step 12, which is saved
            raise KeyboardInterrupt
        return {'knn_top1': 0.5}

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, monitor)
    for _ in range(2):
        train(config, tmp_path, monitor)
        found = [row['step'] for row in rows(tmp_path) if 'knn_top1' in row]
        assert found == [3, 6, 9, 12]


def test_a_signal_breaks_off_what_a_monitor_does(shrunk, tmp_path):
    config = shrunk('--config.train.monitor_every=0.5')

    def monitor(_):
        signal.raise_signal(signal.SIGTERM)
        return {'knn_top1': 0.5}

    with pytest.raises(Interrupted, match='SIGTERM at step 3, which is saved'):
        train(config, tmp_path, monitor)
    train(config, tmp_path, lambda _: {'knn_top1': 0.5})
    assert [row['step'] for row in rows(tmp_path) if 'knn_top1' in row] == [3, 6, 9, 12]


@pytest.mark.slow
def test_workers_and_logging_do_not_change_what_is_learned(finished, shrunk, config, tmp_path):
    train(shrunk('--config.data.workers=2', '--config.train.log_every=3'), tmp_path)
    for (_, tree), (_, other) in [
        (encoder_and_projector(config, tmp_path), encoder_and_projector(config, finished))
    ]:
        for leaf, expected in zip(*map(jax.tree.leaves, (tree, other)), strict=True):
            np.testing.assert_array_equal(leaf, expected)


def test_a_non_finite_term_is_named_and_the_good_checkpoint_kept(shrunk, tmp_path):
    # A huge step throws the parameters beyond float32; the second loss shows it.
    config = shrunk(
        '--config.objective.name=vicreg',
        '--config.optimizer.learning_rate=1e9',
        '--config.optimizer.warmup_epochs=1.9',
        '--config.train.checkpoint_every=1',
    )
    with pytest.raises(
        InputError, match=r'step (\d+): .*(invariance|variance|gradient_norm).* is not'
    ):
        train(config, tmp_path)
    step, items = encoder_and_projector(config, tmp_path)
    assert step >= 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(items))


@pytest.mark.slow
def test_a_non_finite_term_inside_an_execution_is_of_the_same_step(shrunk, tmp_path):
    options = ('--config.optimizer.learning_rate=1e9', '--config.optimizer.warmup_epochs=1.9')
    found = []
    for count in (1, 8):
        config = shrunk(
            *options, f'--config.train.steps_per_execution={count}',
            '--config.objective.name=vicreg',
            '--config.train.log_every=100', '--config.train.checkpoint_every=100',
        )  # fmt: skip
        with pytest.raises(InputError, match='is not finite') as error:
            train(config, tmp_path / str(count))
        found.append(str(error.value).split(':')[0])
    assert found[0] == found[1] == 'step 3'


def test_an_unusable_target_network_is_refused(shrunk, tmp_path):
    config = shrunk('--config.objective.name=byol', '--config.predictor.widths=(12,9)')
    with pytest.raises(InputError, match=r'predictor.widths=.*12, 9\) must end'):
        train(config, tmp_path)


def test_another_configuration_in_the_workdir_is_refused(finished, shrunk):
    with pytest.raises(InputError, match=r'optimizer.learning_rate=.*, not 0.5'):
        train(shrunk('--config.optimizer.learning_rate=0.5'), finished)


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('data.batch_size=12', r'data.batch_size=12 cannot be shared by 8 devices'),
        ('patches.size=49', r'49x49 pixels .* does not fit into an image of 48x48'),
        ('data.name=phots', r"unknown data set 'phots': choose photos or folder"),
        ('data.batch_size=128', r'data.batch_size=128 is more than the 96 training images'),
        ('objective.name=vicregg', r"unknown objective 'vicregg': choose from .*vicreg"),
        ('encoder.name=resnet20', r"unknown encoder 'resnet20': choose from .*resnet18"),
        ('optimizer.name=adam', r"unknown optimizer 'adam': choose from sgd"),
        ('train.epochs=0', r'train.epochs=0.0 is 0 steps'),
        ('train.accumulate=3', r'16 cannot be passed by 8 devices in train.accumulate=3 parts'),
        ('crops=random', r"unknown crops 'random': choose from fixed, multiscale, multicrop"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_before_anything_is_written(
    shrunk, tmp_path, override, message
):
    workdir = tmp_path / 'run'
    with pytest.raises(InputError, match=message) as error:
        train(shrunk(f'--config.{override}'), workdir)
    assert '\n' not in str(error.value)
    assert not pathlib.Path(workdir).exists()
