"""Twenty whole steps of each published recipe, in float64, against the authors' own code.

tests/data/author_steps*.py made the stored arrays with their code, and say how to make them again.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow_but

from bagssl_jax.interop.names import to_torchvision
from bagssl_jax.models import Networks, init_variables
from bagssl_jax.models.projector import Projector
from bagssl_jax.models.resnet import ResNet
from bagssl_jax.objectives import make_objective
from bagssl_jax.parallel import batch_sharded, make_mesh, replicated
from bagssl_jax.training.optimizers import cosine_momentum, make_optimizer, warmup_cosine
from bagssl_jax.training.state import TrainState
from bagssl_jax.training.steps import make_train_step

DATA = pathlib.Path(__file__).parent / 'data'
STEPS = 20


class Case(NamedTuple):
    objective: tuple[str, dict[str, float]]
    optimizer: tuple[str, dict[str, float], float]  # and weight decay
    schedule: dict[str, float]
    encoder: dict[str, object]
    width: int
    projector: tuple[int, ...]
    last_bias: bool
    by_index: bool
    images: int
    shape: tuple[int, ...]  # p h w c
    stored: str = 'author_steps.npz'
    last_norm: bool = False
    predictor: tuple[int, ...] = ()
    target_momentum: float = 1.0

    def batches(self):
        """Patches [b p h w c] in [0, 1], of images that differ, for each step."""
        rng = np.random.default_rng(1)
        for _ in range(STEPS):
            image = rng.random((self.images, 1, 1, 1, 3))
            yield 0.7 * image + 0.3 * rng.random((self.images, *self.shape))


CASES = {
    'emp_ssl': Case(
        ('tcr', {'invariance_weight': 200.0, 'eps': 0.2}),
        ('larc', {'momentum': 0.9, 'trust_coefficient': 0.005}, 1e-4),
        {'peak': 0.3, 'warmup_steps': 0, 'end_factor': 0.0},
        {'stem': 'cifar'},
        width=4,
        projector=(16, 16, 8),
        last_bias=True,
        by_index=False,
        images=6,
        shape=(4, 8, 8, 3),
    ),
    'vicreg': Case(
        ('vicreg', {'invariance_weight': 25.0, 'variance_weight': 25.0, 'covariance_weight': 1.0}),
        ('lars_vicreg', {'momentum': 0.9, 'trust_coefficient': 0.001}, 1e-6),
        {'peak': 0.2 * 8 / 256, 'warmup_steps': 10, 'end_factor': 0.001},
        {'stem': 'imagenet', 'bottleneck': True},
        width=2,
        projector=(16, 16, 8),
        last_bias=False,
        by_index=True,
        images=8,
        shape=(2, 32, 32, 3),
    ),
    'barlow': Case(
        ('barlow', {'off_diagonal_weight': 0.0051}),
        (
            'lars_vicreg',
            {'momentum': 0.9, 'trust_coefficient': 0.001, 'bias_factor': 0.0048 / 0.2},
            1e-6,
        ),
        {'peak': 0.2 * 8 / 256, 'warmup_steps': 10, 'end_factor': 0.001},
        {'stem': 'imagenet', 'bottleneck': True},
        width=2,
        projector=(16, 16, 8),
        last_bias=False,
        by_index=True,
        images=8,
        shape=(2, 32, 32, 3),
    ),
    'simclr': Case(
        ('simclr', {'temperature': 0.5, 'weight': 2.0}),
        ('lars', {'momentum': 0.9, 'trust_coefficient': 0.001, 'nesterov': False}, 1e-4),
        {'peak': 0.3 * 8 / 256, 'warmup_steps': 10, 'end_factor': 0.0},
        {'stem': 'cifar', 'bottleneck': True, 'mean': (0, 0, 0), 'std': (1, 1, 1)},
        width=2,
        projector=(64, 64, 8),  # the hidden layers are as wide as the embedding
        last_bias=False,
        by_index=False,
        images=8,
        shape=(2, 16, 16, 3),
        stored='author_steps_simclr.npz',
        last_norm=True,
    ),
    'byol': Case(
        ('byol', {}),
        ('lars_vicreg', {'momentum': 0.9, 'trust_coefficient': 0.001}, 1.5e-6),
        {'peak': 0.2 * 8 / 256, 'warmup_steps': 10, 'end_factor': 0.0},
        {
            'stem': 'imagenet',
            'bottleneck': True,
            'mean': (0.485, 0.456, 0.406),
            'std': (0.229, 0.224, 0.225),
        },
        width=2,
        projector=(16, 8),
        last_bias=False,
        by_index=True,
        images=8,
        shape=(2, 32, 32, 3),
        stored='author_steps_byol.npz',
        predictor=(16, 8),
        target_momentum=0.996,
    ),
}


def networks_of(case):
    encoder = ResNet(
        stages=(1, 1, 1, 1),
        width=case.width,
        zero_init_last=True,
        dtype=jnp.float64,
        **case.encoder,
    )
    head = {'dtype': jnp.float64, 'last_bias': case.last_bias, 'last_norm': case.last_norm}
    predictor = Projector(case.predictor, **head) if case.predictor else None
    return Networks(encoder, Projector(case.projector, **head), predictor)


def start(case):
    """Name of a network -> its variables, of NumPy's numbers: float64 everywhere."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_variables(networks_of(case), 0, side=case.shape[1]))

    def array(path, like):
        if path[-1].key == 'kernel':
            return rng.standard_normal(like.shape) * np.sqrt(2 / np.prod(like.shape[:-1]))
        low, high = {'scale': (0.5, 1.5), 'var': (0.5, 1.5)}.get(path[-1].key, (-0.2, 0.2))
        return rng.uniform(low, high, like.shape)

    return jax.tree.map_with_path(array, shapes)


