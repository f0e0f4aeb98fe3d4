"""Global and local crops in one bag: two sizes of patches, from the boxes to the probe."""

import contextlib
import functools
import json
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from bagssl_jax import device_crops
from bagssl_jax.augment import augment
from bagssl_jax.data import crops, pipeline
from bagssl_jax.data.datasets import open_dataset
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.data.sources import ArraySource
from bagssl_jax.errors import InputError, Interrupted
from bagssl_jax.models import Networks, make_encoder, make_projector
from bagssl_jax.objectives import OBJECTIVES, make_objective
from bagssl_jax.objectives.byol import byol
from bagssl_jax.objectives.sigreg import sigreg
from bagssl_jax.parallel import DATA_AXIS, batch_sharded, make_mesh, replicated
from bagssl_jax.records import Recorder
from bagssl_jax.runs import Run
from bagssl_jax.training import loop
from bagssl_jax.training.optimizers import cosine_momentum
from bagssl_jax.training.setup import set_up
from bagssl_jax.training.state import create_state
from bagssl_jax.training.steps import make_train_step

SETTINGS = {
    'global_count': 2,
    'global_resize': 12,
    'global_scale': (0.4, 1.0),
    'local_scale': (0.05, 0.4),
    'ratio': (3 / 4, 4 / 3),
    'interpolation': 'area',
}
MULTICROP = (
    '--config.crops=multicrop',
    '--config.patches.count=4',
    '--config.multicrop.global_resize=16',
)


def make_crops(count=5, resize=6, **settings):
    geometry = PatchGeometry(size=0, scale=0.25, resize=resize)
    return crops.make_crops('multicrop', count, geometry, {**SETTINGS, **settings})


def test_global_crops_come_first_and_have_their_shares_of_the_area():
    random_crops = make_crops()
    assert (random_crops.count, random_crops.sizes) == (5, ((2, 12), (3, 6)))
    draws = random_crops.draw(np.random.default_rng(0), 400)
    boxes = random_crops.boxes(draws, [300] * 400, [400] * 400)
    areas = boxes[..., 2] * boxes[..., 3] / (300 * 400)
    for shares, scale in ((areas[:, :2], (0.4, 1.0)), (areas[:, 2:], (0.05, 0.4))):
        assert scale[0] - 0.01 < shares.min() < scale[0] + 0.05
        assert scale[1] - 0.1 < shares.max() < scale[1] + 0.01
    part = random_crops.boxes(draws[7:9], [300, 300], [400, 400])
    np.testing.assert_array_equal(part, boxes[7:9])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'global_resize': 0}, r'give multicrop\.global_resize=SIDE'),
        ({'resize': 0}, r'patches\.resize=SIDE for the local ones'),
        ({'global_count': 5}, 'global_count=5 leaves no local crops of patches.count=5'),
        ({'interpolation': 'cubic'}, "interpolation 'cubic': choose from area, bicubic"),
    ],
)
def test_unusable_crops_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        make_crops(**options)


@pytest.fixture(scope='module')
def source():
    pixels = np.random.default_rng(0).integers(0, 256, (22, 20, 24, 3), dtype=np.uint8)
    return ArraySource(pixels, np.zeros(22, int), ('a',))


def batches(source, **options):
    options = {'seed': 3, 'batch_size': 8, **options}
    made = pipeline.train_batches(source, make_crops(), **options)
    with contextlib.closing(made):
        return [next(made).inputs for _ in range(4)]


@pytest.mark.parametrize('workers', [0, 1])
def test_batches_depend_on_seed_and_step_alone(source, workers):
    whole = batches(source)
    assert [x.shape for x in whole[0]['patches']] == [(8, 2, 12, 12, 3), (8, 3, 6, 6, 3)]
    parts = [batches(source, shard=(i, 2), workers=workers) for i in range(2)]
    for one, *shards in zip(whole, *parts, strict=True):
        for i, patches in enumerate(one['patches']):
            joined = np.concatenate([shard['patches'][i] for shard in shards])
            np.testing.assert_array_equal(joined, patches)
    later = batches(source, start=2)
    for i in range(2):
        np.testing.assert_array_equal(later[0]['patches'][i], whole[2]['patches'][i])


NETWORKS = {
    'encoder': make_encoder('tiny', {'width': 4}, dtype='float32'),
    'projector': make_projector(widths=(16, 8), dtype='float32'),
    'predictor': make_projector(widths=(12, 8), dtype='float32'),
}
SIDES = (2, 12), (3, 8)


