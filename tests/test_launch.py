"""launch/: what its scripts run, by stand-ins that write down how they were called.

Nothing here reaches a cloud or a cluster. What gcloud, kubectl and Slurm answer is as their
documentation has it.
"""

import configparser
import copy
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time

import pytest
import yaml
from conftest import REPOSITORY
from kubeflow_trainer_api import models
from packaging.requirements import Requirement

from bagssl_jax.processes import Place, find_place

LAUNCH = REPOSITORY / 'launch'
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch'), REPOSITORY / '.ci' / 'run'])
STAND_IN = """#!/usr/bin/env bash
# One write, for commands that run at the same time.
printf '%s\\0' "${0##*/}" "$@" $'\\n' >>"$CALLS"
# next FILE: its first line, which is then gone; the last one stays.
next() { head -n 1 "$FOLDER/$1"; [[ $(wc -l <"$FOLDER/$1") == 1 ]] || sed -i 1d "$FOLDER/$1"; }
ALL="$*"
"""


class StandIns:
    """Commands on the PATH that write down how they were called, and answer as they are told."""

    def __init__(self, folder):
        self.folder, self.calls_file = folder, folder / 'calls'
        self.path = folder / 'bin'
        self.path.mkdir()
        self.environment = {
            'PATH': f'{self.path}:{os.environ["PATH"]}',
            'CALLS': str(self.calls_file),
            'FOLDER': str(folder),
            'HOME': str(folder),
        }
        self.add('sleep')

    def add(self, name, answer='', **files):
        """A command, the lines of bash that answer, and files of lines that `next` takes from."""
        stand_in = self.path / name
        stand_in.write_text(STAND_IN + answer)
        stand_in.chmod(0o755)
        for file, lines in files.items():
            (self.folder / file).write_text(''.join(f'{line}\n' for line in lines))

    def calls(self, name=''):
        """The words of each call, in order, of the command of that name or of all but sleep."""
        if not self.calls_file.exists():
            return []
        calls = self.calls_file.read_text().removesuffix('\0\n\0').split('\0\n\0')
        calls = [call.split('\0') for call in calls]
        return [words for words in calls if words[0] == name or (not name and words[0] != 'sleep')]

    def start(self, script, *arguments, **environment):
        # Tests in the background ignore SIGINT, and what is ignored bash cannot trap.
        return subprocess.Popen(
            ['env', '--default-signal=INT', 'bash', LAUNCH / script, *map(str, arguments)],
            env={**os.environ, **self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )

    def run(self, script, *arguments, **environment):
        """Exit status, standard output, standard error."""
        process = self.start(script, *arguments, **environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.fixture
def stand_ins(tmp_path):
    return StandIns(tmp_path)


def refusal(result):
    status, out, err = result
    assert (status, out) == (2, '')
    assert err.startswith('error: ')
    assert err.count('\n') == 1
    return err


def test_shellcheck_finds_nothing():
    command = [pathlib.Path(sysconfig.get_path('scripts')) / 'shellcheck', *SCRIPTS]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout, found.stderr) == (0, '', '')
    assert len(SCRIPTS) > 4


# local.sh

TRAIN = ('--', '--config=configs/quickstart.py', '--workdir=runs/a b')


def test_local_becomes_the_training(stand_ins):
    stand_ins.add('python', 'echo "$JAX_COMPILATION_CACHE_DIR $CUDA_VISIBLE_DEVICES"; exit 143')
    status, out, _ = stand_ins.run(
        'local.sh', '--gpus=0,1', *TRAIN, JAX_COMPILATION_CACHE_DIR='/cache'
    )
    assert (status, out) == (143, '/cache 0,1\n')
    assert stand_ins.calls() == [['python', '-m', 'bagssl_jax.main', *TRAIN[1:]]]


def test_local_dry_run_can_be_typed(stand_ins):
    stand_ins.add('python')
    status, out, err = stand_ins.run('local.sh', '--dry-run', '--restarts=2', *TRAIN)
    assert (status, err, stand_ins.calls()) == (0, '', [])
    [line] = [line for line in out.splitlines() if not line.startswith('#')]
    subprocess.run(['bash', '-c', line], env=stand_ins.environment, check=True)
    assert stand_ins.calls() == [['python', '-m', 'bagssl_jax.main', *TRAIN[1:]]]


@pytest.mark.parametrize(
    ('statuses', 'last'),
    [([1, 137, 0], 0), ([1, 2], 2), ([1, 143], 143), ([1, 1, 134, 0], 134)],
)
def test_local_restarts_after_crashes_alone(stand_ins, statuses, last):
    stand_ins.add('python', 'exit "$(next statuses)"', statuses=statuses)
    status, _, err = stand_ins.run('local.sh', '--restarts=2', *TRAIN)
    starts = min(len(statuses), 3)
    assert (status, len(stand_ins.calls('python'))) == (last, starts)
    assert err.count('starting again') == starts - 1


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_on_and_waits(stand_ins, number):
    # Python's own handling of SIGINT, which a child in the background would ignore.
    program = """if 1:
        import signal, sys, time
        def stop(number, _):
            time.sleep(0.2)
            sys.exit(128 + number)
        signal.signal(signal.SIGTERM, stop)
        print('up', flush=True)
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            time.sleep(0.2)
            sys.exit(130)
    """
    stand_ins.add('python', f'exec {sys.executable} -c {shlex.quote(program)}')
    process = stand_ins.start('local.sh', '--restarts=2', *TRAIN)
    assert process.stdout.readline() == 'up\n'
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert len(stand_ins.calls('python')) == 1


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        ((), 'nothing to train'),
        (('--',), 'nothing to train'),
        (('--restarts=x', *TRAIN), '--restarts=x'),
        (('--gpus=a', *TRAIN), '--gpus=a'),
        (('--gpu=0', *TRAIN), "'--gpu=0' is no option"),
        (TRAIN[1:], 'what is for the training follows --'),
    ],
)
def test_local_refuses(stand_ins, arguments, word):
    assert word in refusal(stand_ins.run('local.sh', *arguments))


