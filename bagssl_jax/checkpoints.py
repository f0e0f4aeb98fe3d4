"""Checkpoints: save, verify, and restore all of a training state or the encoder alone.

A checkpoint holds named items, each a tree of arrays, and a position: what must be known to go
on, as JSON. Orbax writes it asynchronously and atomically. It restores a damaged file silently,
so a digest of every item is saved beside the items and checked on the way back.
"""

import copy
import logging
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath

from bagssl_jax.errors import InputError
from bagssl_jax.runs import Run

Tree = Any


class Checkpoints:
    """The checkpoints of one run, in checkpoints/STEP of its directory."""

    def __init__(self, run: Run, *, keep: int):
        """Opens the checkpoints of `run`, creating the directory; the `keep` newest stay."""
        self._directory = run.checkpoints
        self._keep = keep
        self._manager = self._open()

    def save(self, step: int, items: Mapping[str, Tree], position: dict[str, Any]) -> None:
        """Starts saving, and returns when the arrays may be overwritten. A saved step stays."""
        if step in self._manager.all_steps():
            return
        digests = {name: int(digest(tree)) for name, tree in items.items()}
        # A copy: it is written in the background, while the caller goes on.
        meta = copy.deepcopy({'digests': digests, 'position': position})
        self._manager.save(
            step,
            args=ocp.args.Composite(
                meta=ocp.args.JsonSave(meta),
                **{name: ocp.args.StandardSave(tree) for name, tree in items.items()},
            ),
        )

    def restore_newest(self, targets: Mapping[str, Tree]) -> tuple[int, dict, dict] | None:
        """The newest undamaged checkpoint, for training to go on from.

        Newer, damaged ones are set aside as checkpoints/STEP.damaged, with a warning; where all are
        damaged, all stay where they are.

        Args:
          targets: item name -> tree of arrays or jax.ShapeDtypeStruct with a sharding.

        Returns:
          (step, items, position), or None where nothing was saved yet.

        Raises:
          InputError: every checkpoint is damaged.
        """
        steps = self._manager.all_steps()
        newest = _newest_undamaged(self._directory, steps, targets)
        if newest is None:
            return None
        self._set_aside([step for step in steps if step > newest[0]])
        return newest

    def close(self) -> None:
        """Waits for the saves under way."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=True)
        return ocp.CheckpointManager(self._directory, options=options)

    def _set_aside(self, steps: list[int]) -> None:
        if not steps:
            return
        self._manager.close()
        for step in steps:
            names = (f'{step}.damaged{suffix}' for suffix in ('', *map('-{}'.format, range(2, 99))))
            free = next(name for name in names if not (self._directory / name).exists())
            (self._directory / str(step)).rename(self._directory / free)
        self._manager = self._open()


def restore_items(run: Run, targets: Mapping[str, Tree]) -> tuple[int, dict[str, Tree]]:
    """Reads the named items alone from the newest undamaged checkpoint of `run`.

    Args:
      targets: item name -> tree of arrays or jax.ShapeDtypeStruct with a sharding.

    Returns:
      The step, and the items.

    Raises:
      InputError: the run has no checkpoint, or only damaged ones.
    """
    directory = run.checkpoints
    steps = ocp.utils.checkpoint_steps(directory) if directory.is_dir() else []
    newest = _newest_undamaged(directory, steps, targets)
    if newest is None:
        raise InputError(f'no checkpoint in {run}: train there first, or give another --workdir')
    step, items, _ = newest
    return step, items


class _DamagedError(Exception):
    """A checkpoint cannot be read, or is not what was saved."""


def _newest_undamaged(
    directory: epath.Path, steps: Iterable[int], targets: Mapping[str, Tree]
) -> tuple[int, dict, dict] | None:
    """(step, items, position) of the newest of `steps` that can be trusted; None of no steps."""
    steps = sorted(steps, reverse=True)
    for step in steps:
        try:
            return step, *_restore(directory / str(step), targets)
        except _DamagedError as error:
            logging.warning('checkpoint %d is damaged (%s); trying an older one', step, error)
    if steps:
        raise InputError(f'every checkpoint in {directory} is damaged: give another workdir')
    return None


def _restore(directory: epath.Path, targets: Mapping[str, Tree]) -> tuple[dict, dict]:
    abstract = jax.tree.map(_abstract, dict(targets))
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(
                directory,
                args=ocp.args.Composite(
                    meta=ocp.args.JsonRestore(),
                    **{name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()},
                ),
            )
    except Exception as error:  # orbax and tensorstore raise bare exceptions of many kinds
        raise _DamagedError(textwrap.shorten(str(error), 100)) from error
    for name in targets:
        if int(digest(restored[name])) != restored.meta['digests'][name]:
            raise _DamagedError(f'the digest of {name} differs')
    return {name: restored[name] for name in targets}, restored.meta['position']


def _abstract(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


@jax.jit
def digest(tree: Tree) -> jax.Array:
    """A checksum of a tree of arrays, uint32 []; the same on any number of devices.

    Integer sums wrap around and do not depend on the order. Odd factors are invertible modulo
    2^32, so any one changed element changes the digest.
    """
    total = jnp.uint32(0)
    for leaf in jax.tree.leaves(tree):
        bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        words = jax.lax.bitcast_convert_type(leaf, bits).astype(jnp.uint32).ravel()
        factors = 2 * jax.lax.iota(jnp.uint32, words.size) + 1
        total = total * jnp.uint32(1_000_003) + jnp.sum(words * factors, dtype=jnp.uint32)
    return total
