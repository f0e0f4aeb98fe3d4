import json

import cv2
import numpy as np
import pytest
from conftest import save_run
from matplotlib.figure import Figure
from tiny import TINY

from bagssl_jax.analysis import after_training, check_after_training, findings
from bagssl_jax.analysis.look import Look, Picture
from bagssl_jax.analysis.sample import take_sample
from bagssl_jax.command_line import parse
from bagssl_jax.data.datasets import Images, open_dataset
from bagssl_jax.data.folder import load_files
from bagssl_jax.errors import InputError
from bagssl_jax.runs import Run

SMALL = (
    '--what=convergence',
    '--config.analysis.convergence.patches=4',
    '--config.analysis.convergence.scales=(0.1,)',
    '--config.analysis.convergence.spaces=h,z',
    '--config.probe.whole_size=24',
)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
    """A run whose encoder another seed made."""
    return save_run(tmp_path_factory.mktemp('looks'), *TINY)


@pytest.fixture(scope='module')
def photographs(tmp_path_factory):
    """A folder of images of several sizes, at several depths; one of them is damaged."""
    folder = tmp_path_factory.mktemp('holiday')
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(40, 60), (60, 40), (50, 50), (90, 40)]):
        path = folder / ('below' if i % 2 else '') / f'{i}.png'
        path.parent.mkdir(exist_ok=True)
        assert cv2.imwrite(str(path), rng.integers(0, 256, (height, width, 3), np.uint8))
    (folder / 'below' / '4.png').write_bytes(b'damaged')
    return folder


def small_look(number):
    picture = Picture(Figure(figsize=(1, 1)), alt=f'A line at {number}.', caption='Read it so.')
    return Look([{'number': number}], f'number {number}', {'line': picture}, ('no z',))


def test_looks_stand_beside_each_other_and_replace_their_own(tmp_path):
    run = Run.at(tmp_path)
    about = {'dataset': 'photos', 'step': 7, 'images': 'photos train'}
    findings.write(run, small_look(1), name='one', **about)
    findings.write(run, small_look(2), name='two', **about)
    findings.write(run, small_look(3), name='one', **about)
    found = json.loads((tmp_path / 'analysis.json').read_text())
    assert (found['dataset'], found['step']) == ('photos', 7)
    assert {name: look['rows'] for name, look in found['looks'].items()} == {
        'one': [{'number': 3}],
        'two': [{'number': 2}],
    }
    one = found['looks']['one']
    assert (one['images'], one['table'], one['notes']) == ('photos train', 'number 3', ['no z'])
    [figure] = one['figures']
    assert figure == {
        'file': 'figures/one_line.png',
        'alt': 'A line at 3.',
        'caption': 'Read it so.',
    }
    assert (tmp_path / figure['file']).read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('other', [{'step': 9}, {'dataset': 'a/b'}])
def test_looks_of_another_step_or_data_set_are_moved_aside(tmp_path, other):
    run = Run.at(tmp_path)
    about = {'dataset': 'cifar/10', 'step': 7, 'images': 'cifar/10 train'}
    for name in ('one', 'two'):
        findings.write(run, small_look(1), name=name, **about)
    findings.write(run, small_look(2), name='one', **{**about, **other})
    now = findings.read(run)
    assert {name: look['rows'] for name, look in now['looks'].items()} == {'one': [{'number': 2}]}
    aside = json.loads((tmp_path / 'analysis-cifar-10-7.json').read_text())
    assert set(aside['looks']) == {'one', 'two'}
    assert aside['looks']['one']['rows'] == [{'number': 1}]
    assert aside['looks']['one']['figures'] == []  # whose files may be those of the present look


def test_damaged_findings_are_kept_and_said(tmp_path):
    (tmp_path / 'analysis.json').write_text('{"looks": []}')
    about = {'dataset': 'photos', 'step': 7, 'images': 'photos train'}
    with pytest.raises(InputError, match=r'analysis\.json is damaged: it holds no looks'):
        findings.write(Run.at(tmp_path), small_look(1), name='one', **about)
    assert (tmp_path / 'analysis.json').read_text() == '{"looks": []}'


def test_a_sample_is_of_one_size_and_leaves_out_what_cannot_be_read(photographs):
    images = Images('holiday', load_files(str(photographs)), in_memory=False).of_one_size(32)
    with pytest.raises(InputError, match=r'below/4\.png'):
        take_sample(images, 9, seed=0, on_error='stop')
    found = take_sample(images, 9, seed=0, on_error='skip')
    assert found.pixels.shape == (4, 32, 32, 3)
    assert found.names == ('0.png', '2.png', 'below/1.png', 'below/3.png')
    assert found.labels.tolist() == [-1] * 4
    tall = cv2.imread(str(photographs / 'below' / '1.png'))[..., ::-1]
    expected = cv2.resize(tall, (32, 48), interpolation=cv2.INTER_AREA)[8:40]
    np.testing.assert_array_equal(found.pixels[2], expected)
    two = take_sample(images, 2, seed=1, on_error='skip')
    again = take_sample(images, 2, seed=1, on_error='skip')
    assert two.names == again.names