# tpu.sh

SLICE = ('slice', '--zone=us-central1-a', '--project=mine')
WORKDIR = 'gs://bucket/runs/one'
MAKE = ('--type=v5litepod-16', '--spot', f'--workdir={WORKDIR}')
RUN = ('--', '--config=configs/imagenet.py:patch32', "--config.data.train_split=train[:'9']")
NODE = ['--zone=us-central1-a', '--project=mine']


def gcloud(stand_ins, answer='', **files):
    """gcloud: what it is sent is kept, and `answer` is what else it does."""
    kept = '[[ $ALL != *"storage cp - "* ]] || cat >"$FOLDER/sent-${ALL##*/}"\n'
    stand_ins.add('gcloud', kept + answer, **files)


def verbs(stand_ins):
    """Of each call of gcloud, what it does."""
    known = ('storage cat', 'storage cp', 'storage rm', 'storage ls')
    known += tuple(f'queued-resources {verb}' for verb in ('create', 'delete', 'describe'))
    known += ('tpu-vm ssh', 'tpu-vm describe')
    lines = [' '.join(words) for words in stand_ins.calls('gcloud')]
    return [next(verb for verb in known if verb in line) for line in lines]


def flags(words, start):
    return sorted(word for word in words[start:] if word.startswith('-'))


def test_tpu_create(stand_ins):
    gcloud(stand_ins)
    status, out, _ = stand_ins.run(
        'tpu.sh', 'create', *SLICE, *MAKE, '--data=gs://bucket/tfds', '--gcloud=--reserved', *RUN
    )
    assert (status, out) == (0, '')
    *sends, created = stand_ins.calls('gcloud')
    assert verbs(stand_ins)[1:4] == ['storage cp'] * 3
    assert created[1:7] == [
        'compute',
        'tpus',
        'queued-resources',
        'create',
        'slice',
        '--node-id=slice',
    ]
    assert flags(created, 7) == sorted(
        [
            '--accelerator-type=v5litepod-16',
            '--runtime-version=v2-alpha-tpuv5-lite',
            '--spot',
            f'--metadata=bagssl-workdir={WORKDIR}',
            f'--metadata-from-file=startup-script={LAUNCH}/tpu_worker.sh',
            '--reserved',
            *NODE,
        ]
    )
    commit = git('rev-parse', 'HEAD')
    assert sends[1][-1] == f'{WORKDIR}/launch/code-{commit}.tar.gz'
    assert sends[2][-2:] == [str(LAUNCH / 'tpu_worker.sh'), f'{WORKDIR}/launch/worker.sh']
    assert sends[3][-1] == f'{WORKDIR}/launch/settings'
    assert git('get-tar-commit-id', tar=stand_ins.folder / f'sent-code-{commit}.tar.gz') == commit
    settings = shell(
        f'. {stand_ins.folder}/sent-settings; '
        'printf "%s\\n" "$CODE" "$DATA" "$CACHE" "${ARGUMENTS[@]}"'
    )
    assert settings == [sends[1][-1], 'gs://bucket/tfds', 'gs://bucket/runs/cache', *RUN[1:]]


def git(*words, tar=None):
    archive = subprocess.run(['gzip', '-dc', tar], capture_output=True).stdout if tar else None
    command = ['git', '-C', REPOSITORY, *words]
    return subprocess.run(command, input=archive, capture_output=True).stdout.decode().strip()


