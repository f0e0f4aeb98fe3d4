import types
from typing import ClassVar

import jax
import numpy as np
import pytest
from flax import linen as nn

from bagssl_jax.data.cut import cut
from bagssl_jax.data.datasets import Images
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.data.pipeline import Bags
from bagssl_jax.data.sources import ArraySource
from bagssl_jax.embedding import bags
from bagssl_jax.embedding.encoder import FrozenEncoder
from bagssl_jax.errors import InputError
from bagssl_jax.models import Networks, init_variables, make_encoder, make_projector
from bagssl_jax.parallel import make_mesh

ENCODER = make_encoder('tiny', {'width': 4}, dtype='float32')
PROJECTOR = make_projector(widths=(8, 6), dtype='float32')
NETWORKS = Networks(ENCODER, PROJECTOR)
EIGHT = PatchGeometry(size=8, scale=0.0, resize=0)


@pytest.fixture(scope='module')
def source():
    images = np.random.default_rng(0).integers(0, 256, (11, 12, 12, 3), dtype=np.uint8)
    return ArraySource(images, np.arange(11) % 3, ('a', 'b', 'c'))


@pytest.fixture(scope='module')
def variables():
    return {name: init_variables(NETWORKS, seed, side=8) for seed, name in enumerate('ab')}


def frozen(variables, chunk, networks=NETWORKS):
    return FrozenEncoder(networks, variables, EIGHT, make_mesh(), chunk, step=0)


