"""SimCLR on CIFAR-10, by the command of its authors' README: two crops of many scales.

    python -m bagssl_jax.main --config=configs/simclr_cifar10.py --workdir=runs/simclr \
        --config.data.dir=DIRECTORY_OF_PREPARED_TFDS_DATA_SETS

About 91% by their linear probe after 1,000 epochs (google-research/simclr, 383d414). Not measured
here: it wants an accelerator. What is equal and what differs is said in configs/imagenet.py, of
`simclr`; and their ResNet-18 has a convolution on the first shortcut too.
"""

from ml_collections import ConfigDict

from configs import imagenet


def get_config() -> ConfigDict:
    config = imagenet.get_config('simclr')
    config.data.name = 'cifar10'
    config.data.test_split = 'test'
    config.data.in_memory = True
    config.data.batch_size = 512  # --train_batch_size
    config.patches.resize = 32  # --image_size
    # --color_jitter_strength=0.5
    config.augment.brightness = config.augment.contrast = config.augment.saturation = 0.4
    config.augment.hue = 0.1
    config.augment.blur = 0.0  # --use_blur=False
    config.encoder.name = 'resnet18'  # --resnet_depth
    config.encoder.resnet18.stem = 'cifar'  # model.py: cifar_stem
    config.encoder.dtype = 'float32'
    config.projector.widths = (512, 512, 128)
    config.objective.simclr.temperature = 0.5  # --temperature
    config.optimizer.learning_rate = 1.0  # --learning_rate, x batch / 256
    config.optimizer.weight_decay = 1e-4  # --weight_decay
    config.train.epochs = 1000.0  # --train_epochs
    config.probe.views = ('whole',)  # data.py: test_crop=False
    config.probe.probes = ('linear', 'knn', 'sgd')
    return config