def shell(line):
    done = subprocess.run(['bash', '-euc', line], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    'command', ['create', 'setup', 'run', 'status', 'logs', 'ssh', 'stop', 'delete']
)
def test_tpu_dry_run_is_what_is_done(stand_ins, command):
    gcloud(stand_ins)
    arguments = [command, *SLICE]
    if command in ('create', 'setup', 'run', 'status', 'logs'):
        arguments += MAKE[2:] if command != 'create' else MAKE
    if command in ('create', 'run'):
        arguments += RUN
    status, out, _ = stand_ins.run('tpu.sh', *arguments[:2], '--dry-run', *arguments[2:])
    assert (status, stand_ins.calls()) == (0, [])
    environment = {**os.environ, **stand_ins.environment}
    subprocess.run(['bash', '-ec', out], env=environment, capture_output=True, check=True)
    typed = stand_ins.calls()
    stand_ins.calls_file.unlink()
    assert stand_ins.run('tpu.sh', *arguments)[0] == 0
    assert sorted(stand_ins.calls()) == sorted(typed)
    assert typed


def test_tpu_code_from_elsewhere(stand_ins):
    gcloud(stand_ins)
    where = ('--repository=https://host/code.git', '--commit=abc')
    assert stand_ins.run('tpu.sh', 'create', *SLICE, *MAKE, *where, *RUN)[0] == 0
    settings = (stand_ins.folder / 'sent-settings').read_text()
    assert 'CODE=https://host/code.git@abc\n' in settings


def test_tpu_quota_is_told(stand_ins):
    gcloud(
        stand_ins,
        '[[ $ALL != *create* ]] || { echo "ERROR: RESOURCE_EXHAUSTED: Quota" >&2; exit 1; }',
    )
    status, _, err = stand_ins.run('tpu.sh', 'create', *SLICE, *MAKE, *RUN)
    assert status == 1
    first, last = err.splitlines()[-2:]
    assert first == 'ERROR: RESOURCE_EXHAUSTED: Quota'
    assert last.startswith('error: slice was not created: see above; launch/tpu.sh watch')


def test_tpu_run_tries_again_where_ssh_fails_once(stand_ins):
    gcloud(stand_ins, '[[ $ALL != *ssh* ]] || exit "$(next ssh)"', ssh=[255, 0])
    status, _, err = stand_ins.run('tpu.sh', 'run', *SLICE, *MAKE[2:], *RUN)
    assert status == 0
    assert 'again in 10 s' in err
    ssh = [words for words in stand_ins.calls('gcloud') if 'ssh' in words]
    assert len(ssh) == 2
    assert '--worker=all' in ssh[0]
    assert any(f'sent.sh boot {WORKDIR}' in word for word in ssh[0])


def test_tpu_unreachable_worker_is_told(stand_ins):
    gcloud(stand_ins, '[[ $ALL != *ssh* ]] || exit 255')
    status, _, err = stand_ins.run('tpu.sh', 'run', *SLICE, *MAKE[2:], *RUN)
    assert status == 1
    assert err.splitlines()[-1].startswith('error: not every worker of slice did it')
    assert [words[1] for words in stand_ins.calls('sleep')] == ['10', '20']


WATCHED = r"""
case $ALL in
    *"storage cat"*ended*) grep -v '^-' <<<"$(next ended)" ;;
    *queued-resources\ describe*)
        state=$(next states)
        [[ $state != NONE ]] || { echo "ERROR: NOT_FOUND: Resource was not found" >&2; exit 1; }
        [[ $state != DOWN ]] || { echo "ERROR: network" >&2; exit 1; }
        echo "$state" ;;
    *tpu-vm\ describe*) next nodes ;;
    *create*)
        [[ $(next creates) == OK ]] || { echo "${ANSWER:-RESOURCE_EXHAUSTED}" >&2; exit 1; } ;;
esac
"""


def watch(stand_ins, *options, states, ended=('-',), nodes=('READY',), creates=('OK',), **more):
    gcloud(
        stand_ins, WATCHED, states=states, nodes=nodes, creates=creates,
        ended=[line.replace('RUN', number()) for line in ended],
    )  # fmt: skip
    status, _, err = stand_ins.run('tpu.sh', 'watch', *SLICE, *MAKE, *options, *RUN, **more)
    steps = [verb.partition(' ')[2] for verb in verbs(stand_ins) if 'queued' in verb]
    # Without --force, no slice with nodes is deleted; without --quiet, none unasked.
    deletes = [words for words in stand_ins.calls('gcloud') if 'delete' in words]
    assert all({'--force', '--quiet', *NODE} < {*words} for words in deletes)
    return status, err, [step for step in steps if step != 'describe']


def number():
    """Of the run that RUN starts, as the workers write it behind its end."""
    words = ' '.join(map(shlex.quote, RUN[1:]))
    return shell(f"printf '%s\\n' {words} | cksum | cut -d ' ' -f 1")[0]


