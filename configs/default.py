"""Every key once. The other configurations start from this one and change what they state."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
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
    data.crop_on = 'host'  # 'device': send images, and cut their patches there; for small images
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
    encoder.width = 64  # channels of the first stage; the embedding is 8 (resnet50: 32) times it
    encoder.stem = 'cifar'  # 'cifar' (3x3), 'cifar_pad2' (solo-learn's), 'imagenet' (7x7, pooling)
    encoder.zero_init_last = False  # last BatchNorm scale of every residual block starts at 0
    encoder.dtype = 'float32'  # of the computation: 'float32' or 'bfloat16'
    encoder.mean = (0.5, 0.5, 0.5)  # of the pixels in [0, 1], by channel: subtracted,
    encoder.std = (0.5, 0.5, 0.5)  # and divided by

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
    optimizer.momentum = 0.9  # of sgd and lars
    optimizer.trust_coefficient = 0.001  # of lars
    optimizer.warmup_epochs = 1.0
    optimizer.end_factor = 0.0  # the cosine ends at this share of the peak

    config.train = train = ConfigDict()
    train.epochs = 10.0
    train.steps = 0  # when given, wins over epochs
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
    probe.sgd = sgd = ConfigDict()
    sgd.epochs = 100
    probe.sgd_augmented = sgd_augmented = ConfigDict()
    sgd_augmented.epochs = 100
    probe.knn = ConfigDict()
    probe.alignment = ConfigDict()
    probe.rankme = ConfigDict()
    probe.uniformity = ConfigDict()
    return config
