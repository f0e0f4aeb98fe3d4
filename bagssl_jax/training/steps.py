"""The jitted, sharded training step, and the look at collapse that goes with it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec

from bagssl_jax.collapse import spread
from bagssl_jax.objectives import Objective
from bagssl_jax.parallel import DATA_AXIS
from bagssl_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]


def make_train_step(
    encoder: nn.Module,
    projector: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    augment: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    *,
    key: jax.Array,
    mesh: Mesh,
) -> Step:
    """One update on one global batch, over all devices of `mesh`.

    Statistics, loss and gradient are those of the global batch, whatever the number of devices.

    Args:
      encoder, projector: Linen modules.
      objective: (z [b p k], axis_name=) -> (loss, terms).
      optimizer: of the parameters.
      augment: (key, uint8 [n h w c], place in the global batch [n]) -> float [n h w c].
      key: of the whole training; the step's own is folded from it.
      mesh: the data mesh.

    Returns:
      (state, uint8 patches [b p h w c]) -> (state, metrics), jitted; the state is donated.
      The metrics are 'loss', the objective's terms, and 'gradient_norm'.
    """

    def update(state: TrainState, patches: jax.Array) -> tuple[TrainState, Metrics]:
        x = _augmented(augment, key, state.step, patches)

        def loss_fn(params):
            _, z, stats = forward(encoder, projector, state, params, x, patches.shape[:2])
            # The objective is global already: differentiating a local loss and averaging the
            # gradients would be off by the number of devices.
            loss, terms = objective(z, axis_name=DATA_AXIS)
            return loss, (terms, stats)

        (loss, (terms, stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = TrainState(
            step=state.step + 1,
            encoder={'params': params['encoder'], 'batch_stats': stats['encoder']},
            projector={'params': params['projector'], 'batch_stats': stats['projector']},
            opt_state=opt_state,
        )
        return state, {'loss': loss, **terms, 'gradient_norm': optax.tree.norm(grads)}

    return jax.jit(_over_devices(update, mesh, outputs=2), donate_argnums=0)


def make_spread_step(
    encoder: nn.Module,
    projector: nn.Module,
    augment: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    *,
    key: jax.Array,
    mesh: Mesh,
) -> Callable[[TrainState, jax.Array], Metrics]:
    """How far h and z of a batch are spread: (state, uint8 patches) -> metrics, jitted.

    The metrics are 'h_std', 'h_effective_rank', 'z_std' and 'z_effective_rank'.
    """

    def measure(state: TrainState, patches: jax.Array) -> Metrics:
        x = _augmented(augment, key, state.step, patches)
        h, z, _ = forward(encoder, projector, state, state.params, x, patches.shape[:2])
        z = z.reshape(-1, z.shape[-1])  # [b p k] -> [n k]
        return {
            f'{space}_{name}': value
            for space, vectors in {'h': h, 'z': z}.items()
            for name, value in spread(vectors, axis_name=DATA_AXIS).items()
        }

    return jax.jit(_over_devices(measure, mesh, outputs=1))


def forward(
    encoder: nn.Module,
    projector: nn.Module,
    state: TrainState,
    params: dict[str, Any],
    x: jax.Array,
    bags: tuple[int, int],
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    """Embeds and projects a batch in training mode, inside shard_map over the data axis.

    Args:
      state: its statistics are updated, its parameters not used.
      params: {'encoder', 'projector'}.
      x: float [b*p h w c].
      bags: (b, p).

    Returns:
      h [b*p d], z [b p k], and the new statistics {'encoder', 'projector'}.
    """
    (h, _), encoder_updates = encoder.apply(
        {'params': params['encoder'], 'batch_stats': state.encoder['batch_stats']},
        x,
        train=True,
        mutable=['batch_stats'],
    )
    (z, _), projector_updates = projector.apply(
        {'params': params['projector'], 'batch_stats': state.projector['batch_stats']},
        h,
        train=True,
        mutable=['batch_stats'],
    )
    stats = {
        'encoder': encoder_updates.get('batch_stats', {}),
        'projector': projector_updates.get('batch_stats', {}),
    }
    return h, z.reshape(*bags, -1), stats  # z [n k] -> [b p k]


def _augmented(augment, key, step, patches):
    patches = patches.reshape(-1, *patches.shape[2:])  # [b p h w c] -> [n h w c]
    places = jax.lax.axis_index(DATA_AXIS) * len(patches) + jnp.arange(len(patches))
    return augment(jax.random.fold_in(key, step), patches, places)


def _over_devices(function, mesh, outputs):
    """Replicated state, sharded patches -> `outputs` replicated results."""
    replicated, sharded = PartitionSpec(), PartitionSpec(DATA_AXIS)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(replicated, sharded),
        out_specs=(replicated,) * outputs if outputs > 1 else replicated,
    )
