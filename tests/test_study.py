"""Studies: what is run, what is read off the runs, and what is said of them."""

import concurrent.futures
import json
import signal
import time

import numpy as np
import pytest
from conftest import run, start
from scipy import stats
from tiny import REPOSITORY, TINY

from bagssl_jax.errors import InputError
from bagssl_jax.runs import Run
from bagssl_jax.studies import Comparison, Measure, Selection, Study, Variant
from bagssl_jax.studies.folder import RECORD, StudyFolder, shown
from bagssl_jax.studies.outcome import outcome, plan
from bagssl_jax.studies.plan import read_study
from bagssl_jax.studies.program import study as run_study
from bagssl_jax.studies.table import markdown, paired, summarise

LINEAR = Measure('linear', '4', {'probe': 'linear', 'patches': 4})
KNN = Measure('kNN', '4', {'probe': 'knn', 'patches': 4}, value='value')


def variant(name, choices=None, **options):
    return Variant(name, 'some.py', {'train.steps': 3}, choices, **options)


def finish(runs, planned, linear, knn=0.5):
    """Leaves what a finished run leaves, as far as a study reads it."""
    run = Run.at(runs.workdir / planned.name)
    rows = [
        {'probe': 'linear', 'patches': 1, 'top1': 0.1},
        {'probe': 'linear', 'patches': 4, 'top1': linear},
        {'probe': 'knn', 'patches': 4, 'value': knn},
    ]
    run.write_json('results.json', {'rows': rows})
    made = {'commands': shown(planned), 'seconds': 9.0, 'device': 'a CPU', 'date': '', 'code': ''}
    run.write_json(RECORD, made)


@pytest.fixture
def runs(tmp_path):
    return StudyFolder(tmp_path / 'study', tmp_path / 'small')


def study_of(*variants, **options):
    selection = Selection({'train.steps': 1, 'seed': 9}, LINEAR)
    return Study(variants, (0, 1), (LINEAR, KNN), selection, **options)


def test_a_choice_is_made_by_runs_of_its_own_and_taken_by_the_others(runs):
    chosen = variant('a', ('optimizer.learning_rate', (0.1, 0.01)), probes=({'probe.flip': True},))
    study = study_of(chosen)
    tried = plan(study, runs, chosen)
    assert [one.name for one in tried] == ['a/learning_rate=0.1', 'a/learning_rate=0.01']
    assert [len(one.commands('DIR')) for one in tried] == [1, 1]
    assert tried[1].commands('DIR')[0][1:] == [
        '--config=some.py', '--workdir=DIR', '--config.train.steps=1', '--config.seed=9',
        '--config.optimizer.learning_rate=0.01',
    ]  # fmt: skip
    for one, score in zip(tried, (0.4, 0.6), strict=True):
        finish(runs, one, score)
    of_seeds = plan(study, runs, chosen)[2:]
    assert [one.name for one in of_seeds] == ['a/seed=0', 'a/seed=1']
    assert of_seeds[1].commands('DIR', 'DATA') == [
        ['bagssl_jax.main', '--config=some.py', '--workdir=DIR', '--config.data.dir=DATA',
         '--config.train.steps=3', '--config.optimizer.learning_rate=0.01', '--config.seed=1'],
        ['bagssl_jax.probe', '--workdir=DIR', '--config.data.dir=DATA', '--config.probe.flip=True'],
    ]  # fmt: skip
    found = outcome(study, runs, chosen)
    assert found['choice'] == 0.01
    assert found['missing'] == ['a/seed=0', 'a/seed=1']


def test_a_baseline_reads_rows_of_its_own(runs):
    one, other = variant('one'), variant('other', rows={'patches': 1})
    study = Study((one, other), (0,), (LINEAR,))
    for each in (one, other):
        finish(runs, plan(study, runs, each)[0], 0.6)
    values = [outcome(study, runs, each)['runs'][0]['values'] for each in (one, other)]
    assert values == [{'linear: 4': 0.6}, {'linear: 4': 0.1}]


