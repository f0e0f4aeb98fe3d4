"""Imported encoders beside the PyTorch models that they come from."""

import argparse
import os
import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file
from torchvision_weights import (
    BASIC,
    EMP_SSL_PROJECTOR,
    LAYOUTS,
    MEAN,
    STAGES,
    STD,
    flags,
    flat,
    images,
    imported_output,
    prefixed,
    weights,
)

import bagssl_jax
from bagssl_jax.errors import InputError
from bagssl_jax.interop import export_run, import_run
from bagssl_jax.interop.files import read_arrays

torch = pytest.importorskip('torch', reason="PyTorch is not installed: pip install '.[torch]'")
import safetensors.torch  # noqa: E402

nn = torch.nn


class Block(nn.Module):
    """torchvision's BasicBlock of two convolutions, or Bottleneck of three."""

    def __init__(self, inputs, inner, outputs, stride, kernels):
        super().__init__()
        channels = [inputs, *[inner] * (len(kernels) - 1), outputs]
        strided = kernels.index(3)  # version 1.5: on the 3x3 of a bottleneck
        self.layers = len(kernels)
        for i, kernel in enumerate(kernels):
            step = stride if i == strided else 1
            conv = nn.Conv2d(channels[i], channels[i + 1], kernel, step, kernel // 2, bias=False)
            self.add_module(f'conv{i + 1}', conv)
            self.add_module(f'bn{i + 1}', nn.BatchNorm2d(channels[i + 1]))
        self.downsample = None
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.layers + 1):
            y = getattr(self, f'bn{i}')(getattr(self, f'conv{i}')(y))
            y = torch.relu(y) if i < self.layers else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """torchvision's ResNet less its classifier, with any of the stems."""

    def __init__(self, name, *, width, stem):
        super().__init__()
        kernel, stride, padding = {
            'imagenet': (7, 2, 3),
            'cifar': (3, 1, 1),
            'cifar_pad2': (3, 1, 2),
        }[stem]
        self.conv1 = nn.Conv2d(3, width, kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == 'imagenet' else nn.Identity()
        kernels, expansion = ((1, 3, 1), 4) if name not in BASIC else ((3, 3), 1)
        inputs = width
        for stage, count in enumerate(STAGES[name]):
            inner = width * 2**stage
            blocks = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(Block(inputs, inner, inner * expansion, stride, kernels))
                inputs = inner * expansion
            self.add_module(f'layer{stage + 1}', nn.Sequential(*blocks))

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(4):
            x = getattr(self, f'layer{stage + 1}')(x)
        return x.mean((2, 3))


def torch_output(name, arrays, x, *, stem, mean, std):
    """Embeddings of pixels [n h w 3] by a PyTorch model that has loaded `arrays`."""
    model = ResNet(name, width=len(arrays['conv1.weight']), stem=stem).eval()
    model.load_state_dict({key: torch.tensor(value) for key, value in arrays.items()})
    x = (x - np.float32(mean)) / np.float32(std)
    with torch.no_grad():
        return model(torch.tensor(x.transpose(0, 3, 1, 2))).numpy()


def relative_error(name, *, width, stem, x):
    arrays = weights(name, width=width, stem=stem)
    settings = {'stem': stem, 'mean': MEAN, 'std': STD}
    expected = torch_output(name, arrays, x, **settings)
    return np.abs(imported_output(name, arrays, x, **settings) - expected).max() / expected.max()


@pytest.mark.parametrize('stem', ['cifar', 'cifar_pad2', 'imagenet'])
@pytest.mark.parametrize('name', ['resnet18', 'resnet34', 'resnet50'])
def test_outputs_equal_those_of_pytorch(name, stem):
    assert relative_error(name, width=4, stem=stem, x=images(stem)) < 1e-5


@pytest.mark.slow
def test_outputs_of_a_deep_one_equal_those_of_pytorch():
    assert relative_error('resnet101', width=4, stem='imagenet', x=images('imagenet')) < 1e-5


@pytest.mark.slow
def test_a_whole_resnet50_equals_that_of_pytorch():
    x = np.random.default_rng(2).random((2, 96, 96, 3)).astype(np.float32)
    assert relative_error('resnet50', width=64, stem='imagenet', x=x) < 1e-5


def test_pytorch_loads_what_an_export_wrote(tmp_path):
    arrays = weights('resnet18')
    save_file(arrays, tmp_path / 'in.safetensors')
    out = str(tmp_path / 'out.safetensors')
    import_run(**flags(tmp_path / 'run', checkpoint=str(tmp_path / 'in.safetensors')))
    export_run(workdir=str(tmp_path / 'run'), out=out)
    model = ResNet('resnet18', width=4, stem='imagenet')
    model.load_state_dict(safetensors.torch.load_file(out), strict=True)
    assert (model.layer3[1].bn2.running_var.numpy() == arrays['layer3.1.bn2.running_var']).all()


def to_torch(tree):
    if isinstance(tree, dict):
        return {key: to_torch(value) for key, value in tree.items()}
    return torch.tensor(tree) if isinstance(tree, np.ndarray) else tree


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('project', LAYOUTS)
def test_pickles_are_read_in_the_layout_of_every_project(tmp_path, project, zipped):
    saved = LAYOUTS[project][0](weights('resnet18'))
    path = tmp_path / 'checkpoint.pth.tar'
    # Before PyTorch 1.6, whose format the first of these projects wrote, it was no zip file.
    torch.save(to_torch(saved), path, _use_new_zipfile_serialization=zipped)
    arrays = read_arrays(str(path))
    assert arrays.keys() == flat(saved).keys()
    assert all((arrays[name] == value).all() for name, value in flat(saved).items())


@pytest.mark.parametrize('numpy', [b'numpy._core', b'numpy.core'])  # of version 2, and of 1
def test_settings_and_numbers_beside_the_arrays_are_harmless(tmp_path, numpy):
    path = tmp_path / 'checkpoint.pth'
    beside = {'args': argparse.Namespace(lr=0.3), 'best': np.float64(0.7), 'step': np.int64(3)}
    saved = {'model': {'x': torch.ones(2)}, **beside}
    torch.save(saved, path, _use_new_zipfile_serialization=False)
    assert b'numpy._core' in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(b'numpy._core', numpy))
    assert read_arrays(str(path)).keys() == {'model.x'}


