"""Every key of a configuration once, and how what older versions wrote is laid over them.

The rule that keeps runs readable: the default of a new key must mean what was done before it
existed. Then the configuration of a run from before still describes that run.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bagssl_jax.errors import InputError

# Groups that choose one of several entries by its `name`; an entry's own settings are GROUP.NAME.*.
CHOICES = ('encoder', 'optimizer', 'objective')
# What a run cannot be read without, and no default can stand for.
REQUIRED = (
    'data.name',
    'patches.size',
    'patches.scale',
    'patches.resize',
    'encoder.name',
    'projector.widths',
)


def get_config() -> ConfigDict:
    """The defaults, locked: a key that is not among them cannot be set."""
    config = ConfigDict()
    config.seed = 0  # of initialisation, data order, crops and augmentation

    config.data = data = ConfigDict()
    # 'photos' (embedded), 'folder' (dir/SPLIT/CLASS/*.jpg), or a data set that
    # bagssl_jax.prepare has prepared in dir: 'cifar10', 'imagenet_resized/64x64', 'imagenet100'
    data.name = 'photos'
    data.dir = ''  # local, or gs://, s3://
    data.train_split = 'train'  # TFDS notation: 'train[:10%]', 'train[:10000]'
    data.test_split = 'test'
    data.in_memory = False  # decode every image once, at the start; needs images of one size
    data.batch_size = 128  # images a step, over all devices
    data.workers = 0  # processes that read and crop; 0: threads of the main process
    # Where training patches are cut: on the 'host'; on the 'device', which is sent whole images;
    # 'resident', there, out of all images, which lie there from the start. For small images
    data.crop_on = 'host'
    data.on_error = 'stop'  # at an unreadable image; 'skip' leaves such images out

    config.patches = patches = ConfigDict()
    patches.count = 8  # patches an image, p >= 2
    patches.size = 0  # side in pixels of a patch; when given, wins over scale
    patches.scale = 0.25  # share of the image's area
    patches.resize = 0  # side in pixels that a patch is resized to; 0: as cut

    config.crops = 'fixed'  # training crops: 'fixed', as above, or 'multiscale', as below

    config.multiscale = multiscale = ConfigDict()  # as torchvision's RandomResizedCrop
    multiscale.scale = (0.08, 1.0)  # share of the area, smallest and largest
    multiscale.ratio = (3 / 4, 4 / 3)  # width / height, smallest and largest

    config.augment = augment = ConfigDict()  # probabilities are per patch
    augment.flip = 0.5  # probability of a horizontal flip
    augment.jitter = 0.8  # probability of the four below, together
    augment.brightness = 0.4  # strength, as in torchvision's ColorJitter
    augment.contrast = 0.4
    augment.saturation = 0.4
    augment.hue = 0.1
    augment.grey = 0.2  # probability
    augment.blur = 0.0  # probability
    augment.blur_sigma = (0.1, 2.0)  # pixels, smallest and largest
    augment.solarize = 0.0  # probability

    config.encoder = encoder = ConfigDict()
    encoder.name = 'resnet18'  # 'resnet18', 'resnet34', 'resnet50', 'tiny'
    encoder.dtype = 'float32'  # of the computation: 'float32' or 'bfloat16'
    encoder.mean = (0.5, 0.5, 0.5)  # of the pixels in [0, 1], by channel: subtracted,
    encoder.std = (0.5, 0.5, 0.5)  # and divided by
    for name in ('resnet18', 'resnet34', 'resnet50'):
        encoder[name] = resnet = ConfigDict()
        resnet.width = 64  # channels of the first stage; h is 8 (resnet50: 32) times as wide
        resnet.stem = 'cifar'  # (3x3), 'cifar_pad2' (solo-learn's), 'imagenet' (7x7, pooling)
        resnet.zero_init_last = False  # last BatchNorm scale of every residual block starts at 0
        # What the backward pass computes again, to save memory: 'none', 'norms' (in blocks, all
        # but the convolutions), 'blocks' (in blocks, everything)
        resnet.remat = 'none'
    encoder.tiny = tiny = ConfigDict()
    tiny.width = 64  # channels of the first convolution; h is 8 times as wide

    config.projector = projector = ConfigDict()
    projector.widths = (2048, 2048)  # of each linear layer; the last is the projection's

    config.predictor = predictor = ConfigDict()  # of objectives with a target network (byol)
    predictor.widths = (4096, 2048)  # the last must be the projection's width

    config.target = target = ConfigDict()  # the momentum network of the same objectives
    target.momentum = 0.996  # at the start; a cosine leads to 1

    config.objective = objective = ConfigDict()
    objective.name = 'tcr'  # 'barlow', 'byol', 'simclr', 'spectral', 'tcr' or 'vicreg'
    objective.barlow = barlow = ConfigDict()
    barlow.off_diagonal_weight = 0.0051
    objective.byol = ConfigDict()
    objective.simclr = simclr = ConfigDict()
    simclr.temperature = 0.5
    objective.spectral = spectral = ConfigDict()
    spectral.weight = 1.0  # w: longer projections for a smaller one
    objective.tcr = tcr = ConfigDict()
    tcr.invariance_weight = 200.0
    tcr.eps = 0.2  # distortion
    objective.vicreg = vicreg = ConfigDict()
    vicreg.invariance_weight = 25.0
    vicreg.variance_weight = 25.0
    vicreg.covariance_weight = 1.0

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = 'lars'  # 'sgd' (Nesterov), 'lars' or 'adamw'
    optimizer.learning_rate = 0.3  # at 256 images a step; scaled by the batch size
    optimizer.weight_decay = 1e-4  # not on biases and norms
    optimizer.warmup_epochs = 1.0
    optimizer.end_factor = 0.0  # the cosine ends at this share of the peak
    optimizer.sgd = sgd = ConfigDict()
    sgd.momentum = 0.9
    optimizer.lars = lars = ConfigDict()
    lars.momentum = 0.9
    lars.trust_coefficient = 0.001
    optimizer.adamw = ConfigDict()

    config.train = train = ConfigDict()
    train.epochs = 10.0
    train.steps = 0  # when given, wins over epochs
    # Steps in one call of the devices, for small steps, which else wait for the host; fewer where
    # one of the following is due
    train.steps_per_execution = 1
    # Parts of a batch that pass through the networks one after the other, in the memory of one; the
    # loss is of the whole batch. BatchNorm takes the statistics of a part, and updates the running
    # ones after each.
    train.accumulate = 1
    train.log_every = 20  # steps
    train.monitor_every = 0.0  # epochs between looks at a kNN on held-out training images; 0: none
    train.checkpoint_every = 500  # steps; the last step is always saved
    train.keep = 2  # checkpoints; older ones are deleted

    config.probe = probe = ConfigDict()
    probe.after_training = True  # run the probes when the training ends
    probe.train_split = ''  # that the probes learn from; '': data.train_split
    probe.views = ('bag', 'whole')  # 'bag' of patches, 'center' crop, 'whole' image
    probe.patches = (1, 4, 16, 64)  # sizes of the bags
    probe.positions = 'grid'  # of the patches: an even 'grid', or 'random' from the seed
    probe.size = 0  # of the patches, as in `patches`; where size or scale is given, both
    probe.scale = 0.0  # take the place of the training's
    probe.resize = 0  # likewise
    probe.whole_size = 224  # side in pixels of whole and center, of images of several sizes
    probe.flip = False  # embed the mirrored patch too, and take the mean
    probe.spaces = ('h',)  # 'h': embedding, 'hidden1', ...: inside the projector, 'z': projection
    # Of a bag: 'mean', 'mean_unit' (of embeddings at length 1), 'grid2', 'grid4' (the means in
    # 2x2 or 4x4 cells, one after the other)
    probe.aggregations = ('mean',)
    # 'linear' (logistic regression to its optimum), 'sgd' (the usual protocol), 'sgd_augmented'
    # (that, on fresh random crops in every epoch; tested on the center crop), 'knn';
    # without labels 'rankme', 'uniformity' and, of mean_unit, 'alignment'
    probe.probes = ('linear', 'knn')
    probe.labels = ('all',)  # of the training split: 'all', '1', '10' (images a class), '1%', '10%'
    probe.seed = 0  # of which labels are drawn, and of sgd's shuffles and crops
    probe.batch_size = 1024  # patches a forward pass, over all devices
    probe.linear = ConfigDict()
    probe.sgd = ConfigDict()
    probe.sgd.epochs = 100
    probe.sgd_augmented = ConfigDict()
    probe.sgd_augmented.epochs = 100
    probe.knn = ConfigDict()
    probe.rankme = ConfigDict()
    probe.uniformity = ConfigDict()
    probe.alignment = ConfigDict()

    config.analysis = analysis = ConfigDict()
    analysis.cooccurrence = cooccurrence = ConfigDict()
    cooccurrence.max_images = 2000  # training images at most, chosen at random
    cooccurrence.patches = 16  # of each, on a grid
    cooccurrence.codes = 64  # that patches are quantised to
    cooccurrence.min_expected = 20.0  # rarer pairs of codes, by chance, are left out

    config.benchmark = benchmark = ConfigDict()
    benchmark.data = ConfigDict()
    benchmark.data.seconds = 3.0  # that each stage is measured for, at least
    benchmark.train = ConfigDict()
    benchmark.train.steps = 30  # that each stage is measured for
    benchmark.train.stages = ('step', 'total')
    benchmark.embed = ConfigDict()
    benchmark.embed.steps = 30  # forward passes that each stage is measured for
    benchmark.embed.patches = 16  # an image, on a grid
    benchmark.probe = ConfigDict()
    benchmark.probe.images = 1000  # that are embedded at most, each pass
    benchmark.compile = ConfigDict()
    benchmark.compile.topology = 'here'  # of a TPU slice that is not there: 'v5e:2x4'
    # and 'spread_step', 'knn_search', 'sgd_update'
    benchmark.compile.stages = ('train_step', 'forward')
    return config.lock()


def over_defaults(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that some version wrote down, as this version has it.

    Keys that it lacks get their defaults; keys that have moved are taken to their new place, or
    dropped where the chosen entry does not have them; keys that the defaults lack stay. JSON's
    lists become tuples.

    Args:
      stored: nested, as in a run's config.json.

    Raises:
      InputError: a value is of another kind than the default, or a key is missing without which
        the run cannot be read.
    """
    defaults = get_config().to_dict()
    config = _laid_over(defaults, stored, '')
    for key in REQUIRED:
        if not _holds(stored, key):
            raise InputError(f'{key} is missing, which has no default that fits every run')
    for group, keys in _MOVED_TO_ENTRY.items():
        name = config[group]['name']
        for key in [key for key in keys if key in config[group]]:
            value = config[group].pop(key)
            if key in defaults[group].get(name, {}):
                like = defaults[group][name][key]
                config[group][name][key] = _laid_over(like, value, f'{group}.{key}')
    if 'sgd_epochs' in config['probe']:
        epochs = _laid_over(100, config['probe'].pop('sgd_epochs'), 'probe.sgd_epochs')
        for name in ('sgd', 'sgd_augmented'):
            config['probe'][name]['epochs'] = epochs
    return config


