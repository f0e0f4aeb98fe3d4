"""All images on the devices: the same batches, and what happens to images that cannot be read."""

import contextlib

import jax
import numpy as np
import pytest

from bagssl_jax.data import pipeline
from bagssl_jax.data.crops import make_crops
from bagssl_jax.data.datasets import Images
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.data.sources import ArraySource, Records
from bagssl_jax.errors import InputError, UnreadableImage
from bagssl_jax.parallel import batch_sharded, make_mesh
from bagssl_jax.training import resident
from bagssl_jax.training.resident import from_resident, load_resident, resident_shape

CROPS = make_crops('fixed', 2, PatchGeometry(4, 0.0, 0), {})


class Stored(ArraySource):
    """Images that lie somewhere, of one size that is known; number 3 cannot be read."""

    in_memory = False

    def read(self, numbers):
        if 3 in numbers:
            raise UnreadableImage(f'{self.name(3)}: is broken')
        images, labels = super().read(numbers)
        return Records(list(images), labels)


@pytest.fixture(scope='module')
def source():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 9, 7, 3), dtype=np.uint8)
    return ArraySource(pixels, np.zeros(40, int), ('a',))


@pytest.fixture(scope='module')
def broken(source):
    return Stored(source.images, source.labels, source.class_names, title='forty')


def load(source, on_error='stop', devices=8):
    mesh = make_mesh(jax.devices()[:devices])
    images = Images('forty', source, in_memory=False)
    return load_resident(images, mesh, min_side=1, on_error=on_error)


def batches(source, crop_on):
    made = pipeline.train_batches(source, CROPS, seed=0, batch_size=16, crop_on=crop_on)
    with contextlib.closing(made):
        return [next(made).inputs for _ in range(3)]


@pytest.mark.parametrize('devices', [1, 8])
def test_a_step_is_handed_what_would_have_been_sent(source, devices):
    mesh = make_mesh(jax.devices()[:devices])
    images, unreadable = load(source, devices=devices)
    expected_shape = resident_shape(40, (9, 7), mesh)
    assert (images.shape, images.dtype, images.sharding) == (
        expected_shape.shape, expected_shape.dtype, expected_shape.sharding
    )  # fmt: skip
    assert unreadable == ()
    step = from_resident(lambda state, inputs: (state + 1, inputs), (9, 7), mesh, donate=True)
    pairs = zip(batches(source, 'resident'), batches(source, 'device'), strict=True)
    for given, sent in pairs:
        state, given = jax.numpy.zeros(3), jax.device_put(given, batch_sharded(mesh))
        _, inputs = step(state, {**given, 'resident': images})
        assert state.is_deleted()
        assert not images.is_deleted()
        assert inputs.keys() == sent.keys()
        for name in sent:
            assert inputs[name].sharding.is_equivalent_to(batch_sharded(mesh), sent[name].ndim)
            np.testing.assert_array_equal(inputs[name], sent[name])


def test_the_images_are_no_part_of_the_program_and_are_not_sent_between_devices(source):
    mesh = make_mesh()
    images, _ = load(source)
    step = from_resident(lambda state, inputs: (state, inputs), (9, 7), mesh, donate=True)
    given = jax.device_put(batches(source, 'resident')[0], batch_sharded(mesh))
    compiled = step.lower(jax.numpy.zeros(3), {**given, 'resident': images}).compile()
    assert compiled.memory_analysis().argument_size_in_bytes > images.nbytes
    assert not any(word in compiled.as_text() for word in ('all-', 'collective-'))


def test_an_unreadable_image_is_replaced_as_in_the_batches_that_are_sent(broken, source):
    images, unreadable = load(broken, on_error='skip')
    assert unreadable == (3,)
    expected = np.delete(source.images, 3, axis=0)
    expected = np.insert(expected, 3, source.images[4], axis=0)
    np.testing.assert_array_equal(images, expected.reshape(40, -1))


def test_an_unreadable_image_is_named_before_anything_starts(broken):
    with pytest.raises(
        InputError, match=r'forty #3: is broken. --config.data.on_error=skip leaves'
    ):
        load(broken)


def test_images_that_do_not_fit_are_refused(source, monkeypatch):
    monkeypatch.setattr(resident, 'free_memory', lambda mesh: 7000)
    with pytest.raises(InputError, match=r'crop_on=resident needs .* for 40 images, and a device'):
        load(source)
