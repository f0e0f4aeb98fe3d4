"""Perturbations of images within a ball: projected gradient descent, and random noise.

Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, ICLR 2018. A ball is
that of a norm, 'linf' or 'l2', around an image, of all its numbers in [0, 1], h w 3 of them, and
what is outside of [0, 1] is not of it.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bagssl_jax.probes.scores import ranks

NORMS = ('linf', 'l2')


class Attacked(NamedTuple):
    """What an attack has found.

    Attributes:
      images: float32 [b h w 3], of every image the one with the lowest margin that was tried: its
        label's score less the largest of the other classes.
      fooled: bool [b], whether any that was tried is taken for another class.
    """

    images: jax.Array
    fooled: jax.Array


def pgd(
    logits_of: Callable[[jax.Array], jax.Array],
    images: jax.Array,
    labels: jax.Array,
    keys: jax.Array,
    valid: jax.Array,
    radius: jax.Array | float,
    *,
    norm: str,
    steps: int,
) -> Attacked:
    """Projected gradient descent from a random start: x <- P(x + step * direction).

    It maximises the cross-entropy. The direction is the gradient's sign for 'linf', and the
    gradient at length 1 for 'l2'; P projects onto the ball, then onto [0, 1]. A step is 2.5 / steps
    of the radius. All points on the way count, and the start and the end. In place of the
    cross-entropy's gradient stands that of the log-odds against the label, which has the same
    direction, and does not vanish where a classifier is sure.

    Args:
      logits_of: float32 [b h w 3] -> float32 [b c]; an image's logits must depend on it alone.
      images: float32 [b h w 3] in [0, 1].
      labels: int [b].
      keys: of random numbers, [b].
      valid: bool [b h w 1], which pixels are the image's; the others are not touched.
      radius: of the ball.
      norm: one of `NORMS`.
      steps: of the descent.
    """
    size = 2.5 * radius / steps
    direction, project = _DIRECTIONS[norm], functools.partial(_PROJECTIONS[norm], radius=radius)

    def log_odds(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = logits_of(x)
        own, others = _parted(logits, labels)
        # Of the sum: each image has the gradient of its own.
        return (jax.nn.logsumexp(others, axis=1) - own).sum(), logits

    def seen(found: tuple, x: jax.Array, logits: jax.Array) -> tuple:
        worst, lowest, fooled = found
        own, others = _parted(logits, labels)
        margin = own - others.max(axis=1)
        lower = margin < lowest
        worst = jnp.where(lower[:, None, None, None], x, worst)
        wrong = ranks(logits, labels) > 0
        return worst, jnp.minimum(margin, lowest), fooled | wrong

    def step(_: int, state: tuple) -> tuple:
        x, found = state
        gradient, logits = jax.grad(log_odds, has_aux=True)(x)
        moved = x + size * direction(jnp.where(valid, gradient, 0))
        return _within(images, moved, project), seen(found, x, logits)

    x = jnp.clip(images + radius * _STARTS[norm](keys, valid), 0, 1)
    found = x, jnp.full(len(images), jnp.inf), jnp.zeros(len(images), bool)
    x, found = jax.lax.fori_loop(0, steps, step, (x, found))
    worst, _, fooled = seen(found, x, logits_of(x))
    return Attacked(worst, fooled)


def noisy(
    images: jax.Array,
    keys: jax.Array,
    valid: jax.Array,
    radius: jax.Array | float,
    *,
    norm: str,
) -> jax.Array:
    """Images at random places on the ball's surface, as far as [0, 1] reaches: float32 [b h w 3].

    Of 'linf' at its corners, where every number has moved by the radius. Arguments as for `pgd`.
    """
    return jnp.clip(images + radius * _DIRECTIONS[norm](_normal(keys, valid)), 0, 1)


def _within(
    images: jax.Array, x: jax.Array, project: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    # [0, 1] last: it brings no number farther from the image's, which is inside.
    return jnp.clip(images + project(x - images), 0, 1)


def _parted(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The labels' logits [b], and the logits [b c] with minus infinity in their places."""
    is_own = jax.nn.one_hot(labels, logits.shape[1], dtype=bool)
    return jnp.where(is_own, logits, 0).sum(axis=1), jnp.where(is_own, -jnp.inf, logits)


def _lengths(x: jax.Array) -> jax.Array:
    """[b h w c] -> [b 1 1 1], with a tiny number in place of 0."""
    squares = jnp.sum(jnp.square(x), axis=(1, 2, 3), keepdims=True)
    return jnp.sqrt(jnp.maximum(squares, 1e-30))


def _unit(x: jax.Array) -> jax.Array:
    # The largest number goes first: squares of small gradients vanish.
    largest = jnp.abs(x).max(axis=(1, 2, 3), keepdims=True)
    x = x / jnp.where(largest > 0, largest, 1)
    return x / _lengths(x)


def _uniform(keys: jax.Array, valid: jax.Array) -> jax.Array:
    shape = (*valid.shape[1:3], 3)
    drawn = jax.vmap(lambda key: jax.random.uniform(key, shape, minval=-1, maxval=1))(keys)
    return jnp.where(valid, drawn, 0)


def _normal(keys: jax.Array, valid: jax.Array) -> jax.Array:
    drawn = jax.vmap(lambda key: jax.random.normal(key, (*valid.shape[1:3], 3)))(keys)
    return jnp.where(valid, drawn, 0)


def _in_sphere(keys: jax.Array, valid: jax.Array) -> jax.Array:
    keys = jax.vmap(jax.random.split)(keys)
    volume = jax.vmap(jax.random.uniform)(keys[:, 1])[:, None, None, None]
    numbers = 3 * jnp.sum(valid, axis=(1, 2, 3), keepdims=True)
    return _unit(_normal(keys[:, 0], valid)) * volume ** (1 / numbers)


# Of each norm: the steepest ascent, the nearest point of the ball, a uniform point of the unit ball
_DIRECTIONS = {'linf': jnp.sign, 'l2': _unit}
_PROJECTIONS = {
    'linf': lambda x, radius: jnp.clip(x, -radius, radius),
    'l2': lambda x, radius: x * jnp.minimum(1, radius / _lengths(x)),
}
_STARTS = {'linf': _uniform, 'l2': _in_sphere}
