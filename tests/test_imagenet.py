"""The shipped configuration for ImageNet, shrunk, on photographs of many sizes."""

import json

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY

from bagssl_jax import command_line

CONFIG = f'--config={REPOSITORY}/configs/imagenet.py'
SMALL = (
    '--config.data.name=folder',
    '--config.data.batch_size=8',
    '--config.data.workers=0',
    '--config.patches.count=2',
    '--config.encoder.name=tiny',
    '--config.encoder.width=2',
    '--config.projector.widths=8,8',
    '--config.optimizer.warmup_epochs=0',
    '--config.train.steps=2',
    '--config.train.log_every=1',
    '--config.probe.after_training=False',
)


@pytest.fixture
def photographs(tmp_path):
    """Seventeen images of different sizes, one of which is smaller than a patch."""
    rng = np.random.default_rng(0)
    folder = tmp_path / 'photographs' / 'train' / 'class'
    folder.mkdir(parents=True)
    for i in range(17):
        shape = (20, 30, 3) if i == 3 else (110 + 3 * i, 160 - 2 * i, 3)
        cv2.imwrite(str(folder / f'{i}.jpg'), rng.integers(0, 256, shape, np.uint8))
    return folder.parents[1]


@pytest.mark.slow
@pytest.mark.parametrize('arguments', ['patch32', 'patch100,tcr'])
def test_it_trains_on_images_as_they_are(program, photographs, tmp_path, arguments):
    workdir = tmp_path / 'run'
    status, _, err = program(
        'main', f'{CONFIG}:{arguments}', f'--workdir={workdir}',
        f'--config.data.dir={photographs}', *SMALL,
    )  # fmt: skip
    assert status == 0, err
    assert 'trained to step 2; 1 unreadable images were left out' in err.splitlines()
    config = json.loads((workdir / 'config.json').read_text())
    patches, objective = config['patches'], config['objective']['name']
    assert f'patch{patches["size"]}' == arguments.split(',')[0]
    assert (patches['scale'], patches['resize']) == (0.25, 0)
    assert objective == ('tcr' if 'tcr' in arguments else 'vicreg')
    log = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert [row['step'] for row in log] == [1, 2]
    assert np.isfinite([row['loss'] for row in log]).all()


@pytest.mark.slow
@pytest.mark.parametrize('recipe', ['vicreg', 'byol'])
def test_the_authors_recipes_train(program, photographs, tmp_path, recipe):
    workdir = tmp_path / 'run'
    status, _, err = program(
        'main', f'{CONFIG}:{recipe}', f'--workdir={workdir}', f'--config.data.dir={photographs}',
        *SMALL, '--config.patches.resize=32', '--config.predictor.widths=8,8',
    )  # fmt: skip
    assert status == 0, err
    assert 'trained to step 2' in err.splitlines()  # also of the image smaller than a patch
    config = json.loads((workdir / 'config.json').read_text())
    assert config['crops'] == 'multiscale'
    assert config['objective']['name'] == recipe
    log = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    assert np.isfinite([row['loss'] for row in log]).all()


@pytest.mark.parametrize(
    ('recipe', 'rate'),
    [
        ('imagenet.py:vicreg', 1.6),
        ('imagenet.py:barlow', 1.6),
        ('imagenet.py:simclr', 4.8),
        ('imagenet.py:byol', 3.2),
        ('simclr_cifar10.py', 2.0),
    ],
)
def test_the_authors_learning_rates(recipe, rate):
    argv = ['main', '--workdir=unused', f'--config={REPOSITORY}/configs/{recipe}']
    config, _ = command_line.parse(argv, config_file=True)
    assert config.optimizer.learning_rate * config.data.batch_size / 256 == pytest.approx(rate)
    assert config.optimizer.scale_by_batch


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (
            'patch16',
            "unknown argument 'patch16': choose from patch32, patch64, patch100, vicreg, tcr, "
            'barlow, simclr, byol',
        ),
        ('patch32,patch64', "'patch32,patch64' names several patches or objectives"),
    ],
)
def test_a_wrong_argument_lists_the_known(refusal, arguments, message):
    assert message in refusal('main', '--workdir=unused', f'{CONFIG}:{arguments}')
