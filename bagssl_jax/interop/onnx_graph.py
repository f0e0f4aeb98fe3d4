"""Encoders as ONNX graphs, written in ONNX's own operators.

Every encoder is written out once more here. The converters ask for no such thing, but jax2onnx
0.17 wants an Orbax older than checkpoints are written with, and fails at max-pooling; torch.onnx
would want the same networks in PyTorch, and PyTorch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from bagssl_jax.errors import InputError
from bagssl_jax.interop.names import Arrays
from bagssl_jax.interop.vit import EMBEDDING
from bagssl_jax.models import norms
from bagssl_jax.models.resnet import ResNet, Tiny
from bagssl_jax.models.shallow import Shallow
from bagssl_jax.models.vit import EPSILON, ViT

OPSET, IR_VERSION = 17, 8  # of 2022, with LayerNormalization: what other programs read
INPUT = 'RGB in [0, 1], [b 3 h w]: mean and deviation are in the graph'


def onnx_bytes(encoder: nn.Module, arrays: Arrays, notes: Mapping[str, str]) -> bytes:
    """A model with the input `images`, float32 [b 3 h w] in [0, 1], and the output `h` [b d].

    Args:
      encoder: of any kind. Its dtype is taken for float32.
      arrays: its own, with torchvision's names, or timm's.
      notes: metadata.

    Raises:
      InputError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise InputError("--out=FILE.onnx needs onnx: pip install '.[onnx]'") from None
    graph = _Graph(onnx, arrays)
    pixels = (np.reshape(np.float32(x), (1, 3, 1, 1)) for x in (encoder.mean, encoder.std))
    mean, std = (graph.constant(x) for x in pixels)
    x = graph.add('Div', graph.add('Sub', 'images', mean), std)
    h = _WRITERS[type(encoder)](graph, encoder, x)
    graph.add('Identity', h, name='h')
    is_vit = isinstance(encoder, ViT)  # whose positions are of one size
    size = (_vit_side(encoder, arrays),) * 2 if is_vit else ('height', 'width')
    return graph.model(size, notes).SerializeToString()


class _Graph:
    """Nodes, each with one output, and the constants they take."""

    def __init__(self, onnx: Any, arrays: Arrays):
        self._onnx = onnx
        self._nodes = []
        self.arrays = arrays
        self._constants = {}

    def add(self, op: str, *inputs: str, name: str = '', **attributes: Any) -> str:
        """The name of a node's output. Inputs are such names, or those of arrays."""
        name = name or f'{op.lower()}{len(self._nodes)}'
        self._constants |= {x: self.arrays[x] for x in inputs if x in self.arrays}
        self._nodes.append(self._onnx.helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def constant(self, value: np.ndarray, name: str = '') -> str:
        """The name of a constant."""
        name = name or f'constant{len(self._constants)}'
        self._constants[name] = value
        return name

    def shape(self, *sizes: int) -> str:
        """The name of a constant that is a shape."""
        return self.constant(np.array(sizes, np.int64))

    def model(self, size: tuple[int | str, int | str], notes: Mapping[str, str]) -> Any:
        """The checked model, whose inputs have this height and width."""
        helper, kind = self._onnx.helper, self._onnx.TensorProto.FLOAT
        constants = [
            self._onnx.numpy_helper.from_array(np.array(x, order='C'), name)
            for name, x in self._constants.items()
        ]
        made = helper.make_graph(
            self._nodes,
            'encoder',
            [helper.make_tensor_value_info('images', kind, ['batch', 3, *size], INPUT)],
            [helper.make_tensor_value_info('h', kind, ['batch', None])],
            constants,
        )
        model = helper.make_model(
            made,
            producer_name='bagssl_jax',
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid('', OPSET)],
        )
        helper.set_model_props(model, dict(notes))
        model = self._onnx.shape_inference.infer_shapes(model, strict_mode=True)
        self._onnx.checker.check_model(model)
        return model


