"""The looks that compare accuracies: scales and aggregation."""

import json

import numpy as np
import pytest
from conftest import save_run
from tiny import TINY

from bagssl_jax.analysis import aggregation, scales
from bagssl_jax.analysis.accuracy import patch_sizes
from bagssl_jax.data.datasets import open_dataset
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.data.views import Center
from bagssl_jax.embedding.encoder import load_encoder
from bagssl_jax.errors import InputError
from bagssl_jax.probes.knn import knn
from bagssl_jax.probes.linear import fit_linear
from bagssl_jax.runs import Run

TRAIN, TEST = 64, 24
SETTINGS = {
    'seed': 0,
    'on_error': 'stop',
    'max_train': 99,
    'max_test': 99,
    'scales': (0.25,),
    'resize': True,
}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp('scales'), *TINY)


@pytest.fixture(scope='module')
def subject(workdir):
    """An encoder, an untrained one, and images to learn from and to be scored on."""
    run = Run.at(workdir)
    encoder = load_encoder(run, chunk=40)
    dataset = open_dataset(run.read_config()['data'])
    images = dataset.images(f'train[:{TRAIN}]'), dataset.images(f'test[:{TEST}]')
    return encoder, encoder.untrained(5), *images


@pytest.fixture(scope='module')
def by_scale(subject):
    *encoders, images, test = subject
    return scales.look(
        *encoders, images, test=test, patches=(1, 4), probes=('linear', 'knn'), **SETTINGS
    )


@pytest.fixture(scope='module')
def by_aggregation(subject):
    *encoders, images, test = subject
    ways = ('mean', 'mean_unit', 'grid2')
    return aggregation.look(
        *encoders, images, test=test, patches=4, aggregations=ways, probes=('knn',), **SETTINGS
    )


def row_of(look, **wanted):
    [row] = [row for row in look.rows if wanted.items() <= row.items()]
    return row


def test_a_row_is_what_the_probes_make_of_the_bags(subject, by_scale):
    encoder, _, *splits = subject
    pixels, labels = zip(*((x.source.images, x.source.labels) for x in splits), strict=True)
    train_x, test_x = (encoder.embed(x, patches=4) for x in pixels)
    expected = {
        'knn': knn(train_x, labels[0], test_x, labels[1], num_classes=8),
        'linear': fit_linear(train_x, labels[0], test_x, labels[1], num_classes=8).score,
    }
    for probe, score in expected.items():
        row = row_of(by_scale, encoder='trained', side=8, patches=4, probe=probe)
        assert row['top1'] == pytest.approx(score.top1, abs=1.5 / TEST)
        assert row['interval'][0] <= row['top1'] <= row['interval'][1]
        assert (row['n_train'], row['n_test'], row['aggregation']) == (TRAIN, TEST, 'mean')
        assert row['scale'] == pytest.approx((8 / 48) ** 2)


def test_every_size_and_bag_is_probed_and_told(by_scale):
    measured = {(r['encoder'], r['probe'], r['side'], r['patches']) for r in by_scale.rows}
    bags = [(8, 1), (8, 4), (24, 1), (24, 4), (None, 1)]
    assert measured == {
        (encoder, probe, *bag)
        for encoder in ('trained', 'untrained')
        for probe in ('linear', 'knn')
        for bag in bags
    }
    assert len(by_scale.rows) == len(measured)
    json.dumps(by_scale.rows)
    picture = by_scale.figures['accuracy']
    row = row_of(by_scale, encoder='untrained', side=24, patches=4, probe='knn')
    assert f'{100 * row["top1"]:.0f}% with 4' in picture.alt
    assert f'{row["top1"]:.3f}' in by_scale.table
    assert len(picture.figure.axes) == 4


def test_ways_to_represent_an_image_stand_side_by_side(subject, by_aggregation):
    encoder, _, *splits = subject
    ways = {(row['view'], row['side'], row['aggregation']) for row in by_aggregation.rows}
    assert ways == {('center', None, 'mean'), ('whole', None, 'mean')} | {
        ('bag', side, how) for side in (8, 24) for how in ('mean', 'mean_unit', 'grid2')
    }
    features = []
    for images in splits:
        crops = Center(48, 48).cut(images.source.images, np.arange(len(images)))
        features += [np.asarray(encoder.embed_bags(crops)['h'])[:, 0], images.source.labels]
    row = row_of(by_aggregation, encoder='trained', view='center')
    assert row['top1'] == pytest.approx(knn(*features, num_classes=8).top1, abs=1.5 / TEST)
    assert f'{row["top1"]:.3f}' in by_aggregation.table
    assert 'center crop: trained kNN' in by_aggregation.figures['accuracy'].alt


def test_patches_of_other_sizes_are_resized_or_not():
    own = PatchGeometry(16, 0.0, 12)
    resized = patch_sizes(own, (0.25, 1.0), (32, 48), resize=True)
    assert {side: geometry.resize for side, geometry in resized.items()} == {16: 12, 20: 12, 32: 12}
    kept = patch_sizes(own, (0.25, 1.0), (32, 48), resize=False)
    assert {side: geometry.resize for side, geometry in kept.items()} == {16: 12, 20: 0, 32: 0}


def test_unknown_probes_and_aggregations_are_refused(subject):
    *encoders, images, test = subject
    with pytest.raises(InputError, match="unknown probe 'sgd': choose from linear, knn"):
        scales.look(*encoders, images, test=test, patches=(1,), probes=('sgd',), **SETTINGS)
    with pytest.raises(InputError, match="'median': choose from mean, mean_unit"):
        aggregation.look(
            *encoders, images, test=test, patches=4, aggregations=('median',), probes=('knn',),
            **SETTINGS,
        )  # fmt: skip
