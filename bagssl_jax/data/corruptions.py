"""The fifteen common corruptions of CIFAR-10-C and ImageNet-C, in five severities.

Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations, ICLR 2019. Of the same images with the same seed, the same corrupted ones: the random
numbers depend on the seed, the number of the image, the corruption and its severity alone.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from bagssl_jax.data import distortions
from bagssl_jax.data.cut import Pixels
from bagssl_jax.data.views import View
from bagssl_jax.errors import InputError, check_known

SEVERITIES = (1, 2, 3, 4, 5)
SMALL = 64  # pixels: up to this shorter side, the strengths of CIFAR-10-C, else of ImageNet-C

# Strengths by severity, as make_cifar_c.py has them for images of 32 pixels.
CIFAR: dict[str, tuple[Any, ...]] = {
    'gaussian_noise': (0.04, 0.06, 0.08, 0.09, 0.10),
    'shot_noise': (500, 250, 100, 75, 50),
    'impulse_noise': (0.01, 0.02, 0.03, 0.05, 0.07),
    'defocus_blur': ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    'glass_blur': ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    'motion_blur': ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    'zoom_blur': ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    'snow': (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    'frost': ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    'fog': ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    'brightness': (0.05, 0.1, 0.15, 0.2, 0.3),
    'contrast': (0.75, 0.5, 0.4, 0.3, 0.15),
    'elastic_transform': (
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
    'pixelate': (0.95, 0.9, 0.85, 0.75, 0.65),
    'jpeg_compression': (80, 65, 58, 50, 40),
}
# As make_imagenet_c.py has them for images of 224 pixels; of larger ones, lengths stay as they are.
IMAGENET: dict[str, tuple[Any, ...]] = {
    'gaussian_noise': (0.08, 0.12, 0.18, 0.26, 0.38),
    'shot_noise': (60, 25, 12, 5, 3),
    'impulse_noise': (0.03, 0.06, 0.09, 0.17, 0.27),
    'defocus_blur': ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    'glass_blur': ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    'motion_blur': ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    'zoom_blur': ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    'snow': (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    'frost': ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    'fog': ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    'brightness': (0.1, 0.2, 0.3, 0.4, 0.5),
    'contrast': (0.4, 0.3, 0.2, 0.1, 0.05),
    'elastic_transform': tuple(
        tuple(244 / 224 * share for share in shares)  # theirs are of 244 pixels
        for shares in (
            (2, 0.7, 0.1),
            (2, 0.08, 0.2),
            (0.05, 0.01, 0.02),
            (0.07, 0.01, 0.02),
            (0.12, 0.01, 0.02),
        )
    ),
    'pixelate': (0.6, 0.5, 0.4, 0.3, 0.25),
    'jpeg_compression': (25, 18, 15, 10, 7),
}
CORRUPTIONS: dict[str, Callable[..., np.ndarray]] = {
    'gaussian_noise': distortions.gaussian_noise,
    'shot_noise': distortions.shot_noise,
    'impulse_noise': distortions.impulse_noise,
    'defocus_blur': distortions.defocus_blur,
    'glass_blur': distortions.glass_blur,
    'motion_blur': distortions.motion_blur,
    'zoom_blur': distortions.zoom_blur,
    'snow': distortions.snow,
    'frost': distortions.frost,
    'fog': distortions.fog,
    'brightness': distortions.brightness,
    'contrast': distortions.contrast,
    'elastic_transform': distortions.elastic_transform,
    'pixelate': distortions.pixelate,
    'jpeg_compression': distortions.jpeg_compression,
}


def corrupt(
    image: np.ndarray, name: str, severity: int, *, seed: int = 0, number: int = 0
) -> np.ndarray:
    """The image as a corruption leaves it.

    Args:
      image: uint8 RGB [h w 3].
      name: one of `CORRUPTIONS`.
      severity: 1 to 5.
      seed: of all images' random numbers.
      number: of the image.

    Returns:
      uint8 [h w 3]; numbers between grey levels are rounded down, as in the published data sets.

    Raises:
      InputError: an unknown name or severity.
    """
    check_known('corruption', name, CORRUPTIONS)
    if severity not in SEVERITIES:
        raise InputError(f'severity {severity} of a corruption: give 1 to 5')
    strengths = (CIFAR if min(image.shape[:2]) <= SMALL else IMAGENET)[name][severity - 1]
    strengths = strengths if isinstance(strengths, tuple) else (strengths,)
    rng = np.random.default_rng([seed, number, list(CORRUPTIONS).index(name), severity])
    found = CORRUPTIONS[name](image / 255, rng, *strengths)
    # Grey levels that are whole, but for rounding, stay what they are.
    return np.floor(np.clip(found, 0, 1) * 255 + 1e-4).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """A view of images that are corrupted before anything is cut.

    Attributes:
      view: cuts.
      name: of the corruption.
      severity: 1 to 5.
      seed: of the random numbers, with the number of the image.
    """

    view: View
    name: str
    severity: int
    seed: int

    @property
    def min_side(self) -> int:
        return self.view.min_side

    def cut(self, images: Pixels, numbers: np.ndarray) -> np.ndarray:
        found = [
            corrupt(image, self.name, self.severity, seed=self.seed, number=number)
            for image, number in zip(images, numbers.tolist(), strict=True)
        ]
        return self.view.cut(np.stack(found) if isinstance(images, np.ndarray) else found, numbers)