def test_tpu_watch_recreates_what_is_preempted_until_the_run_is_done(stand_ins):
    status, err, steps = watch(
        stand_ins,
        states=['NONE', 'WAITING_FOR_RESOURCES', 'ACTIVE', 'SUSPENDING', 'SUSPENDED', 'ACTIVE'],
        ended=['-'] * 8 + ['RUN 0 0 trained to step 9'],
    )
    assert (status, steps) == (0, ['create', 'delete', 'create', 'delete'])
    assert 'SUSPENDED' in err
    assert err.splitlines()[-1].endswith('the run has ended: finished')


def test_tpu_watch_backs_off_while_there_is_no_quota(stand_ins):
    status, _, steps = watch(
        stand_ins, states=['NONE'] * 5 + ['ACTIVE'], creates=['NO'] * 5 + ['OK'],
        ended=['-'] * 7 + ['RUN 0 0 done'],
    )  # fmt: skip
    assert (status, steps) == (0, ['create'] * 5 + ['delete'])
    waits = [int(words[1]) for words in stand_ins.calls('sleep')]
    assert waits == [120, 240, 480, 900, 900, 60]


def test_tpu_watch_gives_up_on_what_no_time_mends(stand_ins):
    status, err, steps = watch(
        stand_ins, states=['NONE'], creates=['NO'], ANSWER='INVALID_ARGUMENT: no such type'
    )
    assert (status, steps) == (1, ['create'])
    assert 'INVALID_ARGUMENT: no such type\nerror: slice cannot be created' in err


def test_tpu_watch_survives_a_lost_network_and_sees_a_preempted_node(stand_ins):
    status, _, steps = watch(
        stand_ins, '--keep', states=['DOWN', 'DOWN', 'ACTIVE'], nodes=['PREEMPTED', 'READY'],
        ended=['-'] * 5 + ['RUN 0 0 done'],
    )  # fmt: skip
    assert (status, steps) == (0, ['delete', 'create'])


@pytest.mark.parametrize(
    ('end', 'renewals', 'said'),
    [('RUN 2 1 error: --config is missing', 0, '2 1 error: --config is missing'),
     ('RUN 1 0 Killed', 3, '1 0 Killed')],
)  # fmt: skip
def test_tpu_watch_ends_where_the_run_cannot_go_on(stand_ins, end, renewals, said):
    status, err, steps = watch(stand_ins, states=['ACTIVE'], ended=['-', '-', end])
    assert (status, steps) == (1, ['delete', 'create'] * renewals + ['delete'])
    assert err.splitlines()[-1].startswith(f'error: failed {said}')


def test_tpu_watch_takes_no_other_run_for_this_one(stand_ins):
    status, _, steps = watch(
        stand_ins, states=['ACTIVE'], ended=['123 0 0 done', '123 0 0 done', 'RUN 0 0 done']
    )
    assert (status, steps, len(stand_ins.calls('sleep'))) == (0, ['delete'], 1)


def test_tpu_watch_needs_a_run(stand_ins):
    gcloud(stand_ins, 'echo RUN=')
    status, _, err = stand_ins.run('tpu.sh', 'watch', *SLICE, *MAKE)
    assert status == 2
    assert 'nothing was launched' in err


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        (('paint',), "'paint' is no command"),
        ((), "'' is no command"),
        (('create', 'Slice_1'), "'Slice_1' cannot name a slice"),
        (('create', '--zone=a'), "'--zone=a' cannot name a slice"),
        (('delete', 'slice'), '--zone=ZONE is missing'),
        (('create', *SLICE, *MAKE[1:]), '--type=TYPE is missing'),
        (('create', *SLICE, '--type=v9-8', *MAKE[2:]), 'its --runtime'),
        (('create', *SLICE, *MAKE[:2]), '--workdir=gs://BUCKET/PATH is missing'),
        (('create', *SLICE, *MAKE[:2], '--workdir=runs/one'), '--workdir=runs/one'),
        (('create', *SLICE, *MAKE[:2], '--workdir=gs://bucket'), 'a path in the bucket'),
        (('create', *SLICE, *MAKE, '--data=/data'), '--data=/data'),
        (('create', *SLICE, *MAKE, '--commit=none'), '--commit=none'),
        (('create', *SLICE, *MAKE, '--repository=a'), '--repository needs --commit'),
        (('create', *SLICE, *MAKE, '--sopt'), "'--sopt' is no option"),
        (('create', *SLICE, *MAKE, '--'), 'nothing follows --'),
        (('run', *SLICE, *MAKE[2:]), 'nothing to train'),
        (('stop', *SLICE, '--', 'now'), 'stop takes nothing'),
        (('watch', *SLICE, *MAKE, '--every=0'), '--every=0'),
        (('ssh', *SLICE, '--worker=all'), '--worker=all'),
    ],
)
def test_tpu_refuses(stand_ins, arguments, word):
    gcloud(stand_ins)
    assert word in refusal(stand_ins.run('tpu.sh', *arguments))
    assert stand_ins.calls() == []


