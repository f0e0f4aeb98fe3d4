"""ImageNet from patches of 32, 64 or 100 pixels, cut out of the images as they are.

    python -m bagssl_jax.prepare imagenet2012 --data_dir=DIR
    python -m bagssl_jax.main --config=configs/imagenet.py:patch32 --workdir=runs/imagenet32 \
        --config.data.dir=DIR

Arguments, separated by commas: `patch32`, `patch64` or `patch100`, and the objective, `vicreg`
(where none is given) or `tcr`.

The target is the paper's: with patches of 32x32, 62% top-1 of a linear probe (arXiv 2206.08954,
abstract). What is reached here was not measured. The paper's hyper-parameters for ImageNet could
not be read, and none of these are from it: for `vicreg`, the loss, projector, learning rate, weight
decay, warm-up and schedule of VICReg's authors (facebookresearch/vicreg), who train on two whole
crops an image, for 1,000 epochs; for `tcr`, the loss and the projector of EMP-SSL (arXiv
2304.03977) with all else as for `vicreg`. The batch of 2,048 images of eight patches, the
augmentation and the stems are guesses; the stem for 32x32 keeps their resolution, as CIFAR's does.

For a TPU slice of 32 chips or more (v5e:4x8). What it takes there, worked out and not measured:

    python -m bagssl_jax.benchmark compile --config=configs/imagenet.py:patch32 --topology=v5e:4x8
"""

from ml_collections import ConfigDict

from bagssl_jax.defaults import RESNETS
from bagssl_jax.errors import InputError
from configs import default

STEMS = {'patch32': 'cifar', 'patch64': 'imagenet', 'patch100': 'imagenet'}
PROJECTORS = {'vicreg': (8192, 8192, 8192), 'tcr': (4096, 4096, 1024)}


def get_config(arguments: str = 'patch32') -> ConfigDict:
    words = arguments.split(',')
    for word in words:
        if word not in (*STEMS, *PROJECTORS):
            known = ', '.join((*STEMS, *PROJECTORS))
            raise InputError(f'unknown argument {word!r}: choose from {known}')
    patch, objective = (
        [word for word in words if word in known] or [first]
        for known, first in ((STEMS, 'patch32'), (PROJECTORS, 'vicreg'))
    )
    if len(patch) > 1 or len(objective) > 1:
        raise InputError(f'{arguments!r} names several patches or objectives: choose one of each')
    config = default.get_config()
    config.data.name = 'imagenet2012'
    config.data.test_split = 'validation'
    config.data.batch_size = 2048
    config.data.workers = 16
    config.data.on_error = 'skip'  # some images are smaller than a patch
    config.patches.size = int(patch[0].removeprefix('patch'))
    config.patches.count = 8
    config.augment.saturation = 0.2
    config.augment.blur = 0.1
    config.augment.solarize = 0.1
    config.encoder.name = 'resnet50'
    # Whichever --config.encoder.name chooses.
    for resnet in RESNETS:
        config.encoder[resnet].stem = STEMS[patch[0]]
    config.encoder.dtype = 'bfloat16'
    config.objective.name = objective[0]
    config.projector.widths = PROJECTORS[objective[0]]
    config.optimizer.name = 'lars'
    config.optimizer.learning_rate = 0.2
    config.optimizer.weight_decay = 1e-6
    config.optimizer.warmup_epochs = 10.0
    config.optimizer.end_factor = 0.001
    config.train.epochs = 100.0
    config.train.checkpoint_every = 625  # steps in an epoch
    config.probe.patches = (1, 4, 16, 64)
    config.probe.views = ('bag', 'center', 'whole')
    return config
