"""Which code is running, for what it leaves behind."""

import contextlib
import importlib.metadata
import pathlib
import subprocess


def code_version() -> str:
    """The package's version; with its commit where it runs from its repository."""
    version = importlib.metadata.version('bagssl-jax')
    repository = pathlib.Path(__file__).parents[1]
    if not (repository / '.git').exists():
        return version
    git = ['git', '-C', str(repository)]
    # Without git, or as another than its owner, there is the version alone.
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        commit, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
            for words in (('rev-parse', '--short', 'HEAD'), ('status', '--porcelain', '-uno'))
        )
        version += f', commit {commit.strip()}' + (' with changes' if changed.strip() else '')
    return version
