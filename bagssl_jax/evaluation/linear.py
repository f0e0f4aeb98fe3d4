"""The linear probe: multinomial logistic regression on frozen features."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from bagssl_jax.errors import InputError

L2_GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)

# TF32 (GPU) and bfloat16 (TPU) products would end the descent far from the optimum.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class LinearProbe(NamedTuple):
    """A scored probe. Its logits are `x @ weights + bias`, for features x as they were given."""

    top1: float  # on the test split
    top5: float | None  # None when there are no more than five classes
    l2: float  # the chosen one
    validation: dict[float, float]  # held-out top-1 for each l2
    weights: np.ndarray  # float32 [d c]
    bias: np.ndarray  # float32 [c]


class SoftmaxFit(NamedTuple):
    """Optima of the objective of `fit_softmax`, one for each l2."""

    weights: jax.Array  # float32 [s d c]
    bias: jax.Array  # float32 [s c]
    loss: jax.Array  # float32 [s], the objective
    gradient_norm: jax.Array  # float32 [s], of the objective, over weights and bias
    iterations: jax.Array  # int32 [s]


def fit_linear(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    num_classes: int,
    l2_grid: Sequence[float] = L2_GRID,
    holdout: float = 0.1,
    max_iterations: int = 300,
) -> LinearProbe:
    """Chooses l2 inside the training split, refits on all of it, scores the test split once.

    Features are brought to mean 0 and standard deviation 1 per dimension, with the statistics of
    the examples that are fitted: in the selection those that are not held out, in the refit the
    whole training split. Dimensions that are constant there take no part. The objective is that
    of `fit_softmax`. The best held-out top-1 wins; between equals, the stronger regularisation.

    Held out is the last `holdout` share of each class, in the order given: frames of one film or
    tiles of one photograph are neighbours in that order, and a random choice would put them on
    both sides. A class of two or more is on both sides, a class of one is only fitted.

    Args:
        train_x, test_x: float [n d] and [m d].
        train_y, test_y: integer [n] and [m], in [0, num_classes).
        num_classes: c.
        l2_grid: the strengths to choose from.
        holdout: share of each class that selects, in (0, 1).
        max_iterations: for each of the two fits.

    Raises:
        InputError: features that are not finite, fewer than two classes in the training split,
            or no class in it with two examples.
        ValueError: misaligned shapes, labels out of range, an unusable grid or holdout.
    """
    train_x, train_y = _checked(train_x, train_y, num_classes, 'training')
    test_x, test_y = _checked(test_x, test_y, num_classes, 'test')
    if train_x.shape[1] != test_x.shape[1]:
        raise ValueError(f'widths differ: {train_x.shape[1]} (train), {test_x.shape[1]} (test)')
    grid = sorted(map(float, l2_grid), reverse=True)
    if not grid or grid[-1] <= 0:
        raise ValueError(f'l2_grid must hold positive numbers, not {l2_grid}')
    if not 0 < holdout < 1:
        raise ValueError(f'holdout must be between 0 and 1, not {holdout}')
    if len(np.unique(train_y)) < 2:
        raise InputError('the training split has fewer than two classes: nothing to tell apart')
    held = _held_out(train_y, holdout)
    if not held.any():
        raise InputError(
            'every class of the training split has one example: the linear probe needs two of '
            'some class, to choose its regularisation on one of them'
        )

    fit = functools.partial(fit_softmax, num_classes=num_classes, max_iterations=max_iterations)
    mean, scale = _standardisation(train_x[~held])
    found = fit((train_x[~held] - mean) * scale, train_y[~held], jnp.array(grid, jnp.float32))
    val_x, val_y = (train_x[held] - mean) * scale, train_y[held]
    validation = [
        _top(val_x @ w + b, val_y, 1)
        for w, b in zip(np.asarray(found.weights), np.asarray(found.bias), strict=True)
    ]
    l2 = grid[int(np.argmax(validation))]  # the first of the best: the grid falls

    mean, scale = _standardisation(train_x)
    found = fit((train_x - mean) * scale, train_y, jnp.array([l2], jnp.float32))
    weights, bias = np.asarray(found.weights[0]), np.asarray(found.bias[0])
    logits = ((test_x - mean) * scale) @ weights + bias
    weights = scale[:, None] * weights
    return LinearProbe(
        top1=_top(logits, test_y, 1),
        top5=_top(logits, test_y, 5) if num_classes > 5 else None,
        l2=l2,
        validation=dict(zip(grid, validation, strict=True)),
        weights=weights,
        bias=(bias - mean.astype(np.float64) @ weights).astype(np.float32),
    )


@functools.partial(jax.jit, static_argnames=('num_classes', 'max_iterations'))
def fit_softmax(
    features: ArrayLike,
    labels: ArrayLike,
    l2: ArrayLike,
    *,
    num_classes: int,
    max_iterations: int = 300,
    tolerance: float = 1e-5,
) -> SoftmaxFit:
    """Minimises, for each l2, mean_i CE(features_i W + bias, label_i) + l2 / 2 * sum(W**2).

    CE is the softmax cross-entropy in nats; the bias is not penalised. Full-batch L-BFGS (Nocedal
    and Wright, Numerical Optimization, algorithm 7.4) from zero, for all l2 at once, with:

    - coordinates in which the Hessian at zero is the identity: the features' principal axes, each
      divided by the root of its curvature. Rotation leaves the penalty as it is. The features of
      an encoder are so correlated that plain L-BFGS needs several times the iterations.
    - a line search on the logits, which are linear in the step: it costs no product with the
      features, where optax.lbfgs's search (under vmap, both sides of its cond) costs four a trial.

    About six arrays [s n c] are held at once, and two of the features' size.

    Args:
        features: float32 [n d], of mean zero, or the coordinates above are poor.
        labels: integer [n].
        l2: float32 [s], positive.
        num_classes: c.
        max_iterations: an end for what does not reach the tolerance.
        tolerance: on the gradient's norm in the coordinates above. Half its square estimates the
            excess of the loss; where the classes are separable and l2 tiny, the Hessian is far
            below its value at zero and the excess larger, a few 1e-6 nats with the default.
    """
    features = jnp.asarray(features, jnp.float32)
    targets = jax.nn.one_hot(labels, num_classes)
    curvature, axes = jnp.linalg.eigh(_matmul(features.T, features) / len(features))
    rotated = _matmul(features, axes)
    # At zero every class has probability 1 / c, hence these.
    bias_scale = num_classes**0.5
    lbfgs = optax.scale_by_lbfgs(memory_size=10)

    def fit(l2):
        scale = jax.lax.rsqrt(jnp.maximum(curvature, 0.0) / num_classes + l2)[:, None]

        def gradient(parameters, logits):
            errors = (jax.nn.softmax(logits) - targets) / len(features)
            # Not rotated.T @ errors, for which XLA on CPU would copy the features, transposed.
            products = _matmul(errors.T, rotated).T
            weights = scale * parameters[0]
            return scale * (products + l2 * weights), bias_scale * errors.sum(0)

        def iterate(state):
            parameters, logits, grad, memory, iteration = state
            direction, memory = lbfgs.update(grad, memory, parameters)
            direction = jax.tree.map(jnp.negative, direction)
            weights, change = scale * parameters[0], scale * direction[0]
            step = _matmul(rotated, change) + bias_scale * direction[1][None]
            penalty_slope = l2 * jnp.vdot(weights, change)
            size = _line_search(logits, step, targets, penalty_slope, l2 * jnp.sum(change**2))
            parameters = optax.tree.add_scale(parameters, size, direction)
            logits = logits + size * step
            return parameters, logits, gradient(parameters, logits), memory, iteration + 1

        def unfinished(state):
            return (optax.tree.norm(state[2]) > tolerance) & (state[4] < max_iterations)

        start = jnp.zeros((features.shape[1], num_classes)), jnp.zeros(num_classes)
        logits = jnp.zeros_like(targets)
        state = start, logits, gradient(start, logits), lbfgs.init(start), 0
        (weights, bias), _, _, _, iterations = jax.lax.while_loop(unfinished, iterate, state)

        def objective(weights, bias):
            losses = optax.softmax_cross_entropy(_matmul(features, weights) + bias[None], targets)
            return losses.mean() + l2 / 2 * jnp.sum(weights**2)

        weights, bias = _matmul(axes, scale * weights), bias_scale * bias
        loss, grad = jax.value_and_grad(objective, argnums=(0, 1))(weights, bias)
        return SoftmaxFit(weights, bias, loss, optax.tree.norm(grad), iterations)

    return jax.vmap(fit)(l2)


def _line_search(logits, step, targets, penalty_slope, penalty_curvature, max_trials=20):
    """The size of a step that leaves at most a tenth of the objective's slope along it.

    The objective is convex in the size, so Newton's method on the slope inside a bracket finds
    it, and unlike differences of the objective the slope keeps its precision near the optimum.
    """

    def derivatives(size):
        probabilities = jax.nn.softmax(logits + size * step)
        mean = (probabilities * step).sum(1, keepdims=True)
        slope = ((probabilities - targets) * step).sum(1).mean()
        curvature = (probabilities * (step - mean) ** 2).sum(1).mean()
        return slope + penalty_slope + size * penalty_curvature, curvature + penalty_curvature

    first, _ = derivatives(0.0)

    def unfinished(state):
        trial, (_, _, _, slope, _) = state
        return (jnp.abs(slope) > 0.1 * jnp.abs(first)) & (trial < max_trials)

    def attempt(state):
        trial, (low, high, size, slope, curvature) = state
        low, high = jnp.where(slope < 0, size, low), jnp.where(slope < 0, high, size)
        newton = size - slope / curvature
        inside = (low < newton) & (newton < jnp.minimum(high, 10 * size))
        size = jnp.where(inside, newton, jnp.where(jnp.isinf(high), 10 * size, (low + high) / 2))
        return trial + 1, (low, high, size, *derivatives(size))

    state = jax.lax.while_loop(unfinished, attempt, (0, (0.0, jnp.inf, 1.0, *derivatives(1.0))))
    low, _, size, _, _ = state[1]
    # Out of trials, or a direction that rounding turned uphill: the end that cannot do harm.
    return jnp.where(unfinished((0, state[1])) | (first >= 0), low * (first < 0), size)


def _checked(x, y, num_classes, split):
    x, y = np.asarray(x).astype(np.float32), np.asarray(y)
    if x.ndim != 2 or y.shape != x.shape[:1] or not len(x):
        raise ValueError(f'expected features [n d] and labels [n], got {x.shape} and {y.shape}')
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= num_classes:
        raise ValueError(f'{split} labels must be integers in [0, {num_classes})')
    if not np.isfinite(x).all():
        raise InputError(
            f'features of the {split} split hold NaN or infinity: the encoder has probably '
            'diverged; probe an earlier checkpoint'
        )
    return x, y.astype(np.int32)


def _held_out(labels, share):
    """Boolean [n]: the last examples of each class."""
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        held[members[len(members) - count :]] = True
    return held


def _standardisation(x):
    """Mean and reciprocal standard deviation [d]; 0 in place of the latter for constants."""
    mean = x.mean(0, dtype=np.float64).astype(np.float32)
    deviation = np.sqrt(np.square(x - mean).mean(0, dtype=np.float64)).astype(np.float32)
    # A deviation at the level of float32 rounding is noise, not signal.
    varies = deviation > 1e-6 * np.abs(mean)
    return mean, np.divide(1, deviation, out=np.zeros_like(deviation), where=varies)


def _top(scores, labels, k):
    """Share of rows whose label is among the k best scores; equal scores rank by class."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    before = np.arange(scores.shape[1]) < labels[:, None]
    rank = ((scores > own) | ((scores == own) & before)).sum(1)
    return float((rank < k).mean())
