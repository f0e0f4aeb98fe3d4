"""How sure a mean over images is: percentile intervals of the bootstrap."""

import numpy as np

RESAMPLES = 1000


def mean_intervals(values: np.ndarray, *, confidence: float = 0.95, seed: int = 0) -> np.ndarray:
    """Intervals of means over images, which are taken as drawn independently.

    The percentile bootstrap (Efron 1979): the images are drawn anew with replacement,
    `RESAMPLES` times, the same draws for all columns.

    Args:
      values: float [b ...], of b images.
      confidence: the share of resampled means that the interval holds.
      seed: of the draws.

    Returns:
      float64 [2 ...]: the lower and the upper ends.
    """
    b = len(values)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(b, np.full(b, 1 / b), RESAMPLES) / b  # [r b]
    means = np.tensordot(weights, np.asarray(values, np.float64), axes=1)  # [r ...]
    outside = (1 - confidence) / 2
    return np.quantile(means, [outside, 1 - outside], axis=0)
