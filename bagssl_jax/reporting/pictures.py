"""Pictures inside the page: WebP, as small as a page for a phone wants them."""

import base64
import dataclasses
import io
from collections.abc import Mapping

from PIL import Image

BUDGET = 2_300_000  # bytes of the pictures of a run, where they can be made to fit
LEVELS = ((1600, 85), (1200, 75), (900, 65), (640, 50))  # most pixels across; quality
COLOURS = 2**12  # of a drawing, at most; a photograph has more
MOST_HIGH = 8000  # pixels


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture as a page holds it.

    Attributes:
      source: a data URI.
      width: pixels.
      height: pixels.
    """

    source: str
    width: int
    height: int


def encode(contents: Mapping[str, bytes]) -> tuple[dict[str, Picture], list[str]]:
    """The pictures by name, and the names of those that cannot be read.

    All have the first of `LEVELS` with which they fit into `BUDGET`, or else the last.
    """
    images, damaged = {}, []
    for name, content in contents.items():
        try:
            image = Image.open(io.BytesIO(content))
            image.load()
            is_clear = 'A' in image.getbands() or 'transparency' in image.info
            images[name] = image.convert('RGBA' if is_clear else 'RGB')
        # Pillow says so in many ways: a SyntaxError of a broken PNG is one.
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError):
            damaged.append(name)
    made = {}
    for width, quality in LEVELS:
        made = {name: _encoded(image, width, quality) for name, image in images.items()}
        if sum(len(picture.source) for picture in made.values()) <= BUDGET:
            break
    return made, damaged


def _encoded(image: Image.Image, width: int, quality: int) -> Picture:
    """A drawing without loss, where that is small and sharp; a photograph with."""
    is_drawing = image.getcolors(COLOURS) is not None
    image = image.copy()
    image.thumbnail((width, MOST_HIGH), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    options = {'lossless': True} if is_drawing else {'quality': quality}
    image.save(buffer, format='WEBP', method=2, **options)
    content = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f'data:image/webp;base64,{content}', *image.size)
