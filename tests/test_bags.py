import types

import jax
import numpy as np
import psutil
import pytest

from bagssl_jax.data import pipeline, sources
from bagssl_jax.data.cut import cut
from bagssl_jax.data.geometry import PatchGeometry, grid_places
from bagssl_jax.data.views import GridPatches
from bagssl_jax.errors import InputError
from bagssl_jax.evaluation import bags
from bagssl_jax.models import Networks, init_variables, make_encoder, make_projector
from bagssl_jax.parallel import make_mesh

ENCODER = make_encoder('tiny', {'width': 4}, dtype='float32')
PROJECTOR = make_projector(widths=(8, 6), dtype='float32')


@pytest.fixture(scope='module')
def source():
    images = np.random.default_rng(0).integers(0, 256, (11, 12, 12, 3), dtype=np.uint8)
    return sources.ArraySource(images, np.arange(11) % 3, ('a', 'b', 'c'))


@pytest.fixture(scope='module')
def encoders():
    return {
        name: init_variables(Networks(ENCODER, PROJECTOR), seed, side=8)
        for seed, name in enumerate('ab')
    }


def represent(
    source, encoders, counts, chunk, spaces=('h', 'z'), aggregations=('mean',), flip=False, size=8
):
    places, weights = bags.share_places(counts, aggregations)
    view = GridPatches(PatchGeometry(size, 0.0, 0), places)
    return bags.represent(
        bags.make_embed(ENCODER, PROJECTOR, spaces, flip=flip),
        encoders,
        pipeline.bag_batches(source, view, batch_size=max(1, chunk // len(places))),
        images=len(source),
        batch_size=max(1, chunk // len(places)),
        spaces=spaces,
        weights=weights,
        chunk=chunk,
        mesh=make_mesh(),
    )


def embedded(variables, patches):
    """h, hidden1 and z of uint8 patches [n h w c], each alone."""
    h, _ = ENCODER.apply(variables['encoder'], patches.astype(np.float32) / 255, train=False)
    z, hidden = PROJECTOR.apply(variables['projector'], h, train=False)
    return {'h': np.asarray(h), 'z': np.asarray(z), **jax.tree.map(np.asarray, hidden)}


def grid_patches(image, count, size=8):
    boxes = PatchGeometry(size, 0.0, 0).grid_boxes(*image.shape[:2], count)
    return cut(image[None], boxes[None], resize=0)[0]


def of(name, space, patches, aggregation='mean'):
    return name, space, bags.Representation(patches, aggregation)


def test_bags_are_means_over_grids_that_share_their_patches(source, encoders):
    features, labels = represent(source, encoders, (1, 4, 16), 40, ('h', 'hidden1', 'z'))
    np.testing.assert_array_equal(labels, source.labels)
    assert len(features) == 2 * 3 * 3
    for i in (0, 10):  # the last one is in a batch that is padded
        for count in (1, 4, 16):
            patches = grid_patches(source.images[i], count)
            for name, variables in encoders.items():
                for space, vectors in embedded(variables, patches).items():
                    np.testing.assert_allclose(
                        features[of(name, space, count)][i],
                        vectors.mean(axis=0),
                        rtol=1e-4,
                        atol=1e-5,
                    )


def test_every_aggregation_is_what_its_name_says(source, encoders):
    features, _ = represent(source, encoders, (1, 4, 16), 64, ('h',), bags.AGGREGATIONS)
    found = {representation for name, _, representation in features if name == 'a'}
    assert {r.aggregation for r in found if r.patches == 1} == {'mean', 'mean_unit'}
    assert {r.aggregation for r in found if r.patches == 4} == {'mean', 'mean_unit', 'grid2'}
    assert {r.aggregation for r in found if r.patches == 16} == set(bags.AGGREGATIONS)

    h = embedded(encoders['a'], grid_patches(source.images[3], 16))['h']
    unit = h / np.linalg.norm(h, axis=1, keepdims=True)
    cells = h.reshape(2, 2, 2, 2, -1).mean(axis=(1, 3))  # 4x4 patches: rows and columns in twos
    for aggregation, expected in (
        ('mean_unit', unit.mean(axis=0)),
        ('grid2', cells.ravel()),
        ('grid4', h.ravel()),
    ):
        np.testing.assert_allclose(
            features[of('a', 'h', 16, aggregation)][3], expected, rtol=1e-4, atol=1e-5
        )


def test_mirrored_patches_can_be_averaged_in(source, encoders):
    features, _ = represent(source, encoders, (4,), 16, ('h',), flip=True)
    patches = grid_patches(source.images[2], 4)
    both = [embedded(encoders['b'], x)['h'] for x in (patches, patches[:, :, ::-1])]
    expected = np.mean(both, axis=(0, 1))
    np.testing.assert_allclose(features[of('b', 'h', 4)][2], expected, rtol=1e-4, atol=1e-5)


def test_neither_the_chunk_nor_a_bag_larger_than_it_matters(source, encoders):
    large, _ = represent(source, encoders, (1, 25), 128)
    for chunk in (8, 32):  # of the bag's 25 patches, or 26 with the smaller grid's
        small, _ = represent(source, encoders, (1, 25), chunk)
        for key, features in small.items():
            np.testing.assert_allclose(features, large[key], rtol=1e-4, atol=1e-6)


def test_evaluation_is_deterministic(source, encoders):
    first, again = (represent(source, encoders, (1,), 8, ('h',))[0] for _ in range(2))
    for key, features in first.items():
        np.testing.assert_array_equal(features, again[key])


def test_one_program_serves_every_bag_size(source, encoders):
    embed = bags.make_embed(ENCODER, PROJECTOR, ('h',))
    for count in (1, 4, 16, 25):
        places, weights = bags.share_places((count,), ('mean',))
        view = GridPatches(PatchGeometry(8, 0.0, 0), places)
        batches = pipeline.bag_batches(source, view, batch_size=max(1, 16 // count))
        options = {'spaces': ('h',), 'weights': weights, 'chunk': 16, 'mesh': make_mesh()}
        size = max(1, 16 // count)
        bags.represent(embed, encoders, batches, images=11, batch_size=size, **options)
    assert embed._cache_size() == 1


def test_vectors_that_memory_does_not_hold_lie_in_a_file(source, encoders, monkeypatch, tmp_path):
    expected, _ = represent(source, encoders, (4,), 16)
    free = types.SimpleNamespace(available=1000)
    monkeypatch.setattr(psutil, 'virtual_memory', lambda: free)
    features, _ = represent(source, encoders, (4,), 16)
    for key, array in features.items():
        assert isinstance(array.base if array.base is not None else array, np.memmap)
        np.testing.assert_array_equal(array, expected[key])


def test_random_bags_are_the_first_patches_of_the_largest():
    weights = bags.prefix_weights((1, 3), ('mean', 'mean_unit'))
    np.testing.assert_allclose(weights[bags.Representation(3, 'mean')], [[1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(weights[bags.Representation(1, 'mean_unit')], [[1, 0, 0]])
    with pytest.raises(InputError, match=r'aggregations=grid2 needs probe\.positions=grid'):
        bags.prefix_weights((4,), ('grid2',))


def test_batches_that_lack_images_anywhere_are_embedded_as_others(source, encoders):
    expected, _ = represent(source, encoders, (4,), 16, ('h',))
    view = GridPatches(PatchGeometry(8, 0.0, 0), grid_places(4))
    [whole] = pipeline.bag_batches(source, view, batch_size=11)
    parts = [whole.patches[:1], whole.patches[1:1], whole.patches[1:5], whole.patches[5:11]]
    features, labels = bags.represent(
        bags.make_embed(ENCODER, PROJECTOR, ('h',)),
        encoders,
        [pipeline.Bags(part, np.arange(len(part)), np.array([])) for part in parts],
        images=11,
        batch_size=6,
        spaces=('h',),
        weights=bags.share_places((4,), ('mean',))[1],
        chunk=16,
        mesh=make_mesh(),
    )
    assert labels.tolist() == [0, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    for key, array in features.items():
        np.testing.assert_allclose(array, expected[key], rtol=1e-4, atol=1e-6)