def exported(variables):
    """Name -> array as PyTorch has it."""
    arrays = {f'backbone.{key}': x for key, x in to_torchvision(variables['encoder']).items()}
    words = {'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
    for head, prefix in (('projector', ''), ('predictor', 'predictor.')):
        for kind in ('params', 'batch_stats'):
            for layer, leaves in variables.get(head, {kind: {}})[kind].items():
                for leaf, x in leaves.items():
                    layer_name = layer.replace('dense', 'linear')
                    name = 'weight' if leaf == 'kernel' else words[leaf]
                    arrays[f'{prefix}{layer_name}.{name}'] = x.T
    return arrays


# Their optimisers' own parts, and objectives, have quick tests of their own.
QUICK = ('emp_ssl',)


@pytest.mark.parametrize('name', slow_but(QUICK, CASES))
def test_twenty_steps_equal_the_authors(name):
    case = CASES[name]
    with np.load(DATA / case.stored) as stored, jax.enable_x64(True):
        networks = networks_of(case)
        mesh = make_mesh(jax.devices()[:1])
        optimizer_name, settings, weight_decay = case.optimizer
        schedule = warmup_cosine(total_steps=STEPS, **case.schedule)
        momentum = cosine_momentum(case.target_momentum, STEPS)
        optimizer = make_optimizer(
            optimizer_name,
            settings,
            # Of an integer step, optax's would be float32 also here: off by 5e-7 in a warm-up.
            lambda step: schedule(jnp.asarray(step, jnp.float64)),
            weight_decay=weight_decay,
        )
        step = make_train_step(
            networks,
            make_objective(*case.objective),
            optimizer,
            lambda step: momentum(jnp.asarray(step, jnp.float64)),
            cut=lambda patches: patches,
            augment=lambda key, patches, places: patches,
            key=jax.random.key(0),
            mesh=mesh,
            by_index=case.by_index,
        )
        online = start(case)
        params = {key: variables['params'] for key, variables in online.items()}
        target = {key: online[key] for key in ('encoder', 'projector') if case.predictor}
        state = TrainState(
            jnp.zeros((), jnp.int32),
            online=online,
            target=jax.tree.map(np.copy, target),
            opt_state=optimizer.init(params),
        )
        state, losses = jax.device_put(state, replicated(mesh)), []
        for patches in case.batches():
            state, metrics = step(state, jax.device_put(patches, batch_sharded(mesh)))
            losses.append(float(metrics['loss']))
        np.testing.assert_allclose(losses, stored[f'{name}/losses'], rtol=1e-8)
        found = exported(state.online)
        if case.predictor:
            found |= {f'target.{key}': x for key, x in exported(state.target).items()}
        for key, array in found.items():
            # PyTorch's running variance has a factor of n / (n - 1).
            if key.endswith('running_var') and case.stored == 'author_steps.npz':
                continue
            expected = stored[f'{name}/{key}']
            error = np.abs(np.asarray(array) - expected).max()
            assert error < 1e-7 * np.abs(expected).max(), f'{key}: {error}'
