"""What a run tells: metrics.jsonl, TensorBoard events, and a progress bar."""

import json
import logging
import math
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import tqdm
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from bagssl_jax.runs import Run
from bagssl_jax.storage import Log, parts_of, writing

NAME = 'metrics.jsonl'


class Recorder:
    """Appends logged steps to metrics.jsonl and TensorBoard, and moves a progress bar.

    Every row is in the files when `log` returns. Rows that a resumed run writes again are dropped
    first: those after step `start`, and what a monitor saw there, since that was logged when the
    step was saved already.
    """

    def __init__(
        self,
        run: Run,
        *,
        start: int,
        total: int,
        images_per_step: int,
        monitors: bool = False,
        also: Callable[[int, Mapping[str, float | None]], None] | None = None,
        enabled: bool = True,
    ):
        """
        Args:
          run: where the files are written.
          start: steps done so far.
          total: steps of the whole training.
          images_per_step: the bar counts images.
          monitors: whether what a monitor sees at step `start` is logged once more.
          also: what takes every row too: its step, and its metrics as in the file.
          enabled: False in all processes of a run but one: then nothing is written or shown.

        Raises:
          InputError: a file cannot be read or written.
        """
        self._images_per_step = images_per_step
        self._shown = {}
        self._enabled, self._also = enabled, also
        if not enabled:
            return
        self._run = run

        def is_kept(row):
            again = monitors and row['step'] == start and 'loss' not in row
            return row['step'] <= start and not again

        _gather(run, is_kept)
        self._rows = Log(run.directory / NAME)
        name = f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}'
        self._events = Log(run.directory / name)
        # TensorBoard hides what an earlier start told of later steps.
        begun = SessionLog(status=SessionLog.START)
        self._tell(Event(file_version='brain.Event:2'), Event(step=start + 1, session_log=begun))
        self._bar = tqdm.tqdm(
            desc='train',
            unit=' images',
            unit_scale=True,
            total=total * images_per_step,
            initial=start * images_per_step,
            dynamic_ncols=True,
        )

    def advance(self, steps: int = 1) -> None:
        """Moves the bar by so many steps."""
        if self._enabled:
            self._bar.update(steps * self._images_per_step)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes a row of a step, and shows its loss, or its first number where it has none.

        What is not finite is null in the file: JSON has no other word for it.

        Raises:
          InputError: it cannot be written.
        """
        if not self._enabled:
            return
        finite = {name: x if math.isfinite(x) else None for name, x in metrics.items()}
        row = json.dumps({'step': step, **finite}, allow_nan=False)
        self._rows.append(f'{row}\n'.encode())
        scalars = [summary.scalar(name, value) for name, value in metrics.items()]
        self._tell(*(Event(step=step, summary=scalar) for scalar in scalars))
        if self._also is not None:
            self._also(step, finite)
        name = 'loss' if 'loss' in metrics else next(iter(metrics))
        self._shown[name] = f'{name} {metrics[name]:.4g}'
        self._bar.set_postfix_str(', '.join(self._shown.values()))

    def close(self) -> None:
        """Closes all of it."""
        if self._enabled:
            self._bar.close()
            self._events.close()
            self._rows.close()
            _gather(self._run)

    def _tell(self, *events: Event) -> None:
        """Appends events as TensorBoard reads them: records of the TFRecord format."""
        records = []
        for event in events:
            event.wall_time = time.time()
            data = event.SerializeToString()
            length = struct.pack('<Q', len(data))
            crcs = [struct.pack('<I', masked_crc32c(part)) for part in (length, data)]
            records += [length, crcs[0], data, crcs[1]]
        self._events.append(b''.join(records))


def note(line: str) -> None:
    """Prints a line on standard error, above the progress bar."""
    tqdm.tqdm.write(line, file=sys.stderr)


def _gather(run: Run, is_kept: Callable[[dict[str, Any]], bool] = lambda row: True) -> None:
    """Leaves the whole rows that are kept in metrics.jsonl, and no parts beside it.

    A kill may have cut off the last line. Where others are damaged, what was there is kept aside.
    """
    path = run.directory / NAME
    parts = parts_of(path)
    content = b''.join([run.read(NAME) or b'', *(run.read(part.name) or b'' for part in parts)])
    *lines, rest = content.split(b'\n')
    rows = {line: _row(line) for line in [*lines, rest]}  # once each: parts may be left of a kill
    damaged = sum(rows[line] is None for line in lines)
    if damaged:
        run.write(f'{NAME}.damaged', content)
        logging.warning(
            '%s: %d of %d lines are damaged, and left out; the file as it was is %s.damaged',
            path,
            damaged,
            len(lines),
            NAME,
        )
    kept = b''.join(line + b'\n' for line, row in rows.items() if row is not None and is_kept(row))
    if parts or kept != content:
        run.write(NAME, kept)
    with writing(path):
        for part in parts:
            part.unlink()


def _row(line: bytes) -> dict[str, Any] | None:
    """A row, which says its step; None of what is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get('step'), int) else None
