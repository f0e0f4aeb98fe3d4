"""Winograd's minimal filtering F(2x2, 3x3): 3x3 convolutions by 16 products for 4 outputs.

Lavin and Gray, arXiv 1509.09308. A tile of 2x2 outputs takes 16 multiplications a channel instead
of 36. The factors of the transforms are 1 and 1/2: float32 stays exact to a few 1e-7, relative to
the largest value. For CPUs, whose matrix products are XLA's fastest.
"""

import jax
import jax.numpy as jnp

TILE_BYTES = 2**23  # of transformed images at a time: more would leave the cache


def suits(x: jax.Array, weights: jax.Array, stride: int) -> bool:
    """Whether `x` [n h w c] can be cut into tiles, at full precision, for a [3 3 c o] kernel."""
    even = x.shape[1] % 2 == x.shape[2] % 2 == 0
    return weights.shape[0] == 3 and stride == 1 and even and jnp.finfo(x.dtype).bits >= 32


def convolve(x: jax.Array, weights: jax.Array) -> jax.Array:
    """As `convolution.convolve` of stride 1: [n h w c], [3 3 c o] -> [n h w o]."""
    kernels = _kernel_tiles(weights)

    def of_images(x):
        tiles = _input_tiles(x)
        rows = [_outputs([tiles[i][j] @ kernels[i][j] for j in range(4)]) for i in range(4)]
        columns = [_outputs([row[j] for row in rows]) for j in range(2)]  # of columns, of rows
        y = jnp.stack([jnp.stack(pair, axis=3) for pair in zip(*columns, strict=True)], axis=2)
        return y.reshape(*x.shape[:3], -1)  # [m h/2 2 w/2 2 o] -> [m h w o]

    at_once = images_at_once(len(x), 4 * x[0].size * x.dtype.itemsize, TILE_BYTES)
    return over_images(of_images, x, at_once)


def weight_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Of `convolve`'s weights: [n h w c], and the outputs' gradient [n h w o] -> [3 3 c o]."""

    def of_images(x, dy):
        tiles, gradients = _input_tiles(x), _gradient_tiles(dy)
        return jnp.stack(
            [_product(tiles[i][j], gradients[i][j]) for i in range(4) for j in range(4)]
        )  # [16 c o]

    size = 4 * (x[0].size + dy[0].size) * x.dtype.itemsize
    total = sum_over_images(of_images, x, dy, images_at_once(len(x), size, TILE_BYTES))
    total = total.reshape(4, 4, *total.shape[1:])
    rows = _taps(total)
    return jnp.stack([jnp.stack(_taps(row)) for row in rows])


def images_at_once(images: int, size: int, limit: int) -> int:
    """The most that divide `images` and take `limit` bytes, of `size` each; at least one."""
    fit = [m for m in range(1, images + 1) if images % m == 0 and m * size <= limit]
    return max(fit, default=1)


def over_images(function, x: jax.Array, at_once: int) -> jax.Array:
    """function(x), of images by themselves, `at_once` of them a time."""
    if at_once == len(x):
        return function(x)
    y = jax.lax.map(function, x.reshape(-1, at_once, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])


def sum_over_images(function, x: jax.Array, dy: jax.Array, at_once: int) -> jax.Array:
    """The sum of function(some of x, the same of dy) over all images, `at_once` of them a time."""

    def of_some(i):
        return function(*(jax.lax.dynamic_slice_in_dim(a, i * at_once, at_once) for a in (x, dy)))

    # From the first images on, and not from zeros, which inside shard_map would not vary.
    return jax.lax.fori_loop(1, len(x) // at_once, lambda i, total: total + of_some(i), of_some(0))


def _input_tiles(x: jax.Array) -> list[list[jax.Array]]:
    """B^T d B of the 4x4 inputs of each tile: [m h w c] -> 4 of 4 [m h/2 w/2 c]."""
    _, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def combined(a, b, c, d):
        return [a - c, b + c, c - b, b - d]

    rows = combined(*(x[:, i : i + height - 1 : 2] for i in range(4)))
    return [combined(*(row[:, :, j : j + width - 1 : 2] for j in range(4))) for row in rows]


def _kernel_tiles(weights: jax.Array) -> list[list[jax.Array]]:
    """G g G^T: [3 3 c o] -> 4 of 4 [c o]."""

    def combined(a, b, c):
        return [a, (a + b + c) / 2, (a - b + c) / 2, c]

    return [combined(*row) for row in combined(*weights)]


def _outputs(products: list[jax.Array]) -> list[jax.Array]:
    """A^T m along one axis: 4 -> 2."""
    a, b, c, d = products
    return [a + b + c, b - c - d]


def _gradient_tiles(dy: jax.Array) -> list[list[jax.Array]]:
    """A dy A^T, of the tiles' gradients: [m h w o] -> 4 of 4 [m h/2 w/2 o]."""

    def combined(a, b):
        return [a, a + b, a - b, -b]

    rows = combined(dy[:, ::2], dy[:, 1::2])
    return [combined(row[:, :, ::2], row[:, :, 1::2]) for row in rows]


def _taps(tiles: jax.Array) -> list[jax.Array]:
    """G^T u along the leading axis: [4 ...] -> 3 of [...]."""
    a, b, c, d = tiles
    return [a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d]


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """[m h w c], [m h w o] -> [c o]."""
    return a.reshape(-1, a.shape[-1]).T @ b.reshape(-1, b.shape[-1])
