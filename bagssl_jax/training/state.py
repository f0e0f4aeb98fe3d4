"""What training carries from step to step."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from bagssl_jax.models import init_variables


@flax.struct.dataclass
class TrainState:
    """Everything that a step reads and writes; all of it is checkpointed.

    Attributes:
      step: number of updates done, int32 [].
      encoder: the encoder's Linen variables, {'params', 'batch_stats'}.
      projector: the projector's.
      opt_state: of the optimiser, over {'encoder': params, 'projector': params}.
    """

    step: jax.Array
    encoder: dict[str, Any]
    projector: dict[str, Any]
    opt_state: optax.OptState

    @property
    def params(self) -> dict[str, Any]:
        """What the optimiser updates."""
        return {'encoder': self.encoder['params'], 'projector': self.projector['params']}


def create_state(
    encoder: nn.Module, projector: nn.Module, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """A fresh state, a pure function of `seed`."""
    variables = init_variables(encoder, projector, seed)
    params = {name: variables[name]['params'] for name in variables}
    return TrainState(step=jnp.zeros((), jnp.int32), opt_state=optimizer.init(params), **variables)
