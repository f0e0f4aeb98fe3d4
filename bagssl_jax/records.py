"""What a run tells: metrics.jsonl, TensorBoard events, and a progress bar."""

import json
import sys
from collections.abc import Mapping

import tensorboardX
import tqdm
from etils import epath

from bagssl_jax.runs import Run


class Recorder:
    """Appends logged steps to metrics.jsonl and TensorBoard, and moves a progress bar.

    Rows that a resumed run writes again are dropped first: those after step `start`, and what a
    monitor saw there, since that was logged when the step was saved already.
    """

    def __init__(
        self,
        run: Run,
        *,
        start: int,
        total: int,
        images_per_step: int,
        monitors: bool = False,
        enabled: bool = True,
    ):
        """
        Args:
          run: where the files are written.
          start: steps done so far.
          total: steps of the whole training.
          images_per_step: the bar counts images.
          monitors: whether what a monitor sees at step `start` is logged once more.
          enabled: False in all processes of a run but one: then nothing is written or shown.
        """
        self._images_per_step = images_per_step
        self._shown = {}
        self._enabled = enabled
        if not enabled:
            return
        path = run.directory / 'metrics.jsonl'

        def is_kept(row):
            again = monitors and row['step'] == start and 'loss' not in row
            return row['step'] <= start and not again

        kept = [line for line in _complete_lines(path) if is_kept(json.loads(line))]
        run.write('metrics.jsonl', ''.join(line + '\n' for line in kept).encode())
        self._file = path.open('a')
        self._events = tensorboardX.SummaryWriter(str(run), purge_step=start + 1)
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
        """Writes a row of a step, and shows its loss, or its first number where it has none."""
        if not self._enabled:
            return
        self._file.write(json.dumps({'step': step, **metrics}) + '\n')
        self._file.flush()
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        name = 'loss' if 'loss' in metrics else next(iter(metrics))
        self._shown[name] = f'{name} {metrics[name]:.4g}'
        self._bar.set_postfix_str(', '.join(self._shown.values()))

    def close(self) -> None:
        """Flushes and closes all of it."""
        if self._enabled:
            self._bar.close()
            self._events.close()
            self._file.close()


def note(line: str) -> None:
    """Prints a line on standard error, above the progress bar."""
    tqdm.tqdm.write(line, file=sys.stderr)


def _complete_lines(path: epath.Path) -> list[str]:
    """The lines of a file that a kill may have cut off in the last one."""
    if not path.exists():
        return []
    *lines, _ = path.read_text().split('\n')
    return lines
