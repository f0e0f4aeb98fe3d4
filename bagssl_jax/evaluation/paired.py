"""Bags against whole images and center crops on the same perturbed images, image by image.

What two probes tell right depends on the same images: an interval of the difference has to be made
of its differences on each image, and is narrower than two intervals side by side let one think.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bagssl_jax.evaluation.heads import Outcome
from bagssl_jax.evaluation.scoring import Row
from bagssl_jax.probes.scores import paired

OTHERS = ('whole', 'center')
MEAN = 'mean'  # over corruptions


class _Who(NamedTuple):
    encoder: str
    space: str
    view: str
    patches: int
    aggregation: str


def differences(outcomes: Sequence[Outcome]) -> list[Row]:
    """The rows of 'differences' in results.json: of each bag, less each of `OTHERS` that there is.

    Each has 'encoder', 'space', 'view', 'patches', 'aggregation', 'less' (one of `OTHERS`, of the
    same encoder and space), 'difference' (of top-1), 'interval' (of 95%, as `paired` makes it),
    'n_test', and the condition: 'attack', 'norm' and 'radius', or 'corruption', which is 'none' or
    'mean', over all of them, and 'severity', which is None for the mean over these too.
    """
    found = {}
    for outcome in outcomes:
        who = _Who(*(outcome.row[name] for name in _Who._fields))
        found.setdefault(who, []).append(outcome)
    rows = []
    for who, own in found.items():
        for other in OTHERS if who.view == 'bag' else ():
            theirs = [
                outcome
                for against, of in found.items()
                if (against.encoder, against.space, against.view) == (who.encoder, who.space, other)
                for outcome in of
            ]
            about = {**who._asdict(), 'less': other}
            rows += [{**about, **row} for row in _compared(own, theirs)]
    return rows


def _compared(own: Sequence[Outcome], theirs: Sequence[Outcome]) -> Iterator[Row]:
    """A row for every condition that both were tried in."""
    mine, others = _by_condition(own), _by_condition(theirs)
    # Means over severities come last.
    both = [condition for condition in mine if condition in others]
    for condition in sorted(both, key=lambda condition: ('severity', None) in condition):
        numbers, first, second = _on_the_same(mine[condition], others[condition])
        if len(numbers):
            difference, interval = paired(first, second)
            yield {
                **dict(condition),
                'difference': difference,
                'interval': interval,
                'n_test': len(numbers),
            }


def _by_condition(outcomes: Sequence[Outcome]) -> dict[tuple, list[Outcome]]:
    """The outcomes of each condition that is compared, one or those that are averaged over."""
    found = {}
    for outcome in outcomes:
        row = outcome.row
        if 'attack' in row:
            names = [tuple((key, row[key]) for key in ('attack', 'norm', 'radius'))]
        elif not row['severity']:
            names = [(('corruption', row['corruption']), ('severity', row['severity']))]
        else:
            names = [(('corruption', MEAN), ('severity', s)) for s in (row['severity'], None)]
        for name in names:
            found.setdefault(name, []).append(outcome)
    return found


def _on_the_same(
    mine: Sequence[Outcome], others: Sequence[Outcome]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The numbers of the images that both saw, and the share of conditions in which each is right.

    Of several processes, they come in another order than the numbers'.
    """
    numbers, first, second = np.intersect1d(mine[0].numbers, others[0].numbers, return_indices=True)
    return numbers, _shares(mine)[first], _shares(others)[second]


def _shares(outcomes: Sequence[Outcome]) -> np.ndarray:
    """Float [n], of outcomes on the same images in the same order."""
    return np.mean([outcome.right for outcome in outcomes], axis=0)
