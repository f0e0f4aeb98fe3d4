"""ResNets from PyTorch, and the way back: names, layouts of checkpoints, files, and runs."""

from bagssl_jax.errors import InputError
from bagssl_jax.interop.runs import export_checkpoint, import_checkpoint


def transfer(
    *,
    checkpoint: str,
    export: str,
    workdir: str,
    arch: str,
    prefix: str,
    stem: str,
    mean: str,
    std: str,
) -> None:
    """Imports `checkpoint` into `workdir`, or exports from there to the file `export`.

    The arguments are what stands on the command line; `mean` and `std` are '0.5,0.5,0.5'.

    Raises:
      InputError: not one of the two is asked for, or what `import_checkpoint` and
        `export_checkpoint` refuse.
    """
    if not workdir:
        raise InputError('--workdir is missing: give --workdir=DIR, the directory of the run')
    if bool(checkpoint) == bool(export):
        raise InputError('give either --checkpoint=FILE, to import it, or --export=FILE')
    if export:
        export_checkpoint(workdir, export)
    else:
        pixels = {'mean': _numbers('mean', mean), 'std': _numbers('std', std)}
        import_checkpoint(checkpoint, arch, workdir, prefix=prefix, stem=stem, **pixels)


def _numbers(flag: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(','))
    except ValueError:
        raise InputError(f'--{flag}={text} must be three numbers, as in 0.5,0.5,0.5') from None
