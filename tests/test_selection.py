"""How linear, SGD and kNN choose their settings: by the training split alone, all in one way."""

import functools
from typing import NamedTuple

import numpy as np
import pytest
from conftest import blobs

from bagssl_jax.probes.knn import fit_knn
from bagssl_jax.probes.labels import held_out
from bagssl_jax.probes.linear import fit_linear
from bagssl_jax.probes.selection import choose_and_score
from bagssl_jax.probes.sgd import Setting, fit_sgd
from bagssl_jax.probes.splits import labelled_splits

CLASSES = 6
PROBES = {
    'linear': functools.partial(fit_linear, l2_grid=(1e-4, 1e-2, 1.0)),
    'sgd': functools.partial(
        fit_sgd,
        settings=(Setting(0.5, 1e-4), Setting(0.05, 1e-2), Setting(0.05, 0.0)),
        epochs=4,
        batch_size=16,
    ),
    'knn': fit_knn,
}


@pytest.mark.parametrize('name', PROBES)
def test_choice_and_weights_do_not_depend_on_the_test_split(name):
    fit, train, (test_x, test_y) = PROBES[name], blobs(1, 120), blobs(2, 60)
    probe = fit(*train, test_x, test_y, num_classes=CLASSES)
    other = fit(*train, 5 - 3 * test_x, test_y[::-1], num_classes=CLASSES)
    assert other.top1 != probe.top1
    assert (other.chosen, other.validation) == (probe.chosen, probe.validation)
    assert probe.validation[probe.chosen] == max(probe.validation.values())
    if name == 'knn':
        assert probe.classifier is None
    else:
        np.testing.assert_array_equal(other.classifier.weights, probe.classifier.weights)
        np.testing.assert_array_equal(other.classifier.bias, probe.classifier.bias)


@pytest.mark.parametrize('name', PROBES)
def test_choice_is_made_on_the_held_out_part_and_fitted_without_it(name):
    # Held-out labels that contradict the rest: any probe that had seen them would do better.
    x, y = blobs(1, 120, spread=4.0)
    held = held_out(y, 0.1)
    wrong = np.where(held, (y + 1) % CLASSES, y)
    probe = PROBES[name](x, wrong, x, y, num_classes=CLASSES)
    assert not held.all()
    assert max(probe.validation.values()) < 0.2


class Share(NamedTuple):
    """The setting of a probe that is right on so many of the rows, always the first."""

    right: float
    name: str


class Fit(NamedTuple):
    settings: list
    classifier: None = None

    def ranks(self, x, y, used):
        count = int(used.sum())
        return {s: (np.arange(count) >= s.right * count).astype(int) for s in self.settings}


def test_the_first_of_the_best_is_refitted_on_everything_and_scored_once():
    fits = []

    def fit(used, settings):
        fits.append((int(used.sum()), settings))
        return Fit(settings)

    splits = labelled_splits(*blobs(1, 120), *blobs(2, 60), CLASSES)
    grid = [Share(0.5, 'a'), Share(0.75, 'b'), Share(0.75, 'c'), Share(0.25, 'd')]
    choose = functools.partial(choose_and_score, fit=fit, num_classes=CLASSES, holdout=0.2)
    probe = choose(splits, grid)
    assert probe.chosen == Share(0.75, 'b')
    assert probe.validation == {setting: setting.right for setting in grid}
    assert fits == [(96, grid), (120, [Share(0.75, 'b')])]
    assert (probe.top1, probe.score.n, probe.fixed) == (0.75, 60, None)

    fits.clear()
    probe = choose(splits, grid, fixed=grid[3])
    assert fits == [(96, grid), (120, [Share(0.75, 'b'), grid[3]])]
    assert (probe.chosen, probe.top1, probe.fixed.top1) == (Share(0.75, 'b'), 0.75, 0.25)

    # Nothing can be held out of one example a class: the first, or the fixed.
    splits = labelled_splits(*blobs(1, CLASSES), *blobs(2, 60), CLASSES)
    for fixed, expected in ((None, grid[0]), (grid[3], grid[3])):
        fits.clear()
        probe = choose(splits, grid, fixed=fixed)
        assert (probe.chosen, probe.validation) == (expected, {})
        assert fits == [(CLASSES, [expected])]
