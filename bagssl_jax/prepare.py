"""Prepares a data set of the TFDS catalogue, so that trainings and probes can read it.

    python -m bagssl_jax.prepare NAME --data_dir=DIR

NAME is as on https://www.tensorflow.org/datasets/catalog, such as cifar10, stl10 or
imagenet_resized/64x64, or imagenet100, a subset of a prepared imagenet2012. Most data sets need
TensorFlow to be prepared (pip install '.[prepare]'), and none to be read. For imagenet2012, put its
archives into DIR/downloads/manual first.
"""

from collections.abc import Callable

from bagssl_jax import cli


def load() -> Callable[..., None]:
    from bagssl_jax.data.preparation import prepare

    return prepare


if __name__ == '__main__':
    cli.run_command(
        load,
        __doc__,
        outlook='the same command goes on with what was downloaded',
        words=('name',),
        options={'data_dir': ''},
    )
