import json

import numpy as np
import pytest
from conftest import save_run
from tiny import TINY

from bagssl_jax.analysis import convergence
from bagssl_jax.analysis.bootstrap import mean_intervals
from bagssl_jax.analysis.look import Inapplicable
from bagssl_jax.data.datasets import open_dataset
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.data.views import RandomPatches
from bagssl_jax.embedding.encoder import load_encoder
from bagssl_jax.errors import InputError
from bagssl_jax.runs import Run

IMAGES = 5


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return Run.at(save_run(tmp_path_factory.mktemp('convergence'), *TINY))


@pytest.fixture(scope='module')
def looked(run):
    """The look's rows, the encoder, and the pixels of all images that it is taken of."""
    encoder = load_encoder(run, chunk=64)
    images = open_dataset(run.read_config()['data']).images(f'train[:{IMAGES}]')
    found = convergence.look(
        encoder,
        encoder.untrained(5),
        images,
        seed=3,
        on_error='stop',
        max_images=9,
        patches=8,
        scales=(0.25, 1.0),
        spaces=('h', 'z', 'hidden9'),
    )
    return found, encoder, images.source.images


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def row_of(look, **wanted):
    [row] = [row for row in look.rows if wanted.items() <= row.items()]
    return row


def test_a_row_is_the_mean_of_the_first_patches_against_the_whole(looked):
    found, encoder, pixels = looked
    bags = RandomPatches(PatchGeometry(8, 0.0, 8), 8, 3).cut(pixels, np.arange(IMAGES))
    h = np.asarray(encoder.embed_bags(bags)['h'])[:, :4].mean(axis=1)
    whole = np.asarray(encoder.embed_bags(pixels[:, None])['h'])[:, 0]
    for centered in (False, True):
        means, wholes = (x - centered * x.mean(axis=0) for x in (h, whole))
        cosines = unit(means) @ unit(wholes).T
        row = row_of(
            found, encoder='trained', space='h', side=8, patches=4, centered=centered, images=IMAGES
        )
        assert row['own'] == pytest.approx(np.diag(cosines).mean(), abs=1e-5)
        others = cosines[~np.eye(IMAGES, dtype=bool)]
        assert row['other'] == pytest.approx(others.mean(), abs=1e-5)
        assert row['found'] == (cosines.argmax(axis=1) == np.arange(IMAGES)).mean()
        for key in ('own', 'other'):
            low, high = row[f'{key}_interval']
            assert low < row[key] < high


def test_a_patch_that_is_the_image_is_the_whole(looked):
    found, _, _ = looked
    rows = [row for row in found.rows if row['side'] == 48]
    assert {row['patches'] for row in rows} == {1, 2, 4, 8}
    for row in rows:
        assert row['own'] == pytest.approx(1, abs=1e-6)
        assert row['found'] == 1
        assert (row['scale'], row['resized']) == (1, None)


def test_every_encoder_space_and_size_has_its_curve_and_is_told(looked):
    found, _, _ = looked
    curves = {(row['encoder'], row['space'], row['side']) for row in found.rows}
    assert curves == {
        (encoder, space, side)
        for encoder in ('trained', 'untrained')
        for space in ('h', 'z')
        for side in (8, 24, 48)
    }
    assert found.notes == ('h, z alone: the encoder has no hidden9',)
    json.dumps(found.rows)
    for name, centered in (('cosine', False), ('centered', True)):
        picture = found.figures[name]
        last = row_of(found, encoder='untrained', space='z', side=24, patches=8, centered=centered)
        assert f'{last["own"]:.2f} with 8, other images {last["other"]:.2f}' in picture.alt
        assert len(picture.figure.axes) == 4
    assert f'{last["found"]:.2f}' in found.table


def test_of_one_image_there_is_nothing_to_compare(run):
    encoder = load_encoder(run, chunk=8)
    images = open_dataset(run.read_config()['data']).images('train[:1]')
    settings = {'max_images': 9, 'patches': 2, 'scales': (), 'seed': 0, 'on_error': 'stop'}
    with pytest.raises(Inapplicable, match='has one image'):
        convergence.look(encoder, encoder, images, spaces=('h',), **settings)
    with pytest.raises(InputError, match='no space of x in this run: choose from h, hidden1, z'):
        convergence.look(encoder, encoder, images, spaces=('x',), **settings)


def test_intervals_are_as_wide_as_the_mean_is_unsure():
    values = np.random.default_rng(0).normal(3, 2, (400, 2))
    values[:, 1] = 7
    low, high = mean_intervals(values)
    error = values[:, 0].std() / np.sqrt(400)
    mean = values[:, 0].mean()
    np.testing.assert_allclose(
        [low[0], high[0]], [mean - 1.96 * error, mean + 1.96 * error], atol=0.02
    )
    assert low[1] == pytest.approx(7)
    assert high[1] == pytest.approx(7)
    np.testing.assert_array_equal(mean_intervals(values), [low, high])