# tpu_worker.sh

WORKER = """
[[ $ALL != *"storage cat"*/launch/* ]] || cat "$FOLDER/sent-${ALL##*/}"
"""
# pip brings uv, which brings a Python, which trains.
PIP = """
for word; do [[ $word != --target=* ]] || tools=${word#*=}/bin; done
mkdir -p "$tools"; ln -sf "$(command -v uv)" "$tools/uv"
"""
UV = """
[[ $1 == venv ]] || exit 0
for last; do :; done
mkdir -p "$last/bin"; ln -s "$(command -v training)" "$last/bin/python"
"""


@pytest.fixture
def worker(stand_ins):
    """Commands of a worker, and what `tpu.sh run` has left on the bucket for it."""
    gcloud(stand_ins, WORKER)
    data = '--data=gs://bucket/tfds'
    assert stand_ins.run('tpu.sh', 'run', *SLICE, *MAKE[2:], data, *RUN)[0] == 0
    stand_ins.calls_file.unlink()
    stand_ins.environment['BAGSSL_ROOT'] = str(stand_ins.folder / 'root')
    stand_ins.add('curl', f'[[ $ALL == *worker-number ]] && echo 3 || echo {WORKDIR}')
    stand_ins.add('systemctl', 'exit "$(next active)"', active=[3])
    stand_ins.add('mountpoint', 'exit 1')
    stand_ins.add('training', 'exit "$(next statuses)"', statuses=[0])
    stand_ins.add('uv', UV)
    stand_ins.add('python3', PIP)
    for name in ('gcsfuse', 'systemd-run', 'umount'):
        stand_ins.add(name)
    return stand_ins


def test_worker_sets_itself_up_once_and_starts_the_run(worker):
    assert worker.run('tpu_worker.sh')[0] == 0
    root = worker.folder / 'root'
    bucket, cache = ['--implicit-dirs', '-o'], ['--only-dir=runs/cache', 'bucket', f'{root}/cache']
    data = ['--only-dir=tfds', 'bucket', f'{root}/data']
    mounts = [['gcsfuse', *bucket, 'rw', *cache], ['gcsfuse', *bucket, 'ro', *data]]
    assert worker.calls('gcsfuse') == mounts
    [install] = [words for words in worker.calls('uv') if 'pip' in words]
    assert f'{root}/code[tpu,gcs]' in install
    assert f'--constraints={root}/code/launch/constraints.txt' in install
    [unit] = worker.calls('systemd-run')
    assert '--property=KillMode=mixed' in unit
    assert unit[-3:] == ['/bin/bash', f'{root}/worker.sh', 'supervise']
    # After a reboot, all of that is there; other code is installed anew.
    assert worker.run('tpu_worker.sh')[0] == 0
    assert (len(worker.calls('uv')), len(worker.calls('systemd-run'))) == (2, 2)
    settings = worker.folder / 'sent-settings'
    [code] = worker.folder.glob('sent-code-*')
    code.rename(worker.folder / 'sent-code-2')
    settings.write_text(re.sub('code-.*', 'code-2', settings.read_text()))
    (root / 'code' / 'old').touch()
    assert worker.run('tpu_worker.sh')[0] == 0
    assert len(worker.calls('uv')) == 4
    assert not (root / 'code' / 'old').exists()


def test_worker_goes_on_without_a_cache_and_not_without_data(worker):
    worker.add('gcsfuse', '[[ $ALL != */cache ]]')
    assert worker.run('tpu_worker.sh')[0] == 0
    assert len(worker.calls('systemd-run')) == 1
    log = worker.folder / 'root' / 'run.log'
    assert log.read_text() == 'no compilation cache on the bucket\n'
    worker.add('gcsfuse', '[[ $ALL != */data ]] || { echo "no such bucket" >&2; exit 1; }')
    status, _, err = worker.run('tpu_worker.sh')
    assert (status, err) == (1, 'error: the setup failed: no such bucket\n')
    assert len(worker.calls('systemd-run')) == 1
    # Else launch/tpu.sh watch would wait for ever.
    assert (worker.folder / 'sent-ended-3').read_text() == f'{number()} 1 3 {err}'


def test_worker_tries_its_setup_again(worker):
    worker.add('python3', 'exit 1')
    worker.add('sleep', f'mv "$FOLDER/pip" {worker.path}/python3')
    (worker.folder / 'pip').write_text(STAND_IN + PIP)
    (worker.folder / 'pip').chmod(0o755)
    assert worker.run('tpu_worker.sh')[0] == 0
    assert [len(worker.calls(name)) for name in ('python3', 'sleep', 'systemd-run')] == [2, 1, 1]