def test_means_spreads_and_paired_differences(runs):
    left, right, other = variant('left'), variant('right'), variant('other')
    sides = (('left', 'linear: 4'), ('right', 'linear: 4'))
    study = study_of(
        left, right, other,
        comparisons=(
            Comparison('one pair', (sides,)),
            Comparison('two pairs', (sides, (('left', 'kNN: 4'), ('right', 'linear: 4')))),
            Comparison('nothing', ((('other', 'kNN: 4'), ('right', 'kNN: 4')),)),
        ),
    )  # fmt: skip
    scores = {'left': (0.6, 0.7), 'right': (0.5, 0.64)}
    for one in (left, right):
        for planned, score in zip(plan(study, runs, one), scores[one.name], strict=True):
            finish(runs, planned, score)
    summary = summarise(study, [outcome(study, runs, one) for one in study.variants])
    column = summary['variants'][0]['columns']['linear: 4']
    assert (column['n'], column['mean']) == (2, pytest.approx(0.65))
    assert column['spread'] == pytest.approx(np.std([0.6, 0.7], ddof=1))
    by_seed, by_pair, nothing = summary['comparisons']
    assert (by_seed['of'], by_seed['mean']) == ('seeds', pytest.approx(0.08))
    expected = stats.ttest_rel([0.6, 0.7], [0.5, 0.64]).confidence_interval(0.95)
    np.testing.assert_allclose(by_seed['interval'], expected)
    assert (by_pair['of'], by_pair['n']) == ('pairs', 2)
    assert by_pair['mean'] == pytest.approx(np.mean([0.08, 0.5 - 0.57]))
    assert (nothing['n'], nothing['mean'], nothing['interval']) == (0, None, None)
    assert summary['missing'] == 2
    text = markdown('Trial', study, json.loads(json.dumps(summary)))
    assert '| left | .650 ±.071 | 2 |' in text
    assert '| one pair | +.080 | -.174 to +.334 | 2 seeds |' in text
    assert '| right/seed=1 |' in text
    assert 'nothing' not in text
    assert text.startswith('# Trial\n\n2 runs are missing.\n')


def test_an_interval_wants_two_differences():
    assert paired([0.25]) == {'n': 1, 'mean': 0.25, 'interval': None}


def test_what_was_collected_counts_as_finished(runs, tmp_path):
    one = variant('a')
    study = study_of(one)
    planned = plan(study, runs, one)[0]
    assert runs.finished(planned) is None
    finish(runs, planned, 0.5)
    runs.collect(planned)
    elsewhere = StudyFolder(tmp_path / 'elsewhere', tmp_path / 'small')
    assert elsewhere.finished(planned).directory == runs.collected / 'a' / 'seed=0'
    assert len(outcome(study, elsewhere, one)['runs']) == 1


def test_a_run_of_other_settings_is_not_taken_for_this_one(runs):
    one = variant('a')
    study = study_of(one)
    finish(runs, plan(study, runs, one)[0], 0.5)
    changed = Variant('a', 'some.py', {'train.steps': 4})
    with pytest.raises(InputError, match=r'--config.train.steps=3 and not --config.train.steps=4'):
        outcome(study_of(changed), runs, changed)


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        ([], 'has no rows'),
        ([{'probe': 'linear', 'patches': 4, 'top1': 1}] * 2, 'has 2 rows'),
        ([{'probe': 'linear', 'patches': 4, 'top1': None}], 'has no top1'),
    ],
)
def test_a_measure_is_one_number(runs, rows, message):
    one = variant('a')
    study = study_of(one)
    planned = plan(study, runs, one)[0]
    finish(runs, planned, 0.5)
    Run.at(runs.workdir / planned.name).write_json('results.json', {'rows': rows})
    with pytest.raises(InputError, match=message):
        outcome(study, runs, one)


def test_the_shipped_studies_can_be_read(monkeypatch):
    files = sorted((REPOSITORY / 'configs' / 'studies').glob('*.py'))
    assert files
    for file in files:
        assert read_study(str(file)).variants


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('', 'KeyError'),
        ('1 / 0', 'ZeroDivisionError: division by zero'),
        ('def get_study(): return 3', r'does not return a bagssl_jax.studies.Study'),
        ('from bagssl_jax.studies import *\nget_study = lambda: Study((), (), ())', 'needs'),
    ],
)
def test_a_file_that_describes_no_study(tmp_path, text, message):
    file = tmp_path / 'it.py'
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_study(str(file))


