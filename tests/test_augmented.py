"""Fresh crops for the augmented protocol; that it trains is shown end to end in test_main."""

import json

import numpy as np
import pytest
from conftest import save_run
from tiny import TINY

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


def test_bags_are_augmented_by_seed_split_image_and_patch_alone():
    settings = {'flip': 0.0, 'jitter': 1.0, 'grey': 0.0}
    patch = np.random.default_rng(0).integers(60, 200, (8, 8, 3), np.uint8)
    patches, numbers = np.broadcast_to(patch, (6, 4, 8, 8, 3)), np.arange(6)
    run = augmented.make_augmentation(settings, seed=0)
    found = run(patches, numbers, 0)
    assert found.dtype == np.uint8
    assert len(np.unique(found.reshape(24, -1), axis=0)) == 24  # images and patches differ
    np.testing.assert_array_equal(run(patches[:2], numbers[[4, 1]], 0), found[[4, 1]])
    others = (
        run(patches, numbers, 1),
        augmented.make_augmentation(settings, seed=1)(patches, numbers, 0),
    )
    assert all((other != found).any((2, 3, 4)).all() for other in others)


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


def test_a_probe_of_augmented_bags_says_so_and_is_the_same_again(program, tmp_path):
    workdir = save_run(tmp_path / 'run', *TINY[1:])
    found = []
    for batch_size in (64, 160):
        status, _, err = program(
            'probe', f'--workdir={workdir}', '--config.probe.augment=True',
            '--config.probe.positions=random', '--config.probe.views=bag',
            '--config.probe.probes=knn', f'--config.probe.batch_size={batch_size}',
        )  # fmt: skip
        assert status == 0, err
        found.append(json.loads((tmp_path / 'run' / 'results.json').read_text())['rows'])
    top1 = [[row['top1'] for row in rows] for rows in found]
    np.testing.assert_allclose(*top1, atol=1.01 / 40)  # one test image, by rounding
    assert {(row['augment'], row['positions']) for row in found[0]} == {(True, 'random')}
