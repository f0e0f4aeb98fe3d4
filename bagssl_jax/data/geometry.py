"""Patch geometry: how large the square patches of an image are, and where those of a grid lie.

A box is (y, x, height, width) in pixels.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bagssl_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class PatchGeometry:
    """How large square patches are, as they are cut and as the networks take them.

    Attributes:
      size: side in pixels of a patch as it is cut; 0 where `scale` gives it.
      scale: a patch's share of its image's area, in (0, 1]; unused where `size` is given. Where a
        square of that area is higher or wider than the image, a panorama say, the patch is the
        largest square that fits.
      resize: side in pixels that a patch is resized to after it is cut; 0 keeps its pixels.
    """

    size: int
    scale: float
    resize: int

    @classmethod
    def of(
        cls, patches: Mapping[str, Any], over: Mapping[str, Any] | None = None
    ) -> 'PatchGeometry':
        """That of a configuration's `patches`, or of what is laid over them.

        Args:
          patches: 'size', 'scale' and 'resize'; other keys are passed over.
          over: the same keys, 0 where nothing is given: size and scale take the place of both of
            the patches' where one is given, and so does resize.
        """
        over = over or {'size': 0, 'scale': 0.0, 'resize': 0}
        cut = over if over['size'] or over['scale'] else patches
        return cls(cut['size'], cut['scale'], over['resize'] or patches['resize'])

    @property
    def input_side(self) -> int:
        """Side in pixels of the input that networks are initialised with.

        The patches' own where it is the same for every image, else 32: convolutional networks do
        not depend on it.
        """
        return self.resize or self.size or 32

    def check(self, image_shape: tuple[int, int] | None) -> None:
        """Raises InputError where patches of different images may come out in different sizes.

        Args:
          image_shape: (height, width) of every image; None where they may differ.
        """
        if image_shape is None and not self.size and not self.resize:
            raise InputError(
                'the images may differ in size, and patches.scale in pixels with them: give '
                'patches.resize=SIDE or patches.size=SIDE'
            )

    def side(self, height: int, width: int) -> int:
        """Side in pixels of a patch of one image, as it is cut. InputError as for `sides`."""
        return int(self.sides(np.array([height]), np.array([width]))[0])

    def sides(self, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Sides in pixels of the patches of images of these sizes, int [b] each: int32 [b].

        Raises:
          InputError: `size` is larger than an image, or the scale is out of range.
        """
        if not self.size and not 0 < self.scale <= 1:
            raise InputError(
                f'patches.scale={self.scale} is not a share of the area: give one in (0, 1]'
            )
        if self.size:
            sides = np.full(heights.shape, self.size, np.int32)
        else:
            sides = np.maximum(1, np.rint(np.sqrt(self.scale * heights * widths))).astype(np.int32)
            sides = np.minimum(sides, np.minimum(heights, widths))
        outside = (sides < 1) | (sides > np.minimum(heights, widths))
        if outside.any():
            i = outside.argmax()
            raise InputError(
                f'a patch of {self.size}x{self.size} pixels (patches.size={self.size}) does not '
                f'fit into an image of {heights[i]}x{widths[i]}: give a smaller one'
            )
        return sides

    def boxes_at(self, places: np.ndarray, height: int, width: int) -> np.ndarray:
        """The boxes in one image at `places` [p 2], as in `grid_places`: int32 [p 4]."""
        side = self.side(height, width)
        room = np.array([height - side, width - side])
        corners = np.ceil(places * room - 0.5)  # halves round down, as those of a center crop
        return np.concatenate([corners, np.full_like(corners, side)], axis=1).astype(np.int32)

    def grid_boxes(self, height: int, width: int, count: int) -> np.ndarray:
        """The boxes of a grid of `count` patches that reaches the edges: int32 [count 4]."""
        return self.boxes_at(grid_places(count), height, width)


def grid_places(count: int) -> np.ndarray:
    """An even grid of `count` places in an image: float64 [count 2], (y, x) from 0 to 1.

    0 and 1 stand for the edges that a patch can reach. The rows are as many as are nearest to the
    count's root, and share the places as evenly as can be; row by row, from the upper left. A
    square count is a square grid, one place is the center. Equal places of two grids are equal
    to the last bit, so that smaller grids can be found in larger ones.

    Raises:
      InputError: no place.
    """
    if count < 1:
        raise InputError(f'a grid of {count} patches is none: give 1 or more')
    rows = round(math.sqrt(count))
    places = []
    for i in range(rows):
        columns = (i + 1) * count // rows - i * count // rows
        y = i / (rows - 1) if rows > 1 else 0.5
        places += [(y, j / (columns - 1) if columns > 1 else 0.5) for j in range(columns)]
    return np.array(places)
