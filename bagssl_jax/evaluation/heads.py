"""Linear probes that are kept, and the test images that they are tried on once more."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bagssl_jax.data.datasets import Images
from bagssl_jax.embedding.bags import Representation
from bagssl_jax.embedding.encoder import FrozenEncoder
from bagssl_jax.evaluation.passes import Pass
from bagssl_jax.evaluation.scoring import ALL, Scored
from bagssl_jax.probes.classifiers import Classifier
from bagssl_jax.probes.scores import wilson


class Key(NamedTuple):
    """What a head's features are called by `embedding.bags.represent`."""

    encoder: str
    space: str
    representation: Representation


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """A linear probe of one kind of features, learned from clean training images.

    Attributes:
      key: of the features.
      encoder: that embeds.
      one: the pass in which the features were made.
      classifier: of the features.
      about: what the rows of results.json say of it.
    """

    key: Key
    encoder: FrozenEncoder
    one: Pass
    classifier: Classifier
    about: Mapping[str, Any]

    def outcome(self, numbers: np.ndarray, right: np.ndarray, **about: Any) -> 'Outcome':
        """What came out, in circumstances that it is `about`; of which images and for each."""
        images, told = len(numbers), int(right.sum())
        found = {'top1': told / images, 'top5': None, 'interval': wilson(told, images)}
        return Outcome({**self.about, **about, **found, 'n_test': images}, numbers, right)


class Outcome(NamedTuple):
    """How a head stands in one condition.

    Attributes:
      row: of results.json.
      numbers: int [n], of the images.
      right: bool [n], whether each is told right.
    """

    row: dict[str, Any]
    numbers: np.ndarray
    right: np.ndarray


def heads_of(scored: Sequence[Scored], key: Key, encoder: FrozenEncoder, one: Pass) -> list[Head]:
    """The linear probes, of all labels, among what was found of one kind of features."""
    outcomes = ('top1', 'top5', 'interval', 'per_class', 'chosen', 'n_test')
    return [
        Head(
            key,
            encoder,
            one,
            found.classifier,
            {name: value for name, value in found.row.items() if name not in outcomes},
        )
        for found in scored
        if found.classifier is not None and found.row['labels'] == ALL
    ]


@dataclasses.dataclass(frozen=True)
class Trial:
    """What heads are tried on.

    Attributes:
      images: of the test split.
      flip: whether mirrored patches are averaged in.
      seed: of the images that are drawn, and of their perturbations.
      on_error: 'stop' at an unreadable image, or 'skip' it.
    """

    images: Images
    flip: bool
    seed: int
    on_error: str

    def draw(self, most: int) -> np.ndarray:
        """The numbers of so many images, drawn at random, ascending: int [n]."""
        return np.sort(np.random.default_rng(self.seed).permutation(len(self.images))[:most])
