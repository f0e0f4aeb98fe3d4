"""Photographs of many sizes: a folder of your own, ImageNet-100 or ImageNet.

    python -m bagssl_jax.main --config=configs/photographs.py --workdir=runs/photographs \
        --config.data.dir=PATH  # PATH/train/CLASS/*.jpg and PATH/test/CLASS/*.jpg
    python -m bagssl_jax.main --config=configs/photographs.py:imagenet100 --workdir=runs/imagenet \
        --config.data.dir=DIRECTORY_OF_PREPARED_TFDS_DATA_SETS  # by bagssl_jax.prepare

The argument is 'folder', 'imagenet100' or 'imagenet2012'. Eight patches of 14% of the image, which
become 96x96, ResNet-50: for accelerators. What it reaches was not measured.
"""

from ml_collections import ConfigDict

from bagssl_jax.defaults import RESNETS
from bagssl_jax.errors import InputError
from configs import default

NAMES = ('folder', 'imagenet100', 'imagenet2012')


def get_config(name: str = 'folder') -> ConfigDict:
    if name not in NAMES:
        raise InputError(f'unknown argument {name!r}: choose from {", ".join(NAMES)}')
    config = default.get_config()
    config.data.name = name
    if name != 'folder':
        config.data.test_split = 'validation'
    config.data.batch_size = 256
    config.data.workers = 8
    config.patches.count = 8
    config.patches.scale = 0.14
    config.patches.resize = 96
    config.augment.blur = 0.5
    config.encoder.name = 'resnet50'
    # Whichever --config.encoder.name chooses.
    for resnet in RESNETS:
        config.encoder[resnet].stem = 'imagenet'
    config.encoder.dtype = 'bfloat16'
    config.projector.widths = (4096, 4096, 1024)
    config.predictor.widths = (4096, 1024)
    config.optimizer.warmup_epochs = 10.0
    config.train.epochs = 100.0
    config.probe.patches = (1, 4, 16)
    config.probe.batch_size = 512
    return config
