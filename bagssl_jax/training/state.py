"""What is trained, and what training carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from bagssl_jax.models import Networks, init_variables

Variables = dict[str, Any]


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes; all of it is checkpointed.

    Attributes:
      step: number of updates done, int32 [].
      online: name of a network -> its Linen variables, {'params', 'batch_stats'}.
      target: the same of the momentum encoder and projector; empty for most objectives.
      opt_state: of the optimiser, over the parameters of all networks by name.
    """

    step: jax.Array
    online: dict[str, Variables]
    target: dict[str, Variables]
    opt_state: optax.OptState

    @property
    def params(self) -> dict[str, Any]:
        """What the optimiser updates."""
        return {name: variables['params'] for name, variables in self.online.items()}


def create_state(
    networks: Networks, optimizer: optax.GradientTransformation, seed: int, *, side: int
) -> TrainState:
    """A fresh state; with a predictor, the target starts as a copy.

    `seed` and `side` are those of `init_variables`.
    """
    online = init_variables(networks, seed, side=side)
    target = {} if networks.predictor is None else {n: online[n] for n in ('encoder', 'projector')}
    params = {name: variables['params'] for name, variables in online.items()}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        online=online,
        # Copies: the training step donates its state, and a buffer can be donated only once.
        target=jax.tree.map(jnp.copy, target),
        opt_state=optimizer.init(params),
    )


def to_items(state: TrainState) -> dict[str, Any]:
    """The state as checkpoint items, so that the encoder can be read alone."""
    online = dict(state.online)
    items = {name: online.pop(name) for name in ('encoder', 'projector')}
    rest = {'step': state.step, 'opt_state': state.opt_state, 'target': state.target}
    return {**items, 'training': {**rest, 'online': online}}


def from_items(items: dict[str, Any]) -> TrainState:
    """The state whose items these are."""
    online = {'encoder': items['encoder'], 'projector': items['projector']}
    rest = dict(items['training'])
    return TrainState(online={**online, **rest.pop('online')}, **rest)