def make_patches():
    """Five patches an image: uint8 [b n h w c], one a size."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 180, (16, 1, 1, 1, 3))
    made = [image + rng.integers(0, 76, (16, n, side, side, 3)) for n, side in SIDES]
    return tuple(x.astype(np.uint8) for x in made)


# Of the index, and quickly compiled.
BY_INDEX = functools.partial(
    augment, jitter=0, grey=0, solarize_by_index=(1.0, 0.0, 0.5, 0.0, 1.0), count=5
)


@functools.cache
def one_step(objective, devices, by_index=False, accumulate=1):
    """The metrics of a step and the states before and after it, on the host."""
    names = NETWORKS if OBJECTIVES[objective].target else ('encoder', 'projector')
    networks = Networks(**{name: NETWORKS[name] for name in names})
    optimizer = optax.sgd(0.1, momentum=0.9)
    mesh = make_mesh(jax.devices()[:devices])
    step = make_train_step(
        networks,
        make_objective(objective, {}, global_crops=2),
        optimizer,
        cosine_momentum(0.9, 10),
        cut=lambda patches: patches,
        augment=BY_INDEX,
        key=jax.random.key(3),
        mesh=mesh,
        by_index=by_index,
        accumulate=accumulate,
    )
    state = jax.device_get(create_state(networks, optimizer, 0, side=8))
    sent = jax.device_put(make_patches(), batch_sharded(mesh))
    after, metrics = step(jax.device_put(state, replicated(mesh)), sent)
    return jax.device_get((metrics, state, after))


@pytest.mark.parametrize(
    ('objective', 'options'),
    [
        pytest.param('tcr', {}, marks=pytest.mark.slow),
        pytest.param('byol', {'by_index': True}, marks=pytest.mark.slow),
        pytest.param('byol', {'accumulate': 2}, marks=pytest.mark.slow),
        pytest.param('sigreg', {}, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_equal_one(objective, options):
    found, expected = (one_step(objective, devices, **options) for devices in (8, 1))
    for leaf, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        scale = max(abs(other).max(), 0.1)
        np.testing.assert_allclose(leaf, other, rtol=0, atol=5e-5 * scale)


def test_a_step_is_that_of_the_networks_one_after_the_other():
    """Sizes pass the encoder in turn and the heads together; targets are of global crops alone."""
    metrics, before, after = one_step('byol', 1)
    key = jax.random.fold_in(jax.random.key(3), 0)
    places = np.split(np.arange(16 * 5).reshape(16, 5), [2], axis=1)

    def embed(variables, crops):
        """The heads' output [b p k] of all sizes, and all new statistics."""
        stats = {name: of_network['batch_stats'] for name, of_network in variables.items()}

        def forward(name, x):
            y, updates = NETWORKS[name].apply(
                {**variables[name], 'batch_stats': stats[name]},
                x,
                train=True,
                mutable=['batch_stats'],
            )
            stats[name] = updates['batch_stats']
            return y[0]

        h = [
            forward('encoder', BY_INDEX(key, x.reshape(-1, *x.shape[2:]), own.reshape(-1)))
            for x, own in zip(crops, places, strict=False)
        ]
        h = [y.reshape(16, -1, 32) for y in h]
        x = jnp.concatenate(h, axis=1).reshape(-1, 32)
        for name in list(variables)[1:]:
            x = forward(name, x)
        return x.reshape(16, -1, 8), stats

    def expected(crops):
        prediction, online = embed(in_order(before.online), crops)
        target, target_stats = embed(in_order(before.target), crops[:1])
        assert (prediction.shape, target.shape) == ((16, 5, 8), (16, 2, 8))
        return byol(prediction, target)[0], online, target_stats

    mesh = make_mesh(jax.devices()[:1])
    over = jax.shard_map(expected, mesh=mesh, in_specs=P(DATA_AXIS), out_specs=P(), check_vma=False)
    loss, *statistics = jax.device_get(jax.jit(over)(make_patches()))
    np.testing.assert_allclose(metrics['loss'], loss, rtol=1e-5)
    for of_networks, found in zip((after.online, after.target), statistics, strict=True):
        for name, stats in found.items():
            own = of_networks[name]['batch_stats']
            chex.assert_trees_all_close(own, stats, rtol=1e-5, atol=1e-6)