def represent(source, variables, layout, chunk, spaces=('h', 'z'), flip=False):
    batch_size = max(1, chunk // layout.count)
    return bags.represent(
        {name: frozen(own, chunk) for name, own in variables.items()},
        Images('eleven', source, in_memory=True).bags(layout.view, batch_size=batch_size),
        layout,
        images=len(source),
        batch_size=batch_size,
        spaces=spaces,
        flip=flip,
    )


def grids(counts, aggregations=('mean',)):
    return bags.grid_layout(EIGHT, counts, aggregations)


def embedded(variables, patches):
    """h, hidden1 and z of uint8 patches [n h w c], each alone."""
    return jax.device_get(embed(variables, patches.astype(np.float32) / 255))


@jax.jit
def embed(variables, x):
    h, _ = ENCODER.apply(variables['encoder'], x, train=False)
    z, hidden = PROJECTOR.apply(variables['projector'], h, train=False)
    return {'h': h, 'z': z, **hidden}


def grid_patches(image, count, size=8):
    boxes = PatchGeometry(size, 0.0, 0).grid_boxes(*image.shape[:2], count)
    return cut(image[None], boxes[None], resize=0)[0]


def of(name, space, patches, aggregation='mean'):
    return name, space, bags.Representation(patches, aggregation)


def test_bags_are_means_over_grids_that_share_their_patches(source, variables):
    features, labels = represent(source, variables, grids((1, 4, 16)), 40, ('h', 'hidden1', 'z'))
    np.testing.assert_array_equal(labels, source.labels)
    assert len(features) == 2 * 3 * 3
    for i in (0, 10):  # the last one is in a batch that is padded
        for count in (1, 4, 16):
            patches = grid_patches(source.images[i], count)
            for name, own in variables.items():
                for space, vectors in embedded(own, patches).items():
                    np.testing.assert_allclose(
                        features[of(name, space, count)][i],
                        vectors.mean(axis=0),
                        rtol=1e-4,
                        atol=1e-5,
                    )


def test_every_aggregation_is_what_its_name_says(source, variables):
    features, _ = represent(source, variables, grids((1, 4, 16), bags.AGGREGATIONS), 64, ('h',))
    found = {representation for name, _, representation in features if name == 'a'}
    assert {r.aggregation for r in found if r.patches == 1} == {'mean', 'mean_unit'}
    assert {r.aggregation for r in found if r.patches == 4} == {'mean', 'mean_unit', 'grid2'}
    assert {r.aggregation for r in found if r.patches == 16} == set(bags.AGGREGATIONS)

    h = embedded(variables['a'], grid_patches(source.images[3], 16))['h']
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


def test_mirrored_patches_can_be_averaged_in(source, variables):
    features, _ = represent(source, variables, grids((4,)), 16, ('h',), flip=True)
    patches = grid_patches(source.images[2], 4)
    both = [embedded(variables['b'], x)['h'] for x in (patches, patches[:, :, ::-1])]
    expected = np.mean(both, axis=(0, 1))
    np.testing.assert_allclose(features[of('b', 'h', 4)][2], expected, rtol=1e-4, atol=1e-5)


def test_neither_the_chunk_nor_a_bag_larger_than_it_matters(source, variables):
    large, _ = represent(source, variables, grids((1, 25)), 128)
    for chunk in (8, 32):  # of the bag's 25 patches, or 26 with the smaller grid's
        small, _ = represent(source, variables, grids((1, 25)), chunk)
        for key, features in small.items():
            np.testing.assert_allclose(features, large[key], rtol=1e-4, atol=1e-6)


def test_evaluation_is_deterministic(source, variables):
    first, again = (represent(source, variables, grids((1,)), 8, ('h',))[0] for _ in range(2))
    for key, features in first.items():
        np.testing.assert_array_equal(features, again[key])


class Counted(nn.Module):
    """The mean colour of a patch, and a note of every time that it is traced."""

    traced: ClassVar[list] = []

    @nn.compact
    def __call__(self, x, *, train):
        self.traced.append(x.shape)
        return x.mean(axis=(1, 2)), {}


def test_one_program_serves_every_bag_size(source):
    for count in (1, 4, 16, 25):
        layout, batch_size = grids((count,)), max(1, 16 // count)
        batches = Images('eleven', source, in_memory=True).bags(layout.view, batch_size=batch_size)
        encoder = frozen({'encoder': {}}, 16, Networks(Counted()))
        bags.represent({'a': encoder}, batches, layout, images=11, batch_size=batch_size)
    assert Counted.traced == [(16, 8, 8, 3)]


def test_vectors_that_memory_does_not_hold_lie_in_a_file(source, variables, monkeypatch, tmp_path):
    expected, _ = represent(source, variables, grids((4,)), 16)
    free = types.SimpleNamespace(available=1000)
    monkeypatch.setattr(bags, 'psutil', types.SimpleNamespace(virtual_memory=lambda: free))
    features, _ = represent(source, variables, grids((4,)), 16)
    for key, array in features.items():
        assert isinstance(array.base if array.base is not None else array, np.memmap)
        np.testing.assert_array_equal(array, expected[key])


def test_random_bags_are_the_first_patches_of_the_largest():
    layout = bags.random_layout(EIGHT, (1, 3), ('mean', 'mean_unit'), seed=0)
    weights = layout.weights
    assert layout.count == 3
    np.testing.assert_allclose(weights[bags.Representation(3, 'mean')], [[1 / 3, 1 / 3, 1 / 3]])
    np.testing.assert_allclose(weights[bags.Representation(1, 'mean_unit')], [[1, 0, 0]])
    with pytest.raises(InputError, match=r'aggregations=grid2 needs probe\.positions=grid'):
        bags.random_layout(EIGHT, (4,), ('grid2',), seed=0)


def test_batches_that_lack_images_anywhere_are_embedded_as_others(source, variables):
    layout = grids((4,))
    expected, _ = represent(source, variables, layout, 16, ('h',))
    [whole] = Images('eleven', source, in_memory=True).bags(layout.view, batch_size=11)
    parts = [whole.patches[:1], whole.patches[1:1], whole.patches[1:5], whole.patches[5:11]]
    features, labels = bags.represent(
        {name: frozen(own, 16) for name, own in variables.items()},
        [Bags(part, np.arange(len(part)), np.array([])) for part in parts],
        layout,
        images=11,
        batch_size=6,
    )
    assert labels.tolist() == [0, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    for key, array in features.items():
        np.testing.assert_allclose(array, expected[key], rtol=1e-4, atol=1e-6)
