"""What objectives do with vectors."""

import jax
import jax.numpy as jnp


def normalized(x: jax.Array) -> jax.Array:
    """`x` over its L2 norm along the last axis; the gradient is finite also at zero."""
    squares = jnp.sum(x**2, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-16))


def at_least_float32(x: jax.Array) -> jax.Array:
    """`x` in float32, if it is not finer already."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
