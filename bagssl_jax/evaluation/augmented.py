"""What probes see augmented: fresh random crops in every epoch, or the patches of bags."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bagssl_jax.augment import augment
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


Augmentation = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def make_augmentation(settings: Mapping[str, Any], *, seed: int) -> Augmentation:
    """What augments bags, as EMP-SSL's evaluate.py does those of training and test images.

    Args:
      settings: of `augment.augment`, as in the configuration's group.
      seed: of the draws, which depend on it, the split, the image and the patch alone.

    Returns:
      (patches uint8 [b p h w c], numbers of the images int [b], number of the split) -> the same
      patches, augmented and rounded to grey levels, uint8 [b p h w c].
    """

    @functools.partial(jax.jit, static_argnames='count')
    def augmented(key, patches, indices, count):
        x = augment(key, patches, indices, **settings, count=count)
        return jnp.round(255 * x).astype(jnp.uint8)

    def augmentation(patches: np.ndarray, numbers: np.ndarray, split: int) -> np.ndarray:
        count = patches.shape[1]
        indices = numbers[:, None] * count + np.arange(count)  # [b p]
        flat = patches.reshape(-1, *patches.shape[2:])  # [b p h w c] -> [n h w c]
        key = jax.random.fold_in(jax.random.key(seed), split)
        found = augmented(key, flat, indices.reshape(-1).astype(np.int32), count)
        return np.asarray(found).reshape(patches.shape)

    return augmentation
