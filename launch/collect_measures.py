"""Puts what launch/measure_gpu.sh has measured into one JSON file, and prints the ratios.

    python launch/collect_measures.py PARTS OUT.json

OUT.json has 'card', 'driver', 'versions', 'commit'; 'lines', name of a part -> the objects that it
printed; 'failed', name -> exit status and last line of standard error; 'seconds', name -> of the
whole command; 'recipe', the rows of its results.json; and 'ratios':

  'resnet18', 'resnet50': of the steps, medians over the rounds: 'ours' and 'torch', patches a
    second, and 'times_torch', one over the other; 'utilisation' and 'torch_utilisation', the same
    operations a second over the matrix product's rate as JAX reaches it
  'train_over_step': seconds of training with its pipeline, over those of its step alone
  'embed_utilisation', 'embed_over_forward': of embedding, likewise
"""

import importlib.metadata
import json
import pathlib
import statistics
import subprocess
import sys
from typing import Any

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'grain', 'numpy')
Lines = dict[str, list[dict[str, Any]]]


def main(parts: pathlib.Path, out: pathlib.Path) -> None:
    lines, failed, seconds = {}, {}, {}
    for path in sorted(parts.glob('*.status')):
        status, taken = map(int, path.read_text().split())
        seconds[path.stem] = taken
        lines[path.stem] = objects(path.with_suffix('.jsonl').read_text())
        if status:
            said = path.with_suffix('.err').read_text().strip().splitlines()
            failed[path.stem] = {'status': status, 'error': said[-1] if said else ''}
    results = parts / 'run' / 'results.json'
    card, _, driver = command(
        'nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader'
    ).partition(', ')
    found = {
        'card': card,
        'driver': driver,
        'versions': {name: version(name) for name in PACKAGES},
        'commit': command('git', 'describe', '--always', '--dirty', '--abbrev=40'),
        'ratios': ratios(lines),
        'failed': failed,
        'seconds': seconds,
        'lines': lines,
        'recipe': json.loads(results.read_text())['rows'] if results.exists() else [],
    }
    out.write_text(json.dumps(found, indent=1) + '\n')
    print(json.dumps({key: found[key] for key in ('card', 'commit', 'ratios', 'failed')}, indent=1))


def ratios(lines: Lines) -> dict[str, Any]:
    """What can be told of the parts that there are."""
    found = {}
    for arch in ('resnet18', 'resnet50'):
        ours, rates = (of_rounds(lines, f'{arch}.ours.', stage) for stage in ('step', 'matmul'))
        torch = of_rounds(lines, f'{arch}.torch.', None)
        row = {}
        if ours:
            row['ours'] = median(ours, 'patches_per_s')
            row['utilisation'] = median(ours, 'utilisation')
        if torch:
            row['torch'] = median(torch, 'patches_per_s')
        if ours and torch:
            row['times_torch'] = row['ours'] / row['torch']
            reached = ours[0]['operations'] / median(torch, 'seconds')
            row['torch_utilisation'] = reached / median(rates, 'operations_per_s')
        if row:
            found[arch] = row
    if total := of_rounds(lines, 'train', 'total'):
        found['train_over_step'] = total[0]['times_step']
    if total := of_rounds(lines, 'embed', 'total'):
        found['embed_utilisation'] = total[0]['utilisation']
        found['embed_over_forward'] = total[0]['times_forward']
    return json.loads(json.dumps(found), parse_float=lambda text: float(f'{float(text):.4g}'))


def of_rounds(lines: Lines, start: str, stage: str | None) -> list[dict[str, Any]]:
    """The objects of a stage, of all parts whose names start so."""
    rows = [row for name in lines if name.startswith(start) for row in lines[name]]
    return [row for row in rows if row.get('stage') == stage]


def median(rows: list[dict[str, Any]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects among the lines of a text; tables and notes are passed over."""
    return [json.loads(line) for line in text.splitlines() if line.startswith('{')]


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ''


def command(*words: str) -> str:
    """The first line that a command prints; '' where there is no such command, or it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ''
    return (done.stdout.splitlines() or [''])[0]


if __name__ == '__main__':
    main(*map(pathlib.Path, sys.argv[1:]))
