"""From a configuration to what the loop runs; whatever is wrong with it is found here."""

import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bagssl_jax import device_crops
from bagssl_jax.augment import augment
from bagssl_jax.data import crops, pipeline
from bagssl_jax.data.datasets import Dataset, Images
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.errors import InputError
from bagssl_jax.models import make_networks
from bagssl_jax.objectives import make_objective
from bagssl_jax.parallel import check_batch_size, make_mesh, replicated
from bagssl_jax.training.optimizers import cosine_momentum, make_optimizer, warmup_cosine
from bagssl_jax.training.state import TrainState, create_state
from bagssl_jax.training.steps import Inputs, make_spread_step, make_train_step


class Training(NamedTuple):
    """What a configuration describes, ready to run on `mesh`."""

    mesh: Mesh
    images: Images
    crops: crops.RandomCrops
    total_steps: int
    monitor_every: int  # steps
    schedule: optax.Schedule  # step -> learning rate
    state: TrainState | None  # fresh; None once the loop has taken it
    step: Callable[[TrainState, Inputs], tuple[TrainState, dict[str, jax.Array]]]
    spread: Callable[[TrainState, Inputs], dict[str, jax.Array]]


def set_up(config: ConfigDict, dataset: Dataset) -> Training:
    """Builds everything, on all devices, and writes nothing.

    Args:
      config: the resolved configuration.
      dataset: that `config.data` names.

    Raises:
      InputError: the configuration cannot be carried out.
    """
    mesh = make_mesh()
    _check(config, mesh)
    images, geometry = dataset.images(config.data.train_split), PatchGeometry.of(config.patches)
    random_crops = _make_crops(
        config.crops, config.patches.count, config.get(config.crops, {}), images, geometry
    )
    # Decoded now, where they are to be: what is wrong with them is found before a file is written.
    per_epoch = pipeline.steps_per_epoch(len(images.source), config.data.batch_size)
    total = config.train.steps or round(config.train.epochs * per_epoch)
    if total < 1:
        raise InputError(
            f'train.epochs={config.train.epochs} is no step: give more, or train.steps'
        )
    monitor_every = max(1, round(config.train.monitor_every * per_epoch))
    schedule = warmup_cosine(
        peak=config.optimizer.learning_rate * config.data.batch_size / 256,
        total_steps=total,
        warmup_steps=round(config.optimizer.warmup_epochs * per_epoch),
        end_factor=config.optimizer.end_factor,
    )
    cut = _make_cut(config.data.crop_on, config.crops, images, geometry)
    return Training(
        mesh,
        images,
        random_crops,
        total,
        monitor_every,
        schedule,
        *_build(config, schedule, total, cut, geometry.input_side, mesh),
    )


def _check(config: ConfigDict, mesh: Mesh) -> None:
    """Raises InputError for a number out of its range."""
    check_batch_size(config.data.batch_size, mesh, 'data.batch_size')
    if config.patches.count < 2:
        raise InputError(
            f'patches.count={config.patches.count}: an image needs two patches or more'
        )
    for key, known in (('on_error', pipeline.ON_ERROR), ('crop_on', pipeline.CROP_ON)):
        if config.data[key] not in known:
            raise InputError(
                f'unknown data.{key} {config.data[key]!r}: choose from {", ".join(known)}'
            )
    for key, least, most in (
        ('seed', 0, 2**32 - 1),
        ('data.workers', 0, math.inf),
        ('optimizer.learning_rate', 0, math.inf),
        ('optimizer.weight_decay', 0, math.inf),
        ('optimizer.warmup_epochs', 0, 1e9),
        ('train.epochs', 0, 1e9),
        ('train.steps', 0, math.inf),
        ('train.log_every', 1, math.inf),
        ('train.monitor_every', 0, 1e9),
        ('train.checkpoint_every', 1, math.inf),
        ('train.keep', 1, math.inf),
    ):
        value = config
        for name in key.split('.'):
            value = value[name]
        if not least <= value <= most:  # not a number is neither
            limit = f'from {least} to {most:g}' if most < math.inf else f'at least {least}'
            raise InputError(f'{key}={value} must be {limit}')


def _make_crops(
    name: str, count: int, settings: Mapping[str, Any], images: Images, geometry: PatchGeometry
) -> crops.RandomCrops:
    """What places the patches, once it is known to fit the images."""
    geometry.check(images.image_shape)
    random_crops = crops.make_crops(name, count, geometry, settings)
    height, width = images.example_shape()
    random_crops.boxes(random_crops.draw(np.random.default_rng(0), 1), [height], [width])
    return random_crops


def _make_cut(
    crop_on: str, crops_name: str, images: Images, geometry: PatchGeometry
) -> Callable[[Inputs], jax.Array]:
    """What makes patches of the pipeline's inputs, on the device."""
    if crop_on == 'host':
        return operator.itemgetter('patches')
    if images.image_shape is None:
        raise InputError(
            f'data.crop_on=device needs images of one size, and those of {images.title} may '
            'differ: leave data.crop_on=host'
        )
    size = geometry.side(*images.image_shape) if crops_name == 'fixed' else 0
    return lambda inputs: device_crops.cut(
        inputs['images'], inputs['boxes'], size=size, resize=geometry.resize
    )


def _build(
    config: ConfigDict,
    schedule: optax.Schedule,
    total: int,
    cut: Callable[[Inputs], jax.Array],
    side: int,
    mesh: Mesh,
) -> tuple[TrainState, Callable, Callable]:
    """The fresh state, the training step and the measure of spread."""
    name = config.objective.name
    objective = make_objective(name, config.objective.get(name, {}))
    networks = make_networks(config, predictor=objective.target)
    if networks.projector is None:
        raise InputError('projector.widths=() has no layer: give positive integers, as in 256,64')
    if objective.target and config.predictor.widths[-1] != config.projector.widths[-1]:
        raise InputError(
            f'predictor.widths={config.predictor.widths} must end, as projector.widths='
            f'{config.projector.widths} does, in the width of the projection'
        )
    optimizer = make_optimizer(
        config.optimizer.name,
        config.optimizer.get(config.optimizer.name, {}),
        schedule,
        weight_decay=config.optimizer.weight_decay,
    )
    transform = functools.partial(augment, **config.augment)
    # Refuses settings out of their range now, and not after the first file is written.
    jax.eval_shape(transform, jax.random.key(0), np.zeros((2, 8, 8, 3)), np.arange(2))
    options = {
        'cut': cut,
        'augment': transform,
        'key': jax.random.fold_in(jax.random.key(config.seed), 1000),
        'mesh': mesh,
    }
    step_fn = make_train_step(
        networks,
        objective,
        optimizer,
        cosine_momentum(config.target.momentum, total),
        **options,
    )
    spread_fn = make_spread_step(networks, **options)
    state = create_state(networks, optimizer, config.seed, side=side)
    return jax.device_put(state, replicated(mesh)), step_fn, spread_fn
