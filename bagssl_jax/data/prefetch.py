"""Batches in advance: grain's threads and worker processes, kept in order when something ends."""

import contextlib
import multiprocessing.resource_tracker
import os
import re
import signal
import threading
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from bagssl_jax.errors import WorkerDied

PER_WORKER = 2  # batches in advance


def prefetched(batches: grain.MapDataset, threads: int, workers: int) -> Iterator[Any]:
    """Iterates over whole batches, some of them made in advance.

    Close the iterator, and its worker processes end; they also end with this process, however
    that ends, and leave SIGINT to it.

    Args:
      batches: each of them arrays in dictionaries and named tuples.
      threads: that make batches, where there is no worker.
      workers: processes that make batches.

    Raises:
      WorkerDied: a worker process ended before its time.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead(threads, 0))
    if not workers:
        iterator = iter(batches.to_iter_dataset(options))
    else:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain hands absl's flags to its worker processes
        one_ahead = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        processes = grain.MultiprocessingOptions(
            num_workers=workers, per_worker_buffer_size=PER_WORKER
        )
        dataset = batches.to_iter_dataset(one_ahead)
        iterator = iter(dataset.mp_prefetch(processes, worker_init_fn=_start_worker))
    try:
        if not workers:
            yield from iterator
            return
        with _interrupts_blocked():
            batch = next(iterator)
        while True:
            # Else a batch would lie in shared memory, which has to be given back before the end.
            batch = _copied(batch)
            yield batch
            batch = next(iterator)
    except StopIteration:
        return
    except RuntimeError as error:
        # grain has no exception of its own for it.
        died = re.search(r'Worker process was terminated .*exit code (-?\d+)', str(error))
        if died:
            raise WorkerDied(int(died[1])) from None
        raise
    finally:
        iterator.close()


def ahead(threads: int, workers: int) -> int:
    """How many batches are made in advance, at most; arguments as for `prefetched`."""
    return PER_WORKER * workers or threads + 2


def _copied(batch: Any) -> Any:
    """The arrays of dictionaries and tuples, named or not, in memory of this process."""
    if isinstance(batch, dict):
        return {key: _copied(value) for key, value in batch.items()}
    if isinstance(batch, tuple):
        parts = map(_copied, batch)
        return type(batch)(*parts) if hasattr(batch, '_fields') else tuple(parts)
    return np.array(batch)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes and threads that start inside never see SIGINT: the main one decides what it means.

    A Ctrl-C at a terminal goes to every process of the program. One that comes while this one
    has it blocked is delivered at the end.
    """
    _start_resource_tracker()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _start_resource_tracker() -> None:
    """Now: its start, which the first semaphore asks for, would unblock the signal.

    What a program leaves behind that is killed, or stopped by a signal, it clears away without a
    word.
    """
    before = os.environ.get('PYTHONWARNINGS')
    os.environ['PYTHONWARNINGS'] = 'ignore'
    try:
        multiprocessing.resource_tracker.ensure_running()
    finally:
        del os.environ['PYTHONWARNINGS']
        if before is not None:
            os.environ['PYTHONWARNINGS'] = before


def _start_worker(_index: int, _count: int) -> None:
    """Lets a worker process end with its parent, even if that was killed."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
