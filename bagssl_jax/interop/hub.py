"""A folder as timm and the Hugging Face Hub take it: weights, configuration and model card.

timm reads architecture, model_args, num_classes and pretrained_cfg of config.json (timm's
models/_hub.py). It has ResNets of one width and one stem.
"""

import json
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from bagssl_jax.errors import InputError
from bagssl_jax.interop.files import safetensors_bytes
from bagssl_jax.interop.names import Arrays
from bagssl_jax.models.resnet import ResNet
from bagssl_jax.models.vit import ViT
from bagssl_jax.reporting.card import model_card
from bagssl_jax.reporting.found import Found
from bagssl_jax.runs import Run

WIDTH = 64  # of timm's ResNets
VITS = {
    'vit_ti': 'vit_tiny_patch16_224',
    'vit_s': 'vit_small_patch16_224',
    'vit_b': 'vit_base_patch16_224',
}
CIFAR_PADDING = {'cifar': 1, 'cifar_pad2': 2}


def check(run: Run, name: str, encoder: ResNet | ViT) -> None:
    """Raises InputError for a ResNet that timm lacks."""
    if isinstance(encoder, ResNet) and encoder.width != WIDTH:
        raise InputError(
            f"{run} holds a {name} of width {encoder.width}, and timm's have {WIDTH}: give "
            '--out=FILE.safetensors or --out=FILE.onnx'
        )


def files(
    found: Found,
    name: str,
    encoder: ResNet | ViT,
    arrays: Arrays,
    notes: Mapping[str, str],
    *,
    side: int,
) -> dict[str, bytes]:
    """Name -> content of the files of the folder.

    Args:
      found: the run.
      name: of the encoder in the configuration.
      encoder: one that `check` passes.
      arrays: its own, with torchvision's names, or timm's.
      notes: metadata of the arrays.
      side: in pixels, of the patches that the run's encoder takes.
    """
    config = _config(name, encoder, side)
    card = model_card(found, step=int(notes['step']), usage=_usage(config, encoder))
    return {
        'model.safetensors': safetensors_bytes(arrays, notes),
        'config.json': (json.dumps(config, indent=2) + '\n').encode(),
        'README.md': card.encode(),
    }


def _config(name: str, encoder: nn.Module, side: int) -> dict[str, Any]:
    if isinstance(encoder, ViT):
        side = encoder.image_size or side
        pool = 'token' if encoder.pool == 'class' else 'avg'
        own = {
            'architecture': VITS[name],
            'num_features': encoder.width,
            'global_pool': pool,
            'model_args': {
                'img_size': side,
                'patch_size': encoder.patch,
                'embed_dim': encoder.width,
                'depth': encoder.depth,
                'num_heads': encoder.heads,
                'class_token': encoder.class_token,
                'global_pool': pool,
                'fc_norm': encoder.pool == 'mean_norm',
                'dynamic_img_size': True,
            },
        }
        first, head = 'patch_embed.proj', 'head'
    else:
        features = 8 * encoder.width * (4 if encoder.bottleneck else 1)
        own = {'architecture': name, 'num_features': features, 'global_pool': 'avg'}
        own |= {} if encoder.stem == 'imagenet' else {'stem': encoder.stem}
        first, head = 'conv1', 'fc'
    return {
        **own,
        'num_classes': 0,
        'pretrained_cfg': {
            'input_size': [3, side, side],
            'fixed_input_size': False,
            'interpolation': 'bilinear',
            'crop_pct': 1.0,
            'crop_mode': 'center',
            'mean': list(encoder.mean),
            'std': list(encoder.std),
            'num_classes': 0,
            'first_conv': first,
            'classifier': head,
        },
    }


def _usage(config: Mapping[str, Any], encoder: nn.Module) -> str:
    """Python that makes `model`, with FOLDER for this folder."""
    if 'stem' not in config:
        return (
            'import timm\n\n'
            "# Or 'hf-hub:OWNER/NAME', once it is there\n"
            "model = timm.create_model('local-dir:FOLDER', pretrained=True).eval()"
        )
    padding = CIFAR_PADDING[encoder.stem]
    return (
        'import timm\n'
        'import torch\n'
        'from safetensors.torch import load_file\n\n'
        f'model = timm.create_model({config["architecture"]!r}, num_classes=0)\n'
        '# The stem for small images, which timm has no name for\n'
        f'model.conv1 = torch.nn.Conv2d(3, {WIDTH}, 3, padding={padding}, bias=False)\n'
        'model.maxpool = torch.nn.Identity()\n'
        "model.load_state_dict(load_file('FOLDER/model.safetensors'))\n"
        'model.eval()'
    )
