"""Photographs of many sizes: a folder of your own, ImageNet-100 or ImageNet.

    python -m bagssl_jax.main --config=configs/photographs.py --workdir=runs/photographs \
        --config.data.dir=PATH  # PATH/train/CLASS/*.jpg and PATH/test/CLASS/*.jpg
    python -m bagssl_jax.main --config=configs/photographs.py:imagenet100 --workdir=runs/imagenet \
        --config.data.dir=DIRECTORY_OF_PREPARED_TFDS_DATA_SETS  # by bagssl_jax.prepare

Arguments, separated by commas: 'folder' (where none is given), 'imagenet100' or 'imagenet2012'; and
`small`. Eight patches of 14% of the image, which become 96x96, ResNet-50: for accelerators. What it
reaches was not measured.

`small` fits a laptop and some dozens of photographs: patches become 32x32, a tiny encoder, 16
images a step, 500 steps. From 100 photographs to the report in 3:15 (2 CPU cores, 2026-11-26).
"""

from ml_collections import ConfigDict

from bagssl_jax.defaults import RESNETS
from bagssl_jax.errors import InputError
from configs import default

NAMES = ('folder', 'imagenet100', 'imagenet2012')


def get_config(arguments: str = 'folder') -> ConfigDict:
    words = arguments.split(',')
    for word in words:
        if word not in (*NAMES, 'small'):
            raise InputError(f'unknown argument {word!r}: choose from {", ".join(NAMES)}, small')
    names = [word for word in words if word in NAMES] or ['folder']
    if len(names) > 1:
        raise InputError(f'{arguments!r} names {len(names)} data sets: choose one')
    name = names[0]
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
    if 'small' in words:
        _small(config)
    return config


def _small(config: ConfigDict) -> None:
    config.data.batch_size = 16
    config.data.workers = 0
    config.patches.resize = 32
    config.encoder.name = 'tiny'
    config.encoder.tiny.width = 32
    config.encoder.dtype = 'float32'
    config.projector.widths = (512, 128)
    config.predictor.widths = (512, 128)
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 1.6e-2  # 1e-3 at 16 images a step
    config.optimizer.warmup_epochs = 0.0
    config.train.steps = 500
    config.probe.whole_size = 128
    config.probe.batch_size = 256
    config.analysis.after_training = 'convergence,neighbours,locality,map'
