import doctest
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import save_run

import bagssl_jax
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.embedding.encoder import forward
from bagssl_jax.errors import InputError
from bagssl_jax.models import Networks, init_variables, make_encoder, make_projector

ENCODER = make_encoder('tiny', {'width': 16}, dtype='float32')
PROJECTOR = make_projector(widths=(256, 64), dtype='float32')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A directory with a quickstart in runs/quickstart."""
    directory = tmp_path_factory.mktemp('runs')
    save_run(directory / 'runs' / 'quickstart', steps=(2, 3))
    return directory


@pytest.fixture(scope='module')
def encoder(runs):
    return bagssl_jax.load(str(runs / 'runs' / 'quickstart'), chunk=32)


@pytest.fixture(scope='module')
def variables():
    """Those of the newest checkpoint."""
    return init_variables(Networks(ENCODER, PROJECTOR), 3, side=16)


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def embeddings(variables, image, corners, side=16):
    """h and z of the patches that have these upper left corners."""
    patches = np.stack([image[y : y + side, x : x + side] for y, x in corners])
    return embed(variables, patches.astype(np.float32) / 255)


@jax.jit
def embed(variables, x):
    h, _ = ENCODER.apply(variables['encoder'], x, train=False)
    return {'h': h, 'z': PROJECTOR.apply(variables['projector'], h, train=False)[0]}


def assert_close(actual, expected):
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_documented_example(runs, monkeypatch):
    monkeypatch.chdir(runs)
    results = doctest.testmod(bagssl_jax)
    assert results.attempted >= 7
    assert results.failed == 0


def test_the_package_alone_does_not_import_jax():
    code = (
        'import sys, bagssl_jax; assert callable(bagssl_jax.load); sys.exit("jax" in sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_says_what_was_loaded(encoder):
    assert encoder.step == 3
    assert encoder.width == 8 * 16
    assert encoder.widths == {'h': 128, 'hidden1': 256, 'z': 64}
    assert type(encoder.networks.encoder) is type(ENCODER)
    assert encoder.geometry == PatchGeometry(size=16, scale=0.25, resize=16)


@pytest.mark.parametrize('space', ['h', 'z'])
def test_an_image_is_the_mean_of_its_grid(encoder, variables, space):
    images = random_images(3, 24, 30)
    corners = [(y, x) for y in (0, 8) for x in (0, 14)]
    expected = [embeddings(variables, image, corners)[space].mean(axis=0) for image in images]
    assert_close(encoder.embed(images, 4, space=space), np.stack(expected))


def test_every_patch_comes_with_its_place(encoder, variables):
    image = random_images(32, 48)
    corners = [(y, x) for y in (0, 8, 16) for x in (0, 16, 32)]
    found, boxes = encoder.embed_patches(image[None], 9)
    assert boxes.dtype == np.int32
    assert boxes.tolist() == [[[y, x, 16, 16] for y, x in corners]]
    assert_close(found, embeddings(variables, image, corners)['h'][None])


def test_images_of_several_sizes_and_chunks_that_split_bags(encoder):
    images = [random_images(16 + 5 * i, 20 + i) for i in range(9)]
    # 9 bags of 9 patches in chunks of 32: two of them are split, and the last one is padded.
    together = encoder.embed(images, 9)
    alone = np.concatenate([encoder.embed(image[None], 9) for image in images])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
    patches, boxes = encoder.embed_patches(images, 9)
    np.testing.assert_allclose(together, patches.mean(axis=1), rtol=1e-5, atol=1e-6)
    assert boxes[:, -1, 0].tolist() == [5 * i for i in range(9)]


def test_a_bag_may_be_larger_than_a_chunk(encoder):
    images = random_images(2, 30, 30)
    patches, _ = encoder.embed_patches(images, 49)
    np.testing.assert_allclose(encoder.embed(images, 49), patches.mean(axis=1), rtol=1e-5)


def test_no_images(encoder):
    assert encoder.embed([], 4).shape == (0, 128)
    assert encoder.embed(random_images(0, 20, 20), 4, space='z').shape == (0, 64)
    patches, boxes = encoder.embed_patches([], 4)
    assert (patches.shape, boxes.shape) == ((0, 4, 128), (0, 4, 4))


def test_patches_in_proportion_and_resized_as_in_training(tmp_path, variables):
    scaled = '--config.patches.size=0', '--config.patches.scale=0.25'
    small, large = random_images(32, 32), random_images(40, 40)
    as_cut = bagssl_jax.load(save_run(tmp_path / 'cut', *scaled, '--config.patches.resize=0'))
    expected = np.stack(
        [
            embeddings(variables, image, [(middle, middle)], side)['h'][0]
            for image, middle, side in ((small, 8, 16), (large, 10, 20), (small, 8, 16))
        ]
    )
    assert_close(as_cut.embed([small, large, small], 1), expected)

    resized = bagssl_jax.load(save_run(tmp_path / 'resized', *scaled, '--config.patches.resize=8'))
    patch = large[10:30, 10:30].astype(np.float32)  # 20 pixels to 8: means of 2.5 by 2.5
    weights = np.kron(np.eye(8), np.ones((5, 1))) / 5  # over half pixels
    halves = patch.repeat(2, axis=0).repeat(2, axis=1)
    means = np.einsum('ai,abc,bj->ijc', weights, halves, weights)
    expected = embeddings(variables, np.rint(means), [(0, 0)], side=8)['h']
    assert_close(resized.embed(large[None], 1), expected)


def test_a_run_without_a_projector(tmp_path, variables):
    workdir = save_run(tmp_path, '--config.projector.widths=()')
    encoder = bagssl_jax.load(workdir)
    assert encoder.widths == {'h': 128}
    image = random_images(16, 16)
    assert_close(encoder.embed(image[None], 1), embeddings(variables, image, [(0, 0)])['h'])
    with pytest.raises(InputError, match="no space 'z' in this run: choose from h"):
        encoder.embed(image[None], 1, space='z')


@pytest.mark.parametrize(
    ('images', 'message'),
    [
        (np.zeros((20, 20, 3), np.uint8), r'\(20, 20, 3\): give a batch'),
        (np.zeros((2, 20, 20), np.uint8), r'give a batch'),
        (np.zeros((2, 20, 20, 1), np.uint8), r'image 0 has the shape \(20, 20, 1\).*give RGB'),
        ([np.zeros((20, 20, 3), np.uint8), np.zeros((20, 20), np.uint8)], r'image 1 .*grey'),
        (np.zeros((2, 20, 20, 3)), 'image 0 is float64: give uint8'),
        (np.zeros((2, 15, 20, 3), np.uint8), 'does not fit into an image of 15x20'),
    ],
)
def test_other_images_are_refused(encoder, images, message):
    for embed in (encoder.embed, encoder.embed_patches):
        with pytest.raises(ValueError, match=message):
            embed(images, 4)


def test_other_settings_are_refused(encoder, tmp_path):
    images = random_images(1, 20, 20)
    with pytest.raises(InputError, match='a grid of 0 patches is none'):
        encoder.embed(images, 0)
    with pytest.raises(InputError, match="no space 'y' in this run: choose from h, hidden1, z"):
        encoder.embed([], space='y')
    with pytest.raises(InputError, match='chunk=0 must be'):
        bagssl_jax.load('anywhere', chunk=0)
    with pytest.raises(InputError, match='no run in'):
        bagssl_jax.load(str(tmp_path))


def test_bags_are_embedded_in_every_space_asked_for(encoder, variables):
    bags = random_images(2, 3, 16, 16)
    found = encoder.embed_bags(bags, ('h', 'hidden1', 'z'))
    assert {space: x.shape for space, x in found.items()} == {
        'h': (2, 3, 128),
        'hidden1': (2, 3, 256),
        'z': (2, 3, 64),
    }
    for i, j in ((0, 0), (1, 2)):
        for space, expected in embeddings(variables, bags[i, j], [(0, 0)]).items():
            np.testing.assert_allclose(found[space][i, j], expected[0], rtol=1e-4, atol=1e-5)


def test_the_forward_pass_is_differentiable_in_the_pixels(encoder):
    pixels = jnp.asarray(random_images(2, 16, 16), jnp.float32) / 255

    @jax.jit
    def first_feature(pixels):
        return forward(encoder.networks, encoder.variables, pixels)['z'][:, 0].sum()

    gradient = jax.jit(jax.grad(first_feature))(pixels)
    # Along the gradient the output rises as it says; float32 leaves three digits of that.
    step = 1e-3 * gradient / jnp.linalg.norm(gradient)
    rise = first_feature(pixels + step) - first_feature(pixels - step)
    np.testing.assert_allclose(rise, 2 * jnp.vdot(step, gradient), rtol=0.02)


def test_the_same_networks_with_other_variables(encoder, variables):
    image = random_images(16, 16)
    others = init_variables(Networks(ENCODER, PROJECTOR), 5, side=16)
    for other in (encoder.untrained(5), encoder.with_variables(others)):
        expected = embeddings(others, image, [(0, 0)])
        for space in ('h', 'z'):
            assert_close(other.embed(image[None], 1, space=space), expected[space])
    alone = encoder.with_variables({'encoder': variables['encoder']})
    assert alone.widths == {'h': 128}
    assert_close(alone.embed(image[None], 1), embeddings(variables, image, [(0, 0)])['h'])