def test_worker_is_asked_twice(worker):
    """As launch/tpu.sh does where another worker was not reached the first time."""
    assert worker.run('tpu_worker.sh', 'boot', 'gs://bucket/other')[0] == 0
    worker.add('systemctl', 'exit 0')
    assert worker.run('tpu_worker.sh', 'boot', 'gs://bucket/other')[0] == 0
    status, _, err = worker.run('tpu_worker.sh', 'boot', WORKDIR)
    assert (status, err.count('another run is under way')) == (1, 1)
    assert len(worker.calls('systemd-run')) == 1


@pytest.mark.parametrize(('statuses', 'end'), [([0], '0 3 said 0'), ([1, 137, 2], '2 3 said 2')])
def test_worker_supervises_and_tells_the_end(worker, statuses, end):
    worker.run('tpu_worker.sh', 'setup')
    worker.add('training', 's=$(next statuses); echo "said $s"; exit "$s"', statuses=statuses)
    status, _, _ = worker.run('tpu_worker.sh', 'supervise')
    assert status == statuses[-1]
    trained = worker.calls('python')[-1]
    data = f'--config.data.dir={worker.folder}/root/data'
    assert trained[1:] == ['-m', 'bagssl_jax.main', f'--workdir={WORKDIR}', *RUN[1:], data]
    assert len(worker.calls('python')) == len(statuses)
    assert (worker.folder / 'sent-ended-3').read_text() == f'{number()} {end}\n'
    assert any(words[-1] == f'{WORKDIR}/launch/logs/worker-3.log' for words in worker.calls())


def test_worker_passes_sigterm_on_and_tells_no_end(worker):
    worker.run('tpu_worker.sh', 'setup')
    worker.add(
        'training', 'trap "echo saved; exit 143" TERM; touch "$FOLDER/up"; read -t 30 <> <(:)'
    )
    process = worker.start('tpu_worker.sh', 'supervise')
    while not (worker.folder / 'up').exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert (worker.folder / 'root' / 'run.log').read_text() == 'saved\n'
    assert not (worker.folder / 'sent-ended-3').exists()


# slurm.sbatch


@pytest.fixture
def slurm(stand_ins):
    stand_ins.add('srun', 'exit "$(next statuses)"', statuses=[143])
    stand_ins.add('squeue', 'next state', state=['RUNNING'])
    stand_ins.add('scontrol')
    stand_ins.environment |= {'SLURM_JOB_ID': '12', 'SLURM_CPUS_PER_TASK': '8'}
    return stand_ins


def test_slurm_requeues_what_was_stopped(slurm):
    status, _, _ = slurm.run('slurm.sbatch', *TRAIN)
    assert status == 143
    [step] = slurm.calls('srun')
    assert step[-4:] == ['-m', 'bagssl_jax.main', *TRAIN[1:]]
    assert {'--gpu-bind=none', '--kill-on-bad-exit=0', '--cpus-per-task=8'} < set(step)
    assert slurm.calls('scontrol') == [['scontrol', 'requeue', '12']]


@pytest.mark.parametrize(
    ('status', 'state'), [(0, 'RUNNING'), (2, 'RUNNING'), (1, 'RUNNING'), (143, 'CANCELLED')]
)
def test_slurm_requeues_nothing_else(slurm, status, state):
    slurm.add('srun', f'exit {status}')
    slurm.add('squeue', f'echo {state}')
    assert slurm.run('slurm.sbatch', *TRAIN)[0] == status
    assert slurm.calls('scontrol') == []


def test_slurm_options_reach_sbatch():
    """sbatch reads the lines before the first command, and no others."""
    before = (LAUNCH / 'slurm.sbatch').read_text().partition('\nset -')[0]
    options = re.findall(r'^#SBATCH (\S+)$', before, re.MULTILINE)
    assert before.count('#SBATCH') == len(options)
    assert {'--requeue', '--signal=TERM@300', '--ntasks-per-node=8', '--gpus-per-node=8'} < {
        *options
    }


def test_slurm_refuses(stand_ins):
    assert 'no job of Slurm' in refusal(stand_ins.run('slurm.sbatch', *TRAIN))
    assert 'nothing to train' in refusal(stand_ins.run('slurm.sbatch', '--dry-run'))
    assert "'--nodes=2' is no option" in refusal(stand_ins.run('slurm.sbatch', '--nodes=2', *TRAIN))


# gke.sh, image.sh

TPUS = ('--accelerator=tpu-v5-lite-podslice', '--topology=4x8')
GPUS = ('--accelerator=nvidia-h100-80gb', '--hosts=2')
JOB = ('job', '--image=host/bagssl:1', f'--workdir={WORKDIR}', '--namespace=lab')
ODD = ('--', '--config=c.py', r"""--config.data.dir=/bucket/a "b" & 'c' \d""")


