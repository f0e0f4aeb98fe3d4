"""The programs as a person runs them: bagssl_jax.main and bagssl_jax.probe."""

import json
import re
import signal

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY, SHRUNK, run, save_run, start, wait_for_checkpoint
from tiny import TINY

from bagssl_jax import command_line, main
from bagssl_jax.data import datasets, photos
from bagssl_jax.data.datasets import open_dataset
from bagssl_jax.data.folder import load_folder
from bagssl_jax.errors import InputError
from bagssl_jax.evaluation.monitor import make_monitor
from bagssl_jax.runs import Run

QUICKSTART = f'--config={REPOSITORY}/configs/quickstart.py'


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The workdir of a shrunk quickstart, its standard output and its standard error."""
    workdir = tmp_path_factory.mktemp('runs') / 'quickstart'
    options = (
        '--config.probe.encoders=trained,untrained',
        '--config.analysis.after_training=convergence',
        '--config.analysis.convergence.patches=2',
    )
    status, out, err = run('main', *SHRUNK, *options, f'--workdir={workdir}', cwd=workdir.parent)
    assert status == 0, err
    return workdir, out, err


def test_quickstart_trains_probes_and_reports(trained):
    workdir, out, err = trained
    assert (
        'tcr on 96 images of photos, 2 patches each; tiny of width 4 in float32; to step 12 with '
        '16 images a step on 2 cpu devices\n'
    ) in err
    assert re.search(r'train: 100%.*loss', err)
    assert err.endswith(f'report: {workdir}/report.html\n')
    assert 'Finished: 12 steps.' in (workdir / 'report.html').read_text()
    scores, looks = out.split('photos train[:96], step 12\n')
    assert looks.startswith('\nconvergence\n')
    assert list(json.loads((workdir / 'analysis.json').read_text())['looks']) == ['convergence']
    title, *table = scores.splitlines()
    assert title == 'photos, step 12: top-1 on 40 test images, 96 to train on'
    assert len(table) == 1 + 2 * 3  # head; two encoders; two bags and the whole image
    results = json.loads((workdir / 'results.json').read_text())
    assert results['dataset'] == 'photos'
    assert results['step'] == 12
    keys = {'encoder', 'view', 'patches', 'space', 'probe', 'top1', 'top5', 'n_train', 'n_test'}
    keys |= {'positions', 'patch', 'aggregation', 'flip', 'labels'}
    keys |= {'interval', 'per_class', 'chosen'}
    for row in results['rows']:
        assert row.keys() == keys
        assert (row['n_train'], row['n_test']) == (96, 40)
        assert 1 / 8 < row['top1'] <= 1  # better than chance, even after 12 steps
        assert row['interval'][0] < row['top1'] < row['interval'][1]
        assert len(row['per_class']) == 8
    assert {row['probe'] for row in results['rows']} == {'linear', 'knn', 'knn_chosen'}
    assert len(results['rows']) == 2 * 3 * 3
    assert (workdir / 'figures' / 'accuracy_by_patches.png').stat().st_size > 10_000


@pytest.mark.slow
def test_the_probe_is_a_program_of_its_own_and_deterministic(tmp_path):
    workdir = f'--workdir={save_run(tmp_path, *TINY[1:])}'
    assert run('probe', workdir, cwd=tmp_path)[0] == 0
    before = json.loads((tmp_path / 'results.json').read_text())
    status, out, err = run('probe', workdir, '--config.probe.spaces=(h,hidden1,z)', cwd=tmp_path)
    assert status == 0, err
    results = json.loads((tmp_path / 'results.json').read_text())
    assert [row for row in results['rows'] if row['space'] == 'h'] == before['rows']
    for space in ('hidden1', 'z'):
        assert len([row for row in results['rows'] if row['space'] == space]) == len(before['rows'])
    assert ' z ' in out


@pytest.mark.slow
def test_a_probe_can_change_every_part_of_the_protocol(tmp_path, program):
    workdir = save_run(tmp_path / 'run', *TINY[1:])
    before = ('--config.probe.probes=linear', '--config.probe.views=bag')
    assert program('probe', f'--workdir={workdir}', *before)[0] == 0
    options = {
        'encoders': 'trained,untrained',
        'views': 'bag,center',
        'patches': '3,16',
        'size': '12',
        'flip': 'True',
        'aggregations': 'mean,mean_unit,grid2,grid4',
        'probes': 'sgd,sgd_augmented,knn,rankme,uniformity,alignment',
        'sgd.epochs': '2',
        'sgd_augmented.epochs': '2',
        'labels': 'all,1,50%',
    }
    flags = [f'--config.probe.{key}={value}' for key, value in options.items()]
    status, out, err = program('probe', f'--workdir={workdir}', *flags)
    assert status == 0, err
    everything = json.loads((tmp_path / 'run' / 'results.json').read_text())['rows']
    rows = [row for row in everything if row['flip']]
    assert {row['probe'] for row in everything if not row['flip']} >= {'linear'}  # as it was
    assert {row['n_train'] for row in rows if row['probe'] == 'sgd'} == {96, 8, 48}
    fresh = [row for row in rows if row['probe'] == 'sgd_augmented']
    assert [(row['encoder'], row['view']) for row in fresh] == [
        ('trained', 'center'),
        ('untrained', 'center'),
    ]
    assert all(row['top1'] > 1 / 8 for row in fresh)
    bags = [row for row in rows if row['view'] == 'bag']
    assert all(row['patch'] == {'size': 12, 'scale': 0.0, 'resize': 8} for row in bags)
    assert {(row['patches'], row['aggregation']) for row in bags} == {
        *((3, name) for name in ('mean', 'mean_unit')),
        *((16, name) for name in ('mean', 'mean_unit', 'grid2', 'grid4')),
    }
    values = {row['probe']: row['value'] for row in bags if row['top1'] is None}
    assert values.keys() == {'rankme', 'uniformity', 'alignment'}
    assert values['rankme'] > 1
    assert -8 < values['uniformity'] < 0 < values['alignment'] < 4
    assert 'grid4' in out


@pytest.mark.slow
def test_random_patches_can_be_probed(tmp_path, program):
    workdir = save_run(tmp_path / 'run', *TINY[1:])
    flags = ['positions=random', 'patches=2,5', 'probes=knn', 'views=bag']
    flags = [f'--config.probe.{flag}' for flag in flags]
    tables = []
    for _ in range(2):
        status, out, err = program('probe', f'--workdir={workdir}', *flags)
        assert status == 0, err
        tables.append(out)
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_every_split_is_opened_once(shrunk, tmp_path, monkeypatch):
    for i, (image, label) in enumerate(zip(*photos.tiles('train'), strict=True)):
        if i == 72:
            break
        place = tmp_path / 'data' / ('train' if i < 64 else 'val') / f'class{label % 2}'
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f'{i:02}.png'), image[..., ::-1])
    opened = []

    def recorded(path, split):
        opened.append(split)
        return load_folder(path, split)

    monkeypatch.setattr(datasets, 'load_folder', recorded)
    config = shrunk(
        '--config.data.name=folder',
        f'--config.data.dir={tmp_path / "data"}',
        '--config.data.train_split=train',
        '--config.data.test_split=val',
        '--config.train.steps=4',
        '--config.train.monitor_every=0.5',
    )
    main.main(config, Run.at(tmp_path / 'run'))
    assert sorted(opened) == ['train', 'val']
    assert (tmp_path / 'run' / 'results.json').exists()


@pytest.mark.slow
def test_an_interrupt_saves_and_exits_as_shells_expect(tmp_path):
    arguments = [*SHRUNK, f'--workdir={tmp_path}', '--config.train.epochs=2000']
    process = start('main', *arguments, cwd=tmp_path)
    wait_for_checkpoint(process, tmp_path)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert 'Traceback' not in err
    step = re.search(r'stopped by SIGINT at step (\d+), which is saved', err)[1]
    assert (tmp_path / 'checkpoints' / step).is_dir()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--config.data.nme=x'], 'unknown key config.data.nme: did you mean config.data.name?'),
        (['--config.epochs=3'], 'unknown key config.epochs: did you mean config.train.epochs?'),
        (['--config.data=x'], 'config.data is a group of keys'),
        (['--config.objective.byol=x'], 'config.objective.byol is a group of keys'),
        (
            ['--config.probe.sgd_epochs=2'],
            'unknown key config.probe.sgd_epochs: did you mean config.probe.sgd.epochs?',
        ),
        # The chosen entry has none.
        (
            ['--config.encoder.stem=imagenet'],
            'unknown key config.encoder.stem: did you mean config.encoder.resnet18.stem?',
        ),
        (
            ['--config.optimizer.momentum=0.5'],
            'unknown key config.optimizer.momentum: did you mean config.optimizer.sgd.momentum?',
        ),
        (['--config.encoder.width=0'], 'encoder.tiny.width=0 must be from 1 to'),
        (
            ['--config.optimizer.name=sgd', '--config.optimizer.momentum=2'],
            'optimizer.sgd.momentum=2.0 must be from 0 to 1',
        ),
        (['--config.projector.widths=()'], 'projector.widths=() has no layer'),
        (['--config.train.epochs=ten'], "could not convert string to float: 'ten'"),
        (['--config.train.steps=1.5'], 'invalid literal for int'),
        (['--config.data.in_memory=maybe'], 'Non-boolean'),
        (['--config.probe.patches=(1,b)'], 'config.probe.patches'),
        (['--config.train.epochs'], 'Missing value'),
        (['train.epochs=3'], "'train.epochs=3' is not a flag"),
        (['--epochs=3'], "Unknown command line flag 'epochs'"),
        (['--config.data.name=imagnet'], "unknown data set 'imagnet': choose photos or folder"),
        (
            ['--config.data.name=cifar10', '--config.data.dir=/no/such'],
            'data.dir=/no/such is not a directory',
        ),
        (
            ['--config.data.name=cifar10', '--config.data.dir=/'],
            "'cifar10': not prepared in data.dir=/",
        ),
        (
            ['--config.objective.name=simsiam'],
            'choose from barlow, byol, sigreg, simclr, spectral, tcr, vicreg',
        ),
        (['--config.encoder.name=vit'], 'choose from resnet18, resnet34, resnet50, resnet101'),
        (['--config.patches.size=64'], 'does not fit into an image of 48x48'),
        (['--config.patches.count=1'], 'patches.count=1 must be from 2 to 4,096'),
        (['--config.data.batch_size=100'], 'cannot be shared by 8 devices'),
        (
            ['--config.augment.blur_sigma=0.5'],
            'augment.blur_sigma=(0.5,) must be 2 numbers, each from 0.01 to 100, the smallest',
        ),
        (['--config.patches.resize=-1'], 'patches.resize=-1'),
        (['--config.seed=-1'], 'seed=-1 must be from 0'),
        (['--config.train.epochs=nan'], 'train.epochs=nan'),
        (['--config.optimizer.learning_rate=-1'], 'optimizer.learning_rate=-1.0'),
        (
            ['--config.data.on_error=ignore'],
            "unknown data.on_error 'ignore': choose from stop, skip",
        ),
        (['--config.data.crop_on=gpu'], "unknown data.crop_on 'gpu': choose from host, device"),
        (['--config.data.name=folder'], 'data.name=folder needs data.dir=PATH'),
        # What the probe will need is known before the training starts.
        (
            ['--config.probe.patches=1,0'],
            'probe.patches=(1, 0) must be 1 to 64 numbers, each from 1 to',
        ),
        (['--config.data.test_split=tset'], "Unknown split 'tset'"),
    ],
)
def test_bad_input_is_one_line_and_status_two(refusal, tmp_path, arguments, message):
    workdir = tmp_path / 'run'
    line = refusal('main', QUICKSTART, f'--workdir={workdir}', *arguments)
    assert line.startswith('error: ')
    assert message in line
    assert not workdir.exists()


def test_a_key_of_the_chosen_entry_needs_no_name(shrunk):
    config = shrunk('--config.objective.eps=0.5')
    assert (config.encoder.name, config.encoder.tiny.width) == ('tiny', 4)  # of the shrunk
    assert (config.encoder.resnet18.width, config.objective.tcr.eps) == (64, 0.5)
    config = shrunk(
        '--config.optimizer.momentum=0.8',
        '--config.optimizer.name=sgd',
        '--config.encoder.name=resnet50',
        '--config.encoder.zero_init_last',
        '--config.encoder.resnet50.stem=imagenet',
    )
    assert (config.optimizer.sgd.momentum, config.optimizer.lars.momentum) == (0.8, 0.9)
    assert config.encoder.resnet50.to_dict() == {
        **config.encoder.resnet34.to_dict(),
        'width': 4,
        'stem': 'imagenet',
        'zero_init_last': True,
    }
    assert config.encoder.tiny.width == 16
    config = shrunk('--config.encoder.name', 'resnet34', '--config.encoder.stem', 'imagenet')
    assert (config.encoder.resnet34.width, config.encoder.resnet34.stem) == (4, 'imagenet')
    assert shrunk('--config.encoder.name=resnet50').encoder.resnet50.zero_init_last is False


def written(path, *lines):
    body = ''.join(f'    {line}\n' for line in lines)
    path.write_text(
        f'from bagssl_jax.defaults import get_config as defaults\n\n\n'
        f'def get_config():\n{body}    return config\n'
    )
    return f'--config={path}'


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        (
            ['config = defaults()', 'config.patches.cuont = 4'],
            'mine.py: Key "cuont" does not exist and cannot be added since the config is locked\n',
        ),
        (
            ['config = defaults()', 'config.encoder.width = 4'],
            'Key "width" does not exist and cannot be added',
        ),
        (
            ['config = defaults().unlock()', 'config.patches.cuont = 4'],
            'unknown key config.patches.cuont: did you mean config.patches.count?',
        ),
        (
            ['from ml_collections import ConfigDict', "config = ConfigDict({'seed': 3})"],
            'lacks analysis.after_training: start from bagssl_jax.defaults',
        ),
    ],
)
def test_a_file_with_a_key_that_does_not_exist_is_refused(refusal, tmp_path, lines, message):
    config = written(tmp_path / 'mine.py', *lines)
    line = refusal('main', config, f'--workdir={tmp_path / "run"}')
    assert line.startswith(f'error: {config}')
    assert message in f'{line}\n'


def test_an_analysis_may_set_its_own_keys(shrunk, tmp_path):
    (tmp_path / 'config.json').write_text(shrunk().to_json())
    argv = ['analyze', f'--workdir={tmp_path}', '--config.analysis.cooccurrence.codes=8']
    config, _ = command_line.parse(argv, config_file=False, settable=('analysis', 'probe', 'data'))
    assert config.analysis.cooccurrence.codes == 8
    with pytest.raises(InputError, match=r'only config.probe.\* and config.data.\* can be set'):
        command_line.parse(argv, config_file=False)
    argv[-1] = '--config.seed=1'
    expected = r'only config.analysis.\*, config.probe.\* and config.data.\* can be set'
    with pytest.raises(InputError, match=expected):
        command_line.parse(argv, config_file=False, settable=('analysis', 'probe', 'data'))


def test_of_several_values_of_a_key_the_last_is_taken(shrunk):
    found = shrunk(
        '--config.probe.patches=1,4', '--config.probe.spaces=h,z', '--config.probe.patches', '9',
        '--config.probe.spaces=h', '--config.seed=1', '--config.seed=2',
    )  # fmt: skip
    assert (found.probe.patches, found.probe.spaces, found.seed) == ((9,), ('h',), 2)


@pytest.mark.parametrize('text', ['h,z', '(h, z)', "('h', 'z')", '[h,z]'])
def test_tuples_may_be_written_in_any_way(shrunk, text):
    assert shrunk(f'--config.probe.spaces={text}').probe.spaces == ('h', 'z')


def test_whole_numbers_serve_as_floats_but_not_the_other_way(shrunk):
    assert shrunk('--config.augment.blur_sigma=(0.5, 2)').augment.blur_sigma == (0.5, 2.0)
    with pytest.raises(InputError, match=r'2.5\) must be a tuple of int'):
        shrunk('--config.probe.patches=(1,2.5)')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], '--workdir is missing'),
        (['--workdir=x'], '--config is missing; give one of '),
        (['--workdir=x', '--config=quickstart'], '--config=quickstart: no such file'),
        (['--workdir=x', f'{QUICKSTART}:fast'], 'takes 0 positional arguments but 1 was given'),
        (['--workdir=x', '--config=setup.cfg'], '--config=setup.cfg: '),
    ],
)
def test_a_wrong_command_line_is_refused(refusal, monkeypatch, arguments, message):
    monkeypatch.chdir(REPOSITORY)
    assert message in refusal('main', *arguments)


def test_the_probe_refuses_a_directory_without_a_run_or_a_checkpoint(refusal, tmp_path, shrunk):
    line = refusal('probe', f'--workdir={tmp_path}')
    assert f'no run in {tmp_path}' in line
    (tmp_path / 'config.json').write_text(shrunk().to_json())
    line = refusal('probe', f'--workdir={tmp_path}')
    assert f'no checkpoint in {tmp_path}' in line


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ('probe.spaces=(h,y)', "unknown probe.spaces 'y': choose from h, hidden1, z"),
        ('encoder.width=32', 'only config.probe.* and config.data.* can be set'),
        ('probe.patches=()', 'probe.patches=() must be 1 to 64 numbers'),
        ('probe.views=(bag,hole)', "unknown probe.views 'hole': choose from bag, center, whole"),
        (
            'probe.probes=(knn,svm)',
            "unknown probe.probes 'svm': choose from linear, sgd, sgd_empssl, sgd_vicreg",
        ),
        ('probe.labels=(all,none)', "labels 'none': give images a class"),
        ('probe.positions=anywhere', 'choose from grid, random'),
        ('probe.aggregations=max', 'choose from mean, mean_unit, grid2, grid4'),
        ('probe.probes=sgd_augmented', 'needs probe.views=center'),
        ('probe.labels=', 'probe.labels is empty'),
        ('probe.whole_size=0', 'probe.whole_size=0'),
        ('probe.seed=-1', 'probe.seed=-1'),
        ('data.on_error=ignore', "unknown data.on_error 'ignore'"),
        ('probe.probes=alignment', 'needs probe.aggregations=mean_unit'),
        ('probe.batch_size=20', 'probe.batch_size=20 cannot be shared by 8 devices'),
    ],
)
def test_the_probe_refuses_bad_settings(refusal, tmp_path, shrunk, override, message):
    (tmp_path / 'config.json').write_text(shrunk().to_json())
    arguments = [f'--workdir={tmp_path}', f'--config.{override}']
    assert message in refusal('probe', *arguments)


def test_settings_that_leave_nothing_to_probe_are_refused(refusal, tmp_path):
    for arguments, message in (
        (['aggregations=grid4', 'patches=4'], 'needs more patches than probe.patches=(4,)'),
        (['probes=alignment', 'aggregations=mean_unit', 'patches=1'], 'bags of 2 or more'),
    ):
        flags = [f'--config.probe.{argument}' for argument in arguments]
        workdir = f'--workdir={tmp_path / "run"}'
        assert message in refusal('main', QUICKSTART, workdir, *flags)


def test_a_monitor_needs_labels(shrunk, tmp_path):
    cv2.imwrite(str(tmp_path / '0.png'), np.zeros((20, 20, 3), np.uint8))
    folder = ['--config.data.name=folder', f'--config.data.dir={tmp_path}']
    config = shrunk(*folder, '--config.data.train_split=train')
    with pytest.raises(InputError, match=r'train\.monitor_every needs labels'):
        make_monitor(config, open_dataset(config.data))


def test_a_tilde_stands_for_the_home(shrunk, monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    assert shrunk('--config.data.dir=~/sets').data.dir == '/home/me/sets'


def test_help_says_how(program):
    status, out, _ = program('main', '--help')
    assert status == 0
    assert '--config=configs/NAME.py' in out
