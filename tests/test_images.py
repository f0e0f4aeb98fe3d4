import io
import pathlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from bagssl_jax.data import images
from bagssl_jax.errors import UnreadableImage

PHOTOS = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'photos'


@pytest.fixture(scope='module')
def picture():
    """A smooth picture of 40x30 pixels, which JPEG keeps well, without a symmetry."""
    y, x = np.mgrid[:30, :40]
    rgb = np.stack([6 * x, 8 * y, 255 - 3 * x - 4 * y], axis=-1)
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))


def assert_same(data, tolerance):
    image, expected = images.decode(data, 'x'), by_pillow(data)
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert abs(image.astype(int) - expected).max() <= tolerance


LOSSLESS = [('PNG', {}), ('BMP', {}), ('WEBP', {'lossless': True})]


@pytest.mark.parametrize(('kind', 'options'), LOSSLESS)
@pytest.mark.parametrize('mode', ['RGB', 'L', 'P', '1'])
def test_lossless_images_keep_their_values(picture, kind, options, mode):
    assert_same(encoded(picture.convert(mode), kind, **options), 0)


@pytest.mark.parametrize('mode', ['LA', 'RGBA'])
def test_opacity_is_dropped(picture, mode):
    image = picture.convert(mode)
    image.putalpha(Image.linear_gradient('L').resize(image.size))
    assert_same(encoded(image, 'PNG'), 0)
    assert_same(encoded(picture.convert('P'), 'PNG', transparency=3), 0)


@pytest.mark.parametrize(
    ('mode', 'kind', 'options'),
    [
        ('RGB', 'JPEG', {'quality': 90}),
        ('RGB', 'JPEG', {'progressive': True}),
        ('L', 'JPEG', {}),
        ('CMYK', 'JPEG', {'quality': 95}),
        ('RGB', 'WEBP', {}),
    ],
)
def test_lossy_images_agree_with_pillow(picture, mode, kind, options):
    assert_same(encoded(picture.convert(mode), kind, **options), 2)


def test_of_sixteen_bits_the_upper_eight_are_kept():
    values = np.random.default_rng(0).integers(0, 2**16, (9, 7, 3), dtype=np.uint16)
    colour = cv2.imencode('.png', values[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(images.decode(colour, 'x'), values >> 8)
    grey = cv2.imencode('.png', values[..., 0])[1].tobytes()
    np.testing.assert_array_equal(images.decode(grey, 'x')[..., 1], values[..., 0] >> 8)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize(
    ('kind', 'options'), [('JPEG', {'quality': 95}), ('PNG', {}), ('WEBP', {'lossless': True})]
)
def test_rotated_images_come_out_upright(picture, kind, options, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert_same(encoded(picture, kind, exif=exif.tobytes(), **options), 2 * (kind == 'JPEG'))


def test_of_an_animation_the_first_frame_is_taken(picture):
    frames = {'save_all': True, 'append_images': [ImageOps.flip(picture)], 'lossless': True}
    data = encoded(picture, 'WEBP', **frames)
    np.testing.assert_array_equal(images.decode(data, 'x'), np.asarray(picture))


@pytest.mark.parametrize(
    ('kind', 'options'),
    [*LOSSLESS, ('JPEG', {}), ('JPEG', {'progressive': True}), ('WEBP', {})],
)
@pytest.mark.parametrize('share', [0.02, 0.1, 0.5, 0.9, 0.99])
def test_truncated_images_are_refused(picture, kind, options, share):
    data = encoded(picture.resize((200, 150)), kind, **options)
    images.decode(data, 'x')
    with pytest.raises(UnreadableImage, match=r'^file: is .*truncated'):
        images.decode(data[: int(share * len(data))], 'file')


def test_bytes_after_the_end_do_no_harm(picture):
    for kind in ('JPEG', 'PNG', 'WEBP', 'BMP'):
        assert images.decode(encoded(picture, kind) + bytes(100), 'x').shape == (30, 40, 3)


@pytest.mark.parametrize(
    ('data', 'message'),
    [
        (b'', 'file: is empty'),
        (b'<html>404</html>', 'file: is not an image'),
        (b'\xff\xd8\xff\xe0', 'file: is not an image'),
    ],
)
def test_what_is_not_an_image_is_refused(data, message):
    with pytest.raises(UnreadableImage, match=message):
        images.decode(data, 'file')


@pytest.mark.parametrize('shape', [(10, 20_000), (20_000, 10)])
def test_a_side_beyond_the_limit_is_refused(shape):
    data = cv2.imencode('.png', np.zeros(shape, np.uint8))[1].tobytes()
    with pytest.raises(UnreadableImage, match=r'is \d+x\d+ pixels, and 16,384'):
        images.decode(data, 'file')


@pytest.mark.skipif(not PHOTOS.is_dir(), reason='the photographs are not on this machine')
def test_photographs_agree_with_pillow_and_their_truncations_are_refused():
    for path in sorted(PHOTOS.glob('val/*/*.JPEG'))[::10]:
        data = path.read_bytes()
        assert_same(data, 3)
        for cut in (3, 100, len(data) // 2):
            with pytest.raises(UnreadableImage):
                images.decode(data[:-cut], path.name)
