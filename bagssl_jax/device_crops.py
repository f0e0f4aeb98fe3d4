"""Cutting patches on the device: `data.cut.cut` for images of one size, pure and jittable.

As the host's: area averages along an axis that shrinks, linear between the centers of pixels along
one that grows, with the edges repeated. Both are a matrix product an axis.
"""

import jax
import jax.numpy as jnp
import numpy as np


def cut(images: jax.Array, boxes: jax.Array, *, size: int, resize: int) -> jax.Array:
    """The patches of a batch of images, or of one device's part of it.

    Exactly the host's without a resize, and within one grey level of them with it.

    A resize to side s is two matrix products, s w c (s + h) multiply-adds and s w c numbers in
    between a patch, where h and w are the side of the box if `size` tells it, and one matrix
    serves all. Else they are the image's, as no program can depend on the size of a box, and every
    patch has matrices [s h] and [s w]. For s = 32:

        side h = w                  16 (size)    32     96    224
        million multiply-adds            0.07   0.2    1.2    5.5
        KiB in between                      6    12     36     84
        KiB of matrices                     -     8     24     56

    A convolution of the patch to 64 channels leaves 256 KiB.

    Args:
      images: uint8 [b h w c].
      boxes: int [b p 4], rows (y, x, height, width) inside the image.
      size: side in pixels of every box; 0 where they differ, which takes a resize.
      resize: side in pixels of the patches; 0 to keep the pixels as they are.

    Returns:
      uint8 [b p s s c].
    """
    if not size and not resize:
        raise ValueError('boxes of different sizes (size=0) take a resize')
    if not size:
        rows = _weights(boxes[..., 0], boxes[..., 2], images.shape[1], resize)  # [b p s h]
        columns = _weights(boxes[..., 1], boxes[..., 3], images.shape[2], resize)  # [b p s w]
        return _weighted('bpsh,bptw,bhwc->bpstc', rows, columns, images)
    patches = _windows(images, boxes, size)
    if resize in (0, size):
        return patches
    weights = _weights(np.array(0), np.array(size), size, resize)  # [s size]
    return _weighted('sh,tw,bphwc->bpstc', weights, weights, patches)


def _windows(images: jax.Array, boxes: jax.Array, size: int) -> jax.Array:
    def window(image, box):
        return jax.lax.dynamic_slice(image, (box[0], box[1], 0), (size, size, image.shape[-1]))

    of_image = jax.vmap(window, in_axes=(None, 0))
    return jax.vmap(of_image)(images, boxes)


def _weights(start: jax.Array, length: jax.Array, pixels: int, resize: int) -> jax.Array:
    everything = jnp.full(start.shape, resize), jnp.zeros(start.shape, jnp.int32)
    return axis_weights(start, length, *everything, pixels=pixels, count=resize)


def axis_weights(
    start: jax.Array,
    length: jax.Array,
    resize: jax.Array,
    first: jax.Array,
    *,
    pixels: int,
    count: int,
) -> jax.Array:
    """What each pixel of an axis counts for each new one: float32 [... count pixels].

    The pixels from `start` on, `length` of them, become `resize` new ones (int [...] each), of
    which `count` are wanted, from number `first` on (int [...]).
    """
    start, length, resize, first = (x[..., None, None] for x in (start, length, resize, first))
    axes = tuple(range(start.ndim - 2))
    new = jnp.expand_dims(jnp.arange(count)[:, None], axes) + first
    old = jnp.expand_dims(jnp.arange(pixels), (*axes, -2)) - start  # counted from the box's edge
    factor = length / resize
    # Shrinking: the share of the new pixel that the old one covers.
    covered = jnp.minimum((new + 1) * factor, old + 1) - jnp.maximum(new * factor, old)
    average = jnp.maximum(covered, 0) / factor
    # Growing: how near the old pixel's center is to the new one's, or the outermost to it.
    center = jnp.clip((new + 0.5) * factor - 0.5, 0, length - 1)
    linear = jnp.maximum(1 - jnp.abs(old - center), 0)
    return jnp.where(length >= resize, average, linear).astype(jnp.float32)


def _weighted(product: str, rows: jax.Array, columns: jax.Array, pixels: jax.Array) -> jax.Array:
    exact = jax.lax.Precision.HIGHEST  # the others round grey levels
    x = jnp.einsum(product, rows, columns, pixels.astype(jnp.float32), precision=exact)
    return jnp.round(x).astype(jnp.uint8)
