"""The share of what the devices can do that a program gets out of them.

Its matrix products and convolutions are counted in the traced program, as the compiler's own count
has the body of a loop once, however often it runs, and nothing of what is handed to a library: on
GPUs every convolution, on CPUs Cholesky factors. Where it has neither, both counts agree. The rate
that they are set beside is that of a large matrix product here and now, and not a data sheet's.
"""

import math
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from jax.sharding import Mesh

from bagssl_jax.parallel import batch_sharded

SIDES = {'cpu': 1024}  # of the square matrices that are multiplied, by platform
SIDE = 8192  # of all others: a millisecond or more of the fastest
REPEATS = 10


def matrix_operations(jaxpr: ClosedJaxpr | Jaxpr) -> int:
    """Floating-point operations of all matrix products and convolutions, over all devices.

    Multiplications and additions, each as one. Of a convolution without those by padding and by
    the zeros between dilated inputs, of loops all turns, what is computed again to save memory
    once more, and what nothing uses not at all. Of alternatives, such as forms for several
    platforms, the one that takes fewest. The body of a loop whose length is not known before it
    runs counts once. What is elementwise, and factorisations, are left out: they are no work for
    the units that matrix products keep busy.

    Args:
      jaxpr: as `jax.stages.Traced.jaxpr` gives it.
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    total, used = 0, set(_variables(inner.outvars))
    for eqn in reversed(inner.eqns):
        # The compiler drops the others: a pulled-back convolution is traced with the forward one.
        if used.intersection(eqn.outvars):
            total += _operations(eqn)
            used.update(_variables(eqn.invars))
    return total


def matrix_rate(mesh: Mesh, dtype: Any) -> dict[str, Any]:
    """How many operations a second square matrix products reach on all devices at once.

    Args:
      mesh: the devices.
      dtype: of the factors and the product, at JAX's default precision.

    Returns:
      'dtype'; 'side' of the matrices; 'seconds', the median; 'operations_per_s', over all devices.
    """
    side = SIDES.get(mesh.devices.flat[0].platform, SIDE)
    sharding = batch_sharded(mesh)
    # Random ones: of zeros, some devices take less power and so can go faster.
    shape = (mesh.size, side, side)
    draw = jax.jit(
        lambda key: jax.random.normal(key, shape, jnp.float32).astype(dtype),
        out_shardings=sharding,
    )
    a, b = (draw(jax.random.key(i)) for i in range(2))
    multiply = jax.jit(jnp.matmul, out_shardings=sharding)
    jax.block_until_ready(multiply(a, b))
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(multiply(a, b))
        times.append(time.perf_counter() - start)
    seconds = float(np.median(times))
    return {
        'dtype': jnp.dtype(dtype).name,
        'side': side,
        'seconds': seconds,
        'operations_per_s': mesh.size * 2 * side**3 / seconds,
    }


def _variables(atoms: Iterable[Any]) -> list[Var]:
    return [atom for atom in atoms if isinstance(atom, Var)]


def _operations(eqn: JaxprEqn) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name == 'dot_general':
        (contracted, _), _ = params['dimension_numbers']
        inner = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        return 2 * inner * math.prod(eqn.outvars[0].aval.shape)
    if name == 'conv_general_dilated':
        return _convolution(eqn)
    inner = [
        matrix_operations(value)
        for group in params.values()
        for value in (group if isinstance(group, tuple | list) else (group,))
        if isinstance(value, ClosedJaxpr | Jaxpr)
    ]
    if not inner:
        return 0
    if name == 'cond':
        return min(inner)
    if name == 'scan':
        return params['length'] * sum(inner)
    if name == 'shard_map':  # whose shapes are one device's
        return params['mesh'].size * sum(inner)
    return sum(inner)


def _convolution(eqn: JaxprEqn) -> int:
    params = eqn.params
    lhs, rhs = (variable.aval.shape for variable in eqn.invars[:2])
    out = eqn.outvars[0].aval.shape
    numbers = params['dimension_numbers']
    pairs = 1  # of an output place and a kernel's element that meets an input there
    for axis, (before, _) in enumerate(params['padding']):
        count, width, places = (
            shape[spec[2 + axis]] for shape, spec in zip((lhs, rhs, out), numbers, strict=True)
        )
        dilation = params['lhs_dilation'][axis]
        reached = (
            np.arange(places)[:, None] * params['window_strides'][axis]
            + np.arange(width)[None] * params['rhs_dilation'][axis]
            - before
        )
        inside = (reached >= 0) & (reached <= (count - 1) * dilation)
        pairs *= int((inside & (reached % dilation == 0)).sum())
    batch, features = (out[axis] for axis in numbers[2][:2])
    return 2 * batch * features * rhs[numbers[1][1]] * pairs // params['batch_group_count']
