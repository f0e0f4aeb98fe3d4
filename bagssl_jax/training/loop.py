"""The training loop: data, steps, records, checkpoints."""

import contextlib
import functools
import math
import signal
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bagssl_jax.augment import augment
from bagssl_jax.checkpoints import Checkpoints
from bagssl_jax.data import pipeline, sources
from bagssl_jax.errors import InputError, Interrupted
from bagssl_jax.models import make_encoder, make_projector
from bagssl_jax.objectives import make_objective
from bagssl_jax.parallel import (
    batch_sharded,
    check_batch_size,
    make_mesh,
    prefetch_to_devices,
    replicated,
)
from bagssl_jax.records import Recorder
from bagssl_jax.training.optimizers import cosine_momentum, make_optimizer, warmup_cosine
from bagssl_jax.training.state import Networks, TrainState, create_state
from bagssl_jax.training.steps import make_spread_step, make_train_step
from bagssl_jax.workdir import claim


def train(config: ConfigDict, workdir: str) -> None:
    """Trains as `config` says, from the newest checkpoint in `workdir` where there is one.

    Interrupted and started again, it goes on bit for bit as if nothing had happened: batches
    and augmentation are functions of (seed, step), and the checkpoint holds all the rest.

    Raises:
      InputError: the configuration cannot be carried out, or a metric is not finite.
      Interrupted: a signal stopped it.
    """
    mesh = make_mesh()
    _check(config, mesh)
    source, transform = _open_data(config)
    per_epoch = pipeline.steps_per_epoch(source, config.data.batch_size)
    total = config.train.steps or round(config.train.epochs * per_epoch)
    if total < 1:
        raise InputError(
            f'train.epochs={config.train.epochs} is no step: give more, or train.steps'
        )
    schedule = _schedule(config, total, per_epoch)
    state, step_fn, spread_fn = _build(config, schedule, total, mesh)
    claim(workdir, config.to_dict())

    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(
            contextlib.closing(Checkpoints(workdir, keep=config.train.keep))
        )
        start, unlogged = 0, []
        if restored := checkpoints.restore_newest(_items(state)):
            start, items, position = restored
            state, unlogged = _state(items), position['unlogged']
        _announce(config, source, mesh, start, total)
        recorder = stack.enter_context(
            contextlib.closing(
                Recorder(
                    workdir,
                    start=start,
                    total=total,
                    images_per_step=config.data.batch_size,
                    enabled=jax.process_index() == 0,
                )
            )
        )
        batches = prefetch_to_devices(
            pipeline.train_batches(
                source,
                transform,
                seed=config.seed,
                batch_size=config.data.batch_size,
                start=start,
                workers=config.data.workers,
                shard=(jax.process_index(), jax.process_count()),
            ),
            batch_sharded(mesh),
        )
        stopped_by = stack.enter_context(_deferred_signals())

        for step, patches in zip(range(start + 1, total + 1), batches, strict=False):
            state, metrics = step_fn(state, patches)
            unlogged.append(metrics)
            recorder.advance()
            # At most two steps under way: memory stays bounded, and the progress bar honest.
            jax.block_until_ready(unlogged[-2:][0])
            last = step == total or bool(stopped_by)
            save = last or step % config.train.checkpoint_every == 0
            if save or step % config.train.log_every == 0:
                unlogged = _checked(unlogged, step)
            if step % config.train.log_every == 0 or step == total:
                row = {name: float(np.mean([m[name] for m in unlogged])) for name in unlogged[0]}
                row |= {name: float(value) for name, value in spread_fn(state, patches).items()}
                recorder.log(step, {**row, 'learning_rate': float(schedule(step - 1))})
                unlogged = []
            if save:
                checkpoints.save(step, _items(state), {'unlogged': unlogged})
            if stopped_by:
                raise Interrupted(stopped_by[0], step)


def _check(config: ConfigDict, mesh: Mesh) -> None:
    """Raises InputError for a number out of its range."""
    check_batch_size(config.data.batch_size, mesh, 'data.batch_size')
    if config.patches.count < 2:
        raise InputError(
            f'patches.count={config.patches.count}: an image needs two patches or more'
        )
    for group, key, least in (
        ('data', 'workers', 0),
        ('train', 'steps', 0),
        ('train', 'log_every', 1),
        ('train', 'checkpoint_every', 1),
        ('train', 'keep', 1),
    ):
        if config[group][key] < least:
            raise InputError(f'{group}.{key}={config[group][key]} must be at least {least}')


