"""Runs to read encoders from, without a training."""

import contextlib

from conftest import REPOSITORY

from bagssl_jax import cli
from bagssl_jax.checkpoints import Checkpoints
from bagssl_jax.models import init_variables, input_side, make_networks
from bagssl_jax.workdir import claim


def save_run(workdir, *overrides, steps=(3,)):
    """A run of the quickstart's networks, which have what seed STEP gives after STEP steps."""
    quickstart = f'--config={REPOSITORY}/configs/quickstart.py'
    argv = ['main', '--workdir=unused', quickstart, *overrides]
    config = cli.parse(argv, config_file=True)[0]
    networks, side = make_networks(config), input_side(config)
    claim(str(workdir), config.to_dict(), None)
    with contextlib.closing(Checkpoints(str(workdir), keep=9)) as checkpoints:
        for step in steps:
            checkpoints.save(step, init_variables(networks, step, side=side), {})
    return str(workdir)
