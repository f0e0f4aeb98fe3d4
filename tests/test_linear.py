"""The linear probe: its optimum, its choice of l2 and what it may look at."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
from conftest import blobs
from sklearn.linear_model import LogisticRegression

from bagssl_jax.errors import InputError
from bagssl_jax.probes import linear
from bagssl_jax.probes.labels import held_out
from bagssl_jax.probes.linear import fit_linear
from bagssl_jax.probes.softmax import fit_softmax

GRID = (1e-4, 1e-2, 1.0)


def objective(flat, features, labels, l2, classes):
    """The documented objective and its gradient in float64."""
    weights, bias = np.split(flat, [features.shape[1] * classes])
    weights = weights.reshape(features.shape[1], classes)
    logits = features @ weights + bias
    log_p = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
    targets = np.eye(classes)[labels]
    errors = (np.exp(log_p) - targets) / len(labels)
    loss = -(targets * log_p).sum() / len(labels) + l2 / 2 * (weights**2).sum()
    gradient = features.T @ errors + l2 * weights, errors.sum(0)
    return loss, np.concatenate([gradient[0].ravel(), gradient[1]])


def reference_optimum(features, labels, l2, classes):
    features = features.astype(np.float64)
    return scipy.optimize.minimize(
        objective,
        np.zeros((features.shape[1] + 1) * classes),
        args=(features, labels, l2, classes),
        jac=True,
        method='BFGS',
        options={'maxiter': 5000, 'gtol': 1e-8},
    )


@pytest.mark.parametrize('kind', ['overlapping', 'separable', 'correlated', 'off centre', 'wide'])
def test_fit_reaches_the_optimum_of_scipy(kind):
    count, width = (15, 30) if kind == 'wide' else (90, 8)
    spread = 10.0 if kind == 'separable' else 0.5
    features, labels = blobs(0, count, classes=3, width=width, spread=spread)
    if kind == 'correlated':
        mix = np.random.default_rng(1).normal(size=(width, width))
        features = (features @ mix * np.logspace(0, -2, width)).astype(np.float32)
        assert np.linalg.cond(np.cov(features.T)) > 1e5
    elif kind == 'off centre':
        features = features + 3
    l2 = np.array([1e-5, 1e-3, 1e-1], np.float32)
    found = fit_softmax(features, labels, l2, num_classes=3)
    assert found.weights.shape == (3, width, 3)
    assert found.bias.shape == (3, 3)
    for i in range(3):
        flat = np.concatenate([np.ravel(found.weights[i]), found.bias[i]]).astype(np.float64)
        loss, gradient = objective(flat, features.astype(np.float64), labels, float(l2[i]), 3)
        best = reference_optimum(features, labels, float(l2[i]), 3)
        # The absolute term is for the separable: losses down to 1e-5 nats, computed in float32.
        assert loss == pytest.approx(best.fun, rel=1e-5, abs=5e-6)
        assert found.loss[i] == pytest.approx(loss, rel=1e-5, abs=1e-7)
        assert found.gradient_norm[i] == pytest.approx(np.linalg.norm(gradient), abs=2e-6)
        assert found.gradient_norm[i] < 1e-4
        assert found.iterations[i] < 300


@pytest.mark.parametrize('l2', [1e-4, 1e-2, 1.0])
def test_fit_reaches_the_loss_of_scikit_learn(l2):
    features, labels = blobs(0, 300, width=20)
    reference = LogisticRegression(C=1 / (l2 * 300), tol=1e-8, max_iter=5000)  # its C sums
    reference.fit(features.astype(np.float64), labels)
    flat = np.concatenate([reference.coef_.T.ravel(), reference.intercept_])
    best, _ = objective(flat, features.astype(np.float64), labels, l2, 6)
    found = fit_softmax(features, labels, jnp.array([l2]), num_classes=6)
    assert found.loss[0] == pytest.approx(best, abs=1e-5)


@pytest.mark.slow
def test_chunks_and_one_strength_after_another_find_the_same_optima():
    features, labels = blobs(0, 90, classes=3)
    l2 = jnp.array([1e-4, 1e-2, 1.0])
    whole = fit_softmax(features, labels, l2, num_classes=3)
    # Room for the features, and for one fit but not for three.
    one_fit = 4 * (90 * 8 + 3 * (4 * 90 + 22 * 8))
    for options in ({'chunk': 7}, {'chunk': 45}, {'memory_limit': 2 * one_fit}):
        found = fit_softmax(features, labels, l2, num_classes=3, **options)
        np.testing.assert_allclose(found.loss, whole.loss, rtol=1e-5)
        np.testing.assert_allclose(found.weights, whole.weights, rtol=5e-3, atol=2e-3)
    with pytest.raises(InputError, match='use the SGD protocol'):
        fit_softmax(features, labels, l2, num_classes=3, memory_limit=one_fit - 1)


@pytest.mark.parametrize('at_once', [1, 2])
def test_memory_is_what_is_documented(at_once):
    rows, width, classes = 20_000, 4, 50
    arguments = jnp.zeros((rows, width)), jnp.zeros(rows, jnp.int32), jnp.ones(2)
    one_fit = 4 * classes * (4 * rows + 22 * width)
    program = fit_softmax.lower(
        *arguments,
        num_classes=classes,
        chunk=256,
        memory_limit=4 * rows * width + at_once * one_fit,
    )
    temporary = program.compile().memory_analysis().temp_size_in_bytes
    assert temporary <= 1.05 * at_once * one_fit


def test_fit_of_two_points_by_hand():
    # W = [-u, u] at x = +-1, bias 0: each example costs log(1 + exp(-2 u)), the penalty l2 u^2.
    # Stationary where sigmoid(-2 u) = l2 u; for u = 1/2 that is l2 = 2 / (1 + e).
    l2 = 2 / (1 + np.e)
    found = fit_softmax(
        jnp.array([[-1.0], [1.0]]), jnp.array([0, 1]), jnp.array([l2]), num_classes=2
    )
    np.testing.assert_allclose(found.weights[0], [[-0.5, 0.5]], atol=1e-4)
    np.testing.assert_allclose(found.bias[0], [0.0, 0.0], atol=1e-5)
    assert found.loss[0] == pytest.approx(np.log1p(np.exp(-1)) + l2 / 4, rel=1e-6)


def test_bias_is_not_penalised():
    # With features that say nothing, the optimum is the log of the class frequencies.
    labels = jnp.array([0] * 8 + [1] * 2)
    found = fit_softmax(jnp.zeros((10, 2)), labels, jnp.array([1.0]), num_classes=2)
    assert found.bias[0, 0] - found.bias[0, 1] == pytest.approx(np.log(4), abs=1e-3)
    assert np.abs(found.weights).max() == 0


def test_probe_scores_better_than_chance_and_reports_its_choice():
    train, test = blobs(1, 120, spread=0.5), blobs(2, 60, spread=0.5)
    probe = fit_linear(*train, *test, num_classes=6, l2_grid=GRID)
    predicted = test[0] @ probe.classifier.weights + probe.classifier.bias
    assert probe.top1 == pytest.approx((predicted.argmax(1) == test[1]).mean())
    in_top5 = (np.argsort(-predicted, 1)[:, :5] == test[1][:, None]).any(1)
    assert probe.top5 == pytest.approx(in_top5.mean())
    assert 0.3 < probe.top1 < probe.top5 < 1
    assert set(probe.validation) == {linear.Setting(l2) for l2 in GRID}
    assert probe.validation[probe.chosen] == max(probe.validation.values())


def test_refit_uses_the_whole_training_split():
    x, y = blobs(1, 120, classes=3)
    probe = fit_linear(x, y, x, y, num_classes=3, l2_grid=(1e-2,))
    standard = (x - x.mean(0)) / x.std(0)
    best = reference_optimum(standard, y, 1e-2, 3)
    weights = best.x[: 8 * 3].reshape(8, 3)
    np.testing.assert_allclose(probe.classifier.weights * x.std(0)[:, None], weights, atol=1e-3)
    predicted = (standard @ weights + best.x[8 * 3 :]).argmax(1)
    assert probe.top1 == pytest.approx((predicted == y).mean(), abs=1 / 120)
    assert probe.top5 is None  # three classes


def test_statistics_come_from_the_fitted_examples_alone(monkeypatch):
    fitted = []

    def recorded(features, *arguments, **options):
        fitted.append(features)
        return fit_softmax(features, *arguments, **options)

    monkeypatch.setattr(linear, 'fit_softmax', recorded)
    x, y = blobs(1, 120)
    held = held_out(y, 0.1)
    x = np.where(held[:, None], 10 * x + 100, x)
    fit_linear(x, y, x[:60] - 50, y[:60], num_classes=6, l2_grid=GRID)
    assert [len(features) for features in fitted] == [(~held).sum(), 120]
    for features in fitted:
        np.testing.assert_allclose(features.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(features.std(0), 1, atol=1e-5)


def test_equal_validation_prefers_the_stronger_regularisation():
    x, y = blobs(1, 120, spread=10.0)
    probe = fit_linear(x, y, x, y, num_classes=6, l2_grid=GRID)
    assert set(probe.validation.values()) == {1.0}
    assert probe.chosen.l2 == max(GRID)


def test_invariant_to_affine_rescaling_of_each_dimension():
    (x, y), (test_x, test_y) = blobs(1, 120), blobs(2, 60)
    scale, shift = np.logspace(-4, 4, 8, dtype=np.float32), np.linspace(-3, 3, 8, dtype=np.float32)
    probe = fit_linear(x, y, test_x, test_y, num_classes=6, l2_grid=GRID)
    other = fit_linear(
        scale * (x + shift), y, scale * (test_x + shift), test_y, num_classes=6, l2_grid=GRID
    )
    assert other.chosen.l2 == probe.chosen.l2
    np.testing.assert_allclose(
        other.classifier.weights * scale[:, None], probe.classifier.weights, atol=1e-3
    )
    assert other.top1 == pytest.approx(probe.top1, abs=1 / 60)


def test_constant_dimensions_take_no_part():
    (x, y), (test_x, test_y) = blobs(1, 120), blobs(2, 60)
    x, test_x = x.copy(), test_x.copy()
    x[:, 2], x[:, 5] = 0.0, 1e6 / 3  # a constant whose mean does not come out exact
    x[::2, 5] = np.nextafter(x[0, 5], np.float32(np.inf))
    probe = fit_linear(x, y, test_x, test_y, num_classes=6, l2_grid=GRID)
    assert np.isfinite(probe.classifier.weights).all()
    assert not probe.classifier.weights[[2, 5]].any()
    test_x[:, [2, 5]] = 1e5
    assert fit_linear(x, y, test_x, test_y, num_classes=6, l2_grid=GRID).top1 == probe.top1
    assert probe.top1 > 0.5


def test_a_class_of_one_and_a_class_without_examples():
    x, y = blobs(1, 120)
    given = np.where(y == 5, 3, y)  # no class 5
    given[np.nonzero(y == 4)[0][1:]] = 2  # one of class 4
    probe = fit_linear(x, given, x, y, num_classes=6, l2_grid=GRID)
    predicted = (x @ probe.classifier.weights + probe.classifier.bias).argmax(1)
    assert not (predicted == 5).any()
    assert (predicted == given).mean() > 0.6


def test_one_example_a_class_takes_the_strongest_regularisation():
    x, y = blobs(1, 6, spread=10.0)
    test_x, test_y = blobs(2, 60, spread=10.0)
    probe = fit_linear(x, y, test_x, test_y, num_classes=6, l2_grid=GRID)
    assert probe.validation == {}
    assert probe.chosen == linear.Setting(max(GRID))
    assert probe.top1 > 0.95


def test_deterministic_and_compiled_once(monkeypatch):
    # One program for the selection and one for the refit, whatever comes.
    counted = jax.jit(
        chex.assert_max_traces(inspect.unwrap(fit_softmax), n=2),
        static_argnames=('num_classes', 'max_iterations', 'chunk', 'memory_limit'),
    )
    monkeypatch.setattr(linear, 'fit_softmax', counted)
    train, test = blobs(1, 120), blobs(2, 60)
    probe = fit_linear(*train, *test, num_classes=6, l2_grid=GRID)
    again = fit_linear(*train, *test, num_classes=6, l2_grid=GRID)
    np.testing.assert_array_equal(again.classifier.weights, probe.classifier.weights)
    # Other values, another order of the grid, JAX arrays in half precision: the same programs.
    fit_linear(
        jnp.asarray(train[0] + 1, jnp.bfloat16), train[1], *test, num_classes=6, l2_grid=GRID[::-1]
    )


def test_input_errors_say_what_is_wrong():
    x, y = blobs(1, 12)
    with pytest.raises(InputError, match='fewer than two classes'):
        fit_linear(x, 0 * y, x, y, num_classes=6)
    broken = x.copy()
    broken[3, 1] = np.nan
    with pytest.raises(InputError, match='training split hold NaN'):
        fit_linear(broken, y, x, y, num_classes=6)
    with pytest.raises(InputError, match='test split hold NaN'):
        fit_linear(x, y, broken, y, num_classes=6)


def test_misuse_is_an_error():
    x, y = blobs(1, 12)
    with pytest.raises(ValueError, match='labels'):
        fit_linear(x, y[:-1], x, y, num_classes=6)
    with pytest.raises(ValueError, match=r'in \[0, 5\)'):
        fit_linear(x, y, x, y, num_classes=5)
    with pytest.raises(ValueError, match='widths'):
        fit_linear(x, y, x[:, 1:], y, num_classes=6)
    with pytest.raises(ValueError, match='holdout'):
        fit_linear(x, y, x, y, num_classes=6, holdout=1.0)
    with pytest.raises(ValueError, match='l2_grid'):
        fit_linear(x, y, x, y, num_classes=6, l2_grid=(0.0, 1.0))
