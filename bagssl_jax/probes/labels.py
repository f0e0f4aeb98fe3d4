"""Labels: which examples are held out to choose on, and which few are given to learn from."""

import numpy as np

from bagssl_jax.errors import InputError


def few(
    labels: np.ndarray, *, per_class: int | None = None, share: float | None = None, seed: int
) -> np.ndarray:
    """Rows of a small labelled training split, drawn at random from each class.

    A class's draw depends on the seed and on its own rows alone, and a smaller draw is part of
    every larger one: the one image a class is among the five, those 1% among the 10%.

    Args:
      labels: int [n].
      per_class: images of each class that occurs; or instead
      share: the share of each class, in (0, 1]: rounded, at least one image.
      seed: of the draw.

    Returns:
      int64, ascending.

    Raises:
      InputError: a class has fewer than `per_class` images.
      ValueError: not exactly one of `per_class` and `share`, or one out of range.
    """
    if (per_class is None) == (share is None):
        raise ValueError(f'give one of {per_class=} and {share=}')
    if (per_class is not None and per_class < 1) or (share is not None and not 0 < share <= 1):
        raise ValueError(f'out of range: {per_class=} or {share=}')
    drawn = []
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        count = per_class or max(1, round(share * len(members)))
        if count > len(members):
            raise InputError(
                f'{count} labels a class: class {label} has only {len(members)} training images; '
                'ask for fewer, or for a share such as 10%'
            )
        rng = np.random.default_rng([seed, int(label)])
        drawn.append(rng.permutation(members)[:count])
    return np.sort(np.concatenate(drawn))


def parse_labels(text: str) -> dict[str, int | float]:
    """What of `few` a row's name asks for: '5' is {'per_class': 5}, '1%' is {'share': 0.01}.

    Raises:
      InputError: neither a positive whole number nor a percentage in (0, 100].
    """
    try:
        if text.endswith('%'):
            parsed = {'share': float(text.removesuffix('%')) / 100}
            fits = 0 < parsed['share'] <= 1
        else:
            parsed = {'per_class': int(text)}
            fits = parsed['per_class'] > 0
    except ValueError:
        fits = False
    if not fits:
        raise InputError(
            f'labels {text!r}: give images a class, such as 10, or a percentage, such as 1%'
        )
    return parsed


def held_out(labels: np.ndarray, share: float) -> np.ndarray:
    """Boolean [n]: the last `share` of each class, in the order given.

    Frames of one film or tiles of one photograph are neighbours in that order, and a random
    choice would put them on both sides. A class of two or more is on both sides, a class of one
    is not held out.
    """
    if not 0 < share < 1:
        raise ValueError(f'holdout must be between 0 and 1, not {share}')
    held = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        count = min(max(round(share * len(members)), 1), len(members) - 1)
        held[members[len(members) - count :]] = True
    return held
