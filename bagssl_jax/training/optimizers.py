"""Optimisers and their learning-rate schedule."""

import jax
import optax

from bagssl_jax.errors import InputError


def warmup_cosine(
    *, peak: float, total_steps: int, warmup_steps: int, end_factor: float
) -> optax.Schedule:
    """Linear from 0 to `peak`, then half a cosine down to `end_factor` times the peak.

    Raises:
      InputError: the warm-up leaves no step for the cosine.
    """
    if warmup_steps >= total_steps:
        raise InputError(
            f'a warm-up of {warmup_steps} steps leaves nothing of the {total_steps} steps of '
            'training: lower optimizer.warmup_epochs'
        )
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup_steps else peak,
        peak_value=peak,
        warmup_steps=warmup_steps,
        decay_steps=total_steps,
        end_value=peak * end_factor,
    )


def cosine_momentum(start: float, total_steps: int) -> optax.Schedule:
    """A target network's momentum, from `start` to 1 along half a cosine.

    Grill et al., arXiv 2006.07733, section 3.3: 1 - (1 - start) (cos(pi step / total) + 1) / 2.

    Raises:
      InputError: `start` is not in [0, 1].
    """
    if not 0 <= start <= 1:
        raise InputError(f'target.momentum={start} must be between 0 and 1')
    remaining = optax.cosine_decay_schedule(1 - start, total_steps)
    return lambda step: 1 - remaining(step)


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    weight_decay: float,
    momentum: float,
    trust_coefficient: float,
) -> optax.GradientTransformation:
    """The optimiser of that name; biases and norms get no weight decay, nor LARS's scaling.

    Args:
      name: 'sgd' (Nesterov), 'lars' (arXiv 1708.03888, Nesterov) or 'adamw' (arXiv 1711.05101).
      schedule: step -> learning rate.
      weight_decay: added to the gradient by sgd and lars, decoupled in adamw.
      momentum: of sgd and lars; adamw has its usual (0.9, 0.999).
      trust_coefficient: lars's eta.

    Raises:
      InputError: an unknown name.
    """
    if name == 'sgd':
        return optax.chain(
            optax.add_decayed_weights(weight_decay, _is_kernel),
            optax.sgd(schedule, momentum=momentum, nesterov=True),
        )
    if name == 'lars':
        return optax.lars(
            schedule,
            weight_decay=weight_decay,
            weight_decay_mask=_is_kernel,
            trust_coefficient=trust_coefficient,
            trust_ratio_mask=_is_kernel,
            momentum=momentum,
            nesterov=True,
        )
    if name == 'adamw':
        return optax.adamw(schedule, weight_decay=weight_decay, mask=_is_kernel)
    raise InputError(f'unknown optimizer {name!r}: choose from sgd, lars, adamw')


def _is_kernel(params: optax.Params) -> optax.Params:
    """True for the kernels of convolutions and linear layers, False for biases and norms."""
    return jax.tree.map(lambda x: x.ndim > 1, params)