def applied(stand_ins, *arguments):
    """The objects that kubectl is given."""
    stand_ins.add('kubectl', '[[ $ALL != *apply* ]] || cat >"$FOLDER/manifest"')
    assert stand_ins.run('gke.sh', 'create', *JOB, *arguments, *ODD)[0] == 0
    assert stand_ins.calls() == [['kubectl', '--namespace=lab', 'apply', '-f', '-']]
    text = (stand_ins.folder / 'manifest').read_text()
    stand_ins.calls_file.unlink()
    return list(yaml.safe_load_all(text))


def check(model, content):
    """That the API's model takes the object, and knows all of its fields."""
    assert model.from_dict(content).to_dict() == content


@pytest.mark.parametrize(
    ('arguments', 'hosts', 'resource', 'devices'),
    [
        (TPUS, 8, 'google.com/tpu', 4),
        ((*TPUS[:1], '--topology=2x4', '--devices=8'), 1, 'google.com/tpu', 8),
        (GPUS, 2, 'nvidia.com/gpu', 8),
    ],
)
def test_gke_manifests_are_of_the_api(stand_ins, arguments, hosts, resource, devices):
    job_set, *others = applied(stand_ins, *arguments)
    check(models.JobsetV1alpha2JobSet, quantities_as_text(job_set))
    assert (job_set['kind'], job_set['metadata']['name']) == ('JobSet', 'job')
    [group] = job_set['spec']['replicatedJobs']
    job = group['template']['spec']
    assert (job['parallelism'], job['completions'], job['completionMode']) == (
        hosts,
        hosts,
        'Indexed',
    )
    pod = job['template']['spec']
    [container] = pod['containers']
    assert container['args'] == [f'--workdir={WORKDIR}', *ODD[1:]]
    assert container['resources']['limits'] == {resource: devices}
    assert container['image'] == 'host/bagssl:1'
    environment = {entry['name']: entry['value'] for entry in container['env']}
    assert environment.pop('JAX_COMPILATION_CACHE_DIR') == '/bucket/cache'
    # GKE's TPUs say themselves which of several a host is; elsewhere JAX has to be told to ask.
    place = find_place(
        {}, environment | {'TPU_WORKER_HOSTNAMES': 'a,b' if 'tpu' in resource else ''}
    )
    assert place == Place()
    assert pod['volumes'][0]['csi']['volumeAttributes']['bucketName'] == 'bucket'
    assert arguments[0].partition('=')[2] in pod['nodeSelector'].values()
    # A Job's failure policy wants pods that are not restarted in place.
    assert pod['restartPolicy'] == 'Never'
    assert job['podFailurePolicy']['rules'][0]['onExitCodes']['containerName'] == container['name']
    left = re.findall(
        r'\b[A-Z][A-Z_]+\b',
        re.sub('JAX_COMPILATION_CACHE_DIR|BAGSSL_PROCESSES', '', str([job_set, others])),
    )
    assert left == []
    if resource == 'nvidia.com/gpu':
        role, binding = others
        allowed = {name: rule['verbs'] for rule in role['rules'] for name in rule['resources']}
        assert allowed == {'pods': ['list'], 'services': ['list'], 'jobs': ['get']}
        assert binding['roleRef']['kind'] == role['kind'] == 'Role'
        assert binding['roleRef']['name'] == role['metadata']['name']
        assert binding['subjects'] == [{'kind': 'ServiceAccount', 'name': 'default'}]


def quantities_as_text(job_set):
    """As the API's server reads numbers of devices, which the models want written so."""
    job_set = copy.deepcopy(job_set)
    [container] = job_set['spec']['replicatedJobs'][0]['template']['spec']['template']['spec'][
        'containers'
    ]
    limits = container['resources']['limits']
    limits.update({name: str(number) for name, number in limits.items()})
    return job_set


def test_gke_dry_run_can_be_typed(stand_ins):
    expected = applied(stand_ins, *TPUS)
    status, out, _ = stand_ins.run('gke.sh', 'create', JOB[0], '--dry-run', *JOB[1:], *TPUS, *ODD)
    assert (status, stand_ins.calls()) == (0, [])
    environment = {**os.environ, **stand_ins.environment}
    subprocess.run(['bash', '-ec', out], env=environment, check=True)
    assert list(yaml.safe_load_all((stand_ins.folder / 'manifest').read_text())) == expected


def test_gke_unreachable_cluster_is_told(stand_ins):
    stand_ins.add('kubectl', 'echo "Unable to connect to the server" >&2; exit 1')
    for command in ('status', 'logs', 'delete'):
        status, _, err = stand_ins.run('gke.sh', command, 'job')
        assert status == 1
        assert err.splitlines()[-1] == 'error: job: kubectl failed, see above'


