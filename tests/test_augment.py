"""Every operation against torchvision's or Pillow's definition, and the randomness as promised."""

import colorsys
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import PartitionSpec as P
from PIL import Image, ImageEnhance, ImageOps

from bagssl_jax import augment as augment_lib
from bagssl_jax.augment import augment, draw_factors
from bagssl_jax.errors import InputError

OFF = {'flip': 0.0, 'jitter': 0.0, 'grey': 0.0, 'blur': 0.0, 'solarize': 0.0}
HALF = dict.fromkeys(OFF, 0.5)
RANGES = {
    'brightness': (0.6, 1.4),
    'contrast': (0.6, 1.4),
    'saturation': (0.6, 1.4),
    'hue': (-0.1, 0.1),
    'sigma': (0.1, 2.0),
}
FACTORS = np.array([0.0, 0.3, 0.8, 1.0, 1.2, 1.9], np.float32)


def make_pixels(n=6, h=10, w=8):
    """Random patches uint8 [n h w 3] that also hold black, white, grey, ties and pure colours."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, h, w, 3), dtype=np.uint8)
    corners = np.array(np.meshgrid([0, 128, 255], [0, 128, 255], [0, 128, 255])).reshape(3, 27).T
    pixels[0].reshape(-1, 3)[:27] = corners
    return pixels


def make_floats(*shape):
    return make_pixels(*shape).astype(np.float32) / np.float32(255)


def numpy_luma(x):
    return x @ np.array([0.2989, 0.587, 0.114])


def numpy_blend(x, other, factor):
    return np.clip(factor * x + (1 - factor) * other, 0, 1)


def numpy_brightness(x, factor):
    return np.clip(x * factor, 0, 1)


def numpy_contrast(x, factor):
    return numpy_blend(x, numpy_luma(x).mean(), factor)


def numpy_saturation(x, factor):
    return numpy_blend(x, numpy_luma(x)[..., None], factor)


def numpy_hue(x, shift):
    def pixel(rgb):
        h, s, v = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb((h + shift) % 1.0, s, v)

    return np.apply_along_axis(pixel, -1, x)


def numpy_grey(x):
    return np.repeat(numpy_luma(x)[..., None], 3, axis=-1)


def numpy_blur(x, sigma, radius):
    """A direct two-dimensional convolution with reflected edges."""
    h, w, _ = x.shape
    line = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel = np.outer(line, line) / np.outer(line, line).sum()
    padded = np.pad(x, [(radius, radius), (radius, radius), (0, 0)], mode='reflect')
    out = np.zeros(x.shape)
    for i in range(h):
        for j in range(w):
            window = padded[i : i + 2 * radius + 1, j : j + 2 * radius + 1]
            out[i, j] = (kernel[..., None] * window).sum((0, 1))
    return out


def numpy_solarize(x, threshold=0.5):
    return np.where(x >= threshold, 1 - x, x)


def each(function, patches, factors):
    pairs = zip(np.asarray(patches, np.float64), np.asarray(factors, np.float64), strict=True)
    return np.stack([function(x, factor) for x, factor in pairs])


@pytest.mark.parametrize('name', ['brightness', 'contrast', 'saturation'])
def test_blends_match_torchvision_and_pillow(name):
    pixels, x = make_pixels(), make_floats()
    out = jax.jit(getattr(augment_lib, f'adjust_{name}'))(x, FACTORS)
    reference = {
        'brightness': numpy_brightness,
        'contrast': numpy_contrast,
        'saturation': numpy_saturation,
    }[name]
    np.testing.assert_allclose(out, each(reference, x, FACTORS), atol=1e-6)
    np.testing.assert_allclose(out[3], x[3], atol=1e-7, err_msg='a factor of 1 is no change')

    enhancer = {
        'brightness': ImageEnhance.Brightness,
        'contrast': ImageEnhance.Contrast,
        'saturation': ImageEnhance.Color,
    }[name]
    pairs = zip(pixels, FACTORS, strict=True)
    pillow = np.stack([enhancer(Image.fromarray(p)).enhance(float(f)) for p, f in pairs])
    # Pillow rounds the grey values and cuts the fraction of the result.
    np.testing.assert_allclose(255 * np.asarray(out), pillow, atol=1.5)


def test_grey_matches_torchvision_and_pillow():
    pixels, x = make_pixels(), make_floats()
    out = np.asarray(augment_lib.to_grey(x))
    np.testing.assert_allclose(out, numpy_grey(x.astype(np.float64)), atol=1e-6)
    pillow = np.stack([ImageOps.grayscale(Image.fromarray(p)) for p in pixels])
    np.testing.assert_allclose(255 * out[..., 0], pillow, atol=0.6)


def test_solarize_matches_pillow():
    out = augment_lib.solarize_above(make_floats())
    pillow = np.stack([ImageOps.solarize(Image.fromarray(p), 128) for p in make_pixels()])
    np.testing.assert_allclose(255 * np.asarray(out), pillow, atol=1e-4)


def test_solarize_inverts_at_the_threshold_and_not_below():
    x = np.full((1, 1, 3, 3), [[0.125], [0.25], [0.5]], np.float32)
    out = augment_lib.solarize_above(x, threshold=0.25)
    np.testing.assert_array_equal(out[0, 0, :, 0], [0.125, 0.75, 0.5])


def test_hue_matches_colorsys():
    x, shifts = make_floats(), np.array([-0.5, -0.3, -0.05, 0.1, 0.35, 0.5], np.float32)
    out = jax.jit(augment_lib.adjust_hue)(x, shifts)
    np.testing.assert_allclose(out, each(numpy_hue, x, shifts), atol=3e-6)


def test_hue_is_periodic():
    x = make_floats()
    for turns in (0, 1, -1):
        out = augment_lib.adjust_hue(x, np.full(len(x), turns, np.float32))
        np.testing.assert_allclose(out, x, atol=3e-6)


@pytest.mark.parametrize('radius', [0, 2, 7])
def test_blur_matches_a_direct_convolution(radius):
    x, sigmas = make_floats(), np.array([0.1, 0.5, 1.0, 1.5, 2.0, 3.0], np.float32)
    out = jax.jit(augment_lib.gaussian_blur, static_argnums=2)(x, sigmas, radius)
    expected = each(functools.partial(numpy_blur, radius=radius), x, sigmas)
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_blur_leaves_white_in_range():
    """The weights of some of these sigmas sum to just above 1."""
    sigmas = np.linspace(0.5, 2, 50, dtype=np.float32)
    out = augment_lib.gaussian_blur(np.ones((50, 8, 8, 3), np.float32), sigmas, 6)
    assert float(out.max()) <= 1
    np.testing.assert_allclose(out, 1, atol=1e-6)


def test_blur_radius_covers_the_gaussian_and_fits_the_patch():
    assert augment_lib.blur_radius(2.0, 32) == 6
    assert augment_lib.blur_radius(0.5, 32) == 2
    assert augment_lib.blur_radius(2.0, 5) == 4
    x = make_floats(1, 5, 9)
    with pytest.raises(ValueError, match='radius 5 cannot reflect'):
        augment_lib.gaussian_blur(x, np.ones(1, np.float32), 5)


def test_whole_equals_its_operations_in_order():
    n = 24
    x, indices, key = make_floats(n, 10, 8), np.arange(n), jax.random.key(3)
    out = jax.jit(functools.partial(augment, **HALF))(key, x, indices)
    f = jax.tree.map(np.asarray, draw_factors(key, indices, HALF, RANGES))
    expected = x.astype(np.float64)
    for i, y in enumerate(expected):
        y = y[:, ::-1] if f.flip[i] else y
        if f.jitter[i]:
            y = numpy_brightness(y, f.brightness[i])
            y = numpy_contrast(y, f.contrast[i])
            y = numpy_saturation(y, f.saturation[i])
            y = numpy_hue(y, f.hue[i])
        y = numpy_grey(y) if f.grey[i] else y
        y = numpy_blur(y, f.sigma[i], 6) if f.blur[i] else y
        expected[i] = numpy_solarize(y) if f.solarize[i] else y
    assert all(3 < applied.sum() < n - 3 for applied in f[:5])
    np.testing.assert_allclose(out, expected, atol=5e-6)


def test_every_patch_is_jittered_in_its_own_order():
    n = 240
    x, indices, key = make_floats(n, 6, 5), np.arange(n), jax.random.key(3)
    chances = OFF | {'jitter': 1.0}
    out = jax.jit(functools.partial(augment, **chances, jitter_order='random'))(key, x, indices)
    f = jax.tree.map(np.asarray, draw_factors(key, indices, chances, RANGES))
    places = np.asarray(augment_lib.draw_places(key, indices))
    operations = {
        'brightness': numpy_brightness,
        'contrast': numpy_contrast,
        'saturation': numpy_saturation,
        'hue': numpy_hue,
    }
    expected = x.astype(np.float64)
    for i, y in enumerate(expected):
        for j in np.argsort(places[i]):
            name = list(operations)[j]
            y = operations[name](y, getattr(f, name)[i])
        expected[i] = y
    np.testing.assert_allclose(out, expected, atol=1e-5)
    orders, counts = np.unique(places, axis=0, return_counts=True)
    assert (len(orders), counts.max() < 30) == (24, True)  # 10 of each are expected
    part = slice(7, 20)
    np.testing.assert_array_equal(augment_lib.draw_places(key, indices[part]), places[part])


@pytest.mark.parametrize('definitions', ['simclr', 'byol'])
def test_tensorflows_jitter(definitions):
    """tf.image's adjust_contrast and adjust_saturation; BYOL's own brightness."""
    n = 60
    x, indices, key = make_floats(n, 6, 5), np.arange(n), jax.random.key(3)
    settings = {'jitter': 1.0, 'jitter_order': 'random', 'definitions': definitions}
    out = jax.jit(functools.partial(augment, **OFF | settings))(key, x, indices)
    f = jax.tree.map(np.asarray, draw_factors(key, indices, OFF | {'jitter': 1.0}, RANGES))

    def brightness(x, factor):
        return np.clip(x * factor if definitions == 'simclr' else x + factor - 1, 0, 1)

    def contrast(x, factor):
        mean = x.mean((0, 1))
        return np.clip((x - mean) * factor + mean, 0, 1)

    def saturation(x, factor):
        def pixel(rgb):
            h, s, v = colorsys.rgb_to_hsv(*rgb)
            return colorsys.hsv_to_rgb(h, min(s * factor, 1), v)

        return np.apply_along_axis(pixel, -1, x)

    expected = x.astype(np.float64)
    for i, y in enumerate(expected):
        for j in np.argsort(np.asarray(augment_lib.draw_places(key, indices))[i]):
            name = ('brightness', 'contrast', 'saturation', 'hue')[j]
            function = (brightness, contrast, saturation, numpy_hue)[j]
            y = function(y, getattr(f, name)[i])
        expected[i] = y
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_tensorflows_blur_is_black_outside():
    white = np.ones((1, 40, 40, 3), np.float32)
    blur = {'blur': 1.0, 'blur_sigma': (2.0, 2.0), 'definitions': 'byol'}
    out = np.asarray(augment(jax.random.key(0), white, np.arange(1), **OFF | blur))[0, :, :, 0]
    np.testing.assert_allclose(out[2:-2, 2:-2], 1, atol=1e-6)  # a radius of 2
    line = np.exp(-(np.arange(-2, 3) ** 2) / 8)
    inside = line[2:].sum() / line.sum()
    np.testing.assert_allclose(out[0, 0], inside**2, rtol=1e-5)


def test_an_unknown_order_is_refused():
    with pytest.raises(InputError, match="'shuffled': choose from fixed, random"):
        augment(jax.random.key(0), make_pixels(), np.arange(6), jitter_order='shuffled')


@pytest.mark.parametrize('name', list(OFF))
def test_probabilities(name):
    """At 0 nothing changes, at 1 every patch does, at 1/2 about half do and the rest not a bit."""
    n = 400
    x, indices, key = make_floats(n, 8, 8), np.arange(n), jax.random.key(1)

    @functools.partial(jax.jit, static_argnums=0)
    def run(chance):
        return augment(key, x, indices, **OFF | {name: chance})

    never, half, always = (np.asarray(run(chance)) for chance in (0.0, 0.5, 1.0))
    np.testing.assert_array_equal(never, x)
    # A sigma near 0.1 leaves a patch as it is to the last bit.
    changed = (always != x).any((1, 2, 3))
    assert changed.mean() > (0.9 if name == 'blur' else 0.999)

    same = (half == x).all((1, 2, 3)) & changed
    np.testing.assert_allclose(half[~same], always[~same], atol=1e-6)
    deviation = np.sqrt(changed.sum() / 4)
    assert abs(same.sum() - changed.sum() / 2) < 4 * deviation


def test_flip_mirrors_left_and_right():
    x = make_floats()
    out = augment(jax.random.key(0), x, np.arange(len(x)), **OFF | {'flip': 1.0})
    np.testing.assert_array_equal(out, x[:, :, ::-1])


@pytest.mark.parametrize(
    ('name', 'primitive'),
    [('flip', 'rev'), ('contrast', 'reduce_sum'), ('hue', 'floor'), ('blur', 'exp')],
)
def test_zero_removes_the_operation_from_the_program(name, primitive):
    def operations(value):
        function = functools.partial(augment, **{'blur': 0.0, name: value})
        traced = jax.make_jaxpr(function)(jax.random.key(0), make_floats(), np.arange(6))
        return {str(equation.primitive) for equation in equations(traced.jaxpr)}

    def equations(jaxpr):
        found = list(jaxpr.eqns)
        for equation in jaxpr.eqns:
            for inner in jaxprs_in_params(equation.params):
                found += equations(inner)
        return found

    assert primitive in operations(0.1)
    assert primitive not in operations(0.0)


def test_factors_lie_in_their_ranges_and_differ():
    n = 400
    f = draw_factors(jax.random.key(2), np.arange(n), HALF, RANGES)
    for name, (low, high) in RANGES.items():
        values = np.asarray(getattr(f, name))
        assert values.dtype == np.float32
        assert low - 1e-6 <= values.min() < low + 0.05 * (high - low)
        assert high + 1e-6 >= values.max() > high - 0.05 * (high - low)
        assert len(np.unique(values)) > 0.99 * n
        assert abs(values.mean() - (low + high) / 2) < 4 * (high - low) / np.sqrt(12 * n)
    # No factor follows another: each is drawn from bits of its own.
    correlations = np.corrcoef(np.stack([np.asarray(field, np.float64) for field in f]))
    assert np.abs(correlations - np.eye(len(f))).max() < 4 / np.sqrt(n)


def test_strengths_become_torchvisions_ranges():
    """A strength above 1 does not reach negative factors: the darkest patch is black, not less."""
    n = 300
    x = np.full((n, 2, 2, 3), 0.25, np.float32)
    only = OFF | {'jitter': 1.0, 'contrast': 0.0, 'saturation': 0.0, 'hue': 0.0}
    out = np.asarray(augment(jax.random.key(0), x, np.arange(n), **only, brightness=2.0))
    factors = out[:, 0, 0, 0] / 0.25
    assert factors.min() < 0.05
    assert 2.95 < factors.max() <= 3
    assert (factors == 0).sum() <= 1, 'a range of [-1, 3] would clip a quarter of them'


def test_switching_an_operation_off_leaves_the_other_draws():
    key, indices = jax.random.key(4), np.arange(8)
    f = draw_factors(key, indices, HALF, RANGES)
    g = draw_factors(key, indices, HALF | {'flip': 0.0}, RANGES | {'hue': (0.0, 0.0)})
    assert not g.flip.any()
    assert not g.hue.any()
    for name in set(f._fields) - {'flip', 'hue'}:
        np.testing.assert_array_equal(getattr(f, name), getattr(g, name))


def test_slice_is_the_slice_of_the_whole():
    x, indices, key = make_pixels(16), np.arange(16), jax.random.key(5)
    run = jax.jit(functools.partial(augment, **HALF))
    whole = np.asarray(run(key, x, indices))
    # A program of another size may round otherwise in the last bit.
    assert_equal = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-7)
    for part in (slice(5, 12), slice(15, 16)):
        assert_equal(run(key, x[part], indices[part]), whole[part])
    order = np.random.default_rng(0).permutation(16)
    assert_equal(run(key, x[order], indices[order]), whole[order])
    assert (abs(np.asarray(run(key, x[:8], indices[8:])) - whole[:8]) > 0.1).any()


def test_sharded_equals_unsharded():
    x, indices, key = make_pixels(16), np.arange(16), jax.random.key(5)
    mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    run = functools.partial(augment, **HALF)
    specs = {'in_specs': (P(), P('data'), P('data')), 'out_specs': P('data')}
    sharded = jax.jit(jax.shard_map(run, mesh=mesh, **specs))(key, x, indices)
    np.testing.assert_array_equal(sharded, jax.jit(run)(key, x, indices))


def test_key_alone_decides():
    x, indices = make_pixels(), np.arange(6)
    run = jax.jit(augment)
    first = np.asarray(run(jax.random.key(6), x, indices))
    np.testing.assert_array_equal(run(jax.random.key(6), x, indices), first)
    other = np.asarray(run(jax.random.key(7), x, indices))
    assert (first != other).any((1, 2, 3)).all()


def test_range_and_type_and_uint8_equals_float():
    n = 32
    indices, key = np.arange(n), jax.random.key(8)
    strong = {'brightness': 3.0, 'contrast': 3.0, 'saturation': 3.0, 'hue': 0.5}
    run = jax.jit(functools.partial(augment, **HALF | strong))
    out = run(key, make_pixels(n), indices)
    assert out.dtype == jnp.float32
    assert out.shape == (n, 10, 8, 3)
    assert float(out.min()) == 0
    assert float(out.max()) == 1
    assert np.isfinite(out).all()
    # Strong contrast magnifies the last bit of x / 255.
    np.testing.assert_allclose(run(key, make_floats(n), indices), out, atol=1e-5)


def test_one_trace_for_all_keys():
    run = jax.jit(chex.assert_max_traces(augment, n=1))
    for seed in range(3):
        run(jax.random.key(seed), make_pixels(), np.arange(6) + seed)


def test_bad_patches_are_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match='n h w 3'):
        augment(key, make_pixels()[..., :1], np.arange(6))
    with pytest.raises(TypeError, match='int32'):
        augment(key, make_pixels().astype(np.int32), np.arange(6))


def test_a_probability_for_each_index():
    patches = np.zeros((12, 4, 4, 3), np.float32)
    found = augment(
        jax.random.key(0),
        patches,
        np.arange(12),
        **{**OFF, 'solarize': 0.5, 'solarize_by_index': (1.0, 0.0)},
        count=3,
    )
    # Solarising black would leave it black: what is inverted is white.
    assert not np.any(found)
    white = augment(
        jax.random.key(0), patches + 1, np.arange(12), **OFF, solarize_by_index=(1.0, 0.0), count=3
    )
    inverted = 1 - np.asarray(white)[:, 0, 0, 0]
    np.testing.assert_array_equal(inverted.reshape(4, 3), np.tile([1, 0, 1], (4, 1)))
