"""The training loop: data, steps, records, checkpoints."""

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from bagssl_jax import processes
from bagssl_jax.checkpoints import Checkpoints
from bagssl_jax.data import pipeline
from bagssl_jax.data.datasets import Dataset
from bagssl_jax.data.reading import unreadable_image
from bagssl_jax.errors import (
    DataFailure,
    InputError,
    Interrupted,
    LostImage,
    UnreadableImage,
    WorkerDied,
    alike,
)
from bagssl_jax.parallel import batch_sharded, prefetch_to_devices, stack_sharded
from bagssl_jax.progress import waiting
from bagssl_jax.records import Recorder, note
from bagssl_jax.runs import Run
from bagssl_jax.signals import Deferral
from bagssl_jax.tracking import Tracker
from bagssl_jax.training.agreement import hear
from bagssl_jax.training.collapse import is_collapsed
from bagssl_jax.training.executions import executions, make_execute, make_look, stacked
from bagssl_jax.training.fit import check_execution
from bagssl_jax.training.nonfinite import mean_row, read_rows, refuse_nonfinite
from bagssl_jax.training.setup import Training, set_up
from bagssl_jax.training.state import from_items, to_items

Monitor = Callable[[Any], dict[str, float]]


def train(
    config: ConfigDict,
    run: Run,
    dataset: Dataset,
    monitor: Monitor | None = None,
    tracker: Tracker | None = None,
) -> None:
    """Trains as `config` says, from the newest checkpoint of `run` where there is one.

    Interrupted and started again, it goes on bit for bit as if nothing had happened: batches
    and augmentation are functions of (seed, step), and the checkpoint holds all the rest.

    Args:
      config: the resolved configuration.
      run: whose directory is this training's, or will be.
      dataset: that `config.data` names.
      monitor: takes the encoder's variables every `train.monitor_every` epochs; what it gives is
        logged.
      tracker: is handed every row that is logged.

    Raises:
      InputError: the configuration cannot be carried out, an image cannot be read, or a metric is
        not finite.
      DataFailure: the pipeline broke down.
      Interrupted: a signal stopped it.
    """
    training = set_up(config, dataset)
    state, total = training.state, training.total_steps
    training = training._replace(state=None)  # or its arrays would stay beside restored ones
    longest = min(config.train.steps_per_execution, total)
    execute = make_execute(training.step, longest=longest)
    look_at = make_look(training.spread, longest=longest)
    with waiting('compiling the training step, which can take minutes'):
        check_execution(
            config,
            execute,
            state,
            training.inputs,
            training.shared,
            training.images,
            training.mesh,
            longest=longest,
        )

    def is_monitored(step):
        return monitor is not None and step % training.monitor_every == 0

    turns = itertools.count()

    def hear_of_signals():
        return hear(next(turns), signals=signals.seen, unreadable=(), error=None).signal

    # Entered first, left last: what is under way then is a save.
    with Deferral() as signals, contextlib.ExitStack() as stack:
        stack.enter_context(run.only_writer())
        run.claim(config.to_dict(), training.images.describe())
        processes.barrier('claimed')
        checkpoints = Checkpoints(run, keep=config.train.keep)
        stack.callback(checkpoints.close)
        start, unlogged, unreadable = 0, [], set()  # unlogged: of steps, their metrics
        skipped, highest, sound = 0, 0.0, None  # sound: the last step saved that was not collapsed
        keys = ('unlogged', 'unreadable')
        with waiting('reading the checkpoint'):
            restored = checkpoints.restore_newest(to_items(state), keys)
        if restored:
            start, items, position = restored
            state, unlogged = from_items(items), position['unlogged']
            unreadable = set(position['unreadable'])
            skipped = position.get('skipped', 0)  # which older versions did not know, as the next
            highest, sound = position.get('highest', 0.0), position.get('sound')
        _announce(config, training, start)
        if tracker is not None:
            tracker.begin()
        recorder = Recorder(
            run,
            start=start,
            total=total,
            images_per_step=config.data.batch_size,
            monitors=is_monitored(start),
            also=None if tracker is None else tracker.log,
            enabled=processes.is_first(),
        )
        stack.callback(recorder.close)
        pauses = [config.train.log_every, config.train.checkpoint_every]
        pauses += [training.monitor_every] if monitor else []
        plan = functools.partial(executions, start, total, longest=longest, pauses=pauses)
        batches = stack.enter_context(
            contextlib.closing(input_batches(config, training, start, plan(), longest))
        )

        def leave_out(indices):
            for index in sorted({*indices} - unreadable):
                _refuse_or_note(training, index, config.data.on_error)
                unreadable.add(index)

        def save(step):
            position = {
                'unlogged': unlogged,
                'unreadable': sorted(unreadable),
                'skipped': skipped,
                'highest': highest,
                'sound': sound,
            }
            checkpoints.save(step, to_items(state), position, spared=sound)

        def read():
            nonlocal skipped
            rows, skipped = read_rows(under_way, skipped=skipped, at_most=config.train.most_skipped)
            unlogged.extend(rows)
            under_way.clear()

        def save_all(step):
            read()
            save(step)

        several = jax.process_count() > 1

        def look(step):
            # Several processes look together, to the end.
            with (
                contextlib.nullcontext() if several else signals.breaking_off(),
                waiting('embedding images for kNN'),
            ):
                if found := monitor(state.online['encoder']):
                    recorder.log(step, found)

        leave_out(training.unreadable)
        if start and is_monitored(start):
            look(start)
        skips = config.train.on_nonfinite == 'skip'
        under_way = []  # executions of which the metrics are on the devices
        # At most so many: memory stays bounded, and the progress bar honest. On the CPUs of several
        # processes, collectives of two executions could wait for each other.
        ahead = 1 if several and jax.default_backend() == 'cpu' else 2
        for steps in plan():
            done, step = steps[0] - 1, steps[-1]
            is_new = done == start
            with waiting('making the first batch') if is_new else contextlib.nullcontext():
                inputs, found, error = _drawn(batches)
            heard = hear(next(turns), signals=signals.seen, unreadable=found, error=error)
            error = heard.error
            try:
                leave_out(heard.unreadable)
            except UnreadableImage as unreadable_image:
                error = error or unreadable_image
            if heard.signal or error:
                # Whatever became of the data, what was learned from it so far stays.
                if done > start or heard.signal:
                    save_all(done)
                if heard.signal:
                    raise alike(Interrupted(heard.signal, done))
                raise alike(_explained(error, done)) from None
            state, metrics = execute(state, inputs, len(steps), training.shared)
            under_way.append((steps, metrics))
            recorder.advance(len(steps))
            jax.block_until_ready(under_way[-ahead:][0][1])
            if is_new:
                # Until here a signal ends the program at once: what takes minutes is to compile.
                with waiting('compiling what else is logged'):
                    jax.block_until_ready(look_at(state, inputs, len(steps), training.shared))
                signals.begin()
            due = step == total or step % config.train.checkpoint_every == 0
            log = step == total or step % config.train.log_every == 0
            if due or log:
                read()
                spread = jax.device_get(look_at(state, inputs, len(steps), training.shared))
                if not skips:
                    refuse_nonfinite(step, spread)
            if log:
                row = mean_row(unlogged) | {name: float(value) for name, value in spread.items()}
                row['learning_rate'] = float(training.schedule(step - 1 - skipped))
                recorder.log(step, row | ({'skipped': skipped} if skips else {}))
                unlogged = []
            if due:
                if not is_collapsed(spread, highest):
                    sound, highest = step, max(highest, float(spread['h_effective_rank']))
                save(step)
            if is_monitored(step):
                if number := hear_of_signals():
                    save_all(step)
                    raise alike(Interrupted(number, step))
                look(step)
    if number := hear_of_signals():
        raise alike(Interrupted(number, total))
    _conclude(total, unreadable)


