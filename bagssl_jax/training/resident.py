"""All training images on every device, so that a step is sent no more than numbers and boxes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from bagssl_jax.data.datasets import Images
from bagssl_jax.data.reading import unreadable_image
from bagssl_jax.errors import InputError
from bagssl_jax.memory import free_memory
from bagssl_jax.parallel import DATA_AXIS, global_arrays, replicated
from bagssl_jax.training.state import TrainState
from bagssl_jax.training.steps import Inputs


def resident_shape(images: int, image_shape: tuple[int, int], mesh: Mesh) -> jax.ShapeDtypeStruct:
    """So many RGB images as they lie on the devices: uint8 [n h*w*3], replicated over `mesh`.

    An image is a row: accelerators pad the last axes of an array, where 3 would become 128.
    """
    shape = images, math.prod(image_shape) * 3
    return jax.ShapeDtypeStruct(shape, np.uint8, sharding=replicated(mesh))


def load_resident(
    images: Images, mesh: Mesh, *, min_side: int, on_error: str
) -> tuple[jax.Array, tuple[int, ...]]:
    """Decodes all images, which are of one size, and copies them to every device.

    Args:
      images: of the training split.
      mesh: the data mesh.
      min_side: as for `Images.pixels`.
      on_error: one of `pipeline.ON_ERROR`.

    Returns:
      uint8 [n h*w*3] as by `resident_shape`, and the numbers of the images that cannot be read, in
      whose places the next ones that can lie, as in training batches.

    Raises:
      InputError: they do not fit into the memory of the host or of a device, or an image cannot be
        read and `on_error` is 'stop'.
    """
    needed = resident_shape(len(images), images.image_shape, mesh).size
    available = free_memory(mesh.local_mesh.devices.flat[0])
    if needed > available:
        raise InputError(
            f'data.crop_on=resident needs {needed / 2**30:.2f} GiB for {len(images):,} images, and '
            f'a device has {available / 2**30:.2f} free: data.crop_on=device sends only those of a '
            'batch'
        )
    pixels, unreadable = images.pixels(min_side=min_side)
    if len(unreadable) and on_error == 'stop':
        error = unreadable_image(images.source, int(unreadable[0]), min_side=min_side)
        raise InputError(f'{error}. --config.data.on_error=skip leaves such images out')
    resident = global_arrays(pixels.reshape(len(pixels), -1), replicated(mesh))
    return resident, tuple(unreadable.tolist())


def from_resident(
    function: Callable[[TrainState, Inputs], Any],
    image_shape: tuple[int, int],
    mesh: Mesh,
    *,
    donate: bool,
) -> Callable[[TrainState, Inputs], Any]:
    """A step that takes 'images' and 'boxes', as one that takes the images from resident ones.

    Args:
      function: of (state, inputs), with 'images' uint8 [b h w 3] among the inputs.
      image_shape: (height, width).
      mesh: the data mesh.
      donate: the state.

    Returns:
      The same, jitted, of inputs with 'numbers' int32 [b] and 'resident', all images as in
      `resident_shape`, in place of 'images'.
    """

    def gather(resident, numbers):
        return jnp.take(resident, numbers, axis=0, mode='clip').reshape(-1, *image_shape, 3)

    split = PartitionSpec(DATA_AXIS)
    of_devices = jax.shard_map(
        gather, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split
    )

    def gathered(state, inputs):
        inputs = dict(inputs)
        images = of_devices(inputs.pop('resident'), inputs.pop('numbers'))
        return function(state, {'images': images, **inputs})

    return jax.jit(gathered, donate_argnums=0 if donate else ())
