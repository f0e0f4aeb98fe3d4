"""What a training step takes: where patches are cut, by what, and the shapes of a batch."""

import operator

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bagssl_jax import device_crops
from bagssl_jax.data import crops
from bagssl_jax.data.datasets import Images
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.errors import InputError
from bagssl_jax.parallel import batch_sharded
from bagssl_jax.training.resident import resident_shape
from bagssl_jax.training.steps import Cut, Inputs


def checked_crops(config: ConfigDict, images: Images) -> crops.RandomCrops:
    """What places the patches, once it is known to fit the images.

    Raises:
      InputError: it does not.
    """
    PatchGeometry.of(config.patches).check(images.image_shape)
    random_crops = crops_of(config)
    height, width = images.example_shape()
    random_crops.boxes(random_crops.draw(np.random.default_rng(0), 1), [height], [width])
    return random_crops


def crops_of(config: ConfigDict) -> crops.RandomCrops:
    """What places the patches."""
    return crops.make_crops(
        config.crops,
        config.patches.count,
        PatchGeometry.of(config.patches),
        config.get(config.crops, {}),
    )


def make_cut(
    config: ConfigDict,
    random_crops: crops.RandomCrops,
    geometry: PatchGeometry,
    image_shape: tuple[int, int] | None,
) -> Cut:
    """What makes patches of the pipeline's inputs, on the device.

    Raises:
      InputError: these crops, or these images, cannot be cut there.
    """
    if config.data.crop_on == 'host':
        return operator.itemgetter('patches')
    if image_shape is None:
        raise InputError(
            f'data.crop_on={config.data.crop_on} needs images of one size, and those of '
            f'{config.data.name} {config.data.train_split} may differ: leave data.crop_on=host'
        )
    if random_crops.interpolation != 'area':
        raise InputError(
            f'{config.crops}.interpolation={random_crops.interpolation} is for data.crop_on=host'
        )
    size = geometry.side(*image_shape) if config.crops == 'fixed' else 0

    def cut(inputs: Inputs) -> jax.Array | tuple[jax.Array, ...]:
        return crops.for_each_size(
            lambda boxes, resize: device_crops.cut(
                inputs['images'], boxes, size=size, resize=resize
            ),
            random_crops,
            inputs['boxes'],
        )

    return cut


def input_shapes(
    config: ConfigDict,
    random_crops: crops.RandomCrops,
    side: int,
    images: int,
    image_shape: tuple[int, int] | None,
    mesh: Mesh,
) -> Inputs:
    """The shapes of a global batch, as in `pipeline.TrainBatch`, and of what all of them share."""
    shape = config.data.batch_size, config.patches.count

    def sharded(*shape: int, dtype: type) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharded(mesh))

    if config.data.crop_on == 'device':
        return {
            'images': sharded(shape[0], *image_shape, 3, dtype=np.uint8),
            'boxes': sharded(*shape, 4, dtype=np.int32),
        }
    if config.data.crop_on == 'resident':
        return {
            'numbers': sharded(shape[0], dtype=np.int32),
            'boxes': sharded(*shape, 4, dtype=np.int32),
            'resident': resident_shape(images, image_shape, mesh),
        }
    patches = tuple(
        sharded(shape[0], count, resize or side, resize or side, 3, dtype=np.uint8)
        for count, resize in random_crops.sizes
    )
    return {'patches': patches if len(patches) > 1 else patches[0]}
