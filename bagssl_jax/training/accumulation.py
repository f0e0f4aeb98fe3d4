"""A batch that passes through the networks in parts, in the memory of one of them.

Gradient accumulation that is exact for every objective, whether or not its loss splits over
images: GradCache (Gao et al., arXiv 2101.06983), by rematerialisation. The parts' vectors are
computed without keeping anything else; the loss is of all of them at once; then each part passes
through the networks a second time, for the gradient of its vectors alone.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Carry = TypeVar('Carry')
Batch = TypeVar('Batch')
Tree = TypeVar('Tree')


def in_parts(
    function: Callable[[Carry, Batch], tuple[Carry, Tree]], carry: Carry, batch: Batch, parts: int
) -> tuple[Carry, Tree]:
    """Calls a function on the parts of a batch in turn, and puts the results together.

    Image i is of part i mod `parts`. Where devices hold consecutive shares of a batch, each a
    multiple of `parts`, that is the same part whatever their number.

    Differentiated, it keeps the batch and nothing of what is computed from it: that is computed
    again, part by part, and what the function closes over gets the sum of the parts' gradients.
    No gradient passes through the carry. Of one part, it is the call of the function.

    Args:
      function: (carry, part of the batch) -> (carry, results), whose leaves begin with the
        part's images.
      carry: that the first part gets; every other one gets what the part before it gave.
      batch: leaves [b ...]; `parts` divides b.
      parts: at least 1.

    Returns:
      The carry of the last part, and the results of the whole batch, [b ...], in its order.
    """
    if parts == 1:
        return function(carry, batch)

    def split(x):
        return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)  # [b ...] -> [k b/k ...]

    def joined(x):
        return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])  # [k b/k ...] -> [b ...]

    def of_part(carry, part):
        carry, results = function(carry, part)
        return jax.lax.stop_gradient(carry), results

    # In a loop, nothing can be merged with its second computation: barriers would only cost.
    of_part = jax.checkpoint(of_part, prevent_cse=False)
    carry, results = jax.lax.scan(of_part, carry, jax.tree.map(split, batch))
    return carry, jax.tree.map(joined, results)