def input_batches(
    config: ConfigDict, training: Training, start: int, planned: Iterator[range], longest: int
) -> Iterator[tuple[dict[str, jax.Array], np.ndarray]]:
    """What the planned executions take, on the devices, and the numbers of unreadable images."""
    batches = pipeline.train_batches(
        training.images.source,
        training.crops,
        seed=config.seed,
        batch_size=config.data.batch_size,
        start=start,
        workers=config.data.workers,
        shard=(jax.process_index(), jax.process_count()),
        crop_on=config.data.crop_on,
    )
    sharding = (batch_sharded if longest == 1 else stack_sharded)(training.mesh)
    with contextlib.closing(batches):
        grouped = stacked(batches, map(len, planned), longest=longest)
        yield from prefetch_to_devices(grouped, sharding)


def _drawn(
    batches: Iterator[tuple[dict[str, jax.Array], np.ndarray]],
) -> tuple[dict[str, jax.Array] | None, list[int], Exception | None]:
    """The next inputs and the numbers of images that cannot be read; or why there are none."""
    try:
        inputs, faults = next(batches)
    except Exception as error:
        return None, [], error
    return inputs, faults[faults >= 0].tolist(), None


def _refuse_or_note(training: Training, index: int, on_error: str) -> None:
    """Raises UnreadableImage, or says on standard error that an image is left out."""
    error = unreadable_image(training.images.source, index, min_side=training.crops.min_side)
    if on_error == 'stop':
        raise error
    if processes.is_first():
        note(f'left out: {error}')


def _explained(error: Exception, step: int) -> Exception:
    """What to raise where the data failed and `step` is saved."""
    if isinstance(error, LostImage):
        return InputError(
            f'{error}: bring it back, and the same command goes on from step {step}; without it, '
            'train in a new workdir'
        )
    if isinstance(error, UnreadableImage):
        return InputError(
            f'{error}. --config.data.on_error=skip goes on from step {step} without such images'
        )
    if isinstance(error, WorkerDied):
        return DataFailure(
            f'{error} at step {step}, which is saved: the same command goes on from there'
        )
    return error


def _conclude(total: int, unreadable: set[int]) -> None:
    """One line: how far it came, and without which images."""
    left_out = f'; {len(unreadable):,} unreadable images were left out' if unreadable else ''
    if processes.is_first():
        print(f'trained to step {total:,}{left_out}', file=sys.stderr)


def _announce(config: ConfigDict, training: Training, start: int) -> None:
    """One line: what will run, and on which devices."""
    if not processes.is_first():
        return
    mesh = training.mesh
    devices = f'{mesh.size} {mesh.devices.flat[0].device_kind} device{"s" * (mesh.size > 1)}'
    begin = f'from step {start:,} ' if start else ''
    encoder, total = config.encoder, training.total_steps
    width = encoder[encoder.name].width
    print(
        f'{config.objective.name} on {len(training.images):,} images of {config.data.name}, '
        f'{config.patches.count} patches each; {encoder.name} of width {width} in '
        f'{encoder.dtype}; {begin}to step {total:,} with {config.data.batch_size} images a step '
        f'on {devices}',
        file=sys.stderr,
    )
