"""The jitted, sharded training step, and the look at collapse that goes with it."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from bagssl_jax.models import Networks
from bagssl_jax.objectives import Objective
from bagssl_jax.parallel import DATA_AXIS
from bagssl_jax.training.accumulation import in_parts
from bagssl_jax.training.collapse import spread
from bagssl_jax.training.nonfinite import Metrics, unless_nonfinite
from bagssl_jax.training.state import TrainState, Variables

Inputs = dict[str, jax.Array | tuple[jax.Array, ...]]
Cut = Callable[[Inputs], jax.Array | tuple[jax.Array, ...]]
Augment = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def make_train_step(
    networks: Networks,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    target_momentum: optax.Schedule,
    *,
    cut: Cut,
    augment: Augment,
    key: jax.Array,
    mesh: Mesh,
    accumulate: int = 1,
    by_index: bool = False,
    skip_nonfinite: bool = False,
) -> Callable[[TrainState, Inputs], tuple[TrainState, Metrics]]:
    """One update on one global batch, over all devices of `mesh`.

    Statistics, loss and gradient are those of the global batch, whatever the number of devices.

    With `accumulate` above 1, the batch passes through the networks in so many parts, one after
    the other, in the memory of one and with a second forward pass of each (`accumulation`). Loss
    and gradient are still of the whole batch, for every objective. But BatchNorm normalises a part
    by the statistics of that part, over all devices, and its running statistics, the target's too,
    are updated part after part: `accumulate` times a step, as in PyTorch's accumulation.

    Args:
      networks: with a predictor exactly where the objective has a target.
      objective: its loss is of the projections z [b p k], or of (prediction, target), the target
        of the patches of the first size alone, as in DINO: momentum networks see global crops.
      optimizer: of the parameters.
      target_momentum: step -> share of itself that the target network keeps.
      cut: inputs of some images, as the pipeline gives them -> uint8 patches [b p h w c], or a
        tuple of them, one a size, which together are the bags.
      augment: (key, uint8 [n h w c], place in the global batch [n]) -> float [n h w c].
      key: of the whole training; the step's own, of the augmentation and of the objective, are
        folded from it.
      mesh: the data mesh.
      accumulate: parts of a batch, at least 1; must divide the images of a device. Image i is of
        part i mod `accumulate`.
      by_index: whether the patches of each index pass through the networks by themselves, one
        index after the other, as views do in the code of VICReg, BYOL and Barlow Twins; or all
        together, as in SimCLR's and EMP-SSL's. BatchNorm's statistics are then of an index, and
        its running ones are updated after each.
      skip_nonfinite: leave updates out that are not finite, by `unless_nonfinite`, which adds a
        metric.

    Returns:
      (state, inputs of the global batch) -> (state, metrics), jitted; the state is donated.
      The metrics are 'loss', the objective's terms, and 'gradient_norm'.
    """

    # The augmentation's are folded from the number of a step, which this is not.
    objective_key = jax.random.fold_in(key, 2**32 - 1)

    def update(state: TrainState, inputs: Inputs) -> tuple[TrainState, Metrics]:
        batch = inputs, _places(cut, inputs)
        target_params = _each(state.target, 'params')

        def loss_fn(params):
            # Here, so that gradients are summed over the devices in float32 and once a step, and
            # not where the networks first use a parameter, which may be behind its cast to
            # bfloat16, and once for each part.
            params = jax.lax.pcast(params, DATA_AXIS, to='varying')

            def vectors_of(stats, part):
                crops = _augmented_patches(cut, augment, key, state.step, part)
                online, online_stats = forward(networks, params, stats[0], crops, by_index)
                target, target_stats = forward(
                    networks, target_params, stats[1], crops[:1], by_index
                )
                vectors = [online['projector']]
                if objective.target:
                    vectors = [online['predictor'], target['projector']]
                return (online_stats, target_stats), vectors

            stats = _each(state.online, 'batch_stats'), _each(state.target, 'batch_stats')
            stats, vectors = in_parts(vectors_of, stats, batch, accumulate)
            # The objective is global already: differentiating a local loss and averaging the
            # gradients would be off by the number of devices.
            # Accelerators would multiply float32 matrices in TF32 or bfloat16.
            with jax.default_matmul_precision('highest'):
                loss, terms = objective.loss(
                    *vectors, axis_name=DATA_AXIS, key=jax.random.fold_in(objective_key, state.step)
                )
            return loss, (terms, stats)

        (loss, (terms, (stats, target_stats))), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        target = state.target
        if objective.target:
            keep = target_momentum(state.step)
            target = {
                name: {
                    'params': optax.incremental_update(params[name], variables['params'], 1 - keep),
                    'batch_stats': target_stats[name],
                }
                for name, variables in state.target.items()
            }
        new = TrainState(
            step=state.step + 1,
            online={name: {'params': params[name], 'batch_stats': stats[name]} for name in params},
            target=target,
            opt_state=opt_state,
        )
        metrics = {'loss': loss, **terms, 'gradient_norm': optax.tree.norm(grads)}
        return unless_nonfinite(new, state, metrics) if skip_nonfinite else (new, metrics)

    return jax.jit(_over_devices(update, mesh, outputs=2), donate_argnums=0)


def make_spread_step(
    networks: Networks,
    *,
    cut: Cut,
    augment: Augment,
    key: jax.Array,
    mesh: Mesh,
    accumulate: int = 1,
    by_index: bool = False,
) -> Callable[[TrainState, Inputs], Metrics]:
    """How far h and z of a batch are spread: (state, inputs) -> metrics, jitted.

    Arguments as for `make_train_step`. The metrics are 'h_std', 'h_effective_rank', 'z_std' and
    'z_effective_rank'.
    """

    def measure(state: TrainState, inputs: Inputs) -> Metrics:
        def outputs_of(stats, part):
            crops = _augmented_patches(cut, augment, key, state.step, part)
            outputs, stats = forward(networks, state.params, stats, crops, by_index)
            return stats, {name: outputs[name] for name in ('encoder', 'projector')}

        stats = _each(state.online, 'batch_stats')
        _, outputs = in_parts(outputs_of, stats, (inputs, _places(cut, inputs)), accumulate)
        metrics = {}
        for space, name in (('h', 'encoder'), ('z', 'projector')):
            vectors = outputs[name].reshape(-1, outputs[name].shape[-1])  # [b p d] -> [n d]
            with jax.default_matmul_precision('highest'):
                signs = spread(vectors, axis_name=DATA_AXIS)
            for sign, value in signs.items():
                metrics[f'{space}_{sign}'] = value
        return metrics

    return jax.jit(_over_devices(measure, mesh, outputs=1))


def forward(
    networks: Networks,
    params: dict[str, Any],
    stats: dict[str, Any],
    crops: Sequence[jax.Array],
    by_index: bool = False,
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """Passes a batch through the networks in training mode, inside shard_map over the data axis.

    Patches of several sizes pass through the encoder one size after the other, as in the code of
    SwAV and DINO: its BatchNorm has statistics of each size, and updates its running ones after
    each. All embeddings then pass through the other networks together.

    Args:
      networks: those that `params` has are applied, one to the other's output.
      params: name of a network -> its parameters.
      stats: name of a network -> its running statistics.
      crops: float [b p h w c], one a size.
      by_index: as for `make_train_step`.

    Returns:
      Name of a network -> its output [b p d], and name -> its new statistics.
    """

    def chained(names, stats, x):  # [n ...]
        outputs = {}
        for name in names:
            variables = {'params': params[name], 'batch_stats': stats[name]}
            network = getattr(networks, name)
            (x, _), updates = network.apply(variables, x, train=True, mutable=['batch_stats'])
            outputs[name], stats = x, {**stats, name: updates.get('batch_stats', {})}
        return stats, outputs

    def of_bags(names, stats, x):  # [b p ...], of which the indices pass alone or together
        if by_index:
            of_index = functools.partial(chained, names)
            stats, outputs = jax.lax.scan(of_index, stats, jnp.swapaxes(x, 0, 1))
            return stats, {name: jnp.swapaxes(y, 0, 1) for name, y in outputs.items()}
        stats, outputs = chained(names, stats, x.reshape(-1, *x.shape[2:]))
        return stats, {name: y.reshape(*x.shape[:2], -1) for name, y in outputs.items()}

    names = [name for name in networks._fields if name in params]
    # An index by itself can go all the way at once, in the memory of one.
    each, all_together = (names, []) if by_index else (names[:1], names[1:])
    of_sizes = []
    for x in crops:
        stats, outputs = of_bags(each, stats, x)
        of_sizes.append(outputs)
    outputs = {name: jnp.concatenate([o[name] for o in of_sizes], axis=1) for name in each}
    if all_together:
        stats, others = of_bags(all_together, stats, outputs['encoder'])
        outputs |= others
    return outputs, stats  # [b p d] each


def _each(variables: dict[str, Variables], kind: str) -> dict[str, Any]:
    return {name: of_network[kind] for name, of_network in variables.items()}


def _places(cut: Cut, inputs: Inputs) -> jax.Array:
    """The places of this device's patches, of all sizes, in the global batch, int32 [b p]."""
    shapes = jax.eval_shape(lambda inputs: cut(inputs), inputs)  # `cut` may be no function
    shapes = jax.tree.leaves(shapes)
    bags = shapes[0].shape[0], sum(x.shape[1] for x in shapes)
    count = math.prod(bags)
    return (jax.lax.axis_index(DATA_AXIS) * count + jnp.arange(count)).reshape(bags)


def _augmented_patches(
    cut: Cut, augment: Augment, key: jax.Array, step: jax.Array, part: tuple[Inputs, jax.Array]
) -> list[jax.Array]:
    """The patches of some images, float [b p h w c], one a size."""
    inputs, places = part
    key, augmented, end = jax.random.fold_in(key, step), [], 0
    for patches in jax.tree.leaves(cut(inputs)):  # [b p h w c]
        start, end = end, end + patches.shape[1]
        flat = patches.reshape(-1, *patches.shape[2:])  # [n h w c]
        x = augment(key, flat, places[:, start:end].reshape(-1))
        augmented.append(x.reshape(patches.shape))
    return augmented


def _over_devices(function: Callable, mesh: Mesh, outputs: int) -> Callable:
    """Replicated state, sharded patches -> `outputs` replicated results."""
    replicated, sharded = PartitionSpec(), PartitionSpec(DATA_AXIS)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(replicated, sharded),
        out_specs=(replicated,) * outputs if outputs > 1 else replicated,
    )
