"""Torchvision's ResNets as dictionaries of arrays, and the layouts in which they are saved."""

import itertools

import jax
import numpy as np

from bagssl_jax.import_torch import OPTIONS
from bagssl_jax.interop.names import from_torchvision
from bagssl_jax.models import make_encoder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STAGES = {
    'resnet18': (2, 2, 2, 2),
    'resnet34': (3, 4, 6, 3),
    'resnet50': (3, 4, 6, 3),
    'resnet101': (3, 4, 23, 3),
    'resnet152': (3, 8, 36, 3),
    'resnet200': (3, 24, 36, 3),
}
BASIC = ('resnet18', 'resnet34')  # the others have bottlenecks
# Name, stem, its padding, and some of the embeddings that PyTorch 2.13 has computed of the second
# of `images`, by the model in test_torch_parity.py, of `weights` and with MEAN and STD.
OUTPUTS = [
    ('resnet18', 'cifar', 'cifar', [0.31278792, 0.89875942, 1.39707661, 0.0, 0.50291586]),
    ('resnet18', 'cifar', 'cifar_pad2', [0.27874258, 0.95467114, 1.23281646, 0.0, 0.51816568]),
    ('resnet18', 'imagenet', 'imagenet', [0.44123015, 0.98331898, 0.3085646, 0.07795258]),
    ('resnet34', 'cifar', 'cifar', [0.27844083, 0.19744623, 0.06934936, 0.20088295]),
    ('resnet34', 'imagenet', 'imagenet', [0.25329298, 0.06665057, 0.0, 0.03809139]),
    ('resnet50', 'cifar', 'cifar', [0.0, 1.40740299, 0.18039818, 0.22341384, 0.79473680]),
    ('resnet50', 'imagenet', 'imagenet', [0.19191867, 0.21283016, 0.02603140, 0.0, 0.0]),
]
STEM_KERNELS = {'cifar': 3, 'cifar_pad2': 3, 'imagenet': 7}


def weights(name, *, width=4, stem='imagenet', seed=0):
    """A state dict without classifier: random weights and statistics, outputs of order one."""
    rng = np.random.default_rng(seed)
    arrays = {}

    def uniform(low, high, *shape):
        return (low + (high - low) * rng.random(shape)).astype(np.float32)

    def conv(key, inputs, outputs, kernel):
        limit = (6 / (inputs * kernel**2)) ** 0.5
        arrays[f'{key}.weight'] = uniform(-limit, limit, outputs, inputs, kernel, kernel)

    def norm(key, channels):
        arrays[f'{key}.weight'] = uniform(0.3, 0.9, channels)
        arrays[f'{key}.bias'] = uniform(-0.3, 0.3, channels)
        arrays[f'{key}.running_mean'] = uniform(-0.3, 0.3, channels)
        arrays[f'{key}.running_var'] = uniform(0.5, 2.0, channels)
        arrays[f'{key}.num_batches_tracked'] = np.array(7)

    conv('conv1', 3, width, STEM_KERNELS[stem])
    norm('bn1', width)
    inputs = width
    for stage, blocks in enumerate(STAGES[name], start=1):
        inner = width * 2 ** (stage - 1)
        outputs = inner if name in BASIC else inner * 4
        sizes = (3, 3) if name in BASIC else (1, 3, 1)
        for block in range(blocks):
            key = f'layer{stage}.{block}'
            channels = [inputs, *[inner] * (len(sizes) - 1), outputs]
            for i, size in enumerate(sizes):
                conv(f'{key}.conv{i + 1}', channels[i], channels[i + 1], size)
                norm(f'{key}.bn{i + 1}', channels[i + 1])
            if inputs != outputs:
                conv(f'{key}.downsample.0', inputs, outputs, 1)
                norm(f'{key}.downsample.1', outputs)
            inputs = outputs
    return arrays


def prefixed(prefix, arrays):
    return {prefix + key: value for key, value in arrays.items()}


