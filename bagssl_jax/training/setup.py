"""From a configuration to what the loop runs; whatever is wrong with it is found here."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bagssl_jax.augment import augment
from bagssl_jax.data import crops, pipeline
from bagssl_jax.data.cut import cut
from bagssl_jax.data.datasets import Dataset, Images
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.data.reading import read_or_replace
from bagssl_jax.errors import InputError, check_known
from bagssl_jax.models import Networks, make_networks, takes_statistics, with_statistics
from bagssl_jax.objectives import Objective, make_objective
from bagssl_jax.parallel import (
    check_batch_size,
    make_mesh,
    replicated,
    sharded_shapes,
    to_global,
)
from bagssl_jax.progress import waiting
from bagssl_jax.training.fit import check_shapes
from bagssl_jax.training.inputs import checked_crops, crops_of, input_shapes, make_cut
from bagssl_jax.training.nonfinite import ON_NONFINITE
from bagssl_jax.training.optimizers import cosine_momentum, make_optimizer, warmup_cosine
from bagssl_jax.training.resident import from_resident, load_resident
from bagssl_jax.training.state import TrainState, create_state
from bagssl_jax.training.steps import Inputs, make_spread_step, make_train_step

STATISTICS_OF = 1000  # images at most, for a layer that is made of training patches
MOST_STEPS = 2**31 - 2  # what the pipeline numbers, and a state counts


class Program(NamedTuple):
    """What a configuration computes on `mesh`: shapes and jitted functions, but no arrays.

    Attributes:
      total_steps: of the training.
      monitor_every: steps between looks at a kNN; at least 1.
      schedule: step -> learning rate.
      networks: with a predictor where the objective has a target.
      side: in pixels, of the patches as the networks take them; of local ones, where some are
        global.
      inputs: of the step: their global shapes, sharded over `mesh`, or replicated: 'resident'.
      init: makes a fresh state.
      step: (state, inputs) -> (state, metrics), as by `make_train_step`.
      spread: (state, inputs) -> metrics, as by `make_spread_step`.
    """

    total_steps: int
    monitor_every: int
    schedule: optax.Schedule
    networks: Networks
    side: int
    inputs: Inputs
    init: Callable[[], TrainState]
    step: Callable[[TrainState, Inputs], tuple[TrainState, dict[str, jax.Array]]]
    spread: Callable[[TrainState, Inputs], dict[str, jax.Array]]

    def state_shapes(self, mesh: Mesh) -> TrainState:
        """The state's shapes, replicated over `mesh`; nothing is computed."""
        return sharded_shapes(jax.eval_shape(self.init), replicated(mesh))


class Training(NamedTuple):
    """What a configuration describes, ready to run on `mesh`."""

    mesh: Mesh
    images: Images
    crops: crops.RandomCrops
    program: Program
    state: TrainState | None  # fresh; None once the loop has taken it
    shared: Inputs  # that every step takes beside its batch: 'resident' images, if any
    unreadable: tuple[int, ...]  # the numbers of images of which that is known from the start


def set_up(config: ConfigDict, dataset: Dataset) -> Training:
    """Builds everything, on all devices, and writes nothing.

    Args:
      config: the resolved configuration.
      dataset: that `config.data` names.

    Raises:
      InputError: the configuration cannot be carried out.
    """
    with waiting('looking for devices'):
        mesh = make_mesh()
    check_settings(config, mesh)
    images = dataset.images(config.data.train_split)
    random_crops = checked_crops(config, images)
    # Decoded now, where they are to be: what is wrong with them is found before a file is written.
    count = len(images.source)
    program = make_program(config, mesh, images=count, image_shape=images.image_shape)
    longest = min(config.train.steps_per_execution, program.total_steps)
    shapes = program.state_shapes(mesh)
    check_shapes(config, shapes, program.inputs, images, mesh, longest=longest)
    shared, unreadable = {}, ()
    if config.data.crop_on == 'resident':
        shared['resident'], unreadable = load_resident(
            images, mesh, min_side=random_crops.min_side, on_error=config.data.on_error
        )
    with waiting('making the networks'):
        state = program.init()
        if takes_statistics(program.networks):
            geometry = PatchGeometry.of(config.patches)
            state = _with_statistics(
                state, program.networks, images, geometry, min_side=random_crops.min_side
            )
        state = to_global(state, mesh)
    return Training(
        mesh,
        images,
        random_crops,
        program,
        state,
        shared,
        unreadable,
    )


