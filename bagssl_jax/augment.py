"""Photometric augmentation of patches, on the device: pure, jittable functions.

SimCLR's recipe (arXiv 2002.05709, appendix A) in torchvision's definitions: every operation
computes what its namesake in `torchvision.transforms.v2.functional` computes on float images.
Patches are float32 [n h w 3] in [0, 1], and each has a factor of its own, float32 [n].
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bagssl_jax.errors import check_known

JITTER_ORDERS = ('fixed', 'random')
DEFINITIONS = ('torchvision', 'simclr', 'byol')


class Factors(NamedTuple):
    """What happens to each patch. Every field is an array [n]."""

    flip: jax.Array  # bool, as are the next four: whether the operation is applied
    jitter: jax.Array
    grey: jax.Array
    blur: jax.Array
    solarize: jax.Array
    brightness: jax.Array  # float32, in [max(0, 1 - strength), 1 + strength]
    contrast: jax.Array  # likewise
    saturation: jax.Array  # likewise
    hue: jax.Array  # float32, in [-strength, strength] of a turn
    sigma: jax.Array  # float32, in blur_sigma, in pixels


def augment(
    key: jax.Array,
    patches: jax.Array,
    indices: jax.Array,
    *,
    flip: float = 0.5,
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.4,
    hue: float = 0.1,
    jitter: float = 0.8,
    grey: float = 0.2,
    blur: float = 0.0,
    blur_sigma: tuple[float, float] = (0.1, 2.0),
    solarize: float = 0.0,
    blur_by_index: tuple[float, ...] = (),
    solarize_by_index: tuple[float, ...] = (),
    count: int = 1,
    jitter_order: str = 'fixed',
    definitions: str = 'torchvision',
) -> jax.Array:
    """Augments every patch at random: flip, colour jitter, grey, blur, solarise, in this order.

    `flip`, `jitter`, `grey`, `blur` and `solarize` are probabilities per patch; `brightness`,
    `contrast`, `saturation` and `hue` are strengths as in torchvision's `ColorJitter`. All are
    Python numbers, and an operation whose probability or strength is 0 is not in the program.

    The jitter's order is brightness, contrast, saturation, hue, or one of each patch's own, as
    torchvision draws it for each image: `jitter_in_order`, one program too. With all operations,
    2,000 patches of 32x32 then took .74 s on two busy CPU cores, not .26 s.

    Args:
      key: a `jax.random.key` that the caller has folded from (seed, step).
      patches: [n h w 3], uint8, or floating in [0, 1].
      indices: int32 [n], each patch's place in the global batch. A patch's factors depend on
        (key, index) alone, so that the result does not depend on how the batch is sharded.
      blur_by_index, solarize_by_index: where not empty, probabilities that take the place of
        `blur` and `solarize`: the i-th of the patches of index i, and so on in turn.
      count: patches an image, p; a patch of place n has the index n mod p.
      jitter_order: 'fixed' or 'random'.
      definitions: of the jitter's operations and of the blur's edges, one of `DEFINITIONS`:
        'torchvision', or those of TensorFlow in the code of 'simclr' and of 'byol', as
        `jitter_in_order` and `gaussian_blur` say. Their blur has a tenth of the side as taps.

    Returns:
      float32 [n h w 3] in [0, 1]. A patch to which nothing is applied keeps its exact values.
    """
    chances = {'flip': flip, 'jitter': jitter, 'grey': grey, 'blur': blur, 'solarize': solarize}
    by_index = {'blur': blur_by_index, 'solarize': solarize_by_index}
    strengths = {'brightness': brightness, 'contrast': contrast, 'saturation': saturation}
    for name, of_indices in by_index.items():
        if of_indices:
            chances[name] = jnp.asarray(of_indices)[indices % count % len(of_indices)]
    blur, solarize = any(blur_by_index or (blur,)), any(solarize_by_index or (solarize,))
    ranges = {name: (max(0.0, 1 - s), 1 + s) for name, s in strengths.items()}
    ranges |= {'hue': (-hue, hue), 'sigma': blur_sigma}
    f = draw_factors(key, indices, chances, ranges)
    check_known('augment.jitter_order', jitter_order, JITTER_ORDERS)
    check_known('augment.definitions', definitions, DEFINITIONS)
    torchvisions = definitions == 'torchvision'

    x = _as_float(patches)
    if flip:
        x = _where(f.flip, x[:, :, ::-1], x)
    if jitter and (jitter_order == 'random' or not torchvisions):
        places = jnp.broadcast_to(jnp.arange(4), (len(indices), 4))
        places = draw_places(key, indices) if jitter_order == 'random' else places
        x = _where(f.jitter, jitter_in_order(x, f, places, definitions), x)
    elif jitter:
        y = adjust_brightness(x, f.brightness) if brightness else x
        y = adjust_contrast(y, f.contrast) if contrast else y
        y = adjust_saturation(y, f.saturation) if saturation else y
        y = adjust_hue(y, f.hue) if hue else y
        x = _where(f.jitter, y, x)
    if grey:
        x = _where(f.grey, to_grey(x), x)
    if blur:
        side = min(x.shape[1:3])
        radius = blur_radius(blur_sigma[1], side) if torchvisions else side // 20
        edges = 'reflect' if torchvisions else 'constant'
        x = _where(f.blur, gaussian_blur(x, f.sigma, radius, edges), x)
    if solarize:
        x = _where(f.solarize, solarize_above(x), x)
    return x


def draw_factors(
    key: jax.Array,
    indices: jax.Array,
    chances: dict[str, float | jax.Array],
    ranges: dict[str, tuple[float, float]],
) -> Factors:
    """Draws the factors of the patches `indices`, int32 [n], each from fold_in(key, index) alone.

    `chances` holds the probability of each of the Booleans in `Factors`, or those [n] of each
    patch, `ranges` the (smallest,
    largest) value of each of the numbers. Every factor has a draw of its own, used or not:
    switching one operation off leaves the others as they were.
    """

    def uniform(index):
        return jax.random.uniform(jax.random.fold_in(key, index), (len(Factors._fields),))

    draws = dict(zip(Factors._fields, jax.vmap(uniform, out_axes=1)(indices), strict=True))
    applied = {name: draws[name] < chance for name, chance in chances.items()}
    values = {name: low + (high - low) * draws[name] for name, (low, high) in ranges.items()}
    return Factors(**applied, **values)


def draw_places(key: jax.Array, indices: jax.Array) -> jax.Array:
    """The place, 0 to 3, of brightness, contrast, saturation and hue in each patch's order.

    Args:
      key: as for `draw_factors`, from whose draws these are independent.
      indices: int32 [n].

    Returns:
      int32 [n 4], each of the 24 orders as likely as the others.
    """
    key = jax.random.fold_in(key, 2**32 - 1)  # which is no index
    draws = jax.vmap(lambda index: jax.random.uniform(jax.random.fold_in(key, index), (4,)))
    return jnp.argsort(draws(indices), axis=1).astype(jnp.int32)


def jitter_in_order(
    x: jax.Array, f: Factors, places: jax.Array, definitions: str = 'torchvision'
) -> jax.Array:
    """The four operations of the jitter, of each patch in an order of its own.

    The first three are all blends, so that one serves whichever comes, and a factor of 1 is none.
    The hue's costs most and is there once: between the blends that are before it and those after.

    Args:
      x: [n h w 3].
      f: its brightness, contrast, saturation and hue.
      places: int32 [n 4], as by `draw_places`.
      definitions: 'torchvision', as of the functions below; 'simclr', whose contrast blends with
        the mean of each channel, and whose saturation is that of HSV, at most 1; 'byol', the same,
        and brightness is added, the factor less 1.
    """
    hue_place = places[:, 3]

    def blended(x, place, active):
        bright, contrast, saturate = ((places[:, i] == place) & active for i in range(3))
        factor = jnp.where(contrast, f.contrast, jnp.where(saturate, f.saturation, 1))
        factor = _per_patch(jnp.where(bright, f.brightness, factor))
        if definitions == 'torchvision':
            luma = _luma(x)
            other = _where(contrast, jnp.mean(luma, axis=(1, 2), keepdims=True), luma)
        else:
            # value - saturation * value * ramp(hue): blending with the value scales the saturation.
            value = jnp.max(x, axis=-1, keepdims=True)
            chroma = value - jnp.min(x, axis=-1, keepdims=True)
            most = value / jnp.maximum(chroma, 1e-12)
            factor = _where(saturate, jnp.minimum(factor, most), factor)
            other = _where(contrast, jnp.mean(x, axis=(1, 2), keepdims=True), value)
        other = _where(bright, jnp.zeros_like(other), other)
        y = jnp.clip(factor * x + (1 - factor) * other, 0, 1)
        return _where(bright, jnp.clip(x + factor - 1, 0, 1), y) if definitions == 'byol' else y

    for place in range(3):
        x = blended(x, place, place < hue_place)
    x = adjust_hue(x, f.hue)
    for place in range(1, 4):
        x = blended(x, place, place > hue_place)
    return x


def adjust_brightness(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies, and clips to [0, 1] (torchvision `adjust_brightness`)."""
    return jnp.clip(x * _per_patch(factor), 0, 1)