def projector(widths, places, *, bias=False, last_bias=False, seed=0):
    """Linear layers of `widths`, with BatchNorm between them, under `places` in nn.Sequential."""
    rng = np.random.default_rng(seed)
    arrays, places = {}, iter(places)

    def uniform(low, high, *shape):
        return (low + (high - low) * rng.random(shape)).astype(np.float32)

    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths), start=2):
        last = i == len(widths)
        place = next(places)
        arrays[f'{place}.weight'] = uniform(-1, 1, outputs, inputs) / inputs**0.5
        if last_bias if last else bias:
            arrays[f'{place}.bias'] = uniform(-1, 1, outputs)
        if not last:
            place = next(places)
            arrays[f'{place}.weight'] = uniform(0.5, 1.5, outputs)
            arrays[f'{place}.bias'] = uniform(-0.3, 0.3, outputs)
            arrays[f'{place}.running_mean'] = uniform(-0.3, 0.3, outputs)
            arrays[f'{place}.running_var'] = uniform(0.5, 1.5, outputs)
            arrays[f'{place}.num_batches_tracked'] = np.array(7)
    return arrays


VICREG_PROJECTOR = prefixed(
    'model.module.projector.', projector((32, 16, 16, 8), ('0', '1', '3', '4', '6'), bias=True)
)
EMP_SSL_PROJECTOR = prefixed(
    'module.',
    projector(
        (32, 16, 16, 8),
        ('pre_feature.0', 'pre_feature.1', 'projection.0', 'projection.1', 'projection.3'),
        bias=True,
        last_bias=True,
    ),
)


def images(stem, count=2):
    """Pixels in [0, 1], of an odd size: [count h w 3]."""
    size = (45, 39) if stem == 'imagenet' else (17, 15)
    return np.random.default_rng(1).random((count, *size, 3)).astype(np.float32)


def imported_output(name, arrays, x, *, stem, mean, std):
    """Embeddings of pixels [n h w 3] by the encoder that takes `arrays` over."""
    width = len(arrays['conv1.weight'])
    settings = {'width': width, 'stem': stem, 'zero_init_last': False}
    encoder = make_encoder(name, settings, dtype='float32', mean=mean, std=std)
    like = jax.eval_shape(lambda key: encoder.init(key, x, train=False), jax.random.key(0))
    variables = from_torchvision(arrays, like)
    return np.asarray(jax.jit(lambda v, x: encoder.apply(v, x, train=False)[0])(variables, x))


def head(prefix, *keys):
    return prefixed(prefix, {key: np.zeros((2, 3), np.float32) for key in keys})


def momentum(arrays):
    """Another network of the same shape."""
    return {key: np.asarray(value + 1) for key, value in arrays.items()}


def numbered(arrays, first=4):
    """Names as in nn.Sequential(*list(resnet.children())[:-1]); `first` is layer1's number."""
    numbers = {'conv1': '0', 'bn1': '1', **{f'layer{i + 1}': str(first + i) for i in range(4)}}
    parts = {key: key.partition('.') for key in arrays}
    return {f'{numbers[top]}.{rest}': arrays[key] for key, (top, _, rest) in parts.items()}


def optimizer():
    return {'state': {0: {'mu': np.zeros(3, np.float32)}}, 'param_groups': [{'lr': 0.1}]}


