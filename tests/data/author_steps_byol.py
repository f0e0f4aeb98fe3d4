"""Trains a small network for 20 steps by the code of BYOL's authors, in float64.

    git clone https://github.com/google-deepmind/deepmind-research       (f5de0ed was used)
    pip install dm-haiku dm-tree                                         (0.0.17, 0.1.10)
    PYTHONPATH=.:tests python tests/data/author_steps_byol.py deepmind-research

Their ByolExperiment takes the steps, without TensorFlow and Acme, which it loads images with. Its
network is narrower, and starts from arrays of the test's; convolutions and max-pooling are padded
as PyTorch's, alike on both sides. Writes author_steps_byol.npz beside this file: the losses, and
all arrays after the last step. Running statistics are Haiku's before they are debiased.
"""

import pathlib
import re
import sys
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from test_author_steps import CASES, STEPS, exported, start

WORDS = {'w': 'kernel', 'scale': 'scale', 'offset': 'bias', 'b': 'bias'}


def main(directory):
    jax.config.update('jax_enable_x64', True)
    jax.tree_map = jax.tree.map  # as it was called then
    sys.path.insert(0, directory)
    for name in ('acme', 'acme.jax', 'tensorflow', 'tensorflow.compat', 'tensorflow.compat.v2',
                 'tensorflow_datasets', 'dill'):  # fmt: skip
        sys.modules[name] = mock.MagicMock()
    from byol import byol_experiment
    from byol.configs import byol as config
    from byol.utils import augmentations, networks, schedules

    case = CASES['byol']
    pad_as_pytorch(networks.hk)
    networks.Narrow = lambda **settings: networks.ResNetTorso((1, 1, 1, 1), **settings)
    augmentations.postprocess = lambda inputs, rng: inputs
    # The warm-up's steps are cast to float32.
    schedules.jnp = types.SimpleNamespace(**{**vars(jnp), 'float32': jnp.float64})

    settings = config.get_config(1000, case.images)
    hidden, width = case.projector
    settings['network_config'] |= {
        'projector_hidden_size': hidden,
        'projector_output_size': width,
        'predictor_hidden_size': case.predictor[0],
        'encoder_class': 'Narrow',
        'encoder_config': {'width_multiplier': case.width / 64},
    }
    settings['lr_schedule_config']['warmup_steps'] = case.schedule['warmup_steps']
    experiment = byol_experiment.ByolExperiment(**{**settings, 'max_steps': STEPS})
    labels = np.zeros((1, case.images), np.int32)

    state, losses = None, []
    for step, patches in enumerate(case.batches()):
        views = {'view1': patches[None, :, 0], 'view2': patches[None, :, 1]}
        inputs = {**views, 'labels': labels}
        if state is None:
            state = jax.pmap(experiment._make_initial_state, axis_name='i')(
                jax.random.split(jax.random.key(0), 1), inputs
            )
            state = started(state, start(case))
        now = jnp.full((1,), step)
        state, logs = experiment.update_pmap(state, now, jax.random.split(jax.random.key(0), 1),
                                             inputs)  # fmt: skip
        losses.append(float(logs['repr_loss'][0]))
    found = {'byol/losses': np.array(losses)}
    for prefix, params, stats in (
        ('', state.online_params, state.online_state),
        ('target.', state.target_params, state.target_state),
    ):
        for key, x in exported(by_network(params, stats)).items():
            found[f'byol/{prefix}{key}'] = np.asarray(x)
    np.savez_compressed(pathlib.Path(__file__).with_suffix('.npz'), **found)


def pad_as_pytorch(hk):
    convolution = hk.Conv2D

    class Padded(convolution):
        """Whose channels may come as a float, of a stem narrower than 64."""

        def __init__(self, output_channels, kernel_shape, padding, **settings):
            half = kernel_shape // 2
            super().__init__(int(output_channels), kernel_shape, padding=[(half, half)] * 2,
                             **settings)  # fmt: skip

    def max_pool(x, window_shape, strides, padding):
        padding = [(0, 0), (1, 1), (1, 1), (0, 0)]
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window_shape, strides, padding)

    hk.max_pool = max_pool
    hk.Conv2D = Padded
    sys.modules['haiku._src.nets.resnet'].hk.Conv2D = Padded


def place(module):
    """Of a Haiku module: (network, layer) as they are called here; None of what is not compared."""
    if match := re.fullmatch(r'(projector|predictor)/(linear|batch_norm)(_1)?', module):
        number = 2 if match[3] else 1
        return match[1], f'{"dense" if match[2] == "linear" else "norm"}{number}'
    name = module.partition('/~/')[2]
    if name in ('initial_conv', 'initial_batchnorm'):
        return 'encoder', {'initial_conv': 'stem_conv', 'initial_batchnorm': 'stem_norm'}[name]
    match = re.fullmatch(r'block_group_(\d)/~/block_(\d)/~/(\w+)', name)
    if not match:
        return None
    layer = {'shortcut_conv': 'shortcut_conv', 'shortcut_batchnorm': 'shortcut_norm'}.get(match[3])
    if layer is None:
        kind, _, number = match[3].partition('_')
        layer = {'conv': 'conv', 'batchnorm': 'norm'}[kind] + str(int(number) + 1)
    return 'encoder', (f'stage{int(match[1]) + 1}_block{int(match[2]) + 1}', layer)


def layers(params, stats, tree):
    """Every array that has a counterpart: (dictionary, key) of theirs, and of `tree`'s."""
    for group, kind in ((params, 'params'), (stats, 'batch_stats')):
        for module, leaves in group.items():
            words = WORDS
            if kind == 'batch_stats':
                module, _, statistic = module.rpartition('/~/')
                words = {'hidden': statistic.removesuffix('_ema')}
            if not (found := place(module)):
                continue
            network, path = found
            target = tree.setdefault(network, {}).setdefault(kind, {})
            for name in path if isinstance(path, tuple) else (path,):
                target = target.setdefault(name, {})
            for key in leaves:
                # A bias before BatchNorm changes nothing.
                if key in words and not (key == 'b' and 'linear' in module):
                    yield (leaves, key), (target, words[key])


def started(state, variables):
    """Their state with the arrays of the test's, and biases before BatchNorm of 0."""
    copy = jax.tree.map(np.array, state)
    for params, stats in (
        (copy.online_params, copy.online_state),
        (copy.target_params, copy.target_state),
    ):
        for (leaves, key), (target, word) in layers(params, stats, variables):
            leaves[key] = target[word].reshape(leaves[key].shape)
    return copy


def by_network(params, stats):
    tree = {}
    for (leaves, key), (target, word) in layers(params, stats, tree):
        x = np.asarray(leaves[key][0])
        target[word] = x if key == 'w' else x.ravel()  # norms' are [1 1 1 c]
    return tree


if __name__ == '__main__':
    main(*sys.argv[1:])
