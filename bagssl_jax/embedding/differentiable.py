"""From the pixels of images to their representations, as functions that have a gradient.

What `data.views` cuts and `embedding.bags` represents, but for the rounding to grey levels after a
resize, which has none.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bagssl_jax.data.views import Placed
from bagssl_jax.device_crops import axis_weights
from bagssl_jax.embedding.bags import aggregate
from bagssl_jax.embedding.encoder import Variables, embed_pixels
from bagssl_jax.models import Networks


class Places(NamedTuple):
    """Where the patches of b images come from: `views.Placement` of each."""

    boxes: np.ndarray  # int32 [b p 4]
    resized: np.ndarray  # int32 [b 2]
    corner: np.ndarray  # int32 [b 2]


class Cutter(NamedTuple):
    """What makes patches of images: every channel of a patch is rows @ image @ columns.T."""

    rows: jax.Array  # float32 [b p s h]
    columns: jax.Array  # float32 [b p t w]


def find_places(
    view: Placed, shapes: Sequence[tuple[int, int]], numbers: np.ndarray
) -> tuple[Places, tuple[int, int]]:
    """The places of a view in images of these (height, width) and numbers; the patches' (s, t)."""
    found = [
        view.placement(height, width, number)
        for (height, width), number in zip(shapes, numbers.tolist(), strict=True)
    ]
    places = Places(
        boxes=np.stack([one.boxes for one in found]),
        resized=np.array([one.resized for one in found], np.int32),
        corner=np.array([one.window[:2] for one in found], np.int32),
    )
    return places, found[0].window[2:]


def make_cutter(places: Places, image_shape: tuple[int, int], shape: tuple[int, int]) -> Cutter:
    """The matrices for images of one (h, w), or that lie at the upper left of one.

    Args:
      places: of the patches.
      image_shape: (h, w) of the array of images.
      shape: (s, t), of every patch.
    """

    def of_axis(axis: int) -> jax.Array:
        start, length = places.boxes[..., axis], places.boxes[..., axis + 2]
        resize, first = (
            jnp.broadcast_to(x[:, axis, None], start.shape) for x in (places.resized, places.corner)
        )
        return axis_weights(
            start, length, resize, first, pixels=image_shape[axis], count=shape[axis]
        )

    return Cutter(of_axis(0), of_axis(1))


def cut_pixels(images: jax.Array, cutter: Cutter) -> jax.Array:
    """The patches of images, float [b h w c]: float32 [b p s t c]."""
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum('bpsh,bptw,bhwc->bpstc', *cutter, images, precision=exact)


def represent_pixels(
    networks: Networks,
    variables: Variables,
    images: jax.Array,
    cutter: Cutter,
    weights: jax.Array,
    *,
    space: str,
    unit: bool,
    flip: bool,
) -> jax.Array:
    """The representations of images: float32 [b cells*d].

    Args:
      networks, variables: as for `encoder.forward`.
      images: float [b h w 3] in [0, 1].
      cutter: of their patches.
      weights: of the representation, float32 [cells p], as `bags.Layout` has them.
      space: one of those that `forward` gives.
      unit: whether the vectors are brought to length 1 first, for 'mean_unit'.
      flip: whether the mirrored patches are averaged in.
    """
    patches = cut_pixels(images, cutter)
    pixels = patches.reshape(-1, *patches.shape[2:])  # [b p s t c] -> [n s t c]
    vectors = embed_pixels(networks, variables, pixels, spaces=(space,), flip=flip)[space]
    return aggregate(vectors.reshape(*patches.shape[:2], -1), weights, unit=unit)