def _open_data(config: ConfigDict) -> tuple[sources.Source, pipeline.RandomMap]:
    """The training source, and the transform that cuts its patches; both known to fit."""
    source = sources.load(
        config.data.name,
        config.data.train_split,
        data_dir=config.data.dir,
        in_memory=config.data.in_memory,
    )
    first = source[0]
    transform = pipeline.make_crops(config.crops, config.patches, config.multiscale)
    transform.random_map(first, np.random.default_rng(0))
    return source, transform


def _schedule(config: ConfigDict, total: int, per_epoch: int) -> optax.Schedule:
    optimizer = config.optimizer
    return warmup_cosine(
        peak=optimizer.learning_rate * config.data.batch_size / 256,
        total_steps=total,
        warmup_steps=round(optimizer.warmup_epochs * per_epoch),
        end_factor=optimizer.end_factor,
    )


def _build(config: ConfigDict, schedule: optax.Schedule, total: int, mesh: Mesh):
    """The fresh state, the training step and the measure of spread."""
    name, dtype = config.objective.name, config.encoder.dtype
    objective = make_objective(name, config.objective.get(name, {}))
    predictor = make_projector(**config.predictor, dtype=dtype) if objective.target else None
    if predictor is not None and config.predictor.widths[-1] != config.projector.widths[-1]:
        raise InputError(
            f'predictor.widths={config.predictor.widths} must end, as projector.widths='
            f'{config.projector.widths} does, in the width of the projection'
        )
    networks = Networks(
        make_encoder(**config.encoder), make_projector(**config.projector, dtype=dtype), predictor
    )
    optimizer = make_optimizer(
        config.optimizer.name,
        schedule,
        weight_decay=config.optimizer.weight_decay,
        momentum=config.optimizer.momentum,
        trust_coefficient=config.optimizer.trust_coefficient,
    )
    transform = functools.partial(augment, **config.augment)
    # Refuses settings out of their range now, and not after the first file is written.
    jax.eval_shape(transform, jax.random.key(0), np.zeros((2, 8, 8, 3)), np.arange(2))
    options = {'key': jax.random.fold_in(jax.random.key(config.seed), 1000), 'mesh': mesh}
    step_fn = make_train_step(
        networks,
        objective,
        optimizer,
        transform,
        cosine_momentum(config.target.momentum, total),
        **options,
    )
    spread_fn = make_spread_step(networks, transform, **options)
    state = create_state(networks, optimizer, config.seed)
    return jax.device_put(state, replicated(mesh)), step_fn, spread_fn


def _items(state: TrainState) -> dict[str, Any]:
    """The state as checkpoint items, so that the encoder can be read alone."""
    online = dict(state.online)
    items = {name: online.pop(name) for name in ('encoder', 'projector')}
    rest = {'step': state.step, 'opt_state': state.opt_state, 'target': state.target}
    return {**items, 'training': {**rest, 'online': online}}


def _state(items: dict[str, Any]) -> TrainState:
    online = {'encoder': items['encoder'], 'projector': items['projector']}
    rest = dict(items['training'])
    return TrainState(online={**online, **rest.pop('online')}, **rest)


def _announce(config: ConfigDict, source: sources.Source, mesh: Mesh, start: int, total: int):
    if jax.process_index():
        return
    devices = f'{mesh.size} {mesh.devices.flat[0].device_kind} device{"s" * (mesh.size > 1)}'
    begin = f'from step {start:,} ' if start else ''
    print(
        f'{config.objective.name} on {len(source):,} images of {config.data.name}, '
        f'{config.patches.count} patches each; {config.encoder.name} of width '
        f'{config.encoder.width} in {config.encoder.dtype}; {begin}to step {total:,} with '
        f'{config.data.batch_size} images a step on {devices}',
        file=sys.stderr,
    )


def _checked(metrics: list[dict[str, Any]], step: int) -> list[dict[str, float]]:
    """The metrics of the last steps, up to `step`, as floats; InputError for a non-finite one."""
    fetched = [{name: float(value) for name, value in m.items()} for m in jax.device_get(metrics)]
    for place, row in enumerate(fetched):
        broken = [name for name in row if name != 'loss' and not math.isfinite(row[name])]
        if broken or not math.isfinite(row['loss']):
            raise InputError(
                f'step {step - len(fetched) + 1 + place}: {", ".join(broken) or "loss"} is not '
                'finite. The checkpoints so far are kept: lower optimizer.learning_rate, or '
                'lengthen optimizer.warmup_epochs'
            )
    return fetched


@contextlib.contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append to; a second signal acts at once."""
    received = []
    previous = {}

    def receive(number, frame):
        del frame
        received.append(number)
        signal.signal(number, previous[number])

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, receive)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