def _tiny(graph: _Graph, encoder: Tiny, x: str) -> str:
    for i in range(1, 5):
        x = _conv(graph, x, f'conv{i}', stride=1 if i == 1 else 2)
        x = graph.add('Relu', _batch_norm(graph, x, f'bn{i}'))
    return _mean_of_map(graph, x)


def _shallow(graph: _Graph, encoder: Shallow, x: str) -> str:
    x = _conv(graph, x, 'whitening', stride=1)
    x = graph.add('Relu', graph.add('Concat', x, graph.add('Neg', x), axis=1))
    maps = []
    for i in range(1, 4):
        x = graph.add('Relu', _batch_norm(graph, _conv(graph, x, f'conv{i}', stride=2), f'bn{i}'))
        maps.append(x)
    if encoder.pool == 'last':
        return _mean_of_map(graph, x)
    return graph.add('Concat', *(_mean_of_map(graph, x) for x in maps), axis=1)


def _resnet(graph: _Graph, encoder: ResNet, x: str) -> str:
    padding, stride = {'cifar': (1, 1), 'cifar_pad2': (2, 1), 'imagenet': (3, 2)}[encoder.stem]
    x = _conv(graph, x, 'conv1', stride=stride, padding=padding)
    x = graph.add('Relu', _batch_norm(graph, x, 'bn1'))
    if encoder.stem == 'imagenet':
        x = graph.add('MaxPool', x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    convolutions = 3 if encoder.bottleneck else 2
    for stage, blocks in enumerate(encoder.stages):
        for i in range(blocks):
            block = f'layer{stage + 1}.{i}'
            stride = 2 if stage > 0 and i == 0 else 1
            y = x
            for n in range(1, convolutions + 1):
                # Of a bottleneck, the 3x3 convolution has the stride.
                is_strided = n == convolutions - 1
                y = _conv(graph, y, f'{block}.conv{n}', stride=stride if is_strided else 1)
                y = _batch_norm(graph, y, f'{block}.bn{n}')
                y = graph.add('Relu', y) if n < convolutions else y
            if f'{block}.downsample.0.weight' in graph.arrays:
                x = _conv(graph, x, f'{block}.downsample.0', stride=stride)
                x = _batch_norm(graph, x, f'{block}.downsample.1')
            x = graph.add('Relu', graph.add('Add', x, y))
    return _mean_of_map(graph, x)


def _conv(graph: _Graph, x: str, name: str, *, stride: int, padding: int | None = None) -> str:
    weight = f'{name}.weight'
    padding = graph.arrays[weight].shape[-1] // 2 if padding is None else padding
    return graph.add('Conv', x, weight, strides=[stride] * 2, pads=[padding] * 4)


def _batch_norm(graph: _Graph, x: str, name: str) -> str:
    leaves = (f'{name}.{leaf}' for leaf in ('weight', 'bias', 'running_mean', 'running_var'))
    return graph.add('BatchNormalization', x, *leaves, epsilon=norms.EPSILON)


def _mean_of_map(graph: _Graph, x: str) -> str:
    """[b d h w] -> [b d]."""
    return graph.add('Flatten', graph.add('GlobalAveragePool', x))


def _vit_side(encoder: ViT, arrays: Arrays) -> int:
    """In pixels, of the squares that the positions are of."""
    places = arrays['pos_embed'].shape[1] - encoder.class_token
    return round(places**0.5) * encoder.patch


def _vit(graph: _Graph, encoder: ViT, x: str) -> str:
    width = encoder.width
    x = graph.add('Conv', x, EMBEDDING, 'patch_embed.proj.bias', strides=[encoder.patch] * 2)
    x = graph.add('Reshape', x, graph.shape(0, width, -1))  # [b d h' w'] -> [b d t]
    x = graph.add('Transpose', x, perm=[0, 2, 1])  # [b t d]
    if encoder.class_token:
        batch = graph.add('Shape', x, start=0, end=1)
        shape = graph.add('Concat', batch, graph.shape(1, 1), axis=0)
        first = graph.add('Expand', 'cls_token', shape)  # [b 1 d]
        x = graph.add('Concat', first, x, axis=1)
    x = graph.add('Add', x, 'pos_embed')
    for i in range(encoder.depth):
        x = _block(graph, encoder, x, f'blocks.{i}')
    if encoder.pool == 'class':
        index = graph.constant(np.array(0, np.int64))
        return graph.add('Gather', _layer_norm(graph, x, 'norm'), index, axis=1)  # [b d]
    if encoder.pool == 'mean':
        return _mean_of_places(graph, encoder, _layer_norm(graph, x, 'norm'))
    return _layer_norm(graph, _mean_of_places(graph, encoder, x), 'fc_norm')


def _block(graph: _Graph, encoder: ViT, x: str, name: str) -> str:
    """[b t d] -> [b t d]."""
    y = _attention(graph, encoder, _layer_norm(graph, x, f'{name}.norm1'), f'{name}.attn')
    x = graph.add('Add', x, y)
    y = _linear(graph, _layer_norm(graph, x, f'{name}.norm2'), f'{name}.mlp.fc1')
    half, one, root = (graph.constant(np.float32(value)) for value in (0.5, 1, 2**0.5))
    error = graph.add('Erf', graph.add('Div', y, root))
    y = graph.add('Mul', graph.add('Mul', y, half), graph.add('Add', error, one))  # GELU
    return graph.add('Add', x, _linear(graph, y, f'{name}.mlp.fc2'))


def _attention(graph: _Graph, encoder: ViT, x: str, name: str) -> str:
    """[b t d] -> [b t d], by heads a of e features each."""
    each = encoder.width // encoder.heads
    x = _linear(graph, x, f'{name}.qkv')
    x = graph.add('Reshape', x, graph.shape(0, 0, 3, encoder.heads, each))  # [b t 3 a e]
    q, k, v = (
        graph.add('Gather', x, graph.constant(np.array(i, np.int64)), axis=2) for i in range(3)
    )  # [b t a e]
    q = graph.add('Transpose', q, perm=[0, 2, 1, 3])  # [b a t e]
    k = graph.add('Transpose', k, perm=[0, 2, 3, 1])  # [b a e t]
    v = graph.add('Transpose', v, perm=[0, 2, 1, 3])
    q = graph.add('Mul', q, graph.constant(np.float32(each**-0.5)))
    weights = graph.add('Softmax', graph.add('MatMul', q, k), axis=-1)  # [b a t t]
    x = graph.add('Transpose', graph.add('MatMul', weights, v), perm=[0, 2, 1, 3])  # [b t a e]
    x = graph.add('Reshape', x, graph.shape(0, 0, encoder.width))
    return _linear(graph, x, f'{name}.proj')


def _linear(graph: _Graph, x: str, name: str) -> str:
    kernel = graph.constant(graph.arrays[f'{name}.weight'].T, f'{name}.kernel')
    return graph.add('Add', graph.add('MatMul', x, kernel), f'{name}.bias')


def _layer_norm(graph: _Graph, x: str, name: str) -> str:
    leaves = f'{name}.weight', f'{name}.bias'
    return graph.add('LayerNormalization', x, *leaves, axis=-1, epsilon=EPSILON)


def _mean_of_places(graph: _Graph, encoder: ViT, x: str) -> str:
    """[b t d] -> [b d], without the class token."""
    if encoder.class_token:
        ends = (graph.shape(value) for value in (1, np.iinfo(np.int64).max, 1))
        x = graph.add('Slice', x, *ends)  # of axis 1
    return graph.add('ReduceMean', x, axes=[1], keepdims=0)


_WRITERS = {Tiny: _tiny, Shallow: _shallow, ResNet: _resnet, ViT: _vit}
