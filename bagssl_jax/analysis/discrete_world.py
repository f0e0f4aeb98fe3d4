"""The co-occurrence theorem where the truth is known: a small world of patch words.

BagSSL (arXiv 2206.08954) reads joint-embedding learning as learning which patches occur together:
minimising the spectral contrastive loss L_S makes w z_i . z_j the co-occurrence ratio
p_ij / (p_i p_j), as far as the width d of z allows. In the norm that L_C measures,
|M|^2 = sum_ij p_i p_j M_ij^2, what is left is the error of the best approximation of rank d.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from bagssl_jax.objectives.spectral import (
    cooccurrence,
    cooccurrence_constant,
    spectral_discrete,
)

WORDS, TOPICS = 64, 8
WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16)


def known_truth(*, weight: float = 1.0, seed: int = 0) -> tuple[list[dict[str, Any]], Figure]:
    """Learns the embeddings of one world at every width of `WIDTHS`.

    Args:
      weight: w of the losses; lambda = w / 2.
      seed: of the world and of the random starts.

    Returns:
      One row a width: 'part' ('known'), 'words', 'topics', 'width', 'error' (`relative_error` of
      the learned embeddings) and 'best' (`best_errors`: of the best approximation of that rank);
      a last row: 'part' ('identity'), 'words', 'topics', 'width', 'error' (`identity_error`).
      And the figure.
    """
    joint = make_world(seed=seed)
    learned = learn(joint, WIDTHS, weight=weight, seed=seed)
    best = best_errors(joint)
    sizes = {'words': WORDS, 'topics': TOPICS}
    rows = [
        {
            'part': 'known',
            **sizes,
            'width': width,
            'error': relative_error(z, joint, weight=weight),
            'best': best[width],
        }
        for width, z in learned.items()
    ]
    figure = _figure(joint, learned, rows, weight)
    error = identity_error(joint, max(WIDTHS), weight=weight, seed=seed)
    rows.append({'part': 'identity', **sizes, 'width': max(WIDTHS), 'error': error})
    return rows, figure


def make_world(words: int = WORDS, topics: int = TOPICS, *, seed: int = 0) -> np.ndarray:
    """How often words i and j are two patches of one image: p_ij, float64 [words words].

    An image has one topic t; its words are independent draws from the topic's own distribution:

        p_ij = sum_t p(t) p(i|t) p(j|t)

    symmetric, positive semi-definite, and of rank `topics`. Both distributions are drawn from
    Dirichlet's: topics of about the same frequency (concentration 5), which share some words and
    hardly use others (concentration 0.2).
    """
    rng = np.random.default_rng(seed)
    topic = rng.dirichlet(np.full(topics, 5.0))  # [t]
    word = rng.dirichlet(np.full(words, 0.2), topics)  # [t words]
    return np.einsum('t,ti,tj->ij', topic, word, word)


def learn(
    joint: np.ndarray,
    widths: Sequence[int],
    *,
    weight: float = 1.0,
    steps: int = 200,
    seed: int = 0,
) -> dict[int, np.ndarray]:
    """Minimises L_S over free embeddings, one vector a word, by L-BFGS from a random start.

    The variables are u_i = sqrt(p_i) z_i. With A_ij = p_ij / sqrt(p_i p_j),

        L_S = -tr(u^T A u) + w/2 |u u^T|^2

    is then as well conditioned for rare words as for frequent ones, and 200 steps reach float32's
    precision.

    Args:
      joint: p_ij [n n], symmetric; every word occurs.
      widths: of the embeddings, each learned on its own.
      weight: w.
      steps: of L-BFGS.
      seed: of the starts.

    Returns:
      width -> z, float32 [n width].
    """
    scale = np.sqrt(joint.sum(axis=1, keepdims=True) / joint.sum()).astype(np.float32)  # [n 1]
    shape = len(widths), len(joint), max(widths)
    start = 0.1 * np.random.default_rng(seed).standard_normal(shape, np.float32)
    # One program learns all widths: a column of zeros has a gradient of zero, and stays.
    for u, width in zip(start, widths, strict=True):
        u[:, width:] = 0
    joint = jnp.asarray(joint, jnp.float32)

    def loss(u: jax.Array) -> jax.Array:
        return spectral_discrete(u / scale, joint, weight=weight)

    optimizer = optax.lbfgs(memory_size=20)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        u, state = carry
        value, grad = value_and_grad(u, state=state)
        updates, state = optimizer.update(grad, state, u, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(u, updates), state), None

    @jax.jit
    @jax.vmap
    def minimize(u: jax.Array) -> jax.Array:
        (u, _), _ = jax.lax.scan(step, (u, optimizer.init(u)), length=steps)
        return u / scale

    learned = np.asarray(minimize(jnp.asarray(start)))
    return {width: z[:, :width] for width, z in zip(widths, learned, strict=True)}


def relative_error(z: np.ndarray, joint: np.ndarray, *, weight: float = 1.0) -> float:
    """|w z z^T - ratio| / |ratio| in the norm weighted by p_i p_j; z [n d], joint [n n].

    Computed in float64, as sqrt(p_i p_j) (w z_i . z_j - ratio_ij) in the unweighted norm.
    """
    target = _normalized(joint)
    u = np.sqrt(joint.sum(axis=1, keepdims=True)) * z.astype(np.float64)
    return float(np.linalg.norm(weight * u @ u.T - target) / np.linalg.norm(target))


def best_errors(joint: np.ndarray) -> list[float]:
    """`relative_error` of the best approximation of rank 0, 1, 2, ..., from an SVD in float64.

    `joint` is positive semi-definite, so the best approximation is too, and some z has it.
    """
    singular = np.linalg.svd(_normalized(joint), compute_uv=False)
    tails = np.sqrt(np.cumsum(np.append(singular, 0.0)[::-1] ** 2))[::-1]
    return (tails / tails[0]).tolist()


def identity_error(
    joint: np.ndarray, width: int, *, weight: float = 1.0, draws: int = 100, seed: int = 0
) -> float:
    """The largest |L_C - (2 w L_S + constant)| / L_C at random embeddings: zero but for rounding.

    joint [n n]; the embeddings are normal, with standard deviations from 0.1 to 10.
    """
    lengths = jnp.logspace(-1, 1, draws)[:, None, None]
    z = lengths * jax.random.normal(jax.random.key(seed), (draws, len(joint), width))
    joint = jnp.asarray(joint, jnp.float32)

    @jax.jit
    @jax.vmap
    def difference(z: jax.Array) -> jax.Array:
        direct = cooccurrence(z, joint, weight=weight)
        through = 2 * weight * spectral_discrete(z, joint, weight=weight)
        return abs(direct - through - cooccurrence_constant(joint)) / direct

    return float(difference(z).max())


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of `known_truth`: a line for each width, and one for the identity."""
    *rows, identity = rows
    title = (
        f'known truth, {identity["words"]} words of {identity["topics"]} topics: relative error '
        'of w z.z against the ratio'
    )
    head = f'{"width":>5}{"learned":>12}{"best of rank":>14}'
    body = [f'{row["width"]:>5}{row["error"]:>12.2e}{row["best"]:>14.2e}' for row in rows]
    tail = f'L_C = 2 w L_S + constant to {identity["error"]:.0e} at random embeddings'
    return '\n'.join([title, head, *body, tail])


