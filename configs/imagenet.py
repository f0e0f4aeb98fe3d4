"""ImageNet from patches of 32, 64 or 100 pixels, cut out of the images as they are.

    python -m bagssl_jax.prepare imagenet2012 --data_dir=DIR
    python -m bagssl_jax.main --config=configs/imagenet.py:patch32 --workdir=runs/imagenet32 \
        --config.data.dir=DIR

Arguments, separated by commas: `patch32`, `patch64` or `patch100`, and the objective, `vicreg`
(where none is given) or `tcr`. Or one alone of `vicreg`, `barlow`, `simclr` and `byol`, which are
their authors' recipes, of two whole crops an image: see below.

The target is the paper's: with patches of 32x32, 62% top-1 of a linear probe (arXiv 2206.08954,
abstract). What is reached here was not measured. The paper's hyper-parameters for ImageNet could
not be read, and none of these are from it: for `vicreg`, the loss, projector, learning rate, weight
decay, warm-up and schedule of VICReg's authors (facebookresearch/vicreg), who train on two whole
crops an image, for 1,000 epochs; for `tcr`, the loss and the projector of EMP-SSL (arXiv
2304.03977) with all else as for `vicreg`. The batch of 2,048 images of eight patches, the
augmentation and the stems are guesses; the stem for 32x32 keeps their resolution, as CIFAR's does.

For a TPU slice of 32 chips or more (v5e:4x8). What it takes there, worked out and not measured:

    python -m bagssl_jax.benchmark compile --config=configs/imagenet.py:patch32 --topology=v5e:4x8

The authors' recipes are equal to their code, by test, in float64 over twenty whole steps: loss,
gradient, LARS, schedule, BatchNorm's statistics, momentum network (tests/test_author_steps.py).
None was trained here; the figures are their authors', of linear probes.

- `vicreg` (Bardes, Ponce and LeCun, arXiv 2105.04906): main_vicreg.py and augmentations.py of
  facebookresearch/vicreg (4e12602); 73.2% after 1,000 epochs.
- `barlow` (Zbontar et al., arXiv 2103.03230): main.py of facebookresearch/barlowtwins (8e8d284);
  73.5% after 1,000 epochs. Theirs does not differentiate its all_reduce: on n processes, gradients
  are n times smaller than here. LARS hides that from kernels, but not from biases and norms.
- `simclr` (Chen et al., arXiv 2002.05709): tf2/ of google-research/simclr (383d414), by the command
  of its README, which says 64.5% after 100 epochs.
- `byol` (Grill et al., arXiv 2006.07733): byol/ of deepmind-research (f5de0ed); 74.3% after 1,000
  epochs, in the paper.

Bicubic crops are Pillow's, to the grey level (tests/test_crops.py); the jitter's order is each
patch's own, and in `simclr` and `byol` its operations and the blur's edges are those of their code
(tests/test_augment.py). What differs in all: images are augmented as floats; JPEGs are decoded by
OpenCV; bfloat16, in the place of VICReg's and Barlow Twins' float16 with loss scaling. In `vicreg`
and `barlow`: a Gaussian of 13 taps blurs, where Pillow does by boxes. In `simclr` and `byol`:
TensorFlow resizes without averaging, and draws crops in ways of its own; their ResNets pad as
TensorFlow does; BYOL's target does not start as a copy; the rest of an epoch is left out.
"""

from ml_collections import ConfigDict

from bagssl_jax.defaults import RESNETS
from bagssl_jax.errors import InputError
from configs import default

STEMS = {'patch32': 'cifar', 'patch64': 'imagenet', 'patch100': 'imagenet'}
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PROJECTORS = {'vicreg': (8192, 8192, 8192), 'tcr': (4096, 4096, 1024)}


def get_config(arguments: str = 'patch32') -> ConfigDict:
    if arguments in RECIPES:
        return RECIPES[arguments]()
    words = arguments.split(',')
    for word in words:
        if word not in (*STEMS, *PROJECTORS):
            known = ', '.join((*STEMS, *PROJECTORS, *list(RECIPES)[1:]))
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


def _two_crops(
    mean: tuple[float, ...], std: tuple[float, ...], conv_init: str = 'he_normal'
) -> ConfigDict:
    """What the authors' recipes share: two crops an image, of ImageNet, for a ResNet-50."""
    config = default.get_config()
    config.data.name = 'imagenet2012'
    config.data.test_split = 'validation'
    config.data.workers = 16
    config.patches.count = 2
    config.crops = 'multiscale'
    config.patches.resize = 224
    config.multiscale.scale = (0.08, 1.0)
    config.multiscale.ratio = (3 / 4, 4 / 3)
    config.multiscale.interpolation = 'bicubic'
    config.augment.flip = 0.5
    config.augment.jitter = 0.8
    config.augment.jitter_order = 'random'
    config.augment.grey = 0.2
    config.augment.blur_sigma = (0.1, 2.0)
    config.encoder.name = 'resnet50'
    for name in RESNETS:
        config.encoder[name].stem = 'imagenet'
        config.encoder[name].zero_init_last = True
        config.encoder[name].stem_init = config.encoder[name].conv_init = conv_init
    config.encoder.mean, config.encoder.std = mean, std
    config.encoder.dtype = 'bfloat16'
    config.optimizer.warmup_epochs = 10.0
    config.train.checkpoint_every = 625
    config.probe.patches = (1,)
    config.probe.views = ('center',)
    return config


