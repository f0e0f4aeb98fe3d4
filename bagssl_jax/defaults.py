"""Every key of a configuration once.

The rule that keeps runs readable: the default of a new key must mean what was done before it
existed. Then the configuration of a run from before still describes that run.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bagssl_jax.ranges import above, check_all, defaults_of, share, within

RESNETS = ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'resnet200')
VITS = {'vit_ti': (192, 3), 'vit_s': (384, 6), 'vit_b': (768, 12)}  # width, heads


def get_config() -> ConfigDict:
    """The defaults, locked: a key that is not among them cannot be set."""
    return ConfigDict(defaults_of(declared())).lock()


def check_ranges(config: Mapping[str, Any]) -> None:
    """Raises InputError for the first number of a configuration, nested, out of its range."""
    check_all(declared(), config)


def declared() -> dict[str, Any]:
    """Every key, nested, with its default or, of a number, the `Range` that has it.

    The ranges take in whatever makes sense somewhere, and leave out what is a slip of the hand.
    Whether there is memory and time enough for it here is not theirs to say.
    """
    config = ConfigDict()
    config.seed = within(0, 0, 2**32 - 1)  # of initialisation, data order, crops and augmentation

    config.data = data = ConfigDict()
    # 'photos' (embedded), 'folder' (dir/SPLIT/CLASS/*.jpg), or a data set that
    # bagssl_jax.prepare has prepared in dir: 'cifar10', 'imagenet_resized/64x64', 'imagenet100'; ''
    # of an imported encoder
    data.name = 'photos'
    data.dir = ''  # local, or gs://, s3://
    data.train_split = 'train'  # TFDS notation: 'train[:10%]', 'train[:10000]'
    data.test_split = 'test'  # that probes are scored on
    data.in_memory = False  # decode every image once, at the start; needs images of one size
    data.batch_size = within(128, 1, 10**6)  # images a step, over all devices
    # Processes that read and crop, of a probe's few images fewer; 0: threads of the main process
    data.workers = within(0, 0, 256)
    # Where training patches are cut: on the 'host'; on the 'device', which is sent whole images;
    # 'resident', there, out of all images, which lie there from the start. For small images
    data.crop_on = 'host'
    data.on_error = 'stop'  # at an unreadable image; 'skip' leaves such images out

    config.patches = patches = ConfigDict()
    patches.count = within(8, 2, 4096)  # patches an image, p
    patches.size = within(0, 0, 4096)  # side in pixels of a patch; when given, wins over scale
    patches.scale = share(0.25)  # share of the image's area
    patches.resize = within(0, 0, 4096)  # side in pixels that a patch is resized to; 0: as cut

    # Training crops: 'fixed', as above, or 'multiscale' or 'multicrop', as below
    config.crops = 'fixed'

    config.multiscale = multiscale = ConfigDict()  # as torchvision's RandomResizedCrop
    # Share of the area, smallest and largest
    multiscale.scale = above((0.08, 1.0), 0, 1, items=2, ascending=True)
    # Width / height, smallest and largest
    multiscale.ratio = within((3 / 4, 4 / 3), 0.01, 100, items=2, ascending=True)
    # Of the resize: 'area' where it shrinks, linear where it grows, or 'bicubic', as Pillow's
    multiscale.interpolation = 'area'

    # Of patches.count, some global crops, and local ones of patches.resize pixels: SwAV's, DINO's
    config.multicrop = multicrop = ConfigDict()
    multicrop.global_count = within(2, 1, 4096)  # the others are local
    multicrop.global_resize = within(0, 0, 4096)  # side in pixels; theirs is 224, of local ones 96
    # Share of the area, smallest and largest: DINO's
    multicrop.global_scale = above((0.4, 1.0), 0, 1, items=2, ascending=True)
    multicrop.local_scale = above((0.05, 0.4), 0, 1, items=2, ascending=True)  # likewise
    multicrop.ratio = within((3 / 4, 4 / 3), 0.01, 100, items=2, ascending=True)  # width / height
    multicrop.interpolation = 'area'  # as in multiscale

    config.augment = augment = ConfigDict()  # probabilities are per patch
    augment.flip = share(0.5)  # probability of a horizontal flip
    augment.jitter = share(0.8)  # probability of the four below, together
    augment.brightness = within(0.4, 0, 10)  # strength, as in torchvision's ColorJitter
    augment.contrast = within(0.4, 0, 10)  # likewise
    augment.saturation = within(0.4, 0, 10)  # likewise
    augment.hue = within(0.1, 0, 0.5)  # of a turn
    # Of the four: 'fixed', as above, or 'random', of each patch its own, as in torchvision
    augment.jitter_order = 'fixed'
    # Of the operations: 'torchvision', or those in the code of 'simclr' or 'byol'
    augment.definitions = 'torchvision'
    augment.grey = share(0.2)  # probability
    augment.blur = share(0.0)  # probability
    # Pixels, smallest and largest
    augment.blur_sigma = within((0.1, 2.0), 0.01, 100, items=2, ascending=True)
    augment.solarize = share(0.0)  # probability
    # Where given, of the patches of each index in turn: (1.0, 0.1) are VICReg's of its two views
    augment.blur_by_index = within((), 0, 1, items=(0, 1000))
    augment.solarize_by_index = within((), 0, 1, items=(0, 1000))  # likewise

    config.encoder = encoder = ConfigDict()
    # 'resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152', 'resnet200', 'tiny', 'shallow',
    # 'vit_ti', 'vit_s' or 'vit_b'
    encoder.name = 'resnet18'
    encoder.dtype = 'float32'  # of the computation: 'float32' or 'bfloat16'
    encoder.mean = within((0.5, 0.5, 0.5), 0, 1, items=3)  # subtracted from pixels in [0, 1]
    encoder.std = above((0.5, 0.5, 0.5), 0, 1, items=3)  # that they are divided by then
    # Equal parts of a batch whose BatchNorm statistics are their own, the projector's too
    encoder.norm_groups = within(1, 1, 65536)
    for name in RESNETS:
        # encoder.width and so on are those of the one that is chosen
        encoder[name] = resnet = ConfigDict()
        # Channels of the first stage; h is 8, from resnet50 on 32 times as wide
        resnet.width = within(64, 1, 8192)
        # 'cifar' (3x3), 'cifar_pad2' (solo-learn's), 'imagenet' (7x7, pooling)
        resnet.stem = 'cifar'
        # Of the stem's kernel: 'he_normal', as torchvision's; 'torch', as nn.Conv2d's own;
        # 'lecun_normal', as SimCLR's; 'haiku', as BYOL's
        resnet.stem_init = 'he_normal'
        resnet.conv_init = 'he_normal'  # of all other convolutions, likewise
        resnet.zero_init_last = False  # last BatchNorm scale of every residual block starts at 0
        # What the backward pass computes again, to save memory: 'none', 'norms' (in blocks, all
        # but the convolutions), 'blocks' (in blocks, everything)
        resnet.remat = 'none'
    encoder.tiny = tiny = ConfigDict()
    tiny.width = within(64, 1, 8192)  # channels of the first convolution; h is 8 times as wide
    encoder.shallow = shallow = ConfigDict()
    shallow.width = within(64, 1, 8192)  # channels of the first stage
    # What h is: the mean over places of the 'last' stage, 4 times as wide as the first, or of all
    # three 'stages', 7 times
    shallow.pool = 'last'
    for name in VITS:
        encoder[name] = vit = ConfigDict()
        vit.width = within(VITS[name][0], 1, 8192)  # of a token, and of h
        vit.depth = within(12, 1, 256)  # blocks
        vit.heads = within(VITS[name][1], 1, 256)  # of attention; they divide the width
        vit.patch = within(4, 1, 256)  # side in pixels of a token: 4, 8, 16
        vit.class_token = False  # whether there is a token that belongs to no place
        # What h is: the 'mean' of the normalised tokens, 'mean_norm' (normalised after the mean:
        # timm's fc_norm), or 'class' (the class token)
        vit.pool = 'mean'
        # Side in pixels that positions are learned for; they are interpolated for other inputs. 0:
        # that of the patches where it is fixed, else 32
        vit.image_size = within(0, 0, 4096)
        # What the backward pass computes again, to save memory: 'none', 'blocks' (everything)
        vit.remat = 'none'

    config.projector = projector = ConfigDict()
    # Of each linear layer; the last is the projection's. An imported encoder has none
    projector.widths = within((2048, 2048), 1, 65536, items=(0, 16))
    # Of the linear layers: 'lecun_normal' kernels and biases of 0, 'torch', as nn.Linear's,
    # 'normal', of deviation .01, as SimCLR's, or 'haiku', as BYOL's
    projector.init = 'lecun_normal'
    projector.last_bias = True  # whether the last layer has one; the others have BatchNorm's
    # Whether BatchNorm, with a scale but without a bias, comes behind the last layer: SimCLR's
    projector.last_norm = False

    # Of objectives with a target network (byol); otherwise as the projector's
    config.predictor = predictor = ConfigDict()
    # The last must be the projection's width
    predictor.widths = within((4096, 2048), 1, 65536, items=(1, 16))
    predictor.init = 'lecun_normal'
    predictor.last_bias = True
    predictor.last_norm = False

    config.target = target = ConfigDict()  # the momentum network of the same objectives
    target.momentum = share(0.996)  # at the start; a cosine leads to 1

    config.objective = objective = ConfigDict()
    objective.name = 'tcr'  # 'barlow', 'byol', 'sigreg', 'simclr', 'spectral', 'tcr', 'vicreg'
    objective.barlow = barlow = ConfigDict()
    barlow.off_diagonal_weight = within(0.0051, 0, 1e6)  # lambda
    objective.byol = ConfigDict()
    objective.sigreg = sigreg = ConfigDict()
    sigreg.weight = share(0.05)  # lambda, of normality; the rest is of invariance
    sigreg.directions = within(1024, 1, 10**6)  # drawn in every step
    objective.simclr = simclr = ConfigDict()
    simclr.temperature = within(0.5, 0.001, 1000)
    simclr.weight = within(1.0, 0, 1e6)  # of the loss; 2 is that of its authors' code
    objective.spectral = spectral = ConfigDict()
    spectral.weight = within(1.0, 1e-6, 1e6)  # w: longer projections for a smaller one
    objective.tcr = tcr = ConfigDict()
    tcr.invariance_weight = within(200.0, 0, 1e6)  # the coding rate has 1
    tcr.eps = within(0.2, 0.001, 1000)  # distortion
    objective.vicreg = vicreg = ConfigDict()
    vicreg.invariance_weight = within(25.0, 0, 1e6)
    vicreg.variance_weight = within(25.0, 0, 1e6)
    vicreg.covariance_weight = within(1.0, 0, 1e6)

    config.optimizer = optimizer = ConfigDict()
    # 'sgd' (Nesterov), 'lars' (SimCLR's), 'lars_vicreg' (VICReg's, BYOL's, Barlow Twins'),
    # 'larc' (EMP-SSL's) or 'adamw'
    optimizer.name = 'lars'
    optimizer.learning_rate = within(0.3, 0, 1e9)  # that the warm-up leads to
    optimizer.scale_by_batch = True  # the learning rate is that at 256 images a step
    optimizer.weight_decay = within(1e-4, 0, 1000)  # not on biases and norms
    optimizer.warmup_epochs = within(1.0, 0, 1e6)  # over which the learning rate rises from 0
    # That the cosine is for, from the start of the warm-up to its end; 0: the training's
    optimizer.schedule_epochs = within(0.0, 0, 1e6)
    optimizer.end_factor = share(0.0)  # the cosine ends at this share of the peak
    optimizer.sgd = sgd = ConfigDict()
    sgd.momentum = share(0.9)
    optimizer.lars = lars = ConfigDict()
    lars.momentum = share(0.9)
    lars.trust_coefficient = above(0.001, 0, 1000)
    lars.nesterov = True  # False: SimCLR's
    optimizer.lars_vicreg = lars_vicreg = ConfigDict()
    lars_vicreg.momentum = share(0.9)
    lars_vicreg.trust_coefficient = above(0.001, 0, 1000)
    # Of the learning rate, for biases and norms: .024 are Barlow Twins' .0048 beside .2
    lars_vicreg.bias_factor = above(1.0, 0, 1000)
    optimizer.larc = larc = ConfigDict()
    larc.momentum = share(0.9)
    larc.trust_coefficient = above(0.005, 0, 1000)
    optimizer.adamw = ConfigDict()

    config.train = train = ConfigDict()
    train.epochs = within(10.0, 0, 1e6)  # passes over the training images
    train.steps = within(0, 0, 2**31 - 2)  # when given, wins over epochs
    # Steps in one call of the devices, for small steps, which else wait for the host; fewer where
    # one of the following is due
    train.steps_per_execution = within(1, 1, 10_000)
    # Parts of a batch that pass through the networks one after the other, in the memory of one; the
    # loss is of the whole batch. BatchNorm takes the statistics of a part, and updates the running
    # ones after each.
    train.accumulate = within(1, 1, 10**6)
    # Whether the patches of each index pass through the networks by themselves, as views do in the
    # code of VICReg, BYOL and Barlow Twins: BatchNorm's statistics are then of an index
    train.by_index = False
    train.log_every = within(20, 1, 10**9)  # steps
    # Where metrics, results and the report go beside the run's own files: 'wandb', 'mlflow', or ''
    train.tracker = ''
    # Epochs between looks at a kNN on held-out training images; 0: none
    train.monitor_every = within(0.0, 0, 1e6)
    # Steps; the last step is always saved
    train.checkpoint_every = within(500, 1, 10**9)
    # At an update that is not finite: 'stop', or 'skip' it, `most_skipped` times in all, and go on
    train.on_nonfinite = 'stop'
    train.most_skipped = within(100, 0, 10**9)  # updates
    # Checkpoints; older ones are deleted, but for the last from before a collapse
    train.keep = within(2, 1, 10**6)

    config.probe = probe = ConfigDict()
    probe.after_training = True  # run the probes when the training ends
    probe.train_split = ''  # that the probes learn from; '': data.train_split
    probe.encoders = ('trained', 'untrained')  # the latter is what it began as, beside it
    probe.views = ('bag', 'whole')  # 'bag' of patches, 'center' crop, 'whole' image
    probe.patches = within((1, 4, 16, 64), 1, 4096, items=(1, 64))  # sizes of the bags
    probe.positions = 'grid'  # of the patches: an even 'grid', or 'random' from the seed
    # Whether bags are of patches that are augmented as the training's, of test images too
    probe.augment = False
    # Of the patches, as in `patches`: where size or scale is given, both take the place of the
    # training's, and so does resize
    probe.size = within(0, 0, 4096)
    probe.scale = share(0.0)
    probe.resize = within(0, 0, 4096)
    # Side in pixels of whole and center, of images of several sizes
    probe.whole_size = within(224, 1, 4096)
    # Whether smaller images are resized to cover it, before anything is cut: for encoders that were
    # trained on larger images
    probe.enlarge = False
    probe.flip = False  # embed the mirrored patch too, and take the mean
    probe.spaces = ('h',)  # 'h': embedding, 'hidden1', ...: inside the projector, 'z': projection
    # Of a bag: 'mean', 'mean_unit' (of embeddings at length 1), 'grid2', 'grid4' (the means in
    # 2x2 or 4x4 cells, one after the other)
    probe.aggregations = ('mean',)
    # 'linear' (logistic regression to its optimum), 'sgd' (the usual protocol), 'sgd_augmented'
    # (that, on fresh random crops in every epoch; tested on the center crop), 'sgd_empssl'
    # (EMP-SSL's), 'sgd_vicreg' (VICReg's), 'knn';
    # without labels 'rankme', 'uniformity' and, of mean_unit, 'alignment'
    probe.probes = ('linear', 'knn')
    probe.labels = ('all',)  # of the training split: 'all', '1', '10' (images a class), '1%', '10%'
    # How the linear probes stand perturbed test images: 'pgd' (projected gradient descent), and
    # 'corruptions' (those of CIFAR-10-C and ImageNet-C)
    probe.robustness = ()
    # Of which labels are drawn, of sgd's shuffles and crops, and of perturbations
    probe.seed = within(0, 0, 2**32 - 1)
    probe.batch_size = within(1024, 1, 10**6)  # patches a forward pass, over all devices
    probe.linear = ConfigDict()
    probe.sgd = ConfigDict()
    probe.sgd.epochs = within(100, 1, 100_000)  # passes over the training split
    probe.sgd_augmented = ConfigDict()
    probe.sgd_augmented.epochs = within(100, 1, 100_000)  # likewise
    probe.sgd_empssl = ConfigDict()
    probe.sgd_vicreg = ConfigDict()
    probe.knn = ConfigDict()
    probe.rankme = ConfigDict()
    probe.uniformity = ConfigDict()
    probe.alignment = ConfigDict()

    probe.pgd = pgd = ConfigDict()
    pgd.images = within(512, 1, 10**7)  # test images at most, chosen at random
    # Radii of the balls: in grey levels, of 255
    pgd.linf = above((0.5, 1.0, 2.0, 4.0, 8.0), 0, 255, items=(0, 64), ascending=True)
    # Likewise, of pixels in [0, 1]
    pgd.l2 = above((0.1, 0.25, 0.5, 1.0), 0, 10_000, items=(0, 64), ascending=True)
    pgd.steps = within(20, 1, 10_000)  # of an attack
    pgd.restarts = within(2, 1, 1000)  # from random starts, of which the worst counts
    pgd.batch_size = within(64, 1, 10**6)  # images at a time, over all devices
    probe.corruptions = corruptions = ConfigDict()
    corruptions.images = within(1000, 1, 10**7)  # test images at most, chosen at random
    corruptions.names = (
        'gaussian_noise',
        'shot_noise',
        'impulse_noise',
        'defocus_blur',
        'glass_blur',
        'motion_blur',
        'zoom_blur',
        'snow',
        'frost',
        'fog',
        'brightness',
        'contrast',
        'elastic_transform',
        'pixelate',
        'jpeg_compression',
    )
    corruptions.severities = within((1, 2, 3, 4, 5), 1, 5, items=(1, 5), ascending=True)

    config.analysis = analysis = ConfigDict()
    # Looks that are taken when the training ends, as far as they apply: names as of --what, with
    # commas between them
    analysis.after_training = ''
    analysis.split = ''  # of the data set, that looks are taken of; '': data.train_split
    # Of the patches that are looked at, as in `patches`; where size or scale is given, both take
    # the place of the training's, and so does resize
    analysis.size = within(0, 0, 4096)
    analysis.scale = share(0.0)
    analysis.resize = within(0, 0, 4096)
    analysis.cooccurrence = cooccurrence = ConfigDict()
    # Images at most, drawn at random
    cooccurrence.max_images = within(2000, 1, 10**7)
    cooccurrence.patches = within(16, 2, 4096)  # of each, on a grid
    cooccurrence.codes = within(64, 2, 4096)  # that patches are quantised to
    # Rarer pairs of codes, by chance, are left out
    cooccurrence.min_expected = above(20.0, 0, 1e9)

    analysis.convergence = convergence = ConfigDict()
    convergence.max_images = within(32, 2, 10**6)  # at most, drawn at random
    # The largest bag of random patches; the others are 1, 2, 4, ... of them
    convergence.patches = within(256, 1, 4096)
    # Shares of the image's area of patches that keep their pixels, beside those of the training
    convergence.scales = above((0.05, 0.2, 0.5), 0, 1, items=(0, 8))
    convergence.spaces = ('h', 'z')  # as in probe.spaces
    analysis.scales = scales = ConfigDict()
    scales.max_train = within(1000, 2, 10**7)  # images to learn from, drawn at random
    scales.max_test = within(1000, 1, 10**7)  # to be scored on
    # Shares of the image's area that patches have, beside those of the training
    scales.scales = above((0.05, 0.2, 0.5), 0, 1, items=(0, 8))
    scales.patches = within((1, 4, 16), 1, 4096, items=(1, 8), ascending=True)  # of the bags
    scales.probes = ('linear', 'knn')  # one of them, or both
    scales.resize = True  # patches as the training's are; else those of other sizes stay as cut
    analysis.aggregation = aggregation = ConfigDict()
    # max_train, max_test, scales, probes and resize as in analysis.scales
    aggregation.max_train = within(1000, 2, 10**7)
    aggregation.max_test = within(1000, 1, 10**7)
    aggregation.scales = above((0.5,), 0, 1, items=(0, 8))
    aggregation.patches = within(16, 1, 4096)  # of a bag
    aggregation.aggregations = ('mean', 'mean_unit', 'grid2')  # as in probe.aggregations
    aggregation.probes = ('linear', 'knn')
    aggregation.resize = True

    analysis.neighbours = neighbours = ConfigDict()
    neighbours.max_images = within(500, 2, 10**6)  # that are searched, drawn at random
    neighbours.patches = within(9, 1, 4096)  # of each, on a grid
    neighbours.neighbours = within(5, 1, 50)  # nearest patches
    neighbours.queries = within(500, 1, 10**6)  # patches that the numbers are of
    neighbours.shown = within(4, 1, 50)  # patches that are drawn, at random
    # Instead of those drawn at random: of each, the number of its image in the split, and y and x
    # of its center
    neighbours.chosen = within((), 0, 10**9, items=(0, 150))

    analysis.locality = locality = ConfigDict()
    locality.max_images = within(64, 2, 10**5)  # that the numbers are of, drawn at random
    locality.windows = within(81, 2, 4096)  # patches of each, at most, on a dense grid
    locality.shown = within(2, 1, 50)  # patches with heat maps, drawn at random
    # Patches of an image in a heat map, at most
    locality.shown_windows = within(1024, 2, 10**5)
    # As analysis.neighbours.chosen
    locality.chosen = within((), 0, 10**9, items=(0, 150))

    analysis.map = patch_map = ConfigDict()
    patch_map.method = 'pca'  # of the map; or 'umap', which needs umap-learn
    patch_map.max_images = within(300, 1, 10**5)  # whose patches are in it, drawn at random
    patch_map.patches = within(4, 1, 4096)  # of each, on a grid
    patch_map.cells = within(22, 2, 200)  # with a thumbnail each, along a side
    patch_map.shown = within(4, 1, 50)  # photographs whose places are coloured
    patch_map.shown_windows = within(1024, 1, 10**5)  # of each, at most

    config.benchmark = benchmark = ConfigDict()
    benchmark.data = ConfigDict()
    # Seconds that each stage is measured for, at least
    benchmark.data.seconds = above(3.0, 0, 3600)
    benchmark.train = ConfigDict()
    benchmark.train.steps = within(30, 1, 10**6)  # that each stage is measured for
    benchmark.train.stages = ('step', 'total')  # the step alone; with the pipeline
    benchmark.embed = ConfigDict()
    benchmark.embed.steps = within(30, 1, 10**6)  # forward passes that each stage is measured for
    benchmark.embed.patches = within(16, 1, 4096)  # an image, on a grid
    benchmark.probe = ConfigDict()
    benchmark.probe.images = within(1000, 1, 10**7)  # that are embedded at most, each pass
    benchmark.compile = ConfigDict()
    benchmark.compile.topology = 'here'  # of a TPU slice that is not there: 'v5e:2x4'
    # Those, 'spread_step', 'knn_search' and 'sgd_update'
    benchmark.compile.stages = ('train_step', 'forward')
    return config.to_dict()
