"""Runs that are killed; `python tests/kill.py --times=50` does so more often."""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY


@pytest.mark.slow
def test_killed_runs_end_as_if_they_had_not_been(tmp_path):
    # Of its own: a kill can leave half an entry, of which JAX warns before it compiles anew.
    cache = f'{os.environ["JAX_COMPILATION_CACHE_DIR"]}/kill'
    done = subprocess.run(
        [sys.executable, f'{REPOSITORY}/tests/kill.py', '--times=3', f'--cache={cache}'],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout.splitlines()[-1])['kills'] == 3
