"""What the files of a run say, as far as they can be read."""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from bagssl_jax.configurations import over_defaults
from bagssl_jax.errors import InputError
from bagssl_jax.runs import Run
from bagssl_jax.storage import parts_of, reading

METRICS = 'metrics.jsonl'
PICTURES = ('.png', '.webp', '.jpg', '.jpeg')
LOG_TAIL = 4000  # bytes of an error log
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Found:
    """A run as a report knows it; what is missing or damaged is empty.

    Attributes:
      name: its folder's.
      directory: where it is, as a command takes it.
      config: nested, laid over the defaults, or as it was found where that cannot be.
      data: of data.json: 'images', 'classes', 'fingerprint'.
      metrics: rows, each of a step.
      results: of results.json first, then of other data sets and steps; each has 'rows'.
      looks: of analysis.json: name -> 'rows', 'figures', 'notes' and 'images'.
      looked: the rest of analysis.json: 'dataset' and 'step'.
      earlier: files of looks at other images or steps.
      pictures: name of a file in figures/ -> its content.
      logs: name of a file in errors/ -> its end.
      steps: of the checkpoints.
      problems: what could not be read, a line each.
    """

    name: str
    directory: str
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    metrics: list[Row]
    results: list[Mapping[str, Any]]
    looks: Mapping[str, Mapping[str, Any]]
    looked: Mapping[str, Any]
    earlier: list[str]
    pictures: Mapping[str, bytes]
    logs: Mapping[str, str]
    steps: list[int]
    problems: list[str]


def read_run(run: Run) -> Found:
    """Reads what there is.

    Raises:
      InputError: nothing in the directory is a run's.
    """
    problems = []

    def tried(read: Callable[[], Any], otherwise: Any) -> Any:
        try:
            found = read()
        except InputError as error:
            problems.append(str(error))
            return otherwise
        return otherwise if found is None else found

    steps = tried(run.steps, [])
    config = tried(lambda: run.read_json('config.json'), {})
    analysis = tried(lambda: run.read_json('analysis.json'), {})
    metrics = tried(lambda: _metrics(run, problems), [])
    names = tried(lambda: _names(run.directory, r'results(-.*)?\.json'), [])
    results = [tried(lambda name=name: _results(run, name), {}) for name in sorted(names)]
    if not (config or metrics or any(results) or analysis or steps):
        nothing = f'no run in {run} (it holds no config.json): give the --workdir of a training'
        raise InputError(problems[0] if problems else nothing)
    if not config and not any('config.json' in problem for problem in problems):
        problems.append('config.json is missing: what was trained, and how, is not known')
    folder = run.directory / 'figures'
    pictures = tried(lambda: _names(folder, rf'.*({"|".join(map(re.escape, PICTURES))})'), [])
    folder = run.directory / 'errors'
    logs = tried(lambda: _names(folder, r'.*\.log'), [])
    contents = {name: tried(lambda n=name: run.read(f'figures/{n}'), b'') for name in pictures}
    ends = {name: tried(lambda n=name: run.read(f'errors/{n}'), b'') for name in logs}
    looks = analysis.get('looks')
    return Found(
        name=run.directory.name or str(run),
        directory=_short(str(run)),
        config=tried(lambda: over_defaults(config), config) if config else {},
        data=tried(lambda: run.read_json('data.json'), {}),
        metrics=metrics,
        results=[found for found in results if found],
        looks=_known(looks if isinstance(looks, Mapping) else {}, problems),
        looked={key: value for key, value in analysis.items() if key != 'looks'},
        earlier=tried(lambda: _names(run.directory, r'analysis-.*\.json'), []),
        pictures={name: content for name, content in contents.items() if content},
        logs={name: end[-LOG_TAIL:].decode(errors='replace') for name, end in ends.items()},
        steps=steps,
        problems=problems,
    )


def _results(run: Run, name: str) -> Mapping[str, Any] | None:
    found = run.read_json(name)
    for key in ('rows', 'robustness', 'differences') if found is not None else ():
        rows = found.get(key, None if key == 'rows' else [])
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(f'{name} is damaged: it holds no {key}')
    return found


def _known(looks: Mapping[str, Any], problems: list[str]) -> dict[str, Mapping[str, Any]]:
    """Those that are as an analysis writes them."""
    kept = {}
    for name, look in looks.items():
        rows, figures = (look.get(key, []) if isinstance(look, Mapping) else 0 for key in _OF_LOOK)
        whole = all(
            isinstance(part, list) and all(isinstance(item, Mapping) for item in part)
            for part in (rows, figures)
        )
        if whole:
            notes = look.get('notes')
            kept[name] = {
                'rows': rows,
                'figures': figures,
                'notes': notes if isinstance(notes, list) else [],
                'images': look.get('images'),
            }
        else:
            problems.append(f'analysis.json is damaged: {name} is not as an analysis writes it')
    return kept


_OF_LOOK = ('rows', 'figures')


def _metrics(run: Run, problems: list[str]) -> list[Row]:
    """The rows in the order of their steps; of lines that were written twice, one."""
    names = [METRICS, *(part.name for part in parts_of(run.directory / METRICS))]
    lines = b''.join(run.read(name) or b'' for name in names).split(b'\n')
    rows = {line: _row(line) for line in lines}
    # A kill may have cut off the last one; an empty one is behind the last end of a line.
    if damaged := sum(rows[line] is None for line in lines[:-1]):
        problems.append(f'{METRICS}: {damaged:,} of {len(lines) - 1:,} lines are damaged')
    kept = [row for row in rows.values() if row is not None]
    return sorted(kept, key=lambda row: row['step'])


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = row.get('step') if isinstance(row, dict) else None
    # Of Python's True, too, isinstance says that it is a number.
    return row if type(step) is int and abs(step) < 2**63 else None


def _names(folder: epath.Path, pattern: str) -> list[str]:
    """Of the files in a folder; none where there is no folder."""
    with reading(folder):
        if not folder.is_dir():
            return []
        names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if re.fullmatch(pattern, name)]


def _short(directory: str) -> str:
    """Below the current directory, as it is typed there."""
    if '://' in directory:
        return directory
    relative = os.path.relpath(directory)
    return directory if relative.startswith(os.pardir) else relative