FILE = f"""
from bagssl_jax.studies import Measure, Selection, Study, Variant

CONFIG, *ARGUMENTS = {TINY!r}
SETTINGS = dict(word.removeprefix('--config.').split('=', 1) for word in ARGUMENTS)
SETTINGS |= {{'optimizer.warmup_epochs': 0, 'train.steps': 4, 'augment.jitter': 0,
             'probe.probes': 'knn'}}


def get_study():
    where = {{'probe': 'knn', 'view': 'bag', 'patches': 4, 'encoder': 'trained', 'labels': 'all'}}
    return Study(
        variants=(
            Variant('fails', CONFIG.removeprefix('--config='), {{'no.such': 1}}),
            Variant(
                'works', CONFIG.removeprefix('--config='), SETTINGS,
                choices=('optimizer.learning_rate', (1e-3, 2e-3)),
                probes=({{'probe.views': 'whole'}},),
            ),
        ),
        seeds=(3,),
        measures=(
            Measure('kNN', '4', where),
            Measure('kNN', 'whole', {{**where, 'view': 'whole', 'patches': 1}}),
        ),
        selection=Selection({{'train.steps': 2}}, Measure('kNN', '4', where)),
    )
"""


@pytest.mark.slow
def test_a_study_is_stopped_goes_on_and_says_what_failed(tmp_path):
    file, workdir = tmp_path / 'it.py', tmp_path / 'study'
    file.write_text(FILE)
    words = [str(file), f'--workdir={workdir}', f'--collect={tmp_path / "small"}']
    process = start('study', *words)
    first = workdir / 'works' / 'learning_rate=0.001'
    while not (first / 'config.json').exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.splitlines()[-1] == (
        'stopped by SIGTERM: what was finished stays; the same command goes on'
    )
    status, out, err = run('study', *words)
    assert status == 3
    assert 'fails/seed=3: exit status 2: error: unknown key config.no.such' in err
    assert err.splitlines()[-1] == (
        '1 runs failed; the same command tries them again: fails/seed=3'
    )
    assert out.splitlines()[-1] == str(workdir / 'study.md')
    summary = json.loads((workdir / 'study.json').read_text())
    [_, works] = summary['variants']
    assert [one['choice'] for one in works['choices']] == [0.001, 0.002]
    [made] = works['runs']
    assert made['commands'][1].startswith('python -m bagssl_jax.probe --workdir=DIR')
    assert 'cores of' in made['device']
    assert summary['missing'] == 1
    small = {path.name for path in (tmp_path / 'small' / 'works' / 'seed=3').iterdir()}
    assert small >= {'config.json', 'metrics.jsonl', 'results.json', RECORD}
    # What was collected is enough for the tables.
    again = run('study', str(file), f'--workdir={tmp_path / "other"}', *words[2:], '--table')
    assert again[0] == 0
    assert 'works/seed=3' in (tmp_path / 'other' / 'study.md').read_text()


def test_tasks_may_write_the_tables_at_the_same_time(tmp_path, capsys):
    file, workdir = tmp_path / 'it.py', tmp_path / 'study'
    file.write_text(FILE)
    options = {'data_dir': '', 'collect': '', 'task': -1, 'tasks': 0, 'dry_run': False}

    def write(_):
        for _ in range(20):
            run_study(str(file), workdir=str(workdir), table=True, **options)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert json.loads((workdir / 'study.json').read_text())['missing'] > 0
    assert not list(workdir.glob('*.new'))


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('--workdir=DIR', '--task=1'), '--task and --tasks go together'),
        (('--workdir=DIR', '--task=2', '--tasks=2'), '--task=2 must be below --tasks=2'),
        ((), '--workdir is missing'),
        (('--workdir=gs://bucket/study',), 'needs a folder of this machine'),
    ],
)
def test_words_that_mean_nothing_are_refused(refusal, words, message):
    file = REPOSITORY / 'configs' / 'studies' / 'cifar10_scales.py'
    assert message in refusal('study', file, *words)


def test_a_file_that_is_not_there(refusal, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert refusal('study', 'none.py', '--workdir=DIR').startswith(
        'error: none.py: no such file; give one of configs/studies/cifar10_scales.py, '
    )
    assert refusal('study', '--workdir=DIR').startswith('error: FILE is missing')
