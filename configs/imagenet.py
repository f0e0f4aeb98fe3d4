"""ImageNet from patches of 32, 64 or 100 pixels, cut out of the images as they are.

    python -m bagssl_jax.prepare imagenet2012 --data_dir=DIR
    python -m bagssl_jax.main --config=configs/imagenet.py:patch32 --workdir=runs/imagenet32 \
        --config.data.dir=DIR

Arguments, separated by commas: `patch32`, `patch64` or `patch100`, and the objective, `vicreg`
(where none is given) or `tcr`. `vicreg` alone is VICReg's own recipe, of two whole crops an image:
see below.

The target is the paper's: with patches of 32x32, 62% top-1 of a linear probe (arXiv 2206.08954,
abstract). What is reached here was not measured. The paper's hyper-parameters for ImageNet could
not be read, and none of these are from it: for `vicreg`, the loss, projector, learning rate, weight
decay, warm-up and schedule of VICReg's authors (facebookresearch/vicreg), who train on two whole
crops an image, for 1,000 epochs; for `tcr`, the loss and the projector of EMP-SSL (arXiv
2304.03977) with all else as for `vicreg`. The batch of 2,048 images of eight patches, the
augmentation and the stems are guesses; the stem for 32x32 keeps their resolution, as CIFAR's does.

For a TPU slice of 32 chips or more (v5e:4x8). What it takes there, worked out and not measured:

    python -m bagssl_jax.benchmark compile --config=configs/imagenet.py:patch32 --topology=v5e:4x8

`vicreg` (Bardes, Ponce and LeCun, arXiv 2105.04906) is main_vicreg.py and augmentations.py of
facebookresearch/vicreg (4e12602). Its README's linear probe after 1,000 epochs: 73.2%; nothing was
measured here. Equal to the authors' code, by test, in float64 over twenty whole steps: loss,
gradient, LARS, schedule, each view's own BatchNorm statistics (tests/test_author_steps.py); bicubic
crops to the grey level (tests/test_crops.py). What differs: the jitter's operations come in one
order, not in a random one; images are augmented as floats, and blurred by a Gaussian of 13 taps,
where Pillow approximates one by boxes; JPEGs are decoded by OpenCV; bfloat16 in the place of
float16 with loss scaling.
"""

from ml_collections import ConfigDict

from bagssl_jax.defaults import RESNETS
from bagssl_jax.errors import InputError
from configs import default

STEMS = {'patch32': 'cifar', 'patch64': 'imagenet', 'patch100': 'imagenet'}
PROJECTORS = {'vicreg': (8192, 8192, 8192), 'tcr': (4096, 4096, 1024)}


def get_config(arguments: str = 'patch32') -> ConfigDict:
    if arguments == 'vicreg':
        return _vicreg()
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
    config.optimizer.name = 'lars_vicreg'
    config.optimizer.learning_rate = 0.2
    config.optimizer.weight_decay = 1e-6
    config.optimizer.warmup_epochs = 10.0
    config.optimizer.end_factor = 0.001
    config.train.epochs = 100.0
    config.train.checkpoint_every = 625  # steps in an epoch
    config.probe.patches = (1, 4, 16, 64)
    config.probe.views = ('bag', 'center', 'whole')
    return config


def _vicreg() -> ConfigDict:
    """VICReg, with the lines of the authors' code."""
    config = get_config('patch64')
    config.data.on_error = 'stop'
    config.patches.count = 2
    config.patches.size = 0
    config.crops = 'multiscale'  # RandomResizedCrop(224, interpolation=BICUBIC)
    config.patches.resize = 224
    config.multiscale.scale = (0.08, 1.0)
    config.multiscale.ratio = (3 / 4, 4 / 3)
    config.multiscale.interpolation = 'bicubic'
    # RandomHorizontalFlip(0.5); ColorJitter(0.4, 0.4, 0.2, 0.1) at 0.8; RandomGrayscale(0.2)
    config.augment.flip = 0.5
    config.augment.jitter = 0.8
    config.augment.brightness = 0.4
    config.augment.contrast = 0.4
    config.augment.saturation = 0.2
    config.augment.hue = 0.1
    config.augment.grey = 0.2
    config.augment.blur_by_index = (1.0, 0.1)  # GaussianBlur(p=1.0), and (p=0.1)
    config.augment.solarize_by_index = (0.0, 0.2)  # Solarization(p=0.0), and (p=0.2)
    config.encoder.mean = (0.485, 0.456, 0.406)
    config.encoder.std = (0.229, 0.224, 0.225)
    config.encoder.resnet50.zero_init_last = True  # zero_init_residual
    config.projector.widths = (8192, 8192, 8192)  # --mlp
    config.projector.init = 'torch'
    config.projector.last_bias = False
    config.train.by_index = True  # model.forward(x, y) passes one view after the other
    config.train.epochs = 1000.0
    config.objective.name = 'vicreg'
    config.objective.vicreg.invariance_weight = 25.0  # --sim-coeff
    config.objective.vicreg.variance_weight = 25.0  # --std-coeff
    config.objective.vicreg.covariance_weight = 1.0  # --cov-coeff
    config.optimizer.learning_rate = 0.2  # --base-lr, x batch / 256
    config.optimizer.weight_decay = 1e-6  # --wd
    config.optimizer.lars_vicreg.trust_coefficient = 0.001  # eta
    config.optimizer.warmup_epochs = 10.0
    config.optimizer.end_factor = 0.001
    config.probe.patches = (1,)
    config.probe.views = ('center',)
    return config
