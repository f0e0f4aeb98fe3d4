"""Checkpoints: save, verify, and restore all of a training state or the encoder alone.

A checkpoint holds named items, each a tree of arrays; a position, which is what must be known to go
on, as JSON; and a manifest, with a checksum of every file and what run it is of. A thread writes it
beside its place, and moves it there when it is complete. Orbax restores a damaged file silently, so
all files are compared with the manifest first. Checkpoints of versions that wrote none have a
digest of every item, which is compared after restoring.
"""

import copy
import functools
import logging
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding

from bagssl_jax import folders, manifests, processes
from bagssl_jax.errors import InputError, out_of_memory
from bagssl_jax.manifests import DamagedError
from bagssl_jax.parallel import to_global
from bagssl_jax.runs import Run
from bagssl_jax.storage import writing

Tree = Any


class Checkpoints:
    """The checkpoints of one run, in checkpoints/STEP of its directory; process 0 writes them."""

    def __init__(self, run: Run, *, keep: int):
        """Opens the checkpoints of `run`, creating the directory; the `keep` newest stay.

        What interrupted saves have left is removed, and named in a warning.

        Raises:
          InputError: the directory cannot be created.
        """
        self._run, self._keep = run, keep
        self._identity = run.identity()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix='checkpoint')
        self._under_way: Future | None = None
        if processes.is_first():
            with writing(run.checkpoints):
                run.checkpoints.mkdir(parents=True, exist_ok=True)
                folders.remove_unfinished(run.checkpoints, run.steps())

    def save(
        self,
        step: int,
        items: Mapping[str, Tree],
        position: dict[str, Any],
        *,
        spared: int | None = None,
    ) -> None:
        """Starts saving, and returns when the arrays may be overwritten. A saved step stays.

        So does `spared`, a step that is kept beside the newest ones.

        Raises:
          InputError: the save before could not be written.
        """
        self.wait()
        digests = {name: int(digest(tree)) for name, tree in items.items()}
        if not processes.is_first() or step in self._run.steps():
            return
        meta = copy.deepcopy({'digests': digests, 'position': position, 'manifest': manifests.NAME})
        # They are replicated: this process has all of them.
        self._under_way = self._thread.submit(
            self._write, step, jax.device_get(dict(items)), meta, spared
        )

    def restore_newest(
        self, targets: Mapping[str, Tree], keys: Sequence[str] = ()
    ) -> tuple[int, dict, dict] | None:
        """The newest undamaged checkpoint, for training to go on from.

        Newer, damaged ones are set aside as checkpoints/STEP.damaged, with a warning; where all are
        damaged, all stay where they are.

        Args:
          targets: item name -> tree of arrays or jax.ShapeDtypeStruct with a sharding.
          keys: of the position, without which it counts as damaged.

        Returns:
          (step, items, position), or None where nothing was saved yet.

        Raises:
          InputError: every checkpoint is damaged, or the newest undamaged one is of another run.
        """
        newest = _newest(self._run, targets, keys)
        if newest is not None and processes.is_first():
            for step in self._run.steps():
                if step > newest[0]:
                    folders.set_aside(self._run.checkpoints / str(step))
        return newest

    def wait(self) -> None:
        """Returns when what was saved is in its place.

        Raises:
          InputError: it could not be written.
        """
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def close(self) -> None:
        """Waits as `wait` does, and ends the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(
        self, step: int, arrays: Mapping[str, Tree], meta: Mapping[str, Any], spared: int | None
    ) -> None:
        directory = self._run.checkpoints
        place = directory / str(step)
        with writing(place):
            with folders.filled(place, {'step': step, 'run': self._identity}) as draft:
                _write_items(draft, arrays, meta)
            for old in self._run.steps()[: -self._keep]:
                if old != spared:
                    folders.remove(directory / str(old))


def restore_items(run: Run, targets: Mapping[str, Tree]) -> tuple[int, dict[str, Tree]]:
    """Reads the named items alone from the newest undamaged checkpoint of `run`.

    Args:
      targets: item name -> tree of arrays or jax.ShapeDtypeStruct with a sharding.

    Returns:
      The step, and the items.

    Raises:
      InputError: the run has no checkpoint, only damaged ones, or those of another run.
    """
    newest = _newest(run, targets)
    if newest is None:
        raise InputError(f'no checkpoint in {run}: train there first, or give another --workdir')
    step, items, _ = newest
    return step, items


def _newest(
    run: Run, targets: Mapping[str, Tree], keys: Sequence[str] = ()
) -> tuple[int, dict, dict] | None:
    """As `_newest_undamaged`, of several processes: the first chooses the step, and warns.

    Each reads it for itself, onto its own devices, so that none waits for one that cannot.
    """
    own, found = jax.tree.map(_on_own_devices, dict(targets)), None

    def choose():
        nonlocal found
        found = _newest_undamaged(run, own, keys)
        return None if found is None else found[0]

    step = processes.from_first('checkpoint', choose)
    if step is None:
        return None
    if found is None:
        try:
            found = step, *_restore(run, step, own, keys)
        except DamagedError as error:
            raise InputError(f'checkpoint {step} is damaged here alone: {error}') from None
    return step, jax.tree.map(_placed, found[1], dict(targets)), found[2]


def _on_own_devices(x: Any) -> jax.ShapeDtypeStruct:
    sharding = x.sharding
    if not sharding.is_fully_addressable:
        sharding = NamedSharding(sharding.mesh.local_mesh, sharding.spec)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _placed(x: jax.Array, target: Any) -> jax.Array:
    """A replicated array as its target lies, also on the devices of other processes."""
    sharding = target.sharding
    return x if sharding.is_fully_addressable else to_global(x, sharding.mesh)


def _newest_undamaged(
    run: Run, targets: Mapping[str, Tree], keys: Sequence[str]
) -> tuple[int, dict, dict] | None:
    """(step, items, position) of the newest step that can be trusted; None where there is none."""
    damaged = {}
    for step in reversed(run.steps()):
        try:
            items, position = _restore(run, step, targets, keys)
        except DamagedError as error:
            damaged[step] = error
            continue
        if damaged:
            found = '; '.join(f'checkpoint {n} is damaged ({why})' for n, why in damaged.items())
            logging.warning('%s: %s; using checkpoint %d', run, found, step)
        return step, items, position
    if damaged:
        found = ', '.join(f'{n} ({why})' for n, why in damaged.items())
        raise InputError(
            f'every checkpoint in {run.checkpoints} is damaged: {found}: bring back a copy, or '
            'give another --workdir'
        )
    return None


def _restore(
    run: Run, step: int, targets: Mapping[str, Tree], keys: Sequence[str]
) -> tuple[dict, dict]:
    """The items and the position of a checkpoint, once they are known to be what was saved."""
    place = run.checkpoints / str(step)
    manifest = manifests.read(place)
    if manifest is None:
        return _read(place, targets, keys, intact=False)
    if manifest['step'] != step:
        raise DamagedError(f'it is that of step {manifest["step"]}')
    with folders.on_disk(place, manifest) as directory:
        manifests.check(directory, manifest)
        if difference := run.difference(manifest['run']):
            raise InputError(
                f'{place} is of another run, with {difference}: take it away, or give another '
                '--workdir'
            )
        return _read(directory, targets, keys, intact=True)


def _read(
    directory: epath.Path, targets: Mapping[str, Tree], keys: Sequence[str], *, intact: bool
) -> tuple[dict, dict]:
    """Items and position; `intact` where it is known that no file is damaged."""
    try:
        restored = _read_items(directory, targets)
    except Exception as error:  # orbax and tensorstore raise bare exceptions of many kinds
        if out_of_memory(error):
            raise
        reason = textwrap.shorten(str(error), 200)
        if intact or 'not compatible with the stored shape' in reason:
            raise InputError(
                f'{directory} is not of the networks that this run has: {reason}'
            ) from None
        raise DamagedError(reason) from None
    meta = restored['meta']
    try:
        if not intact and 'manifest' in meta:
            raise DamagedError(f'{manifests.NAME} is missing')
        for name in targets:
            if int(digest(restored[name])) != meta['digests'][name]:
                raise DamagedError(f'the digest of {name} differs')
        position = meta['position']
        for key in keys:
            position[key]
    except (KeyError, TypeError):
        raise DamagedError('meta/metadata differs from what was written') from None
    return {name: restored[name] for name in targets}, position


def _write_items(directory: epath.Path, arrays: Mapping[str, Tree], meta: Mapping) -> None:
    """Writes a checkpoint of arrays on the host."""
    _quieten()
    items = {name: ocp.args.StandardSave(tree) for name, tree in arrays.items()}
    args = ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items)
    with _checkpointer('writer') as checkpointer:
        checkpointer.save(directory, args=args, force=True)


def _read_items(directory: epath.Path, targets: Mapping[str, Tree]) -> Mapping[str, Any]:
    """The items that are wanted, as their targets say, and 'meta'."""
    _quieten()
    items = {name: ocp.args.StandardRestore(tree) for name, tree in targets.items()}
    args = ocp.args.Composite(meta=ocp.args.JsonRestore(), **items)
    with _checkpointer('reader') as checkpointer:
        return checkpointer.restore(directory, args=args)


def _checkpointer(name: str) -> ocp.Checkpointer:
    """One that waits for no other process."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f'{name}{me}'
    )
    options = ocp.CompositeOptions(multiprocessing_options=alone)
    handler = ocp.CompositeCheckpointHandler(composite_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


@functools.cache
def _quieten() -> None:
    """Of what orbax and tensorstore raise, keeps their threads and tasks from telling it too.

    They would on hundreds of lines, some of them after the program's own one.
    """
    logging.getLogger('absl').addFilter(lambda record: '_SignalingThread' not in record.msg)
    # Of arrays read at once the first error is raised, and asyncio tells those of the others.
    logging.getLogger('asyncio').addFilter(
        lambda record: (
            not re.search('never retrieved.*/orbax/', logging.Formatter().format(record), re.DOTALL)
        )
    )
    previous = sys.unraisablehook

    def tell(report: Any) -> None:
        if str(report.exc_value) != 'Event loop is closed':
            previous(report)

    sys.unraisablehook = tell


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
