"""Self-supervised learning on fixed-scale image patches, in JAX.

An image is a bag of patches, and its representation is the mean of their embeddings
(Chen, Bardes, Li and LeCun, arXiv 2206.08954).
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bagssl_jax.embedding.encoder import FrozenEncoder

__all__ = ('load',)


def load(workdir: str, *, chunk: int = 256) -> 'FrozenEncoder':
    """The encoder that a run has learned, from the newest checkpoint that is undamaged.

    >>> import bagssl_jax
    >>> encoder = bagssl_jax.load('runs/quickstart')

    It turns images of any sizes into their representations: means of patch embeddings.

    >>> from skimage import data
    >>> photographs = [data.astronaut(), data.coffee()]  # uint8, [512 512 3] and [400 600 3]
    >>> encoder.embed(photographs, patches=16).shape
    (2, 128)

    Or it gives the embedding of every patch, and where it lies: (y, x, height, width) in pixels.

    >>> embeddings, boxes = encoder.embed_patches(photographs, 9)
    >>> embeddings.shape
    (2, 9, 128)
    >>> boxes[0, 1].tolist()
    [0, 248, 16, 16]

    Args:
      workdir: of a run, trained here or imported.
      chunk: patches a forward pass, shared by the local devices; rounded up to what they can share.

    Raises:
      bagssl_jax.errors.InputError: a ValueError: there is no run, or no undamaged checkpoint.
    """
    # Here, so that the package alone does not import JAX.
    from bagssl_jax.embedding.encoder import load_encoder
    from bagssl_jax.runs import Run

    return load_encoder(Run.at(workdir), chunk=chunk)
