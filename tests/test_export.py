import json
import sys

import numpy as np
import pytest
import timm_weights
import torchvision_weights
from conftest import REPOSITORY, save_run
from safetensors.numpy import load_file, save_file
from torchvision_weights import MEAN, STD, flags

import bagssl_jax
from bagssl_jax import command_line
from bagssl_jax.interop import export_run, import_run
from bagssl_jax.interop.onnx_graph import onnx_bytes
from bagssl_jax.interop.vit import settings_of
from bagssl_jax.models import make_encoder
from bagssl_jax.runs import Run

CHANNELS_FIRST = (0, 3, 1, 2)
SHALLOW = ('--config.encoder.name=shallow', '--config.encoder.width=4')
VIT_FLAGS = (
    '--config.encoder.name=vit_ti',
    '--config.encoder.width=8',
    '--config.encoder.depth=2',
    '--config.encoder.heads=2',
    '--config.encoder.patch=4',
    '--config.encoder.image_size=16',
)


def vit_run(workdir, *, class_token, pool):
    return save_run(
        workdir,
        *VIT_FLAGS,
        f'--config.encoder.class_token={class_token}',
        f'--config.encoder.pool={pool}',
    )


def resnet_run(workdir, stem, width=64):
    """A run that has imported a ResNet-18, as wide as timm's."""
    file = str(workdir.with_suffix('.safetensors'))
    save_file(torchvision_weights.weights('resnet18', stem=stem, width=width), file)
    import_run(**flags(workdir, checkpoint=file, arch='resnet18', stem=stem))
    return workdir


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """Workdirs of an encoder of each kind, of width 4 where it is no ViT."""
    place = tmp_path_factory.mktemp('small')
    return {
        'resnet': resnet_run(place / 'resnet', 'imagenet', width=4),
        'tiny': save_run(place / 'tiny', '--config.encoder.width=4'),
        'shallow': save_run(place / 'shallow', *SHALLOW),
        'stages': save_run(place / 'stages', *SHALLOW, '--config.encoder.pool=stages'),
        'vit': vit_run(place / 'vit', class_token=True, pool='class'),
    }


def frozen(workdir):
    return bagssl_jax.load(str(workdir)).with_chunk(8)


def session_of(content):
    """What onnxruntime makes of a model's bytes."""
    onnxruntime = pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
    return onnxruntime.InferenceSession(content)


def run_session(session, images):
    """h of images [n h w 3] in [0, 1]."""
    [h] = session.run(None, {'images': images.transpose(CHANNELS_FIRST)})
    return h


@pytest.mark.parametrize('of', ['resnet', 'tiny', 'shallow', 'stages', 'vit'])
def test_a_run_in_onnx_is_its_frozen_encoder(small, tmp_path, of):
    out = tmp_path / 'x.onnx'
    pytest.importorskip('onnx')
    export_run(workdir=str(small[of]), out=str(out))
    session, encoder = session_of(out.read_bytes()), frozen(small[of])
    for count in (1, 3):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 1, 16, 16, 3), np.uint8)
        expected = np.asarray(encoder.embed_bags(pixels)['h'])[:, 0]
        h = run_session(session, pixels[:, 0] / np.float32(255))
        assert (h.shape, h.dtype) == (expected.shape, np.float32)
        assert np.abs(h - expected).max() <= 1e-5 * np.abs(expected).max()
    [images], [h] = session.get_inputs(), session.get_outputs()
    size = [16, 16] if of == 'vit' else ['height', 'width']
    assert (images.name, images.shape) == ('images', ['batch', 3, *size])
    assert (h.name, h.shape[0], h.type) == ('h', 'batch', 'tensor(float)')
    notes = session.get_modelmeta().custom_metadata_map
    known = {'resnet': ('resnet18', '0'), 'stages': ('shallow', '3'), 'vit': ('vit_ti', '3')}
    assert (notes['name'], notes['step']) == known.get(of, (of, '3'))


@pytest.mark.parametrize(('name', 'stem', 'padding', 'expected'), torchvision_weights.OUTPUTS)
def test_resnets_in_onnx_give_what_pytorch_gave(name, stem, padding, expected):
    pytest.importorskip('onnx')
    arrays = torchvision_weights.weights(name, stem=stem)
    settings = {'width': 4, 'stem': padding, 'zero_init_last': False}
    encoder = make_encoder(name, settings, dtype='float32', mean=MEAN, std=STD)
    h = run_session(session_of(onnx_bytes(encoder, arrays, {})), torchvision_weights.images(stem))
    np.testing.assert_allclose(h[1, : len(expected)], expected, atol=1e-5)


