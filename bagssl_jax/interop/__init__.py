"""Encoders from PyTorch, and for it, timm and ONNX: names, layouts of checkpoints, and files."""

from bagssl_jax.errors import InputError
from bagssl_jax.interop.export import export_encoder
from bagssl_jax.interop.runs import import_checkpoint
from bagssl_jax.runs import Run


def import_run(
    *,
    checkpoint: str,
    workdir: str,
    arch: str,
    prefix: str,
    stem: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Imports `checkpoint` into `workdir`; the other arguments are those of `import_checkpoint`.

    Raises:
      InputError: one of the two is missing, or what `import_checkpoint` refuses.
    """
    if not checkpoint:
        raise InputError('--checkpoint is missing: give --checkpoint=FILE, what is to be imported')
    run = Run.at(workdir)
    import_checkpoint(checkpoint, arch, run, prefix=prefix, stem=stem, mean=mean, std=std)


def export_run(*, workdir: str, out: str) -> None:
    """Exports the encoder of the run in `workdir` to `out`, as `export_encoder` does.

    Raises:
      InputError: one of the two is missing, or what `export_encoder` refuses.
    """
    run = Run.at(workdir)
    if not out:
        raise InputError('--out is missing: give --out=FILE.onnx, FILE.safetensors or FOLDER/')
    export_encoder(run, out)
