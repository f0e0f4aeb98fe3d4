"""The exact search: in order, bounded in memory, the same on any number of devices."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bagssl_jax.parallel import make_mesh
from bagssl_jax.probes import nearest
from bagssl_jax.probes.nearest import Gallery


def features(seed, count, width=12):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def one_device():
    return make_mesh(jax.devices()[:1])


def cosines_and_rows(train, queries, k, chunk, mesh):
    return Gallery(train, chunk=chunk, mesh=mesh).nearest(queries, np.ones(len(train), bool), k)


def test_many_devices_find_what_one_finds():
    train, queries = features(0, 203), features(1, 23)
    nearness, rows = cosines_and_rows(train, queries, 30, 8, one_device())
    sharded_nearness, sharded_rows = cosines_and_rows(train, queries, 30, 8, make_mesh())
    np.testing.assert_array_equal(sharded_rows, rows)
    np.testing.assert_array_equal(sharded_nearness, nearness)


def test_zero_rows_are_far_from_everything_and_not_nan():
    train, queries = features(0, 61), features(1, 23)
    train[5], queries[3] = 0, 0
    nearness, rows = cosines_and_rows(train, queries, 4, 20, make_mesh())
    assert np.isfinite(nearness).all()
    # For the zero row every cosine is 0: the first four rows.
    np.testing.assert_array_equal(nearness[3], np.zeros(4))
    np.testing.assert_array_equal(rows[3], np.arange(4))


@pytest.mark.parametrize('devices', [1, 8])
def test_padding_is_never_a_neighbour(devices):
    # All cosines are negative, so the zero rows of the padding would be nearer.
    train, test = -np.ones((5, 3), np.float32), np.ones((3, 3), np.float32)
    mesh = make_mesh(jax.devices()[:devices])
    nearness, rows = cosines_and_rows(train, test, 4, 4, mesh)
    np.testing.assert_allclose(nearness, -1, rtol=1e-6)
    np.testing.assert_array_equal(rows, np.tile(np.arange(4), (3, 1)))


def test_memory_is_bounded_by_the_chunk():
    def temporary_bytes(chunks):
        program = nearest.search.lower(
            jnp.zeros((16, 12)),
            jnp.zeros((chunks * 16, 12)),
            jnp.zeros(chunks * 16, bool),
            k=5,
            rows=16,
            mesh=one_device(),
        )
        return program.compile().memory_analysis().temp_size_in_bytes

    # 40 times the training rows in no more room. (Their product with the queries takes 40 kB.)
    assert temporary_bytes(40) <= temporary_bytes(2) + 1024


def test_one_program_for_all_chunks_and_calls(monkeypatch):
    counted = jax.jit(
        chex.assert_max_traces(inspect.unwrap(nearest.search), n=1),
        static_argnames=('k', 'rows', 'mesh'),
    )
    monkeypatch.setattr(nearest, 'search', counted)
    train, queries = features(0, 61), features(1, 23)
    first = cosines_and_rows(train, queries, 4, 5, make_mesh())
    again = cosines_and_rows(train, queries, 4, 5, make_mesh())
    np.testing.assert_array_equal(again, first)
    # Other values, another number of rows that pads to the same, rows that are not searched.
    gallery = Gallery(2 - train[:60], chunk=5)
    gallery.nearest(queries, np.arange(60) % 3 > 0, 4)


def test_only_the_used_rows_are_found():
    train, queries = features(0, 61), features(1, 23)
    used = np.arange(61) % 3 == 1
    gallery = Gallery(train, chunk=5)
    cosines, rows = gallery.nearest(queries, used, 20)
    assert np.isfinite(cosines).all()
    for row in rows:
        assert set(row.tolist()) == set(np.nonzero(used)[0].tolist())
    for wrong in (0, 21):
        with pytest.raises(ValueError, match='neighbours among 20 rows'):
            gallery.nearest(queries, used, wrong)