@pytest.mark.parametrize(
    ('arguments', 'word'),
    [
        (('run', 'job'), "'run' is no command"),
        (('create', 'Job'), "'Job' cannot name"),
        (('create', 'job', *JOB[2:], *TPUS, *ODD), '--image=... is missing'),
        (('create', *JOB, TPUS[0], *ODD), '--topology='),
        (('create', *JOB, *TPUS, '--devices=5', *ODD), 'of 32 chips, not of 5 a host'),
        (('create', *JOB, *TPUS, '--hosts=2', *ODD), '--hosts is for GPUs'),
        (('create', *JOB, *GPUS, '--devices=0', *ODD), '--devices=0'),
        (('create', *JOB, *GPUS), 'nothing to train'),
        (('create', *JOB, '--image=a b', *ODD), '--image=a b'),
    ],
)
def test_gke_refuses(stand_ins, arguments, word):
    stand_ins.add('kubectl')
    assert word in refusal(stand_ins.run('gke.sh', *arguments))
    assert stand_ins.calls() == []


def test_image_is_of_the_commit(stand_ins):
    stand_ins.add('docker', '[[ $ALL != build* ]] || cat >"$FOLDER/context"')
    image = ('--tag=host/bagssl:1', '--platform=tpu', '--push')
    status, out, _ = stand_ins.run('image.sh', *image, '--dry-run')
    assert (status, stand_ins.calls()) == (0, [])
    assert stand_ins.run('image.sh', *image)[0] == 0
    build, push = stand_ins.calls('docker')
    assert build[1:] == [
        'build', '--build-arg=PLATFORM=tpu', '--tag=host/bagssl:1', '--file=launch/Dockerfile', '-',
    ]  # fmt: skip
    assert push[1:] == ['push', 'host/bagssl:1']
    assert [line.rpartition('| ')[2].split() for line in out.splitlines()] == [build, push]
    with tarfile.open(stand_ins.folder / 'context') as context:
        names = context.getnames()
    dockerfile = (LAUNCH / 'Dockerfile').read_text()
    for copied in re.findall(r'^COPY (.*) \S+$', dockerfile, re.MULTILINE):
        assert set(copied.split()) <= {*names}


def test_image_failure_is_told(stand_ins):
    stand_ins.add('docker', 'echo "Cannot connect to the Docker daemon" >&2; exit 1')
    status, _, err = stand_ins.run('image.sh', '--tag=a', '--platform=cpu')
    assert status == 1
    assert err.splitlines()[-1].startswith('error: this failed: git')
    assert '--platform=gpu: give' in refusal(stand_ins.run('image.sh', '--tag=a', '--platform=gpu'))


def test_pinned_versions_are_what_is_wanted():
    """launch/constraints.txt pins all that setup.cfg names for an image, within its bounds."""
    lines = (LAUNCH / 'constraints.txt').read_text().splitlines()
    pins = dict(line.split('==') for line in lines if not line.startswith('#'))
    wanted = configparser.ConfigParser()
    wanted.read(REPOSITORY / 'setup.cfg')
    groups = [wanted['options']['install_requires']]
    groups += [wanted['options.extras_require'][name] for name in ('cuda', 'tpu', 'gcs', 'k8s')]
    for line in '\n'.join(groups).split():
        needed = Requirement(line)
        name = needed.name.lower().replace('_', '-')
        assert name in pins, f'launch/constraints.txt lacks {name}'
        assert needed.specifier.contains(pins[name])


def documented():
    """The commands of launch/ that README.md and launch/README.md show."""
    for path in (REPOSITORY / 'README.md', LAUNCH / 'README.md'):
        text = path.read_text().replace('\\\n', ' ')
        for line in re.findall(
            r'^    ((?:sbatch .*)?launch/\w+\.(?:sh|sbatch) .*)$', text, re.MULTILINE
        ):
            for word in ('NAME', 'BUCKET', 'REGISTRY'):
                line = line.replace(word, word.lower())
            yield shlex.split(line.partition('launch/')[2])


def test_what_the_documents_show_is_accepted(stand_ins):
    shown = [words for words in documented() if not words[0].startswith(('measure', 'local_p'))]
    assert len(shown) >= 6
    for script, *arguments in shown:
        place = arguments.index('--') if '--' in arguments else len(arguments)
        status, _, err = stand_ins.run(script, *arguments[:place], '--dry-run', *arguments[place:])
        assert status == 0, err


# All of them


@pytest.mark.parametrize('script', ['local.sh', 'tpu.sh', 'slurm.sbatch', 'gke.sh', 'image.sh'])
def test_help(stand_ins, script):
    for arguments in (('--help',), ('create', 'slice', '-h'))[: 1 + (script == 'tpu.sh')]:
        status, out, err = stand_ins.run(script, *arguments)
        assert (status, err) == (0, '')
        assert f'launch/{script}' in out
        named = set(re.findall(r'--[a-z-]+(?==|\))', (LAUNCH / script).read_text()))
        assert '--dry-run' in out
        assert len(named) > 2
