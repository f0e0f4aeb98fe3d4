"""The probes by name, and the rows of results.json that they fill."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bagssl_jax.probes.classifiers import Classifier
from bagssl_jax.probes.knn import TEMPERATURE, K, fit_knn
from bagssl_jax.probes.label_free import alignment, rankme, uniformity
from bagssl_jax.probes.labels import few, parse_labels
from bagssl_jax.probes.linear import fit_linear
from bagssl_jax.probes.scores import Score
from bagssl_jax.probes.sgd import Batches, Setting, fit_sgd

ALL = 'all'
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """A set of features, and what is known of them."""

    train_x: np.ndarray  # float [n d]
    train_y: np.ndarray  # int [n]
    test_x: np.ndarray  # float [m d]
    test_y: np.ndarray  # int [m]
    num_classes: int
    about: Mapping[str, Any]  # what a row says of the features: encoder, view, patches, ...
    seed: int  # of which images are drawn, and of whatever a probe draws
    labels: str = ALL  # which images of the training split these are: 'all', '5' a class, '1%'
    fresh_crops: Batches | None = None  # as `fit_sgd` takes them; None where there are none

    @property
    def splits(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.train_x, self.train_y, self.test_x, self.test_y


class Scored(NamedTuple):
    """What a probe has found."""

    row: Row
    classifier: Classifier | None = None  # of the linear probe


def score_all(
    case: Case,
    probes: Mapping[str, Mapping[str, Any]],
    labels: Sequence[str],
    tell: Callable[[str], None] = lambda _: None,
) -> list[Scored]:
    """The rows of one set of features: for each of `labels`, then of what takes all images.

    Args:
      case: the features, of all images of the training split.
      probes: names, keys of `PROBES`, with the settings of each.
      labels: which images of the training split to learn from, as `check_labels` has them.
      tell: is called with the name of each probe before it begins.

    Raises:
      InputError: what the probes refuse, or labels that are not there.
    """
    found = []
    for part in labels:
        given = _few(case, part)
        for name, settings in probes.items():
            if PROBES[name].few_labels:
                tell(name)
                found += _scored(given, name, settings)
    for name, settings in probes.items():
        if not PROBES[name].few_labels:
            tell(name)
            found += _scored(case, name, settings)
    return found


def check_labels(text: str) -> None:
    """Raises InputError for what `probe.labels` cannot hold."""
    if text != ALL:
        parse_labels(text)


def _few(case: Case, labels: str) -> Case:
    if labels == ALL:
        return case
    drawn = few(case.train_y, **parse_labels(labels), seed=case.seed)
    return dataclasses.replace(
        case, train_x=case.train_x[drawn], train_y=case.train_y[drawn], labels=labels
    )


def _scored(case: Case, name: str, settings: Mapping[str, Any]) -> list[Scored]:
    sizes = {'n_test': len(case.test_y), 'n_train': len(case.train_y)}
    return [
        found._replace(row={**case.about, 'labels': case.labels, **found.row, **sizes})
        for found in PROBES[name].score(case, **settings)
    ]


def _linear(case: Case) -> list[Scored]:
    found = fit_linear(*case.splits, num_classes=case.num_classes)
    return [_scores('linear', found.score, found.chosen._asdict(), found.classifier)]


def _sgd(case: Case, *, epochs: int) -> list[Scored]:
    found = fit_sgd(*case.splits, num_classes=case.num_classes, epochs=epochs, seed=case.seed)
    return [_scores('sgd', found.score, found.chosen._asdict())]


def _sgd_empssl(case: Case) -> list[Scored]:
    """EMP-SSL's linear head (tsb0601/EMP-SSL, func.py): one setting, and its last epoch.

    SGD of learning rate 0.03 with momentum that is not Nesterov's, batches of 100, weight decay
    5e-5, a cosine an epoch over 100, features as they are. It starts at zero, theirs at nn.Linear's
    random numbers: the objective is convex.
    """
    return _last_epoch(case, 'sgd_empssl', Setting(0.03 * 256 / 100, 5e-5), batch_size=100)


def _sgd_vicreg(case: Case) -> list[Scored]:
    """VICReg's linear head (facebookresearch/vicreg, evaluate.py): one setting, its last epoch.

    SGD of learning rate 0.02, as in the command of its README, with momentum that is not
    Nesterov's, batches of 256, weight decay 1e-6, a cosine an epoch over 100, features as they are.
    Theirs sees fresh random crops in every epoch, and starts at N(0, 0.01), this one at zero.
    """
    return _last_epoch(case, 'sgd_vicreg', Setting(0.02, 1e-6), batch_size=256)


def _last_epoch(case: Case, name: str, setting: Setting, *, batch_size: int) -> list[Scored]:
    """What the two have in common: nothing is chosen, and the hundredth epoch is scored."""
    found = fit_sgd(
        *case.splits,
        num_classes=case.num_classes,
        settings=[setting],
        epochs=100,
        batch_size=batch_size,
        standardise=False,
        nesterov=False,
        by_epoch=True,
        holdout=0,
        seed=case.seed,
    )
    return [_scores(name, found.score, setting._asdict())]


def _sgd_augmented(case: Case, *, epochs: int) -> list[Scored]:
    """The linear probe that sees fresh random crops in every epoch, where there are any."""
    if case.fresh_crops is None:
        return []
    found = fit_sgd(
        *case.splits,
        num_classes=case.num_classes,
        epochs=epochs,
        seed=case.seed,
        augmented=case.fresh_crops,
    )
    return [_scores('sgd_augmented', found.score, found.chosen._asdict())]


def _knn(case: Case) -> list[Scored]:
    """With the usual k and temperature, and with those that the training split chooses."""
    found = fit_knn(*case.splits, num_classes=case.num_classes)
    return [
        _scores('knn', found.fixed, {'k': K, 'temperature': TEMPERATURE}),
        _scores('knn_chosen', found.score, found.chosen._asdict()),
    ]


def _alignment(case: Case) -> list[Scored]:
    """Of the means of unit vectors, in bags of two patches or more; no row for all others."""
    if case.about['aggregation'] != 'mean_unit' or case.about['patches'] < 2:
        return []
    return [_value('alignment', alignment(case.train_x, case.about['patches']))]


def _rankme(case: Case) -> list[Scored]:
    return [_value('rankme', rankme(case.train_x))]


def _uniformity(case: Case) -> list[Scored]:
    return [_value('uniformity', uniformity(case.train_x))]


def _scores(
    name: str,
    score: Score,
    chosen: Mapping[str, float],
    classifier: Classifier | None = None,
) -> Scored:
    row = {
        'probe': name,
        'top1': score.top1,
        'top5': score.top5,
        'interval': score.interval,
        'per_class': score.per_class,
        'chosen': dict(chosen),
    }
    return Scored(row, classifier)


def _value(name: str, value: float) -> Scored:
    return Scored({'probe': name, 'top1': None, 'top5': None, 'value': value})


class Probe(NamedTuple):
    """An entry of the registry."""

    score: Callable[..., list[Scored]]  # of a case, and its settings as keywords
    few_labels: bool  # scored with each of the asked labels, else once with all


PROBES: dict[str, Probe] = {
    'linear': Probe(_linear, few_labels=True),
    'sgd': Probe(_sgd, few_labels=True),
    'sgd_empssl': Probe(_sgd_empssl, few_labels=True),
    'sgd_vicreg': Probe(_sgd_vicreg, few_labels=True),
    'knn': Probe(_knn, few_labels=True),
    'sgd_augmented': Probe(_sgd_augmented, few_labels=False),
    'alignment': Probe(_alignment, few_labels=False),
    'rankme': Probe(_rankme, few_labels=False),
    'uniformity': Probe(_uniformity, few_labels=False),
}