def in_order(variables):
    return {name: variables[name] for name in NETWORKS if name in variables}


def cosine(a, b):
    return np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


@pytest.mark.parametrize('targets', [1, 2, 4])
def test_byol_predicts_the_targets_that_there_are(targets):
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(3, 4, 6)), rng.normal(size=(3, targets, 6))
    pairs = [(i, j) for j in range(targets) for i in range(4) if i != j]
    similarity = np.mean([cosine(prediction[:, i], target[:, j]) for i, j in pairs])
    loss, terms = byol(jnp.asarray(prediction), jnp.asarray(target))
    np.testing.assert_allclose(terms['similarity'], similarity, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(loss, 4 - 4 * similarity, rtol=1e-5)


def test_sigregs_bags_agree_with_the_mean_of_the_global_crops():
    z = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    loss, terms = make_objective('sigreg', {'directions': 8}, global_crops=2).loss(jnp.asarray(z))
    expected = np.mean((z - z[:, :2].mean(axis=1, keepdims=True)) ** 2)
    np.testing.assert_allclose(terms['invariance'], expected, rtol=1e-5)
    everything, whole = sigreg(jnp.asarray(z), directions=8)
    assert terms['normality'] == whole['normality']
    np.testing.assert_allclose(
        loss - everything, 0.95 * (expected - whole['invariance']), rtol=1e-3
    )


def train(config, workdir):
    loop.train(config, Run.at(workdir), open_dataset(config.data))
    return [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def finished(shrunk, tmp_path_factory):
    """A run of twelve steps: its workdir and its metrics."""
    workdir = tmp_path_factory.mktemp('finished')
    return workdir, train(shrunk(*MULTICROP), workdir)


@pytest.mark.slow
def test_interrupted_and_resumed_equals_uninterrupted(finished, shrunk, tmp_path, monkeypatch):
    original, calls = Recorder.advance, []

    def interrupted(self, *arguments):
        calls.append(None)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGTERM)
        original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, 'advance', interrupted)
        with pytest.raises(Interrupted, match='at step 5, which is saved'):
            train(shrunk(*MULTICROP), tmp_path)
    assert train(shrunk(*MULTICROP), tmp_path) == finished[1]


@pytest.mark.slow
def test_devices_that_hold_all_images_cut_the_same_crops(finished, shrunk, tmp_path):
    config = shrunk(
        *MULTICROP, '--config.data.crop_on=resident', '--config.train.steps_per_execution=2'
    )
    for row, expected in zip(train(config, tmp_path), finished[1], strict=True):
        # Resizes round grey levels differently.
        assert row['loss'] == pytest.approx(expected['loss'], rel=0.02)
        assert row['h_std'] == pytest.approx(expected['h_std'], rel=0.02)


def test_crops_on_the_device_are_those_on_the_host(source):
    @jax.jit
    def cut(images, boxes):
        of_size = functools.partial(device_crops.cut, images, size=0)
        return crops.for_each_size(
            lambda boxes, resize: of_size(boxes, resize=resize), make_crops(), boxes
        )

    for host, device in zip(batches(source), batches(source, crop_on='device'), strict=True):
        patches = cut(device['images'], device['boxes'])
        for found, expected in zip(patches, host['patches'], strict=True):
            assert found.shape == expected.shape
            assert abs(np.asarray(found).astype(int) - expected).max() <= 1


@pytest.mark.slow
def test_a_run_is_probed_in_patches_of_the_local_side_and_reported(finished, program):
    workdir, _ = finished
    status, _, err = program('probe', f'--workdir={workdir}', '--config.probe.probes=knn')
    assert status == 0, err
    rows = json.loads((workdir / 'results.json').read_text())['rows']
    assert {row['view'] for row in rows} == {'bag', 'whole'}
    assert next(row['patch'] for row in rows if row['view'] == 'bag') == {
        'size': 8, 'scale': 0.25, 'resize': 8,
    }  # fmt: skip
    assert program('report', f'--workdir={workdir}')[0] == 0
    report = (workdir / 'report.html').read_text()
    assert '4 an image: 2 global crops of' in report


def test_bicubic_crops_are_cut_on_the_host(shrunk):
    config = shrunk(
        *MULTICROP, '--config.data.crop_on=device', '--config.multicrop.interpolation=bicubic'
    )
    with pytest.raises(InputError, match=r'multicrop\.interpolation=bicubic is for data'):
        set_up(config, open_dataset(config.data))
