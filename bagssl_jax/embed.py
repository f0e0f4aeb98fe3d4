"""Writes the features of every image in a folder into one file.

    python -m bagssl_jax.embed --workdir=DIR --images=FOLDER --out=FILE.npz

FOLDER may have any layout. FILE.npz holds `names`, paths below FOLDER in their order, and
`features`, float32 [n d], row by row for the same images: the means of their patches' embeddings;
FILE.parquet, which needs pyarrow (pip install '.[parquet]'), the columns `name` and `features`.

  --patches   an image, on an even grid; 16 if not given
  --space     h (if not given), embeddings; z, projections; or hidden1, ..., between them
  --chunk     patches a forward pass, 256 if not given: more can be faster on a GPU

The same command again goes on where an interrupted one was: until the end, the features are in
FILE.npz.parts. Images that cannot be read are left out, and listed in the end, with exit status 3.
"""

from collections.abc import Callable

from bagssl_jax import cli
from bagssl_jax.ranges import within

OPTIONS = {
    'workdir': '',
    'images': '',
    'out': '',
    'patches': within(16, 1, 4096),
    'space': 'h',
    'chunk': within(256, 1, 10**6),
}


def load() -> Callable[..., None]:
    from bagssl_jax.embedding.folder import embed_folder

    return embed_folder


if __name__ == '__main__':
    cli.run_command(
        load,
        __doc__,
        outlook='the same command goes on from the parts that were finished',
        options=OPTIONS,
        together=True,
    )