# Project -> (what it saves for a backbone, prefix, modules left out with their number of arrays).
# From the training scripts: facebookresearch/vicreg main_vicreg.py, barlowtwins main.py, moco
# moco/builder.py and main_moco.py, simsiam simsiam/builder.py, swav main_swav.py and
# src/resnet50.py, dino main_dino.py and utils.py; vturrisi/solo-learn solo/methods; tsb0601/EMP-SSL
# model/model.py and main.py.
LAYOUTS = {
    'torchvision': (lambda w: {**w, **head('fc.', 'weight', 'bias')}, '', {'fc': 2}),
    'vicreg': (
        lambda w: {
            'epoch': 3,
            'model': {
                **prefixed('module.backbone.', w),
                **head('module.projector.', '0.weight', '1.running_mean', '3.weight'),
            },
            'optimizer': optimizer(),
        },
        'model.module.backbone.',
        {'model.module.projector': 3, 'optimizer': 1},
    ),
    'barlowtwins': (
        lambda w: {
            'model': {
                **prefixed('module.backbone.', w),
                **head('module.projector.', '0.weight'),
                **head('module.bn.', 'running_mean', 'running_var'),
            }
        },
        'model.module.backbone.',
        {'model.module.bn': 2, 'model.module.projector': 1},
    ),
    'moco': (
        lambda w: {
            'arch': 'resnet50',
            'state_dict': {
                **prefixed('module.encoder_q.', w),
                **head('module.encoder_q.fc.', '0.weight', '2.weight'),
                **prefixed('module.encoder_k.', momentum(w)),
                **head('module.encoder_k.fc.', '0.weight', '2.weight'),
                **head('module.', 'queue', 'queue_ptr'),
            },
        },
        'state_dict.module.encoder_q.',
        {
            'state_dict.module.encoder_k': 120 + 2,
            'state_dict.module.encoder_q.fc': 2,
            'state_dict.module.queue': 1,
            'state_dict.module.queue_ptr': 1,
        },
    ),
    'moco-v3': (
        lambda w: {
            'state_dict': {
                **prefixed('module.base_encoder.', w),
                **head('module.base_encoder.fc.', '0.weight'),
                **prefixed('module.momentum_encoder.', momentum(w)),
                **head('module.predictor.', '0.weight'),
            }
        },
        'state_dict.module.base_encoder.',
        {
            'state_dict.module.base_encoder.fc': 1,
            'state_dict.module.momentum_encoder': 120,
            'state_dict.module.predictor': 1,
        },
    ),
    'simsiam': (
        lambda w: {
            'state_dict': {
                **prefixed('module.encoder.', w),
                **head('module.encoder.fc.', '0.weight', '6.bias', '7.running_mean'),
                **head('module.predictor.', '0.weight', '3.bias'),
            }
        },
        'state_dict.module.encoder.',
        {'state_dict.module.encoder.fc': 3, 'state_dict.module.predictor': 2},
    ),
    'swav': (
        lambda w: {
            **prefixed('module.', w),
            **head('module.projection_head.', '0.weight', '1.running_mean', '3.bias'),
            **head('module.prototypes.', 'weight'),
        },
        'module.',
        {'module.projection_head': 3, 'module.prototypes': 1},
    ),
    'dino': (
        lambda w: {
            'student': {
                **prefixed('module.backbone.', momentum(w)),
                **head('module.head.', 'mlp.0.weight', 'last_layer.weight_g'),
            },
            'teacher': {
                **prefixed('module.backbone.', w),
                **head('module.head.', 'mlp.0.weight', 'last_layer.weight_g'),
            },
            'dino_loss': head('', 'center'),
        },
        'teacher.module.backbone.',
        {'dino_loss': 1, 'student': 120 + 2, 'teacher.module.head': 2},
    ),
    'solo-learn': (
        lambda w: {
            'pytorch-lightning_version': '1.6.4',
            'state_dict': {
                **prefixed('backbone.', w),
                **head('classifier.', 'weight', 'bias'),
                **prefixed('momentum_backbone.', momentum(w)),
                **head('projector.', '0.weight'),
                **head('momentum_projector.', '0.weight'),
            },
        },
        'state_dict.backbone.',
        {
            'state_dict.classifier': 2,
            'state_dict.momentum_backbone': 120,
            'state_dict.momentum_projector': 1,
            'state_dict.projector': 1,
        },
    ),
    'emp-ssl': (
        lambda w: {
            **prefixed('module.backbone.', w),
            **head('module.pre_feature.', '0.weight', '1.running_mean'),
            **head('module.projection.', '0.weight', '3.bias'),
        },
        'module.backbone.',
        {'module.pre_feature': 2, 'module.projection': 2},
    ),
    'compiled': (
        lambda w: {'model': prefixed('_orig_mod.module.', w)},
        'model._orig_mod.module.',
        {},
    ),
    'sequential': (lambda w: prefixed('f.', numbered(w)), 'f.', {}),
    'sequential without max-pooling': (
        lambda w: {**numbered(w, first=3), **head('8.', 'weight', 'bias')},
        '',
        {'fc': 2},
    ),
}


def flags(workdir, **given):
    """What the program is called with."""
    return {**OPTIONS, 'workdir': str(workdir), 'arch': 'resnet18', **given}


def flat(tree, prefix=''):
    """The arrays of nested dictionaries under dotted names."""
    arrays = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            arrays |= flat(value, f'{prefix}{key}.')
        elif isinstance(value, np.ndarray):
            arrays[f'{prefix}{key}'] = value
    return arrays