def _two_augmentations(config: ConfigDict) -> None:
    """Those of BYOL's paper, table 6, which VICReg and Barlow Twins took over."""
    config.augment.brightness = 0.4
    config.augment.contrast = 0.4
    config.augment.saturation = 0.2
    config.augment.hue = 0.1
    config.augment.blur_by_index = (1.0, 0.1)
    config.augment.solarize_by_index = (0.0, 0.2)


def _vicreg() -> ConfigDict:
    config = _two_crops(*IMAGENET)
    _two_augmentations(config)  # augmentations.py: TrainTransform
    config.data.batch_size = 2048  # --batch-size
    config.projector.widths = (8192, 8192, 8192)  # --mlp
    config.projector.init = 'torch'
    config.projector.last_bias = False  # Projector
    config.train.by_index = True  # VICReg.forward(x, y) passes one view after the other
    config.train.epochs = 1000.0  # its README; --epochs is 100
    config.objective.name = 'vicreg'
    config.objective.vicreg.invariance_weight = 25.0  # --sim-coeff
    config.objective.vicreg.variance_weight = 25.0  # --std-coeff
    config.objective.vicreg.covariance_weight = 1.0  # --cov-coeff
    config.optimizer.name = 'lars_vicreg'
    config.optimizer.learning_rate = 0.2  # --base-lr, x batch / 256
    config.optimizer.weight_decay = 1e-6  # --wd
    config.optimizer.lars_vicreg.trust_coefficient = 0.001  # LARS: eta
    config.optimizer.end_factor = 0.001  # adjust_learning_rate: end_lr
    return config


def _barlow() -> ConfigDict:
    config = _two_crops(*IMAGENET)
    _two_augmentations(config)  # Transform
    config.data.batch_size = 2048  # --batch-size
    config.projector.widths = (8192, 8192, 8192)  # --projector
    config.projector.init = 'torch'
    config.projector.last_bias = False  # BarlowTwins.__init__: nn.Linear(..., bias=False)
    config.train.by_index = True  # BarlowTwins.forward(y1, y2)
    config.train.epochs = 1000.0  # --epochs
    config.objective.name = 'barlow'
    config.objective.barlow.off_diagonal_weight = 0.0051  # --lambd
    config.optimizer.name = 'lars_vicreg'  # LARS
    config.optimizer.learning_rate = 0.2  # --learning-rate-weights, x batch / 256
    config.optimizer.lars_vicreg.bias_factor = 0.0048 / 0.2  # --learning-rate-biases
    config.optimizer.weight_decay = 1e-6  # --weight-decay
    config.optimizer.end_factor = 0.001  # adjust_learning_rate: end_lr
    return config


def _simclr() -> ConfigDict:
    # data_util.py: pixels in [0, 1]; resnet.py: VarianceScaling()
    config = _two_crops((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 'lecun_normal')
    config.data.batch_size = 4096  # --train_batch_size
    # data_util.py: color_jitter, of --color_jitter_strength=1
    config.augment.brightness = config.augment.contrast = config.augment.saturation = 0.8
    config.augment.hue = 0.2
    config.augment.definitions = 'simclr'
    config.augment.blur = 0.5  # batch_random_blur
    config.projector.widths = (2048, 2048, 128)  # --num_proj_layers=3, --proj_out_dim
    config.projector.init = 'normal'  # model.py: LinearLayer, RandomNormal(stddev=0.01)
    config.projector.last_bias = False  # ProjectionHead: use_bias=False
    config.projector.last_norm = True  # use_bn=True
    config.train.epochs = 100.0  # --train_epochs
    config.objective.name = 'simclr'
    config.objective.simclr.temperature = 0.1  # --temperature
    config.objective.simclr.weight = 2.0  # objective.py: reduce_mean(loss_a + loss_b)
    config.optimizer.name = 'lars'  # --optimizer, with classic_momentum
    config.optimizer.lars.nesterov = False  # use_nesterov
    config.optimizer.learning_rate = 0.3  # --learning_rate=0.075, x sqrt(batch): 4.8 both
    config.optimizer.weight_decay = 1e-4  # --weight_decay; the paper has 1e-6
    return config


def _byol() -> ConfigDict:
    config = _two_crops(*IMAGENET, 'haiku')  # dataset.py: normalize_images
    _two_augmentations(config)  # augmentations.py: augment_config
    config.augment.definitions = 'byol'
    config.data.batch_size = 4096  # README
    config.projector.widths = config.predictor.widths = (4096, 256)  # configs/byol.py
    config.projector.init = config.predictor.init = 'haiku'
    config.projector.last_bias = config.predictor.last_bias = False  # networks.py: MLP
    config.train.by_index = True  # ByolExperiment._forward: view1, then view2
    config.train.epochs = 1000.0
    config.objective.name = 'byol'
    config.target.momentum = 0.996  # _EMA_PRESETS
    config.optimizer.name = 'lars_vicreg'  # optimizers.py: lars
    config.optimizer.learning_rate = 0.2  # _LR_PRESETS, x batch / 256
    config.optimizer.weight_decay = 1.5e-6  # _WD_PRESETS
    config.optimizer.lars_vicreg.trust_coefficient = 0.001  # eta
    return config


RECIPES = {'vicreg': _vicreg, 'barlow': _barlow, 'simclr': _simclr, 'byol': _byol}
