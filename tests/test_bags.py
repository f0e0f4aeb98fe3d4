import numpy as np
import pytest

from bagssl_jax.data import pipeline, sources
from bagssl_jax.evaluation import bags
from bagssl_jax.models import init_variables, make_encoder, make_projector
from bagssl_jax.parallel import make_mesh

ENCODER = make_encoder('tiny', width=4, stem='cifar', zero_init_last=False, dtype='float32')
PROJECTOR = make_projector(widths=(8, 6), dtype='float32')


@pytest.fixture(scope='module')
def source():
    images = np.random.default_rng(0).integers(0, 256, (11, 12, 12, 3), dtype=np.uint8)
    return sources.ArraySource(images, np.arange(11) % 3, ('a', 'b', 'c'))


@pytest.fixture(scope='module')
def encoders():
    return {
        name: init_variables({'encoder': ENCODER, 'projector': PROJECTOR}, seed)
        for seed, name in enumerate('ab')
    }


def means(source, encoders, count, chunk, spaces=('h', 'z')):
    view = pipeline.GridPatches(count=count, size=8, scale=0.0, resize=0)
    return bags.bag_means(
        bags.make_embed(ENCODER, PROJECTOR, spaces),
        encoders,
        pipeline.bag_batches(source, view, batch_size=chunk // count),
        spaces=spaces,
        chunk=chunk,
        mesh=make_mesh(),
    )


def test_is_the_mean_of_the_embeddings_of_the_grid(source, encoders):
    features, labels = means(source, encoders, count=4, chunk=16)
    np.testing.assert_array_equal(labels, source.labels)
    assert features.keys() == {('a', 'h'), ('a', 'z'), ('b', 'h'), ('b', 'z')}
    for i in (0, 10):  # the last one is in a batch that is padded
        corners = [source.images[i, y : y + 8, x : x + 8] for y in (0, 4) for x in (0, 4)]
        patches = np.stack(corners).astype(np.float32) / 255
        for name, variables in encoders.items():
            h, _ = ENCODER.apply(variables['encoder'], patches, train=False)
            z, _ = PROJECTOR.apply(variables['projector'], h, train=False)
            np.testing.assert_allclose(features[name, 'h'][i], h.mean(axis=0), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(features[name, 'z'][i], z.mean(axis=0), rtol=1e-4, atol=1e-5)


def test_the_chunk_does_not_matter(source, encoders):
    small, _ = means(source, encoders, count=4, chunk=8)
    large, _ = means(source, encoders, count=4, chunk=64)
    for key, features in small.items():
        np.testing.assert_allclose(features, large[key], rtol=1e-4, atol=1e-6)


def test_evaluation_is_deterministic(source, encoders):
    first, again = (means(source, encoders, count=1, chunk=8, spaces=('h',))[0] for _ in range(2))
    for key, features in first.items():
        np.testing.assert_array_equal(features, again[key])


def test_one_program_serves_every_bag_size(source, encoders):
    embed = bags.make_embed(ENCODER, PROJECTOR, ('h',))
    for count in (1, 4, 9):
        view = pipeline.GridPatches(count=count, size=8, scale=0.0, resize=0)
        batches = pipeline.bag_batches(source, view, batch_size=16 // count)
        bags.bag_means(embed, encoders, batches, spaces=('h',), chunk=16, mesh=make_mesh())
    assert embed._cache_size() == 1