def _normalized(joint: np.ndarray) -> np.ndarray:
    """A_ij = p_ij / sqrt(p_i p_j), float64 [n n]: the ratio, weighted by sqrt(p_i p_j)."""
    marginal = joint.sum(axis=1)
    return joint / np.sqrt(np.outer(marginal, marginal))


def _figure(
    joint: np.ndarray, learned: dict[int, np.ndarray], rows: list[dict[str, Any]], weight: float
) -> Figure:
    """Learned against true ratios at two widths, and the error at every width."""
    figure = Figure(figsize=(8, 3.6), dpi=200, layout='constrained')
    left, right = figure.subplots(1, 2)

    marginal = joint.sum(axis=1)
    ratio = joint / np.outer(marginal, marginal)
    pairs = np.triu_indices(len(joint))
    for width, color in ((4, '0.65'), (TOPICS, 'C0')):
        z = learned[width]
        left.scatter(
            ratio[pairs],
            weight * (z @ z.T)[pairs],
            s=5,
            color=color,
            linewidths=0,
            alpha=0.8,
            label=f'd = {width}',
            rasterized=True,
        )
    left.axline((0, 0), slope=1, color='k', linewidth=0.6, zorder=0)
    left.set_xlabel(r'co-occurrence $p_{ij}\,/\,p_i p_j$')
    left.set_ylabel(r'learned $w\,z_i \cdot z_j$')
    left.legend(frameon=False, fontsize=9, markerscale=2.5, handletextpad=0.2)

    below = [row for row in rows if row['width'] < TOPICS]
    right.plot(
        [row['width'] for row in below],
        [row['best'] for row in below],
        color='k',
        linewidth=0.8,
        label='best of rank d (SVD)',
    )
    right.plot(
        [row['width'] for row in rows],
        [row['error'] for row in rows],
        'o',
        color='C0',
        markersize=5,
        label='learned',
    )
    right.axvline(TOPICS, color='0.8', linewidth=0.8, zorder=0)
    right.annotate(
        'rank of the truth', (TOPICS, 0.6), xytext=(4, 0), textcoords='offset points', fontsize=9
    )
    right.set_yscale('log')
    right.set_xticks(WIDTHS)
    right.set_xlabel('width d of the embeddings')
    right.set_ylabel(r'relative error, weighted by $p_i p_j$')
    right.legend(frameon=False, fontsize=9, loc=(0.49, 0.5))
    for axes in (left, right):
        axes.spines[['top', 'right']].set_visible(False)
    return figure
