import numpy as np
import pytest

from bagssl_jax.data import sources
from bagssl_jax.data.photos import load_photos
from bagssl_jax.errors import InputError


def test_photos_sub_splits():
    every = load_photos('train')
    part = load_photos('train[:10%]+test[-5:]')
    assert len(part) == 320 + 5
    np.testing.assert_array_equal(part.images[:320], every.images[:320])
    test = load_photos('test')
    np.testing.assert_array_equal(part.labels[320:], test.labels[-5:])


@pytest.mark.parametrize(
    ('split', 'message'),
    [
        ('tran', "Unknown split 'tran'.*train.*test"),
        ('train[:10', r"split 'train\[:10'.*Unrecognized"),
        ('train[:0]', 'holds no image'),
    ],
)
def test_bad_splits_are_refused_in_one_line(split, message):
    with pytest.raises(InputError, match=message) as error:
        load_photos(split)
    assert '\n' not in str(error.value)


def test_a_part_has_every_class_of_a_source_that_alternates_them():
    source = sources.ArraySource(np.zeros((800, 1, 1, 3)), np.arange(800) % 8, tuple('abcdefgh'))
    subset = sources.Part(source, 500, seed=0)
    labels = subset.read(np.arange(len(subset))).labels
    assert len(labels) == 500
    assert np.bincount(labels, minlength=8).min() > 40
    assert len(sources.Part(source, 5000, seed=0)) == 800
