"""Fresh crops for the augmented protocol; that it trains is shown end to end in test_main."""

import numpy as np
import pytest

from bagssl_jax.data.datasets import Images
from bagssl_jax.data.sources import ArraySource
from bagssl_jax.evaluation import augmented


@pytest.fixture
def source():
    """Ten 16x16 images; red is the image's number, green the column."""
    images = np.zeros((10, 16, 16, 3), np.uint8)
    images[..., 0] = np.arange(10)[:, None, None]
    images[..., 1] = 10 * np.arange(16)
    stored = ArraySource(images, np.arange(10) % 3, ('a', 'b', 'c'))
    return Images('ten', stored, in_memory=True)


def epoch_of(source, rows, epoch, batch_size=4):
    batches = augmented.make_batches(
        source, lambda x: x.reshape(len(x), -1), side=8, batch_size=batch_size, seed=0, workers=0
    )
    return list(batches(np.asarray(rows), epoch))


def test_an_epoch_has_every_row_once_less_the_last_partial_batch(source):
    rows = [0, 2, 3, 5, 6, 7, 8, 9, 4]
    found = epoch_of(source, rows, 0)
    assert [x.shape for x, _ in found] == [(4, 8 * 8 * 3)] * 2
    numbers = np.concatenate([x[:, 0] for x, _ in found])
    assert len(set(numbers.tolist())) == 8
    assert set(numbers.tolist()) <= set(rows)
    np.testing.assert_array_equal(np.concatenate([y for _, y in found]), numbers % 3)


def test_crops_are_fresh_in_every_epoch_and_the_same_again(source):
    def by_image(epoch, rows=range(10)):
        [(x, _)] = epoch_of(source, rows, epoch, batch_size=len(rows))
        return x[np.argsort(x[:, 0])]

    first = by_image(0)
    np.testing.assert_array_equal(first, by_image(0))
    assert all((a != b).any() for a, b in zip(first, by_image(1), strict=True))
    # An image's crop does not depend on the others.
    np.testing.assert_array_equal(by_image(0, rows=[3, 8]), first[[3, 8]])


def test_half_of_the_crops_are_mirrored(source):
    rising = 0
    for epoch in range(40):
        [(x, _)] = epoch_of(source, range(10), epoch, batch_size=10)
        columns = x.reshape(10, 8, 8, 3)[:, 0, :, 1].astype(int)
        rising += (columns[:, -1] > columns[:, 0]).sum()
    assert 160 < rising < 240  # of 400; standard deviation 10
