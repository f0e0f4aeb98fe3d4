"""Twenty whole steps of EMP-SSL and of VICReg, in float64, against the authors' own code.

tests/data/author_steps.py made the stored arrays with their code, and says how to make them again.
"""

import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bagssl_jax.interop.names import to_torchvision
from bagssl_jax.models import Networks, init_variables
from bagssl_jax.models.projector import Projector
from bagssl_jax.models.resnet import ResNet
from bagssl_jax.objectives import make_objective
from bagssl_jax.parallel import batch_sharded, make_mesh, replicated
from bagssl_jax.training.optimizers import cosine_momentum, make_optimizer, warmup_cosine
from bagssl_jax.training.state import TrainState
from bagssl_jax.training.steps import make_train_step

STORED = pathlib.Path(__file__).parent / 'data' / 'author_steps.npz'
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
}


def networks_of(case):
    encoder = ResNet(
        stages=(1, 1, 1, 1),
        width=case.width,
        zero_init_last=True,
        dtype=jnp.float64,
        **case.encoder,
    )
    projector = Projector(case.projector, dtype=jnp.float64, last_bias=case.last_bias)
    return Networks(encoder, projector)


def start(case):
    """Variables of the encoder and of the projector, of NumPy's numbers: float64 everywhere."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: init_variables(networks_of(case), 0, side=case.shape[1]))

    def array(path, like):
        if path[-1].key == 'kernel':
            return rng.standard_normal(like.shape) * np.sqrt(2 / np.prod(like.shape[:-1]))
        low, high = {'scale': (0.5, 1.5), 'var': (0.5, 1.5)}.get(path[-1].key, (-0.2, 0.2))
        return rng.uniform(low, high, like.shape)

    variables = jax.tree.map_with_path(array, shapes)
    return variables['encoder'], variables['projector']


def exported(encoder, projector):
    """Name -> array as PyTorch has it."""
    arrays = {f'backbone.{key}': x for key, x in to_torchvision(encoder).items()}
    words = {'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
    for kind in ('params', 'batch_stats'):
        for layer, leaves in projector[kind].items():
            for leaf, x in leaves.items():
                layer_name = layer.replace('dense', 'linear')
                name = 'weight' if leaf == 'kernel' else words[leaf]
                arrays[f'{layer_name}.{name}'] = x.T
    return arrays


@pytest.mark.parametrize('name', CASES)
def test_twenty_steps_equal_the_authors(name):
    with np.load(STORED) as stored, jax.enable_x64(True):
        case = CASES[name]
        networks = networks_of(case)
        mesh = make_mesh(jax.devices()[:1])
        optimizer_name, settings, weight_decay = case.optimizer
        schedule = warmup_cosine(total_steps=STEPS, **case.schedule)
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
            cosine_momentum(1.0, STEPS),
            cut=lambda patches: patches,
            augment=lambda key, patches, places: patches,
            key=jax.random.key(0),
            mesh=mesh,
            by_index=case.by_index,
        )
        online = dict(zip(('encoder', 'projector'), start(case), strict=True))
        params = {key: variables['params'] for key, variables in online.items()}
        state = TrainState(
            jnp.zeros((), jnp.int32), online=online, target={}, opt_state=optimizer.init(params)
        )
        state, losses = jax.device_put(state, replicated(mesh)), []
        for patches in case.batches():
            state, metrics = step(state, jax.device_put(patches, batch_sharded(mesh)))
            losses.append(float(metrics['loss']))
        np.testing.assert_allclose(losses, stored[f'{name}/losses'], rtol=1e-8)
        found = exported(state.online['encoder'], state.online['projector'])
        for key, array in found.items():
            if key.endswith('running_var'):  # PyTorch's has a factor of n / (n - 1)
                continue
            expected = stored[f'{name}/{key}']
            error = np.abs(np.asarray(array) - expected).max()
            assert error < 1e-7 * np.abs(expected).max(), f'{key}: {error}'
