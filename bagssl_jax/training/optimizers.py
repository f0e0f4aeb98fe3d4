"""Optimisers and their learning-rate schedule."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bagssl_jax.errors import InputError, check_known


def warmup_cosine(
    *, peak: float, total_steps: int, warmup_steps: int, end_factor: float
) -> optax.Schedule:
    """Linear from 0 to `peak`, then half a cosine down to `end_factor` times the peak.

    Raises:
      InputError: the warm-up leaves no step for the cosine.
    """
    if warmup_steps >= total_steps:
        raise InputError(
            f'a warm-up of {warmup_steps:,} steps leaves nothing of the {total_steps:,} steps of '
            'training: lower --config.optimizer.warmup_epochs (0: none), or train longer'
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
    """
    remaining = optax.cosine_decay_schedule(1 - start, total_steps)
    return lambda step: 1 - remaining(step)


def sgd(
    schedule: optax.Schedule, *, weight_decay: float, momentum: float
) -> optax.GradientTransformation:
    """SGD with Nesterov momentum; the weight decay is added to the gradient."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay, are_kernels),
        optax.sgd(schedule, momentum=momentum, nesterov=True),
    )


def lars(
    schedule: optax.Schedule,
    *,
    weight_decay: float,
    momentum: float,
    trust_coefficient: float,
    nesterov: bool = True,
) -> optax.GradientTransformation:
    """LARS (arXiv 1708.03888) with momentum, Nesterov's or not; `trust_coefficient` is its eta.

    The weight decay is added to the gradient. What is not decayed is not scaled either. As in the
    paper, momentum is of updates, which hold their learning rate. Without Nesterov's, equal to
    class LARSOptimizer of tf2/lars_optimizer.py (google-research/simclr), by test.
    """
    return optax.lars(
        schedule,
        weight_decay=weight_decay,
        weight_decay_mask=are_kernels,
        trust_coefficient=trust_coefficient,
        trust_ratio_mask=are_kernels,
        momentum=momentum,
        nesterov=nesterov,
    )


def lars_vicreg(
    schedule: optax.Schedule,
    *,
    weight_decay: float,
    momentum: float,
    trust_coefficient: float,
    bias_factor: float = 1.0,
) -> optax.GradientTransformation:
    """LARS as the code of VICReg, BYOL and Barlow Twins has it: as `lars`, but for the momentum.

    It is of the scaled gradients, which the learning rate multiplies afterwards, and not
    Nesterov's. What is no kernel learns at `bias_factor` times that rate, which is Barlow Twins'
    alone. Equal to class LARS of main_vicreg.py (facebookresearch/vicreg) and of main.py
    (facebookresearch/barlowtwins), and to utils/optimizers.py of BYOL (deepmind-research), by test.
    """
    parts = [
        optax.add_decayed_weights(weight_decay, are_kernels),
        optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient), are_kernels),
        optax.trace(momentum),
        optax.scale_by_learning_rate(schedule),
    ]
    if bias_factor != 1:  # a part more is a state more, which older runs have not stored
        parts.append(optax.masked(optax.scale(bias_factor), are_no_kernels))
    return optax.chain(*parts)


def larc(
    schedule: optax.Schedule, *, weight_decay: float, momentum: float, trust_coefficient: float
) -> optax.GradientTransformation:
    """LARS whose rate for a kernel is at most the learning rate; then SGD with Nesterov momentum.

    Equal to LARSWrapper(SGD(..., nesterov=True), eta=trust_coefficient, clip=True,
    exclude_bias_n_norm=True) of EMP-SSL's lars.py, by test: see `clipped_trust_ratio`.
    """
    ratio = clipped_trust_ratio(schedule, trust_coefficient, weight_decay)
    return optax.chain(
        optax.masked(ratio, are_kernels),
        optax.trace(momentum, nesterov=True),
        optax.scale_by_learning_rate(schedule),
    )


def clipped_trust_ratio(
    schedule: optax.Schedule, trust_coefficient: float, weight_decay: float
) -> optax.GradientTransformation:
    """Scales g + weight_decay w by min(t / learning rate, 1), t the trust ratio.

    t = trust_coefficient |w| / (|g| + weight_decay |w| + 1e-8). A gradient of zeros, and that of
    weights of zeros, stays as it is, without decay.
    """

    def update(grads, state, params):
        rate = schedule(state.count)

        def scaled(grad, weights):
            grad_norm, norm = jnp.linalg.norm(grad.ravel()), jnp.linalg.norm(weights.ravel())
            trust = trust_coefficient * norm / (grad_norm + weight_decay * norm + 1e-8)
            wanted = jnp.minimum(trust / rate, 1) * (grad + weight_decay * weights)
            return jnp.where((norm > 0) & (grad_norm > 0), wanted, grad)

        count = optax.safe_increment(state.count)
        return jax.tree.map(scaled, grads, params), optax.ScaleByScheduleState(count)

    def init(params):
        del params
        return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

    return optax.GradientTransformation(init, update)


def adamw(schedule: optax.Schedule, *, weight_decay: float) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) with its usual (0.9, 0.999); the weight decay is decoupled."""
    return optax.adamw(schedule, weight_decay=weight_decay, mask=are_kernels)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    'sgd': sgd,
    'lars': lars,
    'lars_vicreg': lars_vicreg,
    'larc': larc,
    'adamw': adamw,
}


def make_optimizer(
    name: str, settings: Mapping[str, Any], schedule: optax.Schedule, *, weight_decay: float
) -> optax.GradientTransformation:
    """The optimiser of that name; kernels alone are decayed.

    Args:
      name: one of `OPTIMIZERS`.
      settings: its own, as in the configuration's group of that name.
      schedule: step -> learning rate.
      weight_decay: of kernels.

    Raises:
      InputError: an unknown name.
    """
    check_known('optimizer', name, OPTIMIZERS)
    return OPTIMIZERS[name](schedule, weight_decay=weight_decay, **settings)


def are_kernels(params: optax.Params) -> optax.Params:
    """True for the kernels of convolutions and linear layers, which are called so.

    False for everything else, such as biases, norms, and embeddings of positions.
    """
    return jax.tree.map_with_path(lambda path, _: path[-1].key == 'kernel', params)


def are_no_kernels(params: optax.Params) -> optax.Params:
    """The other way round."""
    return jax.tree.map(lambda kernel: not kernel, are_kernels(params))
