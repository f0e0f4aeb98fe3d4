"""What `benchmark train` and `benchmark embed` say of a program that they run."""

from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from bagssl_jax.benchmarks.programs import compile_program, peak_memory
from bagssl_jax.benchmarks.timing import print_row
from bagssl_jax.benchmarks.utilisation import matrix_operations, matrix_rate
from bagssl_jax.models import DTYPES


class Measured(NamedTuple):
    """A compiled program, and what its times are set beside.

    Attributes:
      run: the program.
      compile_seconds: that compiling it took, or finding it in JAX's compilation cache.
      operations: of one call, over all devices, as `matrix_operations` counts them.
      rate: operations a second of a matrix product on the same devices.
      mesh: the devices.
    """

    run: jax.stages.Compiled
    compile_seconds: float
    operations: int
    rate: float
    mesh: Mesh

    def row(self, seconds: float, *, images: float, patches: int) -> dict[str, Any]:
        """What is said of a stage whose calls take so many seconds for so many images and patches.

        'device', 'devices'; 'images_per_s', 'patches_per_s'; 'operations' of a call, and
        'utilisation', these a second over the matrix product's rate; the memory, as `peak_memory`
        has it; 'compile_seconds'.
        """
        return {
            **_kind(self.mesh),
            'seconds': seconds,
            'images_per_s': images / seconds,
            'patches_per_s': patches / seconds,
            'operations': self.operations,
            'utilisation': self.operations / seconds / self.rate,
            **peak_memory(self.run, self.mesh.local_devices),
            'compile_seconds': self.compile_seconds,
        }


def print_rate(what: str, mesh: Mesh, dtype: str) -> float:
    """Measures the rate of a matrix product, prints it as the stage 'matmul', and returns it."""
    found = matrix_rate(mesh, DTYPES[dtype])
    print_row(what, 'matmul', {**_kind(mesh), **found})
    return found['operations_per_s']


def compile_measured(traced: jax.stages.Traced, what: str, *, mesh: Mesh, rate: float) -> Measured:
    """Compiles a function that was traced for `mesh`.

    Args:
      traced: the function.
      what: it is of, such as '100 images', for the error.
      mesh: the devices.
      rate: operations a second of a matrix product on them.

    Raises:
      InputError: it does not fit into the devices' memory.
    """
    kind = _kind(mesh)
    what = f'{what} on {kind["devices"]} of {kind["device"]}'
    compiled, seconds = compile_program(traced.lower(), what)
    return Measured(compiled, seconds, matrix_operations(traced.jaxpr), rate, mesh)


def _kind(mesh: Mesh) -> dict[str, Any]:
    return {'device': mesh.devices.flat[0].device_kind, 'devices': mesh.size}
