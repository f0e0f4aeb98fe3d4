"""What this project's input pipeline is measured against: one patch at a time, with Pillow.

The PyTorch code bases' transforms for Pillow images: torchvision's RandomResizedCrop, flip,
ColorJitter, grey, Gaussian blur, solarise, ToTensor and Normalize, in the order of EMP-SSL
(arXiv 2304.03977), each applied to one patch by Python.
"""

import io
import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps


class PillowPipeline:
    """Augmented patches of one image after another."""

    def __init__(
        self,
        augment: Mapping[str, Any],
        *,
        scale: tuple[float, float],
        ratio: tuple[float, float],
        side: int,
    ):
        """
        Args:
          augment: probabilities and strengths, as in the configuration.
          scale: share of the image's area, smallest and largest.
          ratio: width / height, smallest and largest.
          side: in pixels, of the patches as they are returned.
        """
        self._augment = augment
        self._scale = scale
        self._ratio = ratio
        self._side = side
        self._random = random.Random(0)

    def patches(self, image: np.ndarray | bytes, count: int) -> np.ndarray:
        """`count` patches of an image, uint8 [h w 3] or an encoded file: float32 [p 3 s s]."""
        if isinstance(image, bytes):
            opened = Image.open(io.BytesIO(image)).convert('RGB')
        else:
            opened = Image.fromarray(image)
        return np.stack([self._patch(opened) for _ in range(count)])

    def _patch(self, image: Image.Image) -> np.ndarray:
        x = image.resize((self._side, self._side), Image.Resampling.BILINEAR, self._box(image))
        if self._happens('flip'):
            x = x.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self._happens('jitter'):
            x = self._jittered(x)
        if self._happens('grey'):
            x = Image.merge('RGB', [x.convert('L')] * 3)
        if self._happens('blur'):
            x = x.filter(ImageFilter.GaussianBlur(self._random.uniform(*self._augment.blur_sigma)))
        if self._happens('solarize'):
            x = ImageOps.solarize(x, 128)
        tensor = np.asarray(x).transpose(2, 0, 1).astype(np.float32) / 255
        return (tensor - 0.5) / 0.5

    def _happens(self, name: str) -> bool:
        return self._random.random() < self._augment[name]

    def _box(self, image: Image.Image) -> tuple[int, int, int, int]:
        width, height = image.size
        for _ in range(10):
            area = width * height * self._random.uniform(*self._scale)
            aspect = math.exp(self._random.uniform(*map(math.log, self._ratio)))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = (self._random.randint(0, n) for n in (width - w, height - h))
                return left, top, left + w, top + h
        return 0, 0, width, height

    def _jittered(self, x: Image.Image) -> Image.Image:
        operations = [
            (ImageEnhance.Brightness, 'brightness'),
            (ImageEnhance.Contrast, 'contrast'),
            (ImageEnhance.Color, 'saturation'),
            (None, 'hue'),
        ]
        self._random.shuffle(operations)
        for enhance, name in operations:
            strength = self._augment[name]
            if enhance and strength:
                factor = self._random.uniform(max(0, 1 - strength), 1 + strength)
                x = enhance(x).enhance(factor)
            elif strength:
                x = _hue_shifted(x, self._random.uniform(-strength, strength))
        return x


def _hue_shifted(x: Image.Image, shift: float) -> Image.Image:
    hue, saturation, value = x.convert('HSV').split()
    turned = np.asarray(hue) + np.uint8(round(shift * 255) % 256)
    return Image.merge('HSV', (Image.fromarray(turned), saturation, value)).convert('RGB')
