import copy
import subprocess
import sys

import pytest

from bagssl_jax import processes
from bagssl_jax.defaults import get_config
from bagssl_jax.errors import InputError
from bagssl_jax.runs import Run

CONFIG = get_config().to_dict()
DATA = {'images': 96, 'classes': ['a', 'b'], 'fingerprint': '12ab'}


def claim(directory, config, data=DATA):
    Run.at(directory).claim(config, data)


def changed(path, value):
    config = copy.deepcopy(CONFIG)
    *groups, key = path.split('.')
    group = config
    for name in groups:
        group = group[name]
    group[key] = value
    return config


def test_the_configuration_is_written_and_read(tmp_path):
    claim(tmp_path / 'new' / 'run', CONFIG)
    assert Run.at(tmp_path / 'new' / 'run').read_config() == CONFIG


@pytest.mark.parametrize('workdir', ['memory://run', 'http://host/run'])
def test_a_store_that_is_not_known_is_refused(workdir):
    with pytest.raises(InputError, match='is not a store of runs'):
        Run.at(workdir)


def test_the_same_configuration_may_come_again(tmp_path):
    claim(tmp_path, CONFIG)
    claim(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ('path', 'value', 'shown'),
    [
        ('data.name', 'cifar10', 'data.name=photos, not cifar10'),
        ('seed', 1, 'seed=0, not 1'),
        ('train.accumulate', 2, 'train.accumulate=1, not 2'),
        ('new', 3, 'new=None, not 3'),
    ],
)
def test_another_configuration_is_refused_and_nothing_is_lost(tmp_path, path, value, shown):
    claim(tmp_path, CONFIG)
    before = (tmp_path / 'config.json').read_text()
    with pytest.raises(InputError, match=shown):
        claim(tmp_path, changed(path, value))
    assert (tmp_path / 'config.json').read_text() == before


@pytest.mark.parametrize(('path', 'value'), [('data.workers', 2), ('probe.patches', (1,))])
def test_what_does_not_change_the_learning_may_differ(tmp_path, path, value):
    claim(tmp_path, CONFIG)
    claim(tmp_path, changed(path, value))
    assert Run.at(tmp_path).read_config() == changed(path, value)


@pytest.mark.parametrize(
    'path', ['encoder.tiny.width', 'optimizer.sgd.momentum', 'objective.vicreg.variance_weight']
)
def test_settings_of_what_is_not_chosen_may_differ(tmp_path, path):
    claim(tmp_path, CONFIG)
    claim(tmp_path, changed(path, 1))


@pytest.mark.parametrize(
    ('path', 'shown'),
    [
        ('encoder.resnet18.width', 'encoder.resnet18.width=64, not 1'),
        ('optimizer.lars.momentum', 'optimizer.lars.momentum=0.9, not 1'),
        ('objective.tcr.eps', 'objective.tcr.eps=0.2, not 1'),
    ],
)
def test_settings_of_what_is_chosen_may_not(tmp_path, path, shown):
    claim(tmp_path, CONFIG)
    with pytest.raises(InputError, match=shown):
        claim(tmp_path, changed(path, 1))


def test_another_choice_is_named_before_its_settings(tmp_path):
    claim(tmp_path, changed('optimizer.name', 'adamw'))
    with pytest.raises(InputError, match=r'optimizer.name=adamw, not lars'):
        claim(tmp_path, CONFIG)


@pytest.mark.parametrize('change', [{'images': 95}, {'classes': ['a']}, {'fingerprint': '0'}])
def test_other_images_are_refused(tmp_path, change):
    claim(tmp_path, CONFIG)
    with pytest.raises(InputError, match=r'not those that the run in .* began with \(96 then'):
        claim(tmp_path, CONFIG, {**DATA, **change})
    assert Run.at(tmp_path).read_data() == DATA


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='Not a directory: give another place'):
        claim(tmp_path / 'file' / 'run', CONFIG)


def test_a_directory_without_a_run_says_so(tmp_path):
    with pytest.raises(InputError, match='no run in'):
        Run.at(tmp_path).read_config()
    (tmp_path / 'config.json').write_text('{"seed": ')
    with pytest.raises(InputError, match=r'config.json is damaged'):
        Run.at(tmp_path).read_config()


class Drawing:
    def savefig(self, fname, *, format):
        fname.write(format.encode())


def test_a_run_may_be_remote(bucket):
    run = Run.at('s3://bucket/runs/one')
    run.claim(CONFIG, DATA)
    run.claim(CONFIG, DATA)
    run.write_figure('curve', Drawing())
    assert (run.read_config(), run.read_data()) == (CONFIG, DATA)
    assert bucket.cat_file('/bucket/runs/one/figures/curve.png') == b'png'
    names = [path.name for path in run.directory.iterdir()]
    assert sorted(names) == ['config.json', 'data.json', 'figures']


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    run = Run.at(tmp_path)
    run.write_json('results.json', {'rows': [1]})
    with pytest.raises(TypeError):
        run.write_json('results.json', {'rows': [2, object()]})
    assert run.read_json('results.json') == {'rows': [1]}
    assert [path.name for path in tmp_path.iterdir()] == ['results.json']


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, 'number', lambda: 1)
    Run.at(tmp_path).claim(CONFIG, DATA)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', ['config.json', 'data.json'])
@pytest.mark.parametrize('content', [b'', b'[]', b'\xff\xfe', b'{"seed": 0'])
def test_a_damaged_file_is_named(tmp_path, name, content):
    Run.at(tmp_path).claim(CONFIG, DATA)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f'{tmp_path}/{name} is damaged') as error:
        Run.at(tmp_path).claim(CONFIG, DATA)
    assert '\n' not in str(error.value)
    assert (tmp_path / name).read_bytes() == content


def test_reading_a_run_takes_no_jax(tmp_path):
    Run.at(tmp_path).claim(CONFIG, DATA)
    code = (
        f'import sys; from bagssl_jax.runs import Run; Run.at({str(tmp_path)!r}).read_json('
        '"config.json"); sys.exit("jax" in sys.modules)'
    )
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