@pytest.mark.parametrize('kind', timm_weights.TIMM)
def test_vits_in_onnx_give_what_timm_gave(kind):
    pytest.importorskip('onnx')
    arrays = timm_weights.weights_of(*kind)
    settings = settings_of(arrays, heads=2)
    encoder = make_encoder('vit_ti', settings, dtype='float32', mean=MEAN, std=STD)
    h = run_session(session_of(onnx_bytes(encoder, arrays, {})), timm_weights.images((16, 16)))
    np.testing.assert_allclose(h[1, :5], timm_weights.OUTPUTS[kind, (16, 16)], atol=1e-5)


@pytest.fixture(scope='module')
def timm():
    return pytest.importorskip('timm', reason='timm is not installed')


def timm_output(model, images):
    """Of images [n h w 3] in [0, 1], which are standardised as config.json says."""
    torch = pytest.importorskip('torch')
    shape = (1, 3, 1, 1)
    mean, std = (np.float32(model.pretrained_cfg[key]).reshape(shape) for key in ('mean', 'std'))
    with torch.no_grad():
        x = (images.transpose(CHANNELS_FIRST) - mean) / std
        return model.eval()(torch.from_numpy(x)).numpy()


def check_timm(model, workdir, size):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, *size, 3), np.uint8)
    expected = np.asarray(frozen(workdir).embed_bags(pixels)['h'])[:, 0]
    h = timm_output(model, pixels[:, 0] / np.float32(255))
    np.testing.assert_allclose(h, expected, atol=2e-5 * np.abs(expected).max(), rtol=0)


def test_timm_loads_the_folder_of_a_resnet(tmp_path, timm):
    workdir = resnet_run(tmp_path / 'run', 'imagenet')
    folder = tmp_path / 'folder'
    export_run(workdir=str(workdir), out=f'{folder}/')
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert model.num_classes == 0
    check_timm(model, workdir, (45, 39))
    by_file = timm.create_model(
        'resnet18', num_classes=0, checkpoint_path=str(folder / 'model.safetensors')
    )
    for name, tensor in by_file.state_dict().items():
        assert (tensor == model.state_dict()[name]).all()
    cfg = timm.data.resolve_data_config({}, model=model)
    assert [*map(tuple, (cfg['input_size'], cfg['mean'], cfg['std']))] == [(3, 224, 224), MEAN, STD]


@pytest.mark.parametrize('kind', timm_weights.TIMM)
def test_timm_loads_the_folder_of_a_vit(tmp_path, timm, kind):
    class_token, pool = kind
    workdir = vit_run(tmp_path / 'run', class_token=class_token, pool=pool)
    export_run(workdir=str(workdir), out=str(tmp_path / 'folder'))
    model = timm.create_model(f'local-dir:{tmp_path / "folder"}', pretrained=True)
    assert model.state_dict().keys() == timm_weights.weights_of(*kind).keys()
    check_timm(model, workdir, (16, 16))


def test_timm_and_the_lines_of_the_card_make_a_resnet_for_small_images(tmp_path, timm):
    workdir, folder = resnet_run(tmp_path / 'run', 'cifar_pad2'), tmp_path / 'folder'
    export_run(workdir=str(workdir), out=str(folder))
    code = (folder / 'README.md').read_text().split('```python\n')[1].split('\n```')[0]
    made = {}
    exec(code.split('\nh = ')[0].replace('FOLDER', str(folder)), made)
    config = json.loads((folder / 'config.json').read_text())
    made['model'].pretrained_cfg = config['pretrained_cfg']
    check_timm(made['model'], workdir, (12, 12))


@pytest.mark.slow
def test_the_folder_of_a_resnet_for_small_images(tmp_path):
    workdir, folder = resnet_run(tmp_path / 'run', 'cifar'), tmp_path / 'folder'
    export_run(workdir=str(workdir), out=str(folder))
    config = json.loads((folder / 'config.json').read_text())
    assert (config['architecture'], config['stem']) == ('resnet18', 'cifar')
    assert (config['num_features'], config['num_classes']) == (512, 0)
    assert config['pretrained_cfg']['input_size'] == [3, 32, 32]
    card = (folder / 'README.md').read_text()
    assert 'torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)' in card
    assert 'Imported from run.safetensors' in card
    assert '```sh' not in card  # that trained it
    first = load_file(tmp_path / 'run.safetensors')
    again = load_file(folder / 'model.safetensors')
    assert all((x == first[name]).all() for name, x in again.items())
    assert {name for name in first if not name.endswith('num_batches_tracked')} == again.keys()


