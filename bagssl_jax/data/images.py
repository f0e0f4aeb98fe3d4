"""Decoding: the bytes of an image file to upright RGB."""

import io

import cv2
import numpy as np
from PIL import Image

from bagssl_jax.errors import UnreadableImage

MAX_SIDE = 16_384  # pixels


def decode(data: bytes, name: str) -> np.ndarray:
    """Decodes a JPEG, PNG, WebP or BMP file.

    Grey and palette images become RGB, CMYK is converted without a colour profile, of 16 bits a
    channel the upper 8 are kept, opacity is dropped, and the orientation that EXIF gives is
    applied. Of an animation, the first frame.

    Args:
      data: the file.
      name: what to call it in an error.

    Returns:
      uint8 [h w 3].

    Raises:
      UnreadableImage: it is empty, not an image, truncated, or has a side above `MAX_SIDE`.
    """
    if not data:
        raise UnreadableImage(f'{name}: is empty')
    try:
        # The header alone: a wide image is refused before it takes gigabytes.
        with Image.open(io.BytesIO(data)) as header:
            width, height = header.size
    except Image.DecompressionBombError:
        raise UnreadableImage(f'{name}: has more pixels than can be decoded') from None
    except Exception:  # Pillow's plugins raise many kinds
        raise UnreadableImage(f'{name}: is not an image, or is truncated') from None
    if max(width, height) > MAX_SIDE:
        raise UnreadableImage(
            f'{name}: is {width}x{height} pixels, and {MAX_SIDE:,} are the most a side may have'
        )
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise UnreadableImage(f'{name}: is truncated or damaged')
    return image