def test_half_precision_is_widened(tmp_path):
    path = str(tmp_path / 'checkpoint.pth')
    torch.save({'x': torch.tensor([1.5], dtype=torch.bfloat16), 'n': torch.tensor(3)}, path)
    arrays = read_arrays(path)
    assert arrays['x'].dtype == np.float32
    assert arrays['x'] == 1.5
    assert arrays['n'] == 3


def test_bfloat16_is_read_without_pytorch_too(tmp_path):
    path = str(tmp_path / 'checkpoint.safetensors')
    safetensors.torch.save_file({'x': torch.tensor([1.5], dtype=torch.bfloat16)}, path)
    assert read_arrays(path)['x'].astype(np.float32) == 1.5


def keeps(parameter):
    """As VICReg's exclude_bias_and_norm, which its optimiser's state names."""
    return parameter.ndim > 1


class Runs:
    """Whose unpickling would run a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


class Settings(dict):
    """A class of the project's own, that holds arrays."""


@pytest.mark.parametrize('zipped', [True, False])
def test_what_is_no_array_is_passed_over_and_not_run(tmp_path, zipped):
    path, mark = tmp_path / 'checkpoint.pth', tmp_path / 'mark'
    groups = [{'lr': 0.0, 'weight_decay_filter': keeps}]
    saved = {
        'model': {'x': torch.ones(2)},
        'optimizer': {'state': {0: {'mu': torch.ones(3)}}, 'param_groups': groups},
        'where': [pathlib.Path('x'), Runs(f'touch {mark}')],
        'settings': Settings(y=torch.ones(1)),
    }
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    arrays = read_arrays(str(path))
    assert arrays.keys() == {'model.x', 'optimizer.state.0.mu', 'settings.y'}
    assert not mark.exists()


def test_hidden_layers_and_projections_equal_those_of_pytorch(tmp_path):
    arrays = prefixed('module.backbone.', weights('resnet18', stem='cifar')) | EMP_SSL_PROJECTOR
    save_file(arrays, tmp_path / 'x.safetensors')
    import_run(**flags(tmp_path / 'run', checkpoint=str(tmp_path / 'x.safetensors')))
    encoder = bagssl_jax.load(str(tmp_path / 'run'))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)

    def block():
        return [nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU()]

    first, second = block(), block()
    second[0] = nn.Linear(16, 16)
    heads = nn.ModuleDict(
        {
            'pre_feature': nn.Sequential(*first),
            'projection': nn.Sequential(*second, nn.Linear(16, 8)),
        }
    ).eval()
    heads.load_state_dict(
        {key.removeprefix('module.'): torch.tensor(x) for key, x in EMP_SSL_PROJECTOR.items()}
    )

    def embedded(space):
        # One patch: the image as it is.
        return encoder.embed(pixels, patches=1, space=space)

    with torch.no_grad():
        hidden = heads['pre_feature'](torch.tensor(embedded('h')))
        z = heads['projection'](hidden)
    np.testing.assert_allclose(embedded('hidden1'), hidden.numpy(), atol=1e-5)
    np.testing.assert_allclose(embedded('z'), z.numpy(), atol=1e-5)


def test_what_is_no_pickle_is_refused(tmp_path):
    path = tmp_path / 'checkpoint.pth'
    path.write_bytes(b'<html>not found</html>')
    with pytest.raises(InputError, match='damaged, or was not written by torch') as error:
        read_arrays(str(path))
    assert '\n' not in str(error.value)
