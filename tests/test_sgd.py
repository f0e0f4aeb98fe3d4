"""The published linear protocol: its steps, its sweep, its choice, and where features come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import blobs

from bagssl_jax.errors import InputError
from bagssl_jax.parallel import batch_sharded, make_mesh
from bagssl_jax.probes import sgd
from bagssl_jax.probes.labels import held_out
from bagssl_jax.probes.sgd import Setting, fit_sgd

CLASSES = 6
GRID = (Setting(0.5, 1e-4), Setting(0.05, 1e-2), Setting(0.05, 0.0))
FEW = {'num_classes': CLASSES, 'settings': GRID, 'epochs': 4, 'batch_size': 16}


@pytest.fixture(scope='module')
def splits():
    return *blobs(1, 120), *blobs(2, 60)


def reference(batches, setting, width, steps, held=1, nesterov=True):
    """torch.optim.SGD, transcribed, on softmax regression, in float64.

    CosineAnnealingLR is stepped after every `held` batches.
    """
    parameters, momentum = np.zeros((width + 1, CLASSES)), np.zeros((width + 1, CLASSES))
    for step, (x, y) in enumerate(batches):
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)  # the bias decays with the rest
        p = np.exp(x @ parameters)
        p /= p.sum(1, keepdims=True)
        gradient = x.T @ (p - np.eye(CLASSES)[y]) / len(x) + setting.weight_decay * parameters
        momentum = 0.9 * momentum + gradient
        done = step // held * held / steps
        rate = setting.learning_rate * len(x) / 256 * 0.5 * (1 + np.cos(np.pi * done))
        parameters = parameters - rate * (gradient + 0.9 * momentum if nesterov else momentum)
    return parameters[:-1], parameters[-1]


@pytest.mark.parametrize('options', [{}, {'held': 3, 'nesterov': False}])
def test_every_classifier_of_the_sweep_takes_the_steps_of_the_reference(options):
    x, y = blobs(1, 120)
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 112, 16)]
    sweep = sgd.start(GRID, width=8, num_classes=CLASSES, batch_size=16, steps=7, **options)
    for batch in batches:
        sweep = sgd.update(sweep, *batch)
    for i, setting in enumerate(GRID):
        weights, bias = reference(batches, setting, 8, 7, **options)
        np.testing.assert_allclose(sweep.weights[:, i], weights, atol=1e-6)
        np.testing.assert_allclose(sweep.bias[i], bias, atol=1e-6)
    if options:
        return
    # The cosine has come to its end: nothing moves any more.
    after = sgd.update(sweep, *batches[0])
    np.testing.assert_array_equal(after.weights, sweep.weights)


def test_one_step_by_hand():
    # At zero both classes have probability 1/2: the gradient on x = 2 of class 0 is [-1, 1], and
    # 0.5 of that for the bias. The step is rate (1 + 0.9) of it, the rate 0.1 * 1 / 256.
    sweep = sgd.start([Setting(0.1, 0.0)], width=1, num_classes=2, batch_size=1, steps=10)
    sweep = sgd.update(sweep, jnp.array([[2.0]]), jnp.array([0]))
    move = 0.1 / 256 * 1.9
    np.testing.assert_allclose(sweep.weights[:, 0], [[move, -move]], rtol=1e-6)
    np.testing.assert_allclose(sweep.bias, [[move / 2, -move / 2]], rtol=1e-6)


def test_features_are_read_once_for_all_settings():
    def products(settings):
        sweep = sgd.start(GRID[:settings], width=8, num_classes=6, batch_size=16, steps=7)
        text = str(jax.make_jaxpr(sgd.update)(sweep, jnp.zeros((16, 8)), jnp.zeros(16, int)))
        return text.count('dot_general')

    assert products(1) == products(3) == 2


def test_scores_its_refit_and_reports_its_choice(splits):
    probe = fit_sgd(*splits, **FEW)
    predicted = splits[2] @ probe.classifier.weights + probe.classifier.bias
    assert probe.score.top1 == pytest.approx((predicted.argmax(1) == splits[3]).mean())
    assert 0.5 < probe.score.top1 < probe.score.top5 <= 1
    assert set(probe.validation) == set(GRID)
    assert probe.validation[probe.chosen] == max(probe.validation.values())


def test_one_setting_needs_nothing_held_out(splits):
    alone = fit_sgd(*splits, **{**FEW, 'settings': GRID[:1], 'holdout': 0})
    assert (alone.chosen, alone.validation) == (GRID[0], {})
    assert alone.score == fit_sgd(*splits, **{**FEW, 'settings': GRID[:1]}).score


def test_each_setting_is_trained_as_if_alone(splits):
    together = fit_sgd(*splits, **FEW)
    for setting in GRID:
        alone = fit_sgd(*splits, **{**FEW, 'settings': [setting]})
        assert alone.validation[setting] == together.validation[setting]
    alone = fit_sgd(*splits, **{**FEW, 'settings': [together.chosen]})
    np.testing.assert_array_equal(alone.classifier.weights, together.classifier.weights)


@pytest.mark.parametrize('standardise', [True, False])
def test_a_memory_map_and_sharded_features_give_the_same_probe(splits, standardise, tmp_path):
    x, y, test_x, test_y = splits
    probe = fit_sgd(*splits, **FEW, standardise=standardise)
    mapped = np.memmap(tmp_path / 'features', np.float32, 'w+', shape=x.shape)
    mapped[:] = x
    streamed = fit_sgd(mapped, y, test_x, test_y, **FEW, standardise=standardise, device_limit=0)
    sharded = jax.device_put(x, batch_sharded(make_mesh()))
    for other in (
        streamed,
        fit_sgd(sharded, y, test_x, test_y, **FEW, standardise=standardise),
    ):
        assert other.chosen == probe.chosen
        assert other.validation == probe.validation
        np.testing.assert_allclose(other.classifier.weights, probe.classifier.weights, atol=1e-5)
        np.testing.assert_allclose(other.classifier.bias, probe.classifier.bias, atol=1e-5)


def test_every_row_that_is_fitted_comes_once_an_epoch_in_an_order_of_its_own():
    rows = np.arange(50, 83)
    orders = [
        np.asarray(sgd.shuffled_batches(jax.random.key(0), epoch, rows, 8)) for epoch in range(2)
    ]
    for order in orders:
        assert order.shape == (4, 8)
        assert len(set(order.ravel().tolist())) == 32  # one of 33 fills no batch
        assert set(order.ravel().tolist()) <= set(rows.tolist())
    assert (orders[0] != orders[1]).any()


def test_augmented_batches_take_the_place_of_the_features(splits):
    x, y, test_x, test_y = splits
    asked = []

    def crops(rows, epoch):
        asked.append((len(rows), epoch))
        rng = np.random.default_rng(epoch)
        for batch in rng.permutation(rows)[: len(rows) // 16 * 16].reshape(-1, 16):
            # What makes the class visible is in the crops alone: dimensions in reverse.
            yield x[batch][:, ::-1] + rng.normal(size=(16, 8), scale=0.1), y[batch]

    probe = fit_sgd(x, y, test_x[:, ::-1], test_y, **FEW, standardise=False, augmented=crops)
    fitted = int((~held_out(y, 0.1)).sum())
    assert asked == [(fitted, e) for e in range(4)] + [(120, e) for e in range(4)]
    assert probe.score.top1 > 0.5 > fit_sgd(x, y, test_x[:, ::-1], test_y, **FEW).score.top1
    with pytest.raises(ValueError, match='expected 24 batches in 4 epochs, got 20'):
        fit_sgd(*splits, **FEW, augmented=lambda rows, epoch: list(crops(rows, epoch))[1:])


def test_a_setting_that_diverges_is_right_nowhere(splits):
    diverging = Setting(1e30, 1e3)
    probe = fit_sgd(*splits, **{**FEW, 'settings': (diverging, GRID[0])})
    assert probe.validation[diverging] == 0
    assert probe.chosen == GRID[0]
    assert fit_sgd(*splits, **{**FEW, 'settings': [diverging]}).score.top1 == 0


def test_equal_settings_prefer_the_smaller_rate_then_the_larger_decay():
    x, y = blobs(1, 120, spread=20.0)
    probe = fit_sgd(x, y, x, y, **FEW)
    assert set(probe.validation.values()) == {1.0}
    assert probe.chosen == Setting(0.05, 1e-2)


def test_one_example_a_class_compares_with_it():
    x, y = blobs(1, CLASSES, spread=10.0)
    test_x, test_y = blobs(2, 60, spread=10.0)
    probe = fit_sgd(x, y, test_x, test_y, **FEW)
    assert probe.validation == {}
    assert probe.chosen == Setting(0.05, 1e-2)
    assert probe.score.top1 > 0.95


def test_standardisation_makes_the_probe_blind_to_scale_and_shift(splits):
    x, y, test_x, test_y = splits
    scale, shift = np.logspace(-4, 4, 8, dtype=np.float32), np.linspace(-3, 3, 8, dtype=np.float32)
    probe = fit_sgd(*splits, **FEW)
    other = fit_sgd(scale * (x + shift), y, scale * (test_x + shift), test_y, **FEW)
    assert other.chosen == probe.chosen
    np.testing.assert_allclose(
        other.classifier.weights * scale[:, None], probe.classifier.weights, atol=1e-4
    )
    raw = fit_sgd(x * 1e-3, y, test_x * 1e-3, test_y, **FEW, standardise=False)
    assert np.abs(raw.classifier.weights).max() < 1e-2 * np.abs(probe.classifier.weights).max()


def test_unusable_input_is_an_error(splits):
    x, y, test_x, test_y = splits
    with pytest.raises(InputError, match='fewer than two classes'):
        fit_sgd(x, 0 * y, test_x, test_y, **FEW)
    with pytest.raises(InputError, match='test split hold NaN'):
        fit_sgd(x, y, test_x * np.nan, test_y, **FEW)
    for wrong in ({'epochs': 0}, {'batch_size': 0}, {'settings': ()}):
        with pytest.raises(ValueError, match='not positive or empty'):
            fit_sgd(*splits, **{**FEW, **wrong})
    with pytest.raises(ValueError, match='learning rates must be positive'):
        fit_sgd(*splits, **{**FEW, 'settings': [Setting(0.0, 0.0)]})
