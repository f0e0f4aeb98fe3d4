"""The training loop: data, steps, records, checkpoints."""

import contextlib
import functools
import itertools
import sys
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from bagssl_jax import processes
from bagssl_jax.checkpoints import Checkpoints
from bagssl_jax.data.datasets import Dataset
from bagssl_jax.errors import Interrupted, UnreadableImage, alike
from bagssl_jax.progress import waiting
from bagssl_jax.records import Recorder
from bagssl_jax.runs import Run
from bagssl_jax.signals import Deferral
from bagssl_jax.tracking import Tracker
from bagssl_jax.training.agreement import hear
from bagssl_jax.training.executions import executions, make_execute, make_look
from bagssl_jax.training.feed import drawn, explained, input_batches, refuse_or_note
from bagssl_jax.training.fit import check_execution
from bagssl_jax.training.nonfinite import refuse_nonfinite
from bagssl_jax.training.position import KEYS, Position
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
    program = training.program
    state, total = training.state, program.total_steps
    training = training._replace(state=None)  # or its arrays would stay beside restored ones
    longest = min(config.train.steps_per_execution, total)
    execute = make_execute(program.step, longest=longest)
    look_at = make_look(program.spread, longest=longest)
    with waiting('compiling the training step, which can take minutes'):
        check_execution(
            config,
            execute,
            state,
            program.inputs,
            training.shared,
            training.images,
            training.mesh,
            longest=longest,
        )

    def is_monitored(step):
        return monitor is not None and step % program.monitor_every == 0

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
        start, position = 0, Position()
        with waiting('reading the checkpoint'):
            restored = checkpoints.restore_newest(to_items(state), KEYS)
        if restored:
            start, items, kept = restored
            state, position = from_items(items), Position.of(kept)
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
        pauses += [program.monitor_every] if monitor else []
        plan = functools.partial(executions, start, total, longest=longest, pauses=pauses)
        batches = stack.enter_context(
            contextlib.closing(input_batches(config, training, start, plan(), longest))
        )

        def leave_out(indices):
            for index in sorted({*indices} - position.unreadable):
                refuse_or_note(training, index, config.data.on_error)
                position.unreadable.add(index)

        def read():
            position.read(under_way, most_skipped=config.train.most_skipped)
            under_way.clear()

        def save(step):
            checkpoints.save(step, to_items(state), position.to_json(), spared=position.sound)

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
                inputs, found, error = drawn(batches)
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
                raise alike(explained(error, done)) from None
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
                row = position.take_logged()
                row |= {name: float(value) for name, value in spread.items()}
                row['learning_rate'] = float(program.schedule(step - 1 - position.skipped))
                recorder.log(step, row | ({'skipped': position.skipped} if skips else {}))
            if due:
                position.judge(step, spread)
                save(step)
            if is_monitored(step):
                if number := hear_of_signals():
                    save_all(step)
                    raise alike(Interrupted(number, step))
                look(step)
    if number := hear_of_signals():
        raise alike(Interrupted(number, total))
    _conclude(total, position.unreadable)


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
    encoder, total = config.encoder, training.program.total_steps
    width = encoder[encoder.name].width
    print(
        f'{config.objective.name} on {len(training.images):,} images of {config.data.name}, '
        f'{config.patches.count} patches each; {encoder.name} of width {width} in '
        f'{encoder.dtype}; {begin}to step {total:,} with {config.data.batch_size} images a step '
        f'on {devices}',
        file=sys.stderr,
    )