def adjust_contrast(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the mean of the grey patch, and clips (torchvision `adjust_contrast`)."""
    # The luma of the mean is the mean of the luma, and cheaper.
    return _blend(x, _luma(jnp.mean(x, axis=(1, 2), keepdims=True)), factor)


def adjust_saturation(x: jax.Array, factor: jax.Array) -> jax.Array:
    """Blends with the grey patch, and clips (torchvision `adjust_saturation`)."""
    return _blend(x, _luma(x), factor)


def adjust_hue(x: jax.Array, shift: jax.Array) -> jax.Array:
    """Shifts the hue by a part of a turn, any number (torchvision `adjust_hue`, through HSV).

    HSV is never formed: a channel is max - chroma * ramp(hue), where the ramp is 0 for a third of
    the turn, 1 for another, and linear between. That is torchvision's table of six cases without
    a table, and without the division by the value.
    """
    r, g, b = x[..., 0:1], x[..., 1:2], x[..., 2:3]
    top = jnp.max(x, axis=-1, keepdims=True)
    chroma = top - jnp.min(x, axis=-1, keepdims=True)
    # Hue in sixths of a turn. A grey pixel has none, and any will do: its chroma is about 0. The
    # cases are told apart by comparing channels, never by `top == r`, and by one select each: a
    # compiler may compute a pixel twice, with and without fused multiply-add, and equality fails.
    unit = 1 / jnp.maximum(chroma, 1e-12)
    hue = jnp.where(g >= b, 2 + (b - r) * unit, 4 + (r - g) * unit)
    hue = jnp.where((r >= g) & (r >= b), (g - b) * unit, hue)
    hue = hue + 6 * _per_patch(shift)

    def channel(start):
        position = hue + start
        position = position - 6 * jnp.floor(position / 6)
        return top - chroma * jnp.clip(jnp.minimum(position, 4 - position), 0, 1)

    return jnp.concatenate([channel(5), channel(3), channel(1)], axis=-1)


def to_grey(x: jax.Array) -> jax.Array:
    """The luma in all three channels (torchvision `rgb_to_grayscale`)."""
    return jnp.broadcast_to(_luma(x), x.shape)


def gaussian_blur(x: jax.Array, sigma: jax.Array, radius: int, edges: str = 'reflect') -> jax.Array:
    """Blurs patch i with a Gaussian of sigma[i] > 0 pixels, 2 * radius + 1 taps wide.

    Separable, with reflected edges (torchvision `gaussian_blur`), or 'constant' ones, black, as in
    SimCLR's and BYOL's code: `radius` is below h and w.
    Written as weighted sums of shifted patches: a convolution takes one kernel for the batch.
    """
    if radius >= min(x.shape[1:3]):
        raise ValueError(f'a blur of radius {radius} cannot reflect patches of {x.shape[1:3]}')
    offsets = jnp.arange(-radius, radius + 1, dtype=x.dtype)
    weights = jnp.exp(-0.5 * (offsets[None] / sigma[:, None]) ** 2)
    weights = weights / weights.sum(axis=1, keepdims=True)
    n, h, w, c = x.shape
    # Lines of all rows, then of one row each: a tap is a contiguous slice of a line, which costs
    # half of what slicing [n h w c] does on CPU.
    for axis, rows, step in ((1, 1, w * c), (2, h, c)):
        padding = [(radius, radius) if a == axis else (0, 0) for a in range(4)]
        lines = jnp.pad(x, padding, mode=edges).reshape(n, rows, -1)
        length = h * w * c // rows
        taps = (lines[:, :, k * step : k * step + length] for k in range(2 * radius + 1))
        x = sum(weights[:, k, None, None] * tap for k, tap in enumerate(taps)).reshape(n, h, w, c)
    return jnp.clip(x, 0, 1)  # the weights sum to 1 only to rounding


def blur_radius(largest_sigma: float, size: int) -> int:
    """Three of the largest sigma, which holds 99.7% of it, or what reflection at `size` allows."""
    return min(math.ceil(3 * largest_sigma), size - 1)


def solarize_above(x: jax.Array, threshold: float = 0.5) -> jax.Array:
    """Inverts the values at or above the threshold (torchvision `solarize`)."""
    return jnp.where(x >= threshold, 1 - x, x)


def _as_float(patches: jax.Array) -> jax.Array:
    if patches.ndim != 4 or patches.shape[-1] != 3:
        raise ValueError(f'augment takes patches [n h w 3], not {patches.shape}')
    if patches.dtype == jnp.uint8:
        return patches.astype(jnp.float32) / 255
    if not jnp.issubdtype(patches.dtype, jnp.floating):
        raise TypeError(f'augment takes uint8 or floating patches, not {patches.dtype}')
    return patches.astype(jnp.float32)


def _luma(x: jax.Array) -> jax.Array:
    """ITU-R 601-2 with torchvision's constants: [n h w 3] -> [n h w 1]."""
    return 0.2989 * x[..., 0:1] + 0.587 * x[..., 1:2] + 0.114 * x[..., 2:3]


def _blend(x: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    factor = _per_patch(factor)
    return jnp.clip(factor * x + (1 - factor) * other, 0, 1)


def _where(applied: jax.Array, then: jax.Array, otherwise: jax.Array) -> jax.Array:
    return jnp.where(_per_patch(applied), then, otherwise)


def _per_patch(factor: jax.Array) -> jax.Array:
    return factor[:, None, None, None]  # [n 1 1 1]
