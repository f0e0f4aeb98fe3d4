"""A convolution that is fast on CPUs too, chosen by the platform it is lowered for.

XLA's own gradients of a convolution are up to ten times slower on CPUs than matrix products of the
same size, and its forward pass, for wide images of many channels, half as fast as it could be. Here
nothing but the inputs is kept for the backward pass, which for CPUs is written as matrix products
and convolutions.
"""

import functools

import jax
import jax.numpy as jnp

from bagssl_jax.models import winograd

SEEN_BYTES = 2**23  # of what the outputs of some images see, at a time
SHIFTED_BYTES = 2**19  # of images at a time, of which shifted copies are made


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(x: jax.Array, weights: jax.Array, stride: int) -> jax.Array:
    """Cross-correlates images with a kernel, padded by half of it as in PyTorch's ResNets.

    Args:
      x: [n h w c].
      weights: [k k c o], of odd k.
      stride: 1 or 2.

    Returns:
      [n ceil(h/stride) ceil(w/stride) o].
    """
    by_xla = functools.partial(convolve_by_xla, stride=stride)
    # Where the products of a tile are large enough, and its images more than the cache holds.
    many = min(weights.shape[2:]) >= 64 and x.shape[1] * x.shape[2] >= 256
    if many and winograd.suits(x, weights, stride):
        return jax.lax.platform_dependent(x, weights, cpu=winograd.convolve, default=by_xla)
    # Where XLA's own takes up to twice as long: strides, and channels that fill no vector.
    unlike = stride == 2 or weights.shape[2] % 16
    if unlike and weights.shape[0] == 3 and x.shape[1] * x.shape[2] <= 256:
        by_products = functools.partial(_convolve_by_products, stride=stride)
        return jax.lax.platform_dependent(x, weights, cpu=by_products, default=by_xla)
    return by_xla(x, weights)


def convolve_by_xla(x: jax.Array, weights: jax.Array, stride: int) -> jax.Array:
    """As `convolve`, by XLA alone, and with its own gradients."""
    padding = weights.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        weights,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def _convolve_by_products(x, weights, stride):
    """The product of what every output sees with the kernel, for some images at a time."""
    kernel, _, channels, features = weights.shape
    height, width = (-(-side // stride) for side in x.shape[1:3])
    finer = jnp.promote_types(x.dtype, jnp.float32)

    def of_images(x):
        seen = jnp.concatenate(_taps(x, kernel, stride), axis=-1)  # [m h' w' k*k*c]
        y = jnp.matmul(seen, weights.reshape(-1, features), preferred_element_type=finer)
        return y.astype(x.dtype)

    size = height * width * kernel**2 * channels * x.dtype.itemsize
    return winograd.over_images(of_images, x, winograd.images_at_once(len(x), size, SEEN_BYTES))


def _taps(x, kernel, stride):
    """What each place of the kernel meets, row by row: [m h w c] -> k*k of [m h' w' c]."""
    padding = kernel // 2
    height, width = (-(-side // stride) for side in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return [
        x[:, i:, j:][:, : stride * height : stride, : stride * width : stride]
        for i in range(kernel)
        for j in range(kernel)
    ]


def _forward(x, weights, stride):
    return convolve(x, weights, stride), (x, weights)


def _backward(stride, inputs, dy):
    gradients = functools.partial(_gradients_by_xla, stride)
    if inputs[1].shape[0] > 3:  # the 7x7 stem's products would be narrow, and 49
        return gradients(*inputs, dy)
    by_products = functools.partial(_gradients_by_products, stride)
    return jax.lax.platform_dependent(*inputs, dy, cpu=by_products, default=gradients)


convolve.defvjp(_forward, _backward)


def _gradients_by_xla(stride, x, weights, dy):
    _, pull_back = jax.vjp(lambda x, weights: convolve_by_xla(x, weights, stride), x, weights)
    return pull_back(dy)


def _gradients_by_products(stride, x, weights, dy):
    if min(weights.shape[2:]) >= 32 and winograd.suits(x, weights, stride):
        of_weights = winograd.weight_gradient(x, dy)
    else:
        of_weights = _weight_gradient(x, weights, dy, stride)
    return _input_gradient(weights, dy, stride, x.shape), of_weights


def _weight_gradient(x, weights, dy, stride):
    """A product of the shifted images with the outputs' gradient for each tap, some at a time."""
    finer = jnp.promote_types(x.dtype, jnp.float32)

    def of_images(x, dy):
        dy = dy.reshape(-1, dy.shape[-1])
        products = [
            jnp.matmul(tap.reshape(-1, x.shape[-1]).T, dy, preferred_element_type=finer)
            for tap in _taps(x, weights.shape[0], stride)
        ]
        return jnp.stack(products)  # [k*k c o]

    at_once = winograd.images_at_once(len(x), x[0].size * x.dtype.itemsize, SHIFTED_BYTES)
    total = winograd.sum_over_images(of_images, x, dy, at_once)
    return total.reshape(weights.shape).astype(weights.dtype)


def _input_gradient(weights, dy, stride, shape):
    """A convolution with the turned kernel; of stride 2, shifted products for each phase."""
    kernel = weights.shape[0]
    if stride == 1:
        turned = jnp.swapaxes(weights[::-1, ::-1], 2, 3)
        return convolve(dy, turned, 1)
    n, height, width, channels = shape
    rows, columns = dy.shape[1:3]
    dy = jnp.pad(dy, ((0, 0), (0, 1), (0, 1), (0, 0)))
    finer = jnp.promote_types(dy.dtype, jnp.float32)

    def taps(phase):
        """Rows i of the kernel by which rows 2q + phase reach outputs q + shift: (i, shift)."""
        reached = [(i, phase + kernel // 2 - i) for i in range(kernel)]
        return [(i, twice // 2) for i, twice in reached if twice % 2 == 0]

    def of_phase(y, x):
        total = jnp.zeros((n, rows, columns, channels), finer)
        for i, down in taps(y):
            for j, right in taps(x):
                part = dy[:, down : down + rows, right : right + columns]
                tap = weights[i, j].T
                total = total + jnp.matmul(part, tap, preferred_element_type=finer)
        return total.astype(dy.dtype)

    phases = [jnp.stack([of_phase(y, x) for x in (0, 1)], axis=3) for y in (0, 1)]
    dx = jnp.stack(phases, axis=2)  # [n h' 2 w' 2 c]
    return dx.reshape(n, 2 * rows, 2 * columns, channels)[:, :height, :width]