def make_program(
    config: ConfigDict, mesh: Mesh, *, images: int, image_shape: tuple[int, int] | None
) -> Program:
    """Networks, objective, optimiser and steps; needs neither data nor the devices of `mesh`.

    Args:
      config: the resolved configuration, which `check_settings` has passed.
      mesh: the data mesh, also of devices that are not there, to compile for.
      images: of the training split.
      image_shape: (height, width) of every image; None where they may differ, or where nothing
        depends on it: patches that the host cuts, of a size in pixels.

    Raises:
      InputError: the configuration cannot be carried out.
    """
    geometry = PatchGeometry.of(config.patches)
    per_epoch = pipeline.steps_per_epoch(images, config.data.batch_size)
    total = config.train.steps or round(config.train.epochs * per_epoch)
    if not 1 <= total <= MOST_STEPS:
        raise InputError(
            f'train.epochs={config.train.epochs} is {total:,} steps: give as many as make 1 to '
            f'{MOST_STEPS:,}, or train.steps'
        )
    scheduled = round(config.optimizer.schedule_epochs * per_epoch) or total
    schedule = warmup_cosine(
        peak=_peak_rate(config),
        total_steps=scheduled,
        warmup_steps=round(config.optimizer.warmup_epochs * per_epoch),
        end_factor=config.optimizer.end_factor,
    )
    random_crops = crops_of(config)
    cut = make_cut(config, random_crops, geometry, image_shape)
    side = geometry.resize or geometry.size or geometry.side(*image_shape)
    networks, objective = _make_networks(config, random_crops)
    optimizer = make_optimizer(
        config.optimizer.name,
        config.optimizer.get(config.optimizer.name, {}),
        schedule,
        weight_decay=config.optimizer.weight_decay,
    )
    transform = functools.partial(augment, **config.augment, count=config.patches.count)
    options = {
        'cut': cut,
        'augment': transform,
        'key': jax.random.fold_in(jax.random.key(config.seed), 1000),
        'mesh': mesh,
        'accumulate': config.train.accumulate,
        'by_index': config.train.by_index,
    }
    step = make_train_step(
        networks,
        objective,
        optimizer,
        cosine_momentum(config.target.momentum, scheduled),
        skip_nonfinite=config.train.on_nonfinite == 'skip',
        **options,
    )
    spread = make_spread_step(networks, **options)
    if config.data.crop_on == 'resident':
        step = from_resident(step, image_shape, mesh, donate=True)
        spread = from_resident(spread, image_shape, mesh, donate=False)
    return Program(
        total_steps=total,
        monitor_every=max(1, round(config.train.monitor_every * per_epoch)),
        schedule=schedule,
        networks=networks,
        side=side,
        inputs=input_shapes(config, random_crops, side, images, image_shape, mesh),
        init=functools.partial(
            create_state, networks, optimizer, config.seed, side=geometry.input_side
        ),
        step=step,
        spread=spread,
    )


def _peak_rate(config: ConfigDict) -> float:
    """The learning rate that the warm-up leads to."""
    rate = config.optimizer.learning_rate
    return rate * config.data.batch_size / 256 if config.optimizer.scale_by_batch else rate


def check_settings(config: ConfigDict, mesh: Mesh) -> None:
    """Raises InputError for an unknown choice, or a batch that `mesh` cannot share."""
    check_batch_size(config.data.batch_size, mesh, 'data.batch_size')
    check_known('data.on_error', config.data.on_error, pipeline.ON_ERROR)
    check_known('data.crop_on', config.data.crop_on, pipeline.CROP_ON)
    check_known('train.on_nonfinite', config.train.on_nonfinite, ON_NONFINITE)
    parts = mesh.size * config.train.accumulate
    if config.data.batch_size % parts:
        raise InputError(
            f'data.batch_size={config.data.batch_size} cannot be passed by {mesh.size} devices in '
            f'train.accumulate={config.train.accumulate} parts: give a multiple of {parts}'
        )
    groups = config.encoder.norm_groups
    if groups % mesh.size and mesh.size % groups:
        raise InputError(
            f'encoder.norm_groups={groups} and {mesh.size} devices: one must divide the other'
        )
    if config.data.batch_size % (max(groups, mesh.size) * config.train.accumulate):
        raise InputError(
            f'data.batch_size={config.data.batch_size} cannot be shared by encoder.norm_groups='
            f'{groups} in train.accumulate={config.train.accumulate} parts'
        )


def _with_statistics(
    state: TrainState,
    networks: Networks,
    images: Images,
    geometry: PatchGeometry,
    *,
    min_side: int,
) -> TrainState:
    """A fresh state, with what its encoder takes from patches of some training images."""
    count = len(images)
    chosen = np.linspace(0, count - 1, min(count, STATISTICS_OF)).astype(np.int64)
    # Those that cannot be read are reported, or refused, where training meets them.
    (read, _), _ = read_or_replace(images.source, chosen, min_side=min_side)
    patches = [
        cut(x[None], geometry.grid_boxes(*x.shape[:2], 4)[None], resize=geometry.resize)[0]
        for x in read
    ]
    encoder = with_statistics(networks, state.online['encoder'], np.concatenate(patches))
    target = state.target
    if target:  # a copy, as in `create_state`
        target = {**target, 'encoder': jax.tree.map(jnp.array, encoder)}
    return state.replace(online={**state.online, 'encoder': encoder}, target=target)


def _make_networks(
    config: ConfigDict, random_crops: crops.RandomCrops
) -> tuple[Networks, Objective]:
    """The networks and the objective, once they are known to go together."""
    name, sizes = config.objective.name, random_crops.sizes
    objective = make_objective(
        name,
        config.objective.get(name, {}),
        global_crops=sizes[0][0] if len(sizes) > 1 else None,
    )
    networks = make_networks(config, predictor=objective.target)
    if networks.projector is None:
        raise InputError('projector.widths=() has no layer: give positive integers, as in 256,64')
    if objective.target and config.predictor.widths[-1] != config.projector.widths[-1]:
        raise InputError(
            f'predictor.widths={config.predictor.widths} must end, as projector.widths='
            f'{config.projector.widths} does, in the width of the projection'
        )
    return networks, objective