@pytest.mark.parametrize('what', ['coocurrence', 'cooccurrence,', 'cooccurrence,map3'])
def test_an_unknown_look_lists_the_known(refusal, workdir, what):
    line = refusal('analyze', f'--workdir={workdir}', f'--what={what}')
    assert f'unknown --what {what.split(",")[-1]!r}: choose from ' in line
    assert 'cooccurrence' in line.partition('choose from')[2]


def test_a_workdir_without_a_checkpoint_is_refused(refusal, tmp_path, shrunk):
    (tmp_path / 'config.json').write_text(shrunk().to_json())
    assert 'no checkpoint' in refusal('analyze', f'--workdir={tmp_path}')


def test_a_folder_without_images_is_refused(refusal, workdir, tmp_path):
    line = refusal('analyze', f'--workdir={workdir}', f'--images={tmp_path}')
    assert f'{tmp_path} holds no image' in line


def test_looks_after_training_are_known_before_it(refusal, tmp_path):
    line = refusal('main', *TINY, f'--workdir={tmp_path}', '--config.analysis.after_training=mpa')
    assert "unknown analysis.after_training 'mpa': choose from convergence" in line


def test_looks_after_training_are_those_that_apply(tmp_path, capsys):
    looks = 'cooccurrence', 'convergence'
    save_run(tmp_path, *TINY, '--config.projector.widths=()')
    arguments = *SMALL[1:], f'--config.analysis.after_training={",".join(looks)}'
    argv = 'analyze', f'--workdir={tmp_path}', *arguments
    config, run = parse(list(argv), config_file=False, settable=('analysis', 'probe', 'data'))
    check_after_training(config)
    after_training(config, run, open_dataset(config.data))
    found = json.loads((tmp_path / 'analysis.json').read_text())['looks']
    assert {name: look['images'] for name, look in found.items()} == {
        'convergence': 'photos train[:96]'
    }
    assert 'cooccurrence is left out: this encoder has no projector' in capsys.readouterr().err


def test_an_imported_encoder_asks_for_images(refusal, tmp_path, shrunk):
    imported = {**shrunk('--config.data.name=').to_dict(), 'imported': {'file': 'resnet.pth'}}
    (tmp_path / 'config.json').write_text(json.dumps(imported))
    for program in ('analyze', 'probe'):
        line = refusal(program, f'--workdir={tmp_path}')
        assert 'has no images of its own: give --config.data.name=NAME' in line
    # Images that are asked for are taken, also the embedded ones.
    line = refusal('analyze', f'--workdir={tmp_path}', '--config.data.name=photos')
    assert 'no checkpoint' in line


def test_a_folder_of_photographs_is_looked_at_and_again_the_same(program, workdir, photographs):
    arguments = 'analyze', f'--workdir={workdir}', f'--images={photographs}', *SMALL
    status, out, err = program(*arguments)
    assert (status, out) == (2, f'{photographs.name}, step 3\n')
    assert err.count('below/4.png') == 1
    status, out, _ = program(*arguments, '--config.data.on_error=skip')
    assert status == 0
    directory = Run.at(workdir).directory
    first = (directory / 'analysis.json').read_text()
    found = json.loads(first)
    look = found['looks']['convergence']
    assert (found['dataset'], look['images'], found['step']) == (photographs.name,) * 2 + (3,)
    assert {row['images'] for row in look['rows']} == {4}
    assert {row['side'] for row in look['rows']} == {8}  # 0.1 of 24x24 is as large as the run's
    assert look['table'] in out
    pictures = [(directory / figure['file']).read_bytes() for figure in look['figures']]
    assert program(*arguments, '--config.data.on_error=skip')[:2] == (0, out)
    assert (directory / 'analysis.json').read_text() == first
    assert pictures == [(directory / figure['file']).read_bytes() for figure in look['figures']]


def test_without_a_projector_h_alone_is_looked_at(program, tmp_path, photographs):
    save_run(tmp_path, *TINY, '--config.projector.widths=()')
    images = f'--images={photographs}', '--config.data.on_error=skip'
    status, out, _ = program('analyze', f'--workdir={tmp_path}', *images, *SMALL)
    assert status == 0
    assert 'h alone: the encoder has no z' in out
    findings = json.loads((tmp_path / 'analysis.json').read_text())
    assert {row['space'] for row in findings['looks']['convergence']['rows']} == {'h'}


def test_looks_that_need_labels_are_refused_or_left_out(program, workdir, photographs):
    arguments = 'analyze', f'--workdir={workdir}', f'--images={photographs}'
    status, _, err = program(*arguments, '--what=scales')
    line = f'scales: it needs labels, and {photographs.name} has none'
    assert (status, err) == (2, f'error: --what={line}\n')
    status, _, err = program(*arguments, *SMALL[1:], '--config.data.on_error=skip')
    assert status == 0
    assert f'{line.replace(":", " is left out:")}\n' in err
    assert 'cooccurrence is left out: it takes a minute or more: ask for it by --what=' in err
