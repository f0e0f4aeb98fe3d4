"""A convolution whose gradients are fast on CPUs too, chosen by the platform it is lowered for.

XLA's own gradients of a convolution are up to ten times slower on CPUs than matrix products of the
same size. Here the forward pass is XLA's everywhere, and nothing but its inputs is kept for the
backward pass, which for CPUs is written as matrix products and a forward convolution.
"""

import functools

import jax
import jax.numpy as jnp

COLUMN_BYTES = 2**22  # of unrolled patches at a time: what a core's cache can hold


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
    return convolve_by_xla(x, weights, stride)


def convolve_by_xla(x: jax.Array, weights: jax.Array, stride: int) -> jax.Array:
    """As `convolve`, with XLA's own gradients."""
    padding = weights.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x,
        weights,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )


def _forward(x, weights, stride):
    return convolve(x, weights, stride), (x, weights)


def _backward(stride, inputs, dy):
    gradients = functools.partial(_gradients_by_xla, stride)
    if inputs[1].shape[0] > 3:  # unrolled, the 7x7 stem would be 49 times its input
        return gradients(*inputs, dy)
    by_products = functools.partial(_gradients_by_products, stride)
    return jax.lax.platform_dependent(*inputs, dy, cpu=by_products, default=gradients)


convolve.defvjp(_forward, _backward)


def _gradients_by_xla(stride, x, weights, dy):
    _, pull_back = jax.vjp(lambda x, weights: convolve_by_xla(x, weights, stride), x, weights)
    return pull_back(dy)


def _gradients_by_products(stride, x, weights, dy):
    return _input_gradient(weights, dy, stride, x.shape), _weight_gradient(x, weights, dy, stride)


def _weight_gradient(x, weights, dy, stride):
    """One product of unrolled patches with the outputs' gradient, for some images at a time."""
    kernel, (n, height, width, _) = weights.shape[0], dy.shape
    padding = kernel // 2

    def of_images(start):
        some, of_some = (jax.lax.dynamic_slice_in_dim(a, start, at_once) for a in (x, dy))
        some = jnp.pad(some, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        shifted = [
            some[:, i:, j:][:, : stride * height : stride, : stride * width : stride]
            for i in range(kernel)
            for j in range(kernel)
        ]
        columns = jnp.concatenate(shifted, axis=-1)  # [m h w k*k*c]
        columns, of_some = (a.reshape(-1, a.shape[-1]) for a in (columns, of_some))
        return jnp.matmul(columns.T, of_some, preferred_element_type=jnp.float32)

    size = height * width * weights[..., 0].size * x.dtype.itemsize
    fit = [m for m in range(1, n + 1) if n % m == 0 and m * size <= COLUMN_BYTES]
    at_once = max(fit, default=1)
    # From the first images on, and not from zeros, which inside shard_map would not vary.
    total = jax.lax.fori_loop(
        1, n // at_once, lambda i, total: total + of_images(i * at_once), of_images(0)
    )
    return total.reshape(weights.shape).astype(weights.dtype)


def _input_gradient(weights, dy, stride, shape):
    """A convolution with the turned kernel; of stride 2, shifted products for each phase."""
    kernel = weights.shape[0]
    if stride == 1:
        turned = jnp.swapaxes(weights[::-1, ::-1], 2, 3)
        return convolve_by_xla(dy, turned, 1)
    n, height, width, channels = shape
    rows, columns = dy.shape[1:3]
    dy = jnp.pad(dy, ((0, 0), (0, 1), (0, 1), (0, 0)))

    def taps(phase):
        """Rows i of the kernel by which rows 2q + phase reach outputs q + shift: (i, shift)."""
        reached = [(i, phase + kernel // 2 - i) for i in range(kernel)]
        return [(i, twice // 2) for i, twice in reached if twice % 2 == 0]

    def of_phase(y, x):
        total = jnp.zeros((n, rows, columns, channels), jnp.float32)
        for i, down in taps(y):
            for j, right in taps(x):
                part = dy[:, down : down + rows, right : right + columns]
                tap = weights[i, j].T
                total = total + jnp.matmul(part, tap, preferred_element_type=jnp.float32)
        return total.astype(dy.dtype)

    phases = [jnp.stack([of_phase(y, x) for x in (0, 1)], axis=3) for y in (0, 1)]
    dx = jnp.stack(phases, axis=2)  # [n h' 2 w' 2 c]
    return dx.reshape(n, 2 * rows, 2 * columns, channels)[:, :height, :width]