def without_unchosen(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without the settings of encoders, optimisers and objectives that it lacks.

    They say nothing of a run, and may differ between two starts of it. In a group of `CHOICES`,
    the settings of the chosen entry come last.
    """
    settled = dict(config)
    for group in CHOICES:
        shared = {k: v for k, v in config[group].items() if not isinstance(v, Mapping)}
        name = config[group]['name']
        settled[group] = shared | {name: config[group].get(name, {})}
    return settled


_MOVED_TO_ENTRY = {
    'encoder': ('width', 'stem', 'zero_init_last'),
    'optimizer': ('momentum', 'trust_coefficient'),
}
_KINDS = {
    bool: ('true or false', bool),
    int: ('a whole number', int),
    float: ('a number', (int, float)),
    str: ('a text', str),
}


def _laid_over(default: Any, value: Any, key: str) -> Any:
    """`value` with what it lacks from `default`; InputError where it is of another kind."""
    if isinstance(default, Mapping):
        if not isinstance(value, Mapping):
            raise InputError(f'{key or "a configuration"}={value!r} must be a group of keys')
        prefix = f'{key}.' if key else ''
        known = {
            name: _laid_over(below, value[name], prefix + name) if name in value else below
            for name, below in default.items()
        }
        return known | {name: _tupled(value[name]) for name in value if name not in default}
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple):
            raise InputError(f'{key}={value!r} must be a list')
        return tuple(_laid_over(default[0], item, key) for item in value)
    words, kinds = _KINDS[type(default)]
    # Python takes True for 1.
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        raise InputError(f'{key}={value!r} must be {words}')
    return type(default)(value)


def _tupled(tree: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(tree, Mapping):
        return {key: _tupled(value) for key, value in tree.items()}
    return tuple(map(_tupled, tree)) if isinstance(tree, list) else tree


def _holds(tree: Any, key: str) -> bool:
    for name in key.split('.'):
        if not isinstance(tree, Mapping) or name not in tree:
            return False
        tree = tree[name]
    return True
