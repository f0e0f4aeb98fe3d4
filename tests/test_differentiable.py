"""Representations of float images: those of the probe, and gradients back to the pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import save_run, slow_but

import bagssl_jax
from bagssl_jax.data.geometry import PatchGeometry, grid_places
from bagssl_jax.data.pipeline import Bags
from bagssl_jax.data.views import Center, GridPatches, RandomPatches, Whole
from bagssl_jax.embedding.bags import grid_layout, represent
from bagssl_jax.embedding.differentiable import (
    cut_pixels,
    find_places,
    make_cutter,
    represent_pixels,
)
from bagssl_jax.models import Networks

VIEWS = (
    GridPatches(PatchGeometry(16, 0, 0), grid_places(5)),
    GridPatches(PatchGeometry(0, 0.25, 12), grid_places(4)),
    GridPatches(PatchGeometry(0, 0.1, 24), grid_places(4)),
    RandomPatches(PatchGeometry(12, 0, 8), 6, 4),
    Whole(32, 32),
    Whole(48, 20),
    Center(32, 32),
    Center(14, 20),
)


def pictures():
    """Of three sizes; no finer than what a bilinear resize can show."""
    rng = np.random.default_rng(0)
    return [
        np.repeat(np.repeat(rng.integers(0, 256, (h, w, 3)), 2, 0), 2, 1).astype(np.uint8)
        for h, w in ((20, 16), (12, 25), (17, 17))
    ]


def on_canvas(images):
    canvas = np.zeros((len(images), 64, 64, 3), np.float32)
    for place, image in zip(canvas, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image / np.float32(255)
    return canvas


@pytest.mark.parametrize('view', VIEWS, ids=repr)
def test_patches_are_those_of_the_view_to_a_grey_level(view):
    images, numbers = pictures(), np.array([3, 7, 9])
    places, shape = find_places(view, [image.shape[:2] for image in images], numbers)
    cutter = make_cutter(places, (64, 64), shape)
    found = 255 * np.asarray(cut_pixels(on_canvas(images), cutter))
    expected = view.cut(images, numbers)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1.01)
    if isinstance(view, GridPatches) and not view.geometry.resize:
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize('aggregation', slow_but(('grid2',), ('mean', 'mean_unit', 'grid2')))
def test_representations_are_the_probes_and_have_the_right_gradient(tmp_path, aggregation):
    encoder = bagssl_jax.load(save_run(tmp_path, '--config.encoder.width=4'), chunk=32)
    images, numbers = np.stack(pictures()[2:] * 2), np.arange(2)
    images[1] = images[1][::-1]
    layout = grid_layout(PatchGeometry(16, 0, 0), (4,), (aggregation,))
    bags = [Bags(layout.view.cut(images, numbers), numbers, np.empty(0, int))]
    features, _ = represent({'it': encoder}, bags, layout, images=2, batch_size=2, flip=True)
    [expected] = features.values()

    places, shape = find_places(layout.view, [(34, 34)] * 2, numbers)
    [matrix] = layout.weights.values()
    settings = {'space': 'h', 'unit': aggregation == 'mean_unit', 'flip': True}

    def of_pixels(x):
        cutter = make_cutter(places, (34, 34), shape)
        return represent_pixels(encoder.networks, encoder.variables, x, cutter, matrix, **settings)

    x = images.astype(np.float32) / 255
    np.testing.assert_allclose(jax.jit(of_pixels)(x), expected, rtol=1e-4, atol=1e-5)

    direction = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    toward = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32)
    one_number = jax.jit(lambda x: jnp.vdot(of_pixels(x), toward))
    slope = np.vdot(jax.grad(one_number)(x), direction)
    h = 1e-3
    measured = (one_number(x + h * direction) - one_number(x - h * direction)) / (2 * h)
    assert slope == pytest.approx(float(measured), rel=0.05)


def test_a_patch_without_an_embedding_has_a_gradient():
    """At zero, whose direction is none."""
    places, shape = find_places(Whole(8, 8), [(8, 8)], np.zeros(1, int))

    class Zero:
        """An encoder of nothing."""

        @staticmethod
        def apply(variables, pixels, *, train):
            return 0 * pixels.mean(axis=(1, 2)), {}

    def total(x):
        cutter = make_cutter(places, (8, 8), shape)
        one = np.ones((1, 1), np.float32)
        networks = Networks(Zero)
        variables = {'encoder': {}}
        return represent_pixels(
            networks, variables, x, cutter, one, space='h', unit=True, flip=False
        ).sum()

    assert np.isfinite(jax.grad(total)(jnp.ones((1, 8, 8, 3)))).all()
