import jax
import numpy as np
import pytest

from bagssl_jax.errors import InputError
from bagssl_jax.parallel import batch_sharded, check_batch_size, make_mesh, prefetch_to_devices


@pytest.mark.parametrize('count', [0, 1, 2, 7])
def test_prefetching_keeps_order_and_number(count):
    sharding = batch_sharded(make_mesh())
    batches = [({'x': np.full((16, 2), i, np.float32)}, f'note {i}') for i in range(count)]
    received = list(prefetch_to_devices(batches, sharding))
    assert [batch['x'].sharding for batch, _ in received] == [sharding] * count
    np.testing.assert_array_equal([batch['x'][0, 0] for batch, _ in received], range(count))
    assert [note for _, note in received] == [f'note {i}' for i in range(count)]


def test_prefetching_runs_ahead_by_two_and_no_more():
    drawn = []

    def batches():
        for i in range(10):
            drawn.append(i)
            yield np.zeros((8, 1), np.float32), None

    prefetched = prefetch_to_devices(batches(), batch_sharded(make_mesh()))
    next(prefetched)
    assert len(drawn) == 3


def test_devices_hold_consecutive_parts_of_the_batch():
    [(batch, _)] = prefetch_to_devices([(np.arange(16), None)], batch_sharded(make_mesh()))
    parts = {shard.device: shard.data.tolist() for shard in batch.addressable_shards}
    assert [parts[device] for device in jax.devices()] == [[2 * i, 2 * i + 1] for i in range(8)]


@pytest.mark.parametrize('batch_size', [0, -8, 12])
def test_a_batch_that_the_devices_do_not_divide_is_refused(batch_size):
    with pytest.raises(InputError, match=f'data.batch_size={batch_size} cannot be shared by 8'):
        check_batch_size(batch_size, make_mesh(), 'data.batch_size')
    check_batch_size(24, make_mesh(), 'data.batch_size')
