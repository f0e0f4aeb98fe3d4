"""Products of the global batch's projections: which of two forms, and how devices share them.

For x [b k], the covariance form is x^T x [k k] and the Gram form x x^T [b b]. They have the same
nonzero eigenvalues, and with these the same log-determinant of I + c x^T x and the same sum of
squares.
"""

import jax
import jax.numpy as jnp

from bagssl_jax.parallel import axis_size, sum_over

# By form: the products of each patch's x [b k] in x [b p k], [p b b] or [p k k].
PRODUCTS = {'gram': 'bpk,cpk->pbc', 'covariance': 'bpk,bpl->pkl'}


def smaller_form(images: int, width: int) -> str:
    """'gram' for fewer images (of the global batch) than dimensions, otherwise 'covariance'.

    With n the smaller of the two, a product takes 2 b k n operations, a factorisation O(n^3), and
    a matrix n^2 floats: all grow with n.
    """
    return 'gram' if images < width else 'covariance'


def exchanged(x: jax.Array, axis_name: str | None, axis: int) -> jax.Array:
    """All images of a part of the patches or dimensions, for some images of all of these.

    An all-to-all, in which every device sends and receives what it holds; in the backward pass
    once more. A gather would bring every device as much from each of the others.

    Args:
      x: [b/devices p k].
      axis_name: mesh axis over which the batch is sharded; None where it is not.
      axis: 1 to divide the patches, or 2 the dimensions, among the devices. Zeros fill them up
        to a multiple of the devices: they change neither form's eigenvalues.

    Returns:
      [b p/devices k] or [b p k/devices], images in the order of the global batch.
    """
    devices = axis_size(axis_name)
    if devices == 1:
        return x
    x = _filled(x, axis, devices)
    return jax.lax.all_to_all(x, axis_name, split_axis=axis, concat_axis=0, tiled=True)


def sum_symmetric(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Sum over devices of symmetric matrices [p n n], of which only one half is sent."""
    if axis_size(axis_name) == 1 or x.shape[-1] % 2:
        return sum_over(x, axis_name)
    return _unpacked(sum_over(_packed(x), axis_name))


def scatter_symmetric(x: jax.Array, axis_name: str | None) -> jax.Array:
    """As `sum_symmetric`, each device getting the sums of its part of the matrices alone.

    Args:
      x: [p n n]; zero matrices fill it up to a multiple of the devices.
      axis_name: mesh axis to sum over; None where there is none.

    Returns:
      [p/devices n n].
    """
    devices = axis_size(axis_name)
    if devices == 1:
        return x
    x = _filled(x, 0, devices)
    odd = x.shape[-1] % 2
    x = x if odd else _packed(x)
    x = jax.lax.psum_scatter(x, axis_name, scatter_dimension=0, tiled=True)
    return x if odd else _unpacked(x)


def _filled(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    """`x` with zeros at the end of `axis`, up to a multiple."""
    widths = [(0, -size % multiple if i == axis else 0) for i, size in enumerate(x.shape)]
    return jnp.pad(x, widths)


def _packed(x: jax.Array) -> jax.Array:
    """Symmetric [p n n], n even -> [p n/2 n+1], each pair of equal elements once.

    Of the blocks a, b; b^T, c the packed matrix has b whole, and the lower triangle of a and the
    upper one of c in one square; the diagonal of c has a column of its own.
    """
    half = x.shape[-1] // 2
    a, b, c = x[:, :half, :half], x[:, :half, half:], x[:, half:, half:]
    diagonal = jnp.diagonal(c, axis1=1, axis2=2)[..., None]
    return jnp.concatenate([b, jnp.tril(a) + jnp.triu(c, 1), diagonal], axis=2)


def _unpacked(packed: jax.Array) -> jax.Array:
    """The inverse of `_packed`."""
    half = packed.shape[1]
    b, triangles, diagonal = jnp.split(packed, [half, 2 * half], axis=2)
    below, above = jnp.tril(triangles, -1), jnp.triu(triangles, 1)
    identity = jnp.eye(half)[None]
    a = jnp.tril(triangles) + jnp.swapaxes(below, 1, 2)
    c = above + jnp.swapaxes(above, 1, 2) + diagonal * identity
    rows = jnp.concatenate([a, b], axis=2), jnp.concatenate([jnp.swapaxes(b, 1, 2), c], axis=2)
    return jnp.concatenate(rows, axis=1)
