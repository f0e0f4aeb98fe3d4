"""launch/: what its scripts run, by stand-ins that write down how they were called.

Nothing here reaches a cloud or a cluster. What gcloud, kubectl and Slurm answer is as their
documentation has it.
"""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import sysconfig

import pytest
from conftest import REPOSITORY

LAUNCH = REPOSITORY / 'launch'
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch'), REPOSITORY / '.ci' / 'run'])
STAND_IN = """#!/usr/bin/env bash
{ printf '%s\\0' "${0##*/}" "$@"; echo; } >>"$CALLS"
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
        calls = self.calls_file.read_text().removesuffix('\0\n').split('\0\n')
        calls = [call.split('\0') for call in calls]
        return [words for words in calls if words[0] == name or (not name and words[0] != 'sleep')]

    def start(self, script, *arguments, **environment):
        return subprocess.Popen(
            ['bash', LAUNCH / script, *map(str, arguments)],
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
    process.communicate(timeout=20)
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
    assert any(f'worker.sh boot {WORKDIR}' in word for word in ssh[0])


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


@pytest.mark.parametrize('script', ['local.sh', 'tpu.sh'])
def test_help(stand_ins, script):
    for arguments in (('--help',), ('create', 'slice', '-h'))[: 1 + (script == 'tpu.sh')]:
        status, out, err = stand_ins.run(script, *arguments)
        assert (status, err) == (0, '')
        assert f'launch/{script}' in out
        named = set(re.findall(r'--[a-z-]+(?==|\))', (LAUNCH / script).read_text()))
        assert '--dry-run' in out
        assert len(named) > 2
