"""The augmented linear protocol: features of fresh random crops in every epoch."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from bagssl_jax.data import crops, pipeline, sources
from bagssl_jax.probes.sgd import Batches

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """One random resized crop of an image, mirrored half of the time: uint8 [b 1 side side c].

    It depends on the seed, the epoch and the number of the image alone. The area is a share of
    0.08 to 1 of the image's, as in torchvision's RandomResizedCrop and the published protocols.
    """

    side: int
    seed: int
    epoch: int
    size: int = 0

    def cut(self, images: crops.Images, numbers: np.ndarray) -> np.ndarray:
        random_crops = crops.MultiscaleCrops(1, self.side, SCALE, RATIO)
        rngs = [np.random.default_rng([self.seed, self.epoch, i]) for i in numbers.tolist()]
        draws = np.concatenate([random_crops.draw(rng, 1) for rng in rngs])
        heights, widths = np.array([image.shape[:2] for image in images]).T
        patches = crops.cut(
            list(images), random_crops.boxes(draws, heights, widths), resize=self.side
        )
        mirrored = np.array([rng.random() < 0.5 for rng in rngs])
        patches[mirrored] = patches[mirrored][..., ::-1, :]
        return patches


def make_batches(
    source: sources.Source,
    embed: Callable[[np.ndarray], np.ndarray],
    *,
    side: int,
    batch_size: int,
    seed: int,
    workers: int,
) -> Batches:
    """What `fit_sgd` takes as `augmented`: (rows [r], epoch) -> that epoch's features and labels.

    Args:
      source: all of whose images can be read.
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
        view = RandomCrop(side, seed, epoch)
        for batch in pipeline.bag_batches(
            source, view, batch_size=size, workers=workers, numbers=chosen
        ):
            yield embed(batch.patches[:, 0]), batch.labels

    return batches
