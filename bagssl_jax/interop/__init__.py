"""Encoders from PyTorch, and the way back: names, layouts of checkpoints, files, and runs."""

from bagssl_jax.errors import InputError
from bagssl_jax.interop.runs import export_checkpoint, import_checkpoint
from bagssl_jax.runs import Run


def transfer(
    *,
    checkpoint: str,
    export: str,
    workdir: str,
    arch: str,
    prefix: str,
    stem: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Imports `checkpoint` into `workdir`, or exports from there to the file `export`.

    The other arguments are those of `import_checkpoint`, and matter to an import alone.

    Raises:
      InputError: not one of the two is asked for, or what `import_checkpoint` and
        `export_checkpoint` refuse.
    """
    if not workdir:
        raise InputError('--workdir is missing: give --workdir=DIR, the directory of the run')
    if bool(checkpoint) == bool(export):
        raise InputError('give either --checkpoint=FILE, to import it, or --export=FILE')
    if export:
        export_checkpoint(Run.at(workdir), export)
    else:
        run = Run.at(workdir)
        import_checkpoint(checkpoint, arch, run, prefix=prefix, stem=stem, mean=mean, std=std)
