"""launch/measure_gpu.sh: the commands that it runs, and what it makes of their lines."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from bagssl_jax import command_line


def script(out, *arguments, **environment):
    return subprocess.run(
        ['bash', REPOSITORY / 'launch' / 'measure_gpu.sh', out, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_dry_run_prints_commands_that_can_be_parsed(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    done = script(
        tmp_path / 'out.json', '--dry-run', DATA_DIR='/data', ROUNDS='2', PYTHON='py',
        TORCH_PYTHON='torch-py', MORE='--config.seed=1 --config.data.workers=2',
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, '')
    assert not list(tmp_path.iterdir())
    commands = list(map(shlex.split, done.stdout.splitlines()))
    peers = [words for words in commands if words[0] == 'torch-py']
    assert [words[1] for words in peers] == ['launch/torch_step.py'] * 4
    assert all('--compile' in words for words in peers)
    ours = [words[2:] for words in commands if words[:2] == ['py', '-m']]
    whats = [words[1] for words in ours[:-1]]
    assert whats == ['train'] * 5 + ['embed', 'data']
    assert ours[-1][0] == 'bagssl_jax.main'
    for words in ours:
        flags = [word for word in words[1:] if word.startswith('-')]
        argv = ['measure', *[word for word in flags if not word.startswith('--workdir')]]
        [config] = command_line.parse(argv, config_file=True, workdir=False)
        assert (config.seed, config.data.workers, config.data.dir) == (1, 2, '/data')
        assert config.encoder[config.encoder.name].remat == 'none'
    arches = [next(word for word in words if 'arch' in word) for words in peers]
    assert arches == ['--arch=resnet18', '--arch=resnet50'] * 2


def test_data_is_needed(tmp_path):
    done = script(tmp_path / 'out.json', DATA_DIR='')
    assert done.returncode
    assert 'DATA_DIR=DIR is missing' in done.stderr


@pytest.fixture
def parts(tmp_path):
    """A folder of what the script leaves to its collector."""

    def part(name, *rows, status=0, said=''):
        text = ''.join(f'{json.dumps(row)}\n' for row in rows)
        (tmp_path / f'{name}.jsonl').write_text(f'a table\n{text}')
        (tmp_path / f'{name}.err').write_text(said)
        (tmp_path / f'{name}.status').write_text(f'{status} 12\n')

    matmul = {'stage': 'matmul', 'operations_per_s': 1000.0}
    for turn, (mine, other) in enumerate([(40.0, 10.0), (60.0, 20.0), (50.0, 30.0)]):
        step = {'stage': 'step', 'patches_per_s': mine, 'operations': 100, 'utilisation': 0.5}
        part(f'resnet18.ours.{turn}', matmul, step)
        part(f'resnet18.torch.{turn}', {'patches_per_s': other, 'seconds': 0.2})
    part('resnet50.ours.0', matmul, status=2, said='one\nerror: out of memory\n')
    part('train', {'stage': 'total', 'times_step': 1.04})
    part('embed', {'stage': 'total', 'utilisation': 0.6, 'times_forward': 1.1})
    return tmp_path


def test_lines_become_ratios(parts):
    out = parts / 'out.json'
    collector = REPOSITORY / 'launch' / 'collect_measures.py'
    printed = subprocess.run(
        [sys.executable, collector, parts, out], capture_output=True, text=True, check=True
    ).stdout
    found = json.loads(out.read_text())
    assert found['ratios'] == json.loads(printed)['ratios']
    assert found['ratios'] == {
        'resnet18': {
            'ours': 50.0,
            'utilisation': 0.5,
            'torch': 20.0,
            'times_torch': 2.5,
            'torch_utilisation': 0.5,
        },
        'train_over_step': 1.04,
        'embed_utilisation': 0.6,
        'embed_over_forward': 1.1,
    }
    assert found['failed'] == {'resnet50.ours.0': {'status': 2, 'error': 'error: out of memory'}}
    assert found['seconds']['train'] == 12
    assert found['versions']['jax']
    assert found['recipe'] == []
    assert len(found['lines']['resnet18.ours.1']) == 2
