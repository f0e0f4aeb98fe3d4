"""CIFAR-10 from 16x16 patches, by EMP-SSL's TCR or by VICReg.

    python -m bagssl_jax.main --config=configs/cifar10.py:tcr --workdir=runs/cifar10_tcr \
        --config.data.dir=DIRECTORY_OF_PREPARED_TFDS_DATA_SETS

Arguments, separated by commas: the objective (any that bagssl_jax/defaults.py lists), and of
`multiscale` or `multicrop`, and `small`, what is wanted.

`tcr` is EMP-SSL's recipe to the letter: configs/emp_ssl.py. The others differ from it in the
objective, a projector of three times 2048, LARS instead of LARC and a warm-up; `sigreg` in what its
authors' example has. All want an accelerator.

`multiscale` trains on RandomResizedCrop instead of patches of one scale: the usual baseline.
`multicrop`, as in `vicreg,multicrop`, on two global crops and six local ones, of half their side
and of DINO's shares of the area (arXiv 2104.14294). BYOL's momentum network sees the global ones
alone, SIGReg's bags agree with the mean of these, and all other objectives take the eight for a
bag. Bags are then probed by patches as before, resized to the local side; whole images are 32x32.
Of as many pixels, 200 steps of it learn something, and less than the others' do (2 CPU cores,
2026-11-26, commit ca6d8f6; one seed, 2,000 test images, so that .02 says little): linear, bags of
1 / 4 / 16 and whole, `vicreg,small` .385 / .447 / .504, .484; with `multiscale` .420 / .449 / .498,
.507; with `multicrop` .372 / .419 / .463, .458, and by `--config.probe.resize=16` .382 / .434 /
.472; untrained .336 / .378 / .417, .421. `--config.train.steps=200`.
`small` fits a CPU: a tiny encoder on native 16x16 patches of the first 10,000 images. `tcr,small`
(2 CPU cores, 2026-11-28, commit 948e048), top-1 on all test images of bags of 1 / 4 / 16 patches:
linear .559 / .602 / .652, kNN .522 / .546 / .568; untrained, .335 / .371 / .425 and
.304 / .308 / .339. On 2026-11-23, at commit 17ada26, linear .565 / .611 / .655. Without `small`:
not measured.

Resizing 16x16 patches to 32x32, as EMP-SSL does, pays. `tcr` of width 16 on 10,000 images, 50
images x 8 patches a step, 200 steps, one seed, 2,000 test images (2 CPU cores, 2026-11-26, commit
b525acc), linear, bags of 1 / 4 / 16: .484 / .545 / .578; native, by `--config.patches.resize=0`,
.388 / .451 / .492 in .65 of the time.
"""

from ml_collections import ConfigDict

from bagssl_jax.errors import InputError
from configs import default, emp_ssl

CROPS = ('multiscale', 'multicrop')
OPTIONS = (*CROPS, 'small')


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
    if chosen == ['tcr'] and 'small' not in words:
        config = emp_ssl.get_config('cifar10')
    config.objective.name = chosen[0]
    crops = [word for word in words if word in CROPS] or ['fixed']
    if len(crops) > 1:
        raise InputError(f'{arguments!r} names {len(crops)} kinds of crops: choose one')
    config.crops = crops[0]
    config.multiscale.scale = (0.2, 1.0)
    config.data.name = 'cifar10'
    config.data.in_memory = True
    config.patches.scale = 0.25
    if 'small' in words:
        _small(config)
    elif chosen != ['tcr']:
        _resnet(config)
        if chosen == ['sigreg']:
            _lejepa(config)
    if crops == ['multicrop']:
        _multicrop(config, side=24 if 'small' in words else 32)
    return config


def _multicrop(config: ConfigDict, side: int) -> None:
    config.patches.count = 8
    config.multicrop.global_count = 2
    config.multicrop.global_resize = side  # with 24, the pixels of eight patches of 16x16
    config.patches.resize = side // 2  # of local crops


def _resnet(config: ConfigDict) -> None:
    """As EMP-SSL, but for what comes last."""
    emp_ssl.set_networks(config)
    emp_ssl.set_augmentation(config)
    config.data.batch_size = 100
    config.patches.count = 20
    config.patches.resize = 32
    config.train.epochs = 30.0
    config.optimizer.name = 'lars'
    config.optimizer.learning_rate = 0.3 * 256 / 100  # 0.3 at 100 images a step
    config.optimizer.lars.trust_coefficient = 0.005
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_epochs = 1.0
    config.projector.widths = (2048, 2048, 2048)
    config.predictor.widths = (4096, 2048)


def _lejepa(config: ConfigDict) -> None:
    """What MINIMAL.md of rbalestr-lab/lejepa has for a ViT-S on Imagenette."""
    config.objective.sigreg.weight = 0.02  # +lamb
    config.objective.sigreg.directions = 256
    config.projector.widths = (2048, 2048, 16)  # +proj_dim
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 2e-3  # +lr, of 256 images
    config.optimizer.weight_decay = 5e-2


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
