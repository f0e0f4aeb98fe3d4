"""Whether a training fits into the memory that there is, known before its first batch."""

import math

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bagssl_jax.data import pipeline
from bagssl_jax.data.datasets import Images
from bagssl_jax.memory import program_bytes, refuse_shortage, tree_bytes
from bagssl_jax.parallel import stack_sharded
from bagssl_jax.training.executions import Execute
from bagssl_jax.training.state import TrainState
from bagssl_jax.training.steps import Inputs

# Of its own, measured beside an idle pipeline (Linux, Python 3.11, grain 0.2.18): at least.
WORKER = 120 * 2**20
ON_DEVICE = 3  # batches there at once: in use, and two on their way


def check_shapes(
    config: ConfigDict,
    state: TrainState,
    inputs: Inputs,
    images: Images,
    mesh: Mesh,
    *,
    longest: int,
) -> None:
    """Raises InputError where what must lie in memory by its shapes alone does not fit.

    It takes no compiler and no memory to know: the state, as many gradients as parameters, the
    batches. What a step needs beside them, `check_execution` knows.

    Args:
      config: the resolved configuration.
      state: shapes.
      inputs: shapes of a step's.
      images: that are trained on.
      mesh: the devices.
      longest: steps of an execution at most.
    """
    refuse_shortage(
        'this training',
        on_device={
            'parameters, statistics and optimiser': tree_bytes(state),
            'gradients': tree_bytes(state.params),
            'batches on the devices': ON_DEVICE * longest * _sent(inputs) // mesh.size,
            'resident images': tree_bytes(inputs.get('resident')),
        },
        on_host=_host_parts(config, inputs, images, mesh, longest),
        devices=mesh.local_devices,
    )


def check_execution(
    config: ConfigDict,
    execute: Execute,
    state: TrainState,
    inputs: Inputs,
    shared: Inputs,
    images: Images,
    mesh: Mesh,
    *,
    longest: int,
) -> None:
    """Compiles an execution, and raises InputError where the compiler says that it does not fit.

    The call that follows finds what was compiled here: nothing is compiled twice.

    Args:
      config: the resolved configuration.
      execute: as by `make_execute`.
      state: on the devices.
      inputs: shapes of a step's.
      shared: on the devices, as `execute` takes them.
      images: that are trained on.
      mesh: the devices.
      longest: steps of an execution at most.
    """
    batch = {name: shape for name, shape in inputs.items() if name not in shared}
    if longest > 1:
        batch = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                (longest, *x.shape), x.dtype, sharding=stack_sharded(mesh)
            ),
            batch,
        )
    compiled = execute.lower(state, batch, longest, shared).compile()
    held = tree_bytes(state) + tree_bytes(shared)
    whole = program_bytes(compiled, mesh.devices.flat[0].platform)
    refuse_shortage(
        'this training',
        on_device={
            'parameters, statistics and optimiser': tree_bytes(state),
            'resident images': tree_bytes(shared),
            'the rest of a step': whole - held,
            'batches waiting on the devices': (ON_DEVICE - 1)
            * longest
            * _sent(inputs)
            // mesh.size,
        },
        on_host=_host_parts(config, inputs, images, mesh, longest),
        devices=mesh.local_devices,
        held=held,
    )


def _sent(inputs: Inputs) -> int:
    """Bytes of a global batch, as it is sent to the devices."""
    return tree_bytes({name: x for name, x in inputs.items() if name != 'resident'})


def _host_parts(
    config: ConfigDict, inputs: Inputs, images: Images, mesh: Mesh, longest: int
) -> dict[str, int]:
    """Bytes of this process's batches that are made in advance, and of what makes them."""
    batch = _sent(inputs) * len(mesh.local_devices) // mesh.size
    workers, source = config.data.workers, images.source
    # Every worker gets a copy.
    pixels = len(source) * math.prod(source.image_shape) * 3 if source.in_memory else 0
    return {
        'batches made in advance': batch * pipeline.batches_ahead(source, workers),
        'batches of an execution': batch * longest if longest > 1 else 0,
        'data.workers': workers * (WORKER + pixels),
    }
