"""The linear probe as it is usually published: SGD with momentum, for many settings at once.

A `Sweep` is a grid of linear classifiers that learn from the same batches. `fit_sgd` trains one
on a training split's features; `start`, `update` and `shuffled_batches` are its parts.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from bagssl_jax.probes.classifiers import FittedClassifiers, standardisation
from bagssl_jax.probes.memory import device_bytes
from bagssl_jax.probes.selection import Probed, choose_and_score
from bagssl_jax.probes.splits import check_two_classes, labelled_splits

# TF32 products would make a probe on a GPU another probe than on a CPU.
_matmul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)

MOMENTUM = 0.9
BATCH_SIZE = 256

Batches = Callable[[np.ndarray, int], Iterable[tuple[ArrayLike, ArrayLike]]]


class Setting(NamedTuple):
    """Hyper-parameters of one classifier."""

    learning_rate: float  # for batches of 256
    weight_decay: float


# Published learning rates are 0.02 and 0.3 (VICReg: its README, its evaluate.py), 0.3 (SwAV) and
# 30 (MoCo, whose features are small), weight decays 1e-6 (VICReg, SwAV) and 0 (MoCo); 0.001 to
# 0.1 is the upper half of DINOv2's sweep. A weight decay of 1e-4 is for small training splits.
SETTINGS = tuple(
    Setting(*setting)
    for setting in itertools.product((0.001, 0.005, 0.02, 0.1, 0.3, 1.0, 5.0, 30.0), (1e-4, 1e-6))
)


class Sweep(NamedTuple):
    """Linear classifiers in training, one for each of s settings.

    The settings come last but one, so that a batch's logits are one product, [b d] by [d s*c],
    that reads its features once for all of them.
    """

    weights: jax.Array  # float32 [d s c]
    bias: jax.Array  # float32 [s c]
    velocity: tuple[jax.Array, jax.Array]  # of the two
    learning_rate: jax.Array  # float32 [s], at the first step
    weight_decay: jax.Array  # float32 [s]
    step: jax.Array  # int32 []
    steps: jax.Array  # int32 [], in the whole training
    held: jax.Array  # int32 [], steps in a row that have the same learning rate
    nesterov: jax.Array  # bool []


def fit_sgd(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    *,
    num_classes: int,
    settings: Sequence[Setting] = SETTINGS,
    epochs: int = 100,
    batch_size: int = BATCH_SIZE,
    standardise: bool = True,
    nesterov: bool = True,
    by_epoch: bool = False,
    holdout: float = 0.1,
    seed: int = 0,
    augmented: Batches | None = None,
    device_limit: int | None = None,
) -> Probed:
    """Chooses a setting inside the training split, refits on all of it, scores the test split once.

    The protocol: a linear layer on frozen features, cross-entropy, SGD with Nesterov momentum 0.9,
    a learning rate that follows a cosine from its setting's, times batch_size / 256, to 0, one
    shuffle an epoch, whose last rows that fill no batch are left out. VICReg's momentum is not
    Nesterov's, and its cosine steps once an epoch (`nesterov`, `by_epoch`). As in VICReg, SwAV and
    MoCo the decay is the L2 kind and also falls on the bias. The layer starts at zero, not at their
    N(0, 0.01): the objective is convex, and a start without noise does not drown one-shot probes.

    VICReg, SwAV and MoCo feed features as they are (`standardise=False`), so that the best
    learning rate depends on the encoder's scale: 0.02 to 30. MAE puts a BatchNorm without scale
    and shift before the layer. Standardising with the training split's frozen statistics is that
    without the noise of batches, makes one grid fit all encoders, and is the default.

    How a setting is chosen: see `selection.choose_and_score`. Between equals the smaller learning
    rate is taken, then the larger decay; where none can be held out that is the first by the same
    rule, which all but compares with the class means.

    In memory are the classifiers and their velocities, twice, 16 s d c bytes for s settings, and a
    batch's logits. Features that fit into `device_limit` go to the device; of others, a memory map
    say, every batch is read in shuffled order.

    Args:
      train_x, test_x: float [n d] and [m d]; a jax.Array stays on its devices, also sharded.
      train_y, test_y: integer [n] and [m], in [0, num_classes).
      num_classes: c.
      settings: the grid.
      epochs: of the selection, and of the refit.
      batch_size: all rows where there are fewer.
      standardise: see above.
      nesterov: whether the momentum is Nesterov's.
      by_epoch: whether the cosine steps once an epoch, as PyTorch's schedulers are usually called,
        or with every batch.
      holdout: share of each class that selects, in (0, 1), or 0 of a grid of one.
      seed: of the shuffles.
      augmented: (training rows int64 [r], epoch) -> the epoch's batches (features float [b d] and
        labels int [b], b = min(batch_size, r), r // b of them), of fresh random crops of those
        images, say: the augmented protocol. `train_x` then only gives the statistics and the
        held-out features. Epochs count from 0 in the selection and again in the refit.
      device_limit: bytes of features to hold on the device; by default half of what it holds.

    Raises:
      InputError: features that are not finite, or fewer than two classes in the training split.
      ValueError: misaligned shapes, an unusable grid, holdout, epochs or batch size, or a number
        of augmented batches that is not the one above.
    """
    if epochs < 1 or batch_size < 1 or not settings:
        raise ValueError(f'not positive or empty: {epochs=}, {batch_size=} or {settings=}')
    if any(rate <= 0 or decay < 0 for rate, decay in settings):
        raise ValueError(f'learning rates must be positive, and no decay negative: {settings=}')
    on_device = train_x if isinstance(train_x, jax.Array) else None
    splits = labelled_splits(train_x, train_y, test_x, test_y, num_classes)
    train_x, train_y = splits.train_x, splits.train_y
    check_two_classes(train_y)
    limit = device_bytes() // 2 if device_limit is None else device_limit
    if on_device is None and augmented is None and train_x.nbytes <= limit:
        on_device = jnp.asarray(train_x)
    key = jax.random.key(seed)

    def fit(used, settings):
        mean, scale = np.zeros(train_x.shape[1], np.float32), np.ones(train_x.shape[1], np.float32)
        if standardise:
            mean, scale = standardisation(train_x, used)
        (rows,) = np.nonzero(used)
        size = min(batch_size, len(rows))
        sweep = start(
            settings,
            width=train_x.shape[1],
            num_classes=num_classes,
            batch_size=size,
            steps=epochs * (len(rows) // size),
            held=len(rows) // size if by_epoch else 1,
            nesterov=nesterov,
        )
        if augmented is None and on_device is not None:
            sweep = _train(
                sweep, on_device, train_y, rows, mean, scale, key, epochs=epochs, batch_size=size
            )
        else:
            batches = augmented or functools.partial(_read, train_x, train_y, key, size)
            for epoch in range(epochs):
                for x, y in batches(rows, epoch):
                    sweep = update(sweep, (x - mean[None]) * scale[None], y)
            if sweep.step != sweep.steps:
                raise ValueError(
                    f'expected {sweep.steps} batches in {epochs} epochs, got {sweep.step}'
                )
        weights = jnp.swapaxes(sweep.weights, 0, 1)  # [d s c] -> [s d c]
        return FittedClassifiers(settings, weights, sweep.bias, mean, scale)

    grid = sorted(
        (Setting(*map(float, setting)) for setting in settings),
        key=lambda setting: (setting.learning_rate, -setting.weight_decay),
    )
    return choose_and_score(splits, grid, fit, num_classes=num_classes, holdout=holdout)


def start(
    settings: Sequence[Setting],
    *,
    width: int,
    num_classes: int,
    batch_size: int,
    steps: int,
    held: int = 1,
    nesterov: bool = True,
) -> Sweep:
    """Classifiers at zero, of features of `width`, to be trained for `steps` batches."""
    count = len(settings)
    zeros = functools.partial(jnp.zeros, dtype=jnp.float32)
    weights, bias = (width, count, num_classes), (count, num_classes)
    rates, decays = np.array(settings, np.float32).T
    return Sweep(
        weights=zeros(weights),
        bias=zeros(bias),
        velocity=(zeros(weights), zeros(bias)),
        learning_rate=jnp.asarray(rates * (batch_size / 256)),
        weight_decay=jnp.asarray(decays),
        step=jnp.int32(0),
        steps=jnp.int32(steps),
        held=jnp.int32(held),
        nesterov=jnp.asarray(nesterov),
    )


@jax.jit
def update(sweep: Sweep, x: jax.Array, y: jax.Array) -> Sweep:
    """One step of every classifier on one batch, features float [b d] and labels int [b].

    With g the gradient of the mean cross-entropy plus weight_decay times the parameters:
    velocity = momentum velocity + g, parameters -= rate (g + momentum velocity), as in
    torch.optim.SGD(nesterov=True), or without `nesterov` -= rate velocity; after `steps` the rate
    is 0.
    """
    width, settings, classes = sweep.weights.shape
    x = jnp.asarray(x, jnp.float32)
    logits = _matmul(x, sweep.weights.reshape(width, -1)).reshape(-1, settings, classes)
    targets = jax.nn.one_hot(y, classes)
    errors = (jax.nn.softmax(logits + sweep.bias[None]) - targets[:, None]) / len(x)
    gradients = (
        _matmul(x.T, errors.reshape(len(x), -1)).reshape(width, settings, classes),
        (errors.sum(0)),
    )
    done = jnp.minimum(sweep.step // sweep.held * sweep.held / sweep.steps, 1.0)
    rate = sweep.learning_rate[:, None] * (1 + jnp.cos(jnp.pi * done)) / 2

    def moved(parameters, velocity, gradient):
        shape = (1,) * (parameters.ndim - 2)
        decay = sweep.weight_decay.reshape(*shape, -1, 1)
        gradient = gradient + decay * parameters
        velocity = MOMENTUM * velocity + gradient
        step = jnp.where(sweep.nesterov, gradient + MOMENTUM * velocity, velocity)
        return parameters - rate.reshape(*shape, -1, 1) * step, velocity

    weights, weights_velocity = moved(sweep.weights, sweep.velocity[0], gradients[0])
    bias, bias_velocity = moved(sweep.bias, sweep.velocity[1], gradients[1])
    return sweep._replace(
        weights=weights, bias=bias, velocity=(weights_velocity, bias_velocity), step=sweep.step + 1
    )


@functools.partial(jax.jit, static_argnames='batch_size')
def shuffled_batches(
    key: jax.Array, epoch: ArrayLike, rows: ArrayLike, batch_size: int
) -> jax.Array:
    """The rows of each batch of an epoch, int [r // batch_size batch_size].

    Args:
      key: of all epochs.
      epoch: its number.
      rows: int [r], those that are shuffled; the last that fill no batch are left out.
      batch_size: at most r.
    """
    shuffled = jax.random.permutation(jax.random.fold_in(key, epoch), rows)
    count = len(rows) // batch_size
    return shuffled[: count * batch_size].reshape(count, batch_size)


@functools.partial(jax.jit, static_argnames=('epochs', 'batch_size'))
def _train(sweep, x, y, rows, mean, scale, key, *, epochs, batch_size):
    """Every epoch of `rows` of the features x [n d], one batch after another."""

    def step(sweep, batch):
        return update(sweep, (x[batch] - mean[None]) * scale[None], y[batch]), None

    def epoch(sweep, number):
        return jax.lax.scan(step, sweep, shuffled_batches(key, number, rows, batch_size))[0], None

    return jax.lax.scan(epoch, sweep, jnp.arange(epochs))[0]


def _read(x, y, key, size, rows, epoch):
    """The epoch's batches, from features on the host, in the same order as on the device."""
    for batch in np.asarray(shuffled_batches(key, epoch, rows, size)):
        yield x[batch], y[batch]