@pytest.fixture(scope='module')
def folder_of_a_training(tmp_path_factory):
    """The folder of a ViT, and its run, which has been probed."""
    place = tmp_path_factory.mktemp('training')
    workdir = save_run(place / 'run', *VIT_FLAGS, '--config.data.dir=/home/me')
    row = {'view': 'bag', 'patches': 4, 'space': 'h', 'aggregation': 'mean', 'labels': 'all'}
    row |= {'n_train': 96, 'n_test': 40, 'encoder': 'trained'}
    rows = [
        row | {'probe': 'linear', 'top1': 0.625, 'interval': [0.4579, 0.7690]},
        row | {'probe': 'rankme', 'top1': None, 'value': 9.5},
        row | {'probe': 'knn', 'top1': 0.25, 'labels': '1%'},
        row | {'probe': 'linear', 'top1': 0.5, 'view': 'whole', 'patches': 1},
    ]
    Run.at(workdir).write_json('results.json', {'dataset': 'photos', 'step': 3, 'rows': rows})
    export_run(workdir=workdir, out=f'{place}/folder')
    return place / 'folder', workdir


def test_the_model_card_says_what_was_trained_and_found(folder_of_a_training):
    card = (folder_of_a_training[0] / 'README.md').read_text()
    front = card.split('---\n')[1]
    assert 'library_name: timm\n' in front
    assert '\nlicense:' not in front
    assert 'Top-1 in percent on 40 test images of photos, 96 to learn from, with' in card
    assert '| trained | 4 patches | h | 62.5 (45.8 to 76.9) |' in card
    assert '| trained | whole | h | 50.0 |' in card
    assert '25.0' not in card
    assert '- Objective: ' in card
    assert 'after step 3;' in card


def test_the_command_of_the_model_card_trains_the_same(folder_of_a_training):
    folder, workdir = folder_of_a_training
    command = (folder / 'README.md').read_text().split('```sh\n')[1].split('\n```')[0]
    assert '/home/me' not in command
    words = command.replace('\\\n', '').replace('configs/', f'{REPOSITORY}/configs/').split()
    config, _ = command_line.parse(words[2:], config_file=True)
    assert Run.at(workdir).difference({'config': config.to_dict(), 'data': None}) is None


def test_a_folder_is_imported_again(folder_of_a_training, tmp_path):
    folder, workdir = folder_of_a_training
    import_run(**flags(tmp_path / 'run', checkpoint=str(folder / 'model.safetensors'), arch=''))
    kernels = [
        frozen(of).variables['encoder']['params']['embed']['kernel']
        for of in (tmp_path / 'run', workdir)
    ]
    assert (np.asarray(kernels[0]) == np.asarray(kernels[1])).all()


@pytest.mark.parametrize(
    ('of', 'out', 'message'),
    [
        ('resnet', 'x.pth', 'x.pth: give FILE.onnx, FILE.safetensors, or FOLDER/'),
        ('resnet', 'ftp://x/y.onnx', 'ftp:// is not a store: give a local place, s3://'),
        ('resnet', '', '--out is missing: give --out=FILE.onnx'),
        ('resnet', 'folder', "resnet18 of width 4, and timm's have 64: give --out=FILE.safet"),
        ('resnet', 'full/', 'holds files already: give another folder, or empty it'),
        ('resnet', 'full/there/x.onnx', 'cannot be written'),
        ('tiny', 'x.safetensors', 'encoder named tiny, which PyTorch has no name for: give --out='),
        ('tiny', 'folder', 'resnet18, resnet34, resnet50'),
        ('', 'x.onnx', '--workdir is missing'),
        ('nowhere', 'x.onnx', 'no run in'),
    ],
)
def test_what_cannot_be_exported_is_one_line(refusal, small, tmp_path, of, out, message):
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'there').write_text('')
    out = f'{tmp_path}/{out}' if out and '://' not in out else out
    workdir = of and small.get(of, tmp_path / of)
    assert message in refusal('export', f'--workdir={workdir}', f'--out={out}')
    assert [path.name for path in tmp_path.iterdir()] == ['full']


def test_without_onnx_it_says_what_to_install(refusal, small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnx', None)
    arguments = f'--workdir={small["tiny"]}', f'--out={tmp_path}/x.onnx'
    assert "pip install '.[onnx]'" in refusal('export', *arguments)


def test_the_program_says_what_it_wrote(program, small, tmp_path):
    pytest.importorskip('onnx')
    out = tmp_path / 'x.onnx'
    status, said, _ = program('export', f'--workdir={small["tiny"]}', f'--out={out}')
    assert (status, out.exists()) == (0, True)
    assert said.startswith(f'{out}: step 3, tiny of width 4, ')
    assert '--out=FOLDER/' in program('export', '--help')[1]
