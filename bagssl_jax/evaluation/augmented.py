"""The augmented linear protocol: features of fresh random crops in every epoch."""

from collections.abc import Callable, Iterator

import numpy as np

from bagssl_jax.data.datasets import Images
from bagssl_jax.data.views import FreshCrop
from bagssl_jax.probes.sgd import Batches


def make_batches(
    images: Images,
    embed: Callable[[np.ndarray], np.ndarray],
    *,
    side: int,
    batch_size: int,
    seed: int,
    workers: int,
) -> Batches:
    """What `fit_sgd` takes as `augmented`: (rows [r], epoch) -> that epoch's features and labels.

    Args:
      images: all of whose images can be read.
      embed: uint8 [b side side c] -> features float32 [b d].
      side: of the crops in pixels.
      batch_size: of `fit_sgd`.
      seed: of the order and the crops.
      workers: of the pipeline.
    """

    def batches(rows: np.ndarray, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        size = min(batch_size, len(rows))
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        chosen = order[: len(rows) // size * size]
        view = FreshCrop(side, seed, epoch)
        for batch in images.bags(view, batch_size=size, workers=workers, numbers=chosen):
            yield embed(batch.patches[:, 0]), batch.labels

    return batches
