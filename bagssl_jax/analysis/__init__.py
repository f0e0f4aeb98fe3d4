"""Looks into what was learned: each analysis by its name."""

from collections.abc import Callable

from ml_collections import ConfigDict

from bagssl_jax.analysis import cooccurrence
from bagssl_jax.analysis.look import Look
from bagssl_jax.data.datasets import open_dataset
from bagssl_jax.embedding.encoder import load_encoder
from bagssl_jax.errors import check_known
from bagssl_jax.parallel import check_batch_size, local_mesh
from bagssl_jax.runs import Run

# Each takes the trained encoder, the untrained one, and training images; further the keyword
# arguments seed and on_error, and those of its own group in config.analysis.
ANALYSES: dict[str, Callable[..., Look]] = {'cooccurrence': cooccurrence.look}


def analyze(config: ConfigDict, run: Run, what: str) -> None:
    """Runs the analysis `what` on the newest checkpoint of `run`.

    Prints its table; writes WHAT.json ('dataset', 'step' and 'rows') and its figures as
    figures/WHAT_NAME.png.

    Raises:
      InputError: an unknown name, no checkpoint, nothing can be written, or what the analysis
        itself refuses.
    """
    check_known('--what', what, ANALYSES)
    mesh, chunk = local_mesh(), config.probe.batch_size  # each process does all of it
    check_batch_size(chunk, mesh, 'probe.batch_size')
    run.check_writable()  # now, and not after hours of work
    encoder = load_encoder(run, mesh=mesh, chunk=chunk)
    look = ANALYSES[what](
        encoder,
        encoder.untrained(config.seed),
        open_dataset(config.data).images(config.data.train_split),
        seed=config.seed,
        on_error=config.data.on_error,
        **config.analysis[what],
    )
    found = {'dataset': config.data.name, 'step': encoder.step, 'rows': look.rows}
    run.write_json(f'{what}.json', found, indent=1)
    for name, figure in look.figures.items():
        run.write_figure(f'{what}_{name}', figure)
    print(f'{config.data.name}, step {encoder.step:,}')
    print(look.table)
