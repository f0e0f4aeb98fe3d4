"""Projected gradient descent reaches what is known to be the worst point of a ball."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bagssl_jax.probes.attacks import NORMS, noisy, pgd

SHAPE = (6, 5, 3)
attack = jax.jit(pgd, static_argnames=('logits_of', 'norm', 'steps'))


def keys(count, seed=0):
    return jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(count))


def everywhere(count):
    return jnp.ones((count, *SHAPE[:2], 1), bool)


@pytest.fixture
def linear():
    """A linear classifier of three classes, and images in the middle of [0, 1]."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(np.prod(SHAPE), 3)).astype(np.float32)
    images = rng.uniform(0.45, 0.55, (40, *SHAPE)).astype(np.float32)

    def logits_of(x):
        return jnp.matmul(x.reshape(len(x), -1), weights, precision='highest')

    labels = np.asarray(logits_of(images)).argmax(axis=1)
    return logits_of, weights, images, labels


def distances(logits, labels, weights, dual):
    """How far the nearest boundary of each image is: the margin by the dual norm of its weights."""
    found = []
    for scores, label in zip(logits, labels, strict=True):
        others = [c for c in range(3) if c != label]
        found.append(
            min(
                (scores[label] - scores[c])
                / np.linalg.norm(weights[:, label] - weights[:, c], dual)
                for c in others
            )
        )
    return np.array(found)


@pytest.mark.parametrize(('norm', 'dual'), [('linf', 1), ('l2', 2)])
def test_a_linear_classifier_is_fooled_where_and_only_where_it_can_be(linear, norm, dual):
    logits_of, weights, images, labels = linear
    far = distances(np.asarray(logits_of(images)), labels, weights, dual)
    for quantile in (0.2, 0.5, 0.8):
        radius = np.quantile(far, quantile)
        found = attack(
            logits_of, images, labels, keys(40), everywhere(40), radius, norm=norm, steps=30
        )
        fooled = np.asarray(found.fooled)
        assert not fooled[far > 1.001 * radius].any()
        assert fooled[far < 0.97 * radius].all()
        assert fooled.any()
        assert not fooled.all()
        # What it found is what fools.
        wrong = np.asarray(logits_of(found.images)).argmax(axis=1) != labels
        np.testing.assert_array_equal(wrong, fooled)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('radius', [0.03, 0.4, 3.0])
def test_the_ball_and_the_range_of_pixels_are_kept(norm, radius):
    rng = np.random.default_rng(1)
    images = jnp.asarray(rng.random((8, *SHAPE)), jnp.float32)
    labels = np.arange(8) % 4
    kernel = rng.normal(size=(np.prod(SHAPE), 4)).astype(np.float32)

    def logits_of(x):
        return jnp.tanh(x.reshape(len(x), -1) @ kernel)

    valid = everywhere(8).at[3, 4:].set(False)
    found = attack(logits_of, images, labels, keys(8), valid, radius, norm=norm, steps=6).images
    random = noisy(images, keys(8), valid, radius, norm=norm)
    order = np.inf if norm == 'linf' else 2
    for perturbed in (found, random):
        assert perturbed.min() >= 0
        assert perturbed.max() <= 1
        change = np.asarray(perturbed - images, np.float64)
        sizes = np.linalg.norm(change.reshape(8, -1), order, axis=1)
        assert sizes.max() <= radius * (1 + 1e-5) + 1e-6
        assert sizes.min() > 0.3 * min(radius, 0.5)
        assert (change[3, 4:] == 0).all()
    if radius < 0.1:  # as large as it may be
        inside = (images > radius) & (images < 1 - radius)
        if norm == 'linf':
            moved = np.abs(random - images)[np.asarray(inside & valid)]
            np.testing.assert_allclose(moved, radius, rtol=1e-4)
        else:
            assert np.quantile(sizes, 0.9) > 0.9 * radius


@pytest.mark.slow
def test_noise_of_the_same_size_does_less_and_more_steps_do_more():
    """To a network that no single step follows."""
    rng = np.random.default_rng(2)
    first = rng.normal(size=(np.prod(SHAPE), 32)).astype(np.float32)
    second = rng.normal(size=(32, 5)).astype(np.float32)

    def logits_of(x):
        return jnp.sin(1.5 * x.reshape(len(x), -1) @ first) @ second

    images = rng.random((200, *SHAPE)).astype(np.float32)
    labels = np.asarray(logits_of(images)).argmax(axis=1)
    for norm, radius in (('linf', 0.01), ('l2', 0.06)):
        given = images, labels, keys(200), everywhere(200)
        standing = [
            1 - float(attack(logits_of, *given, radius, norm=norm, steps=steps).fooled.mean())
            for steps in (1, 20)
        ]
        noise = np.asarray(logits_of(noisy(images, *given[2:], radius, norm=norm)))
        assert standing[1] < standing[0] - 0.02
        assert standing[0] < (noise.argmax(axis=1) == labels).mean()
        # At a radius that reaches anything, nothing stands.
        assert attack(logits_of, *given, 20 * radius, norm=norm, steps=20).fooled.mean() > 0.98


@pytest.mark.parametrize('norm', NORMS)
def test_starts_are_random_inside_the_ball_and_an_images_own(norm):
    """A classifier without a slope stays at its start."""
    images = np.full((300, *SHAPE), 0.5, np.float32)

    def start(count, seed=0):
        flat = attack(
            lambda x: jnp.stack([x[:, 0, 0, 0] * 0 + 1, x[:, 0, 0, 0] * 0], axis=1),
            images[:count],
            np.zeros(count, int),
            keys(count, seed),
            everywhere(count),
            0.2,
            norm=norm,
            steps=1,
        )
        return np.asarray(flat.images - 0.5)

    found = start(300)
    np.testing.assert_allclose(start(3), found[:3], rtol=0, atol=2e-7)
    assert (abs(start(3, seed=1) - found[:3]) > 0.01).any()
    sizes = np.linalg.norm(found.reshape(300, -1), axis=1)
    if norm == 'linf':
        assert np.abs(found).max() <= 0.2 + 1e-6
        assert found.std() == pytest.approx(0.2 / np.sqrt(3), rel=0.02)
    else:
        # Of a uniform point in 90 dimensions: the share of the radius to the 90th is uniform.
        assert ((sizes / 0.2) ** 90).mean() == pytest.approx(0.5, abs=0.06)


def test_a_gradient_that_is_tiny_is_followed():
    """Of the cross-entropy of a sure classifier nothing but rounding is left."""
    images = np.full((1, *SHAPE), 0.5, np.float32)

    def logits_of(x):
        score = 60 - 400 * jnp.square(x - 0.5).mean(axis=(1, 2, 3)) - 150 * (x[:, 0, 0, 0] - 0.5)
        return jnp.stack([score, jnp.zeros(len(x))], axis=1)

    for norm in NORMS:
        given = images, np.zeros(1, int), keys(1), everywhere(1)
        assert bool(attack(logits_of, *given, 0.45, norm=norm, steps=40).fooled[0])
