"""Trains a small network for 20 steps by the code of SimCLR's authors (TensorFlow 2), in float64.

    git clone https://github.com/google-research/simclr     (383d414 was used)
    pip install tensorflow-cpu tf_keras                     (2.21.0 both)
    TF_USE_LEGACY_KERAS=1 PYTHONPATH=.:tests python tests/data/author_steps_simclr.py simclr

Model, projection head, loss, LARS and schedule are those of simclr/tf2, in the steps of its run.py;
the network is narrower, with the stem for small images, and starts from arrays of the test's.
Writes author_steps_simclr.npz beside this file: the losses, and all arrays after the last step.
"""

import functools
import pathlib
import sys

import numpy as np
import tensorflow as tf
from absl import flags
from test_author_steps import CASES, STEPS, exported, start


def main(directory):
    sys.path.insert(0, f'{directory}/tf2')
    tf.keras.backend.set_floatx('float64')
    import model as models
    import objective
    import resnet
    import run  # noqa: F401, which declares the flags

    case = CASES['simclr']
    flags.FLAGS(
        ['run', f'--train_batch_size={case.images}', f'--train_steps={STEPS}',
         f'--warmup_epochs={case.schedule["warmup_steps"]}', '--learning_rate=0.3',
         '--weight_decay=1e-4', '--temperature=0.5', f'--proj_out_dim={case.projector[-1]}',
         '--image_size=16', '--use_blur=false', '--global_bn=false',
         '--lineareval_while_pretraining=false']
    )  # fmt: skip
    resnet.resnet = lambda **settings: resnet.Resnet(
        resnet.BottleneckBlock, [1, 1, 1, 1], case.width / 64, cifar_stem=True
    )
    # Labels would be float32.
    objective.tf.one_hot = functools.partial(tf.one_hot, dtype=tf.float64)
    net = models.Model(num_classes=2)
    schedule = models.WarmUpAndCosineDecay(np.float64(0.3), num_examples=case.images)
    optimizer = models.build_optimizer(schedule)

    losses = []
    for step, patches in enumerate(case.batches()):
        views = tf.constant(np.concatenate([patches[:, 0], patches[:, 1]], axis=-1))
        if step == 0:
            net(views, training=True)
            load(net, start(case))
        with tf.GradientTape() as tape:
            projections, _ = net(views, training=True)
            loss, _, _ = objective.add_contrastive_loss(
                projections, hidden_norm=True, temperature=0.5
            )
        grads = tape.gradient(loss, net.trainable_variables)
        optimizer.apply_gradients(zip(grads, net.trainable_variables, strict=True))
        losses.append(float(loss))
    found = {'simclr/losses': np.array(losses)}
    tree = {}
    for variable, (group, key) in counterparts(net, tree):
        group[key] = variable.numpy()
    for key, x in exported(tree).items():
        found[f'simclr/{key}'] = x
    np.savez_compressed(pathlib.Path(__file__).with_suffix('.npz'), **found)


def load(net, variables):
    for variable, (group, key) in counterparts(net, variables):
        variable.assign(group[key])


def counterparts(net, tree):
    """Every variable of theirs, and where it is in ours: a dictionary and a key."""
    stem = net.resnet_model.initial_conv_relu_max_pool
    layers = [('encoder', ('stem_conv',), stem[0].conv2d), ('encoder', ('stem_norm',), stem[2].bn)]
    for i, group in enumerate(net.resnet_model.block_groups, start=1):
        [block] = group.layers
        name = f'stage{i}_block1'
        convolution, norm = block.projection_layers
        layers.append(('encoder', (name, 'shortcut_conv'), convolution.conv2d))
        layers.append(('encoder', (name, 'shortcut_norm'), norm.bn))
        kept = [x for x in block.conv_relu_dropblock_layers if type(x).__name__ != 'DropBlock']
        for j in range(3):
            layers.append(('encoder', (name, f'conv{j + 1}'), kept[2 * j].conv2d))
            layers.append(('encoder', (name, f'norm{j + 1}'), kept[2 * j + 1].bn))
    for i, layer in enumerate(net._projection_head.linear_layers, start=1):
        layers.append(('projector', (f'dense{i}',), layer.dense))
        layers.append(('projector', (f'norm{i}',), layer.bn_relu.bn))
    words = {
        'kernel': ('params', 'kernel'),
        'gamma': ('params', 'scale'),
        'beta': ('params', 'bias'),
        'moving_mean': ('batch_stats', 'mean'),
        'moving_variance': ('batch_stats', 'var'),
    }
    for network, path, layer in layers:
        for word, (kind, key) in words.items():
            variable = getattr(layer, word, None)
            if variable is not None:
                group = tree.setdefault(network, {}).setdefault(kind, {})
                for name in path:
                    group = group.setdefault(name, {})
                yield variable, (group, key)


if __name__ == '__main__':
    main(*sys.argv[1:])
