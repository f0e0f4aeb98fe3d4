"""Writes a run's frozen encoder as a file, or as a folder, for other programs.

    python -m bagssl_jax.export --workdir=DIR --out=FILE.onnx
    python -m bagssl_jax.export --workdir=DIR --out=FOLDER/
    python -m bagssl_jax.export --workdir=DIR --out=FILE.safetensors

FILE.onnx, which needs .[onnx], is a graph of any encoder for onnxruntime and others. Its input
`images` is float32 [b 3 h w], RGB in [0, 1]: mean and deviation of the pixels are in the graph. Its
output `h` is float32 [b d]. b may be any number, and so may h and w, but for a ViT, which takes
squares of the side that its positions are of. It computes in float32.

FOLDER/ is as a repository of the Hugging Face Hub: `model.safetensors`, `config.json` and a model
card, `README.md`, which says how to load it, what the encoder was trained on and how, and what
probes found. It must be empty, or not there. timm.create_model('local-dir:FOLDER', pretrained=True)
is the encoder; of a ResNet with the stem for CIFAR, which timm lacks, the card has the lines that
build it. A ResNet of another width than 64 has no such folder.

FILE.safetensors holds a ResNet's arrays under torchvision's names, or a ViT's under timm's, and
what `bagssl_jax.import_torch` needs to know to take it up again. No form needs PyTorch.
"""

from collections.abc import Callable

from bagssl_jax import cli


def load() -> Callable[..., None]:
    from bagssl_jax.interop import export_run

    return export_run


if __name__ == '__main__':
    cli.run_command(
        load,
        __doc__,
        outlook='the same command starts anew',
        options={'workdir': '', 'out': ''},
    )
