"""Prepares a data set of the TFDS catalogue for training, once.

    python -m bagssl_jax.prepare NAME --data_dir=DIR

NAME is cifar10, cifar100, stl10, svhn_cropped, eurosat, imagenette, imagenet_resized/64x64,
imagenet2012 or any other image data set of tensorflow.org/datasets; or, after imagenet2012,
imagenet100. Needs TensorFlow: pip install 'bagssl_jax[prepare]'. Training does not.
"""

from bagssl_jax import cli
from bagssl_jax.data.preparation import prepare

if __name__ == '__main__':
    cli.run_command(prepare, __doc__, words=('name',), options={'data_dir': ''})
