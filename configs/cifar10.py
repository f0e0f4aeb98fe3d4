"""CIFAR-10 from 16x16 patches, by EMP-SSL's TCR or by VICReg.

    python -m bagssl_jax.main --config=configs/cifar10.py:tcr --workdir=runs/cifar10_tcr \
        --config.data.dir=DIRECTORY_OF_PREPARED_TFDS_DATA_SETS

Arguments, separated by commas: the objective (any that bagssl_jax/defaults.py lists), and of
`multiscale` and `small` what is wanted.

`tcr` is EMP-SSL's recipe (arXiv 2304.03977, which reports linear .806 after 1 epoch and .931
after 30): 20 patches of a quarter of the image, resized to 32x32, ResNet-18, LARS, here without
LARC's clipping. The others differ from it in the objective, a projector of three times 2048 and a
warm-up. All want an accelerator.

`multiscale` trains on RandomResizedCrop instead of patches of one scale: the usual baseline.
`small` fits a CPU: a tiny encoder on native 16x16 patches of the first 10,000 images. `tcr,small`
(2 CPU cores, 2026-11-23, commit 17ada26), top-1 on all test images of bags of 1 / 4 / 16 patches:
linear .565 / .611 / .655, kNN .514 / .547 / .566; untrained, .335 / .371 / .425 and
.304 / .308 / .340. Without `small`: not measured. EMP-SSL's figures, linear .806 after 1 epoch and
.907 after 10, are of bags of 128 patches in its pre-feature, here `hidden1`:

    python -m bagssl_jax.main --config=configs/cifar10.py:tcr --workdir=runs/cifar10_tcr \
        --config.data.dir=DIR --config.train.epochs=1 --config.encoder.dtype=bfloat16 \
        --config.data.crop_on=device --config.probe.patches=1,16,64,128,256 \
        --config.probe.spaces=h,hidden1
"""

from ml_collections import ConfigDict

from bagssl_jax.errors import InputError
from configs import default

OPTIONS = ('multiscale', 'small')


def get_config(arguments: str = 'tcr') -> ConfigDict:
    config = default.get_config()
    objectives = [key for key in config.objective if key != 'name']
    words = arguments.split(',')
    for word in words:
        if word not in (*objectives, *OPTIONS):
            known = ', '.join((*objectives, *OPTIONS))
            raise InputError(f'unknown argument {word!r}: choose from {known}')
    chosen = [word for word in words if word in objectives] or ['tcr']
    if len(chosen) > 1:
        raise InputError(f'{arguments!r} names {len(chosen)} objectives: choose one')
    config.objective.name = chosen[0]
    config.crops = 'multiscale' if 'multiscale' in words else 'fixed'
    config.multiscale.scale = (0.2, 1.0)
    config.data.name = 'cifar10'
    config.data.in_memory = True
    config.patches.scale = 0.25
    if 'small' in words:
        _small(config)
    else:
        _resnet(config)
    return config


def _resnet(config: ConfigDict) -> None:
    config.data.batch_size = 100
    config.patches.count = 20
    config.patches.resize = 32
    config.augment.hue = 0.2
    config.augment.blur = 0.1
    config.augment.solarize = 0.1
    config.encoder.name = 'resnet18'
    config.encoder.resnet18.remat = 'norms'  # 2,000 patches a step
    config.optimizer.name = 'lars'
    config.optimizer.learning_rate = 0.3 * 256 / 100  # 0.3 at 100 images a step
    config.optimizer.lars.trust_coefficient = 0.005
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_epochs = 0.0
    config.train.epochs = 30.0
    config.projector.widths = (4096, 4096, 1024)
    if config.objective.name != 'tcr':
        config.projector.widths = (2048, 2048, 2048)
        config.predictor.widths = (4096, 2048)
        config.optimizer.warmup_epochs = 1.0


def _small(config: ConfigDict) -> None:
    config.data.train_split = 'train[:10000]'
    config.data.batch_size = 128
    config.patches.count = 8
    config.patches.resize = 16  # what multi-scale crops become; fixed ones have that size
    config.encoder.name = 'tiny'
    config.encoder.tiny.width = 32
    config.projector.widths = (512, 128)
    config.predictor.widths = (512, 128)
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 6e-3  # 3e-3 at 128 images a step
    config.train.epochs = 20.0
    config.probe.patches = (1, 4, 16)
