"""The accuracies that looks compare: probes of a sample of a labelled data set."""

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tqdm

from bagssl_jax import processes
from bagssl_jax.data.datasets import Images
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.data.pipeline import Bags
from bagssl_jax.embedding.bags import Layout, represent
from bagssl_jax.embedding.encoder import FrozenEncoder
from bagssl_jax.errors import check_known
from bagssl_jax.evaluation.scoring import Case, score_all
from bagssl_jax.parallel import dealt, own_part

PROBES = {'linear': 'linear probe', 'knn': 'kNN'}
KEPT = ('probe', 'top1', 'interval', 'n_train', 'n_test')  # of a row of the probe's


class Taken(NamedTuple):
    """What of an image is embedded, and how it is called.

    Attributes:
      layout: the view, and the vectors that are made of it.
      pixels: of each input that the networks are given.
      about: what a row says of it.
    """

    layout: Layout
    pixels: int
    about: Mapping[str, Any]


class Splits(NamedTuple):
    """Images with labels, of one size: to learn from, and to be scored on."""

    train: Images
    test: Images

    def part(self, max_train: int, max_test: int, *, seed: int) -> 'Splits':
        """At most so many of each, drawn at random."""
        return Splits(
            self.train.part(max_train, seed=seed),
            self.test.part(max_test, seed=seed),
        )


def score_taken(
    encoders: Mapping[str, FrozenEncoder],
    splits: Splits,
    taken: Sequence[Taken],
    *,
    probes: Sequence[str],
    seed: int,
    on_error: str,
    title: str,
) -> list[dict[str, Any]]:
    """Probes h of everything that is taken of the images, by the probe program's own protocol.

    Hyper-parameters are chosen on a part of `splits.train`; `splits.test` is scored once.

    Args:
      encoders: by name.
      splits: all of whose images are embedded.
      taken: one pass over the images each.
      probes: some of `PROBES`.
      seed: of the probes.
      on_error: 'stop' at an unreadable image, or 'skip' it.
      title: of the progress bar.

    Returns:
      The rows have 'encoder', what `about` says, 'patches' (in the bag), 'aggregation', 'probe',
      'top1', 'interval' (Wilson's, of 95%), 'n_train' and 'n_test'.

    Raises:
      InputError: an unknown probe, an image cannot be read, or what the probes refuse.
    """
    for name in probes:
        check_known('probe', name, PROBES)
    rows = []
    total = len(taken) * own_part(len(splits.train) + len(splits.test))
    with tqdm.tqdm(
        total=total, desc=title, unit=' images', file=sys.stderr, disable=not processes.is_first()
    ) as progress:
        for one in taken:
            chunked, batch_size = _chunked(encoders, one)
            progress.set_postfix_str('embedding')
            (train_x, train_y), (test_x, test_y) = (
                represent(
                    chunked,
                    _batches(images, one.layout, batch_size, on_error, progress),
                    one.layout,
                    images=len(images),
                    batch_size=batch_size,
                )
                for images in splits
            )
            for key, features in train_x.items():
                encoder, _, representation = key
                about = {'encoder': encoder, **one.about, **representation._asdict()}
                case = Case(
                    features,
                    train_y,
                    test_x[key],
                    test_y,
                    num_classes=len(splits.train.class_names),
                    about=about,
                    seed=seed,
                )
                tell = _teller(progress, encoder)
                found = score_all(case, {name: {} for name in probes}, ('all',), tell)
                rows += [
                    {**about, **{key: row[key] for key in KEPT}}
                    for row, _ in found
                    if row['probe'] in probes
                ]
    return rows


def _teller(progress: tqdm.tqdm, encoder: str) -> Callable[[str], None]:
    return lambda probe: progress.set_postfix_str(f'{PROBES[probe]}, {encoder}')


def patch_sizes(
    own: PatchGeometry, scales: Sequence[float], shape: tuple[int, int], *, resize: bool
) -> dict[int, PatchGeometry]:
    """Patches by their side in images of that shape, small ones first.

    Args:
      own: of the run, which is among them.
      scales: shares of the image's area that the others have.
      shape: (height, width) of the images.
      resize: whether the others are resized as the run's are; if not, they keep their pixels.
    """
    found = {own.side(*shape): own}
    for scale in scales:
        geometry = PatchGeometry(0, scale, own.resize if resize else 0)
        found.setdefault(geometry.side(*shape), geometry)
    return dict(sorted(found.items()))


def _chunked(
    encoders: Mapping[str, FrozenEncoder], taken: Taken
) -> tuple[dict[str, FrozenEncoder], int]:
    """The encoders with a forward pass for this, and the images of a batch, of all processes.

    A forward pass has as many pixels as the chunk of the encoders has of the run's patches.
    """
    some = next(iter(encoders.values()))
    pixels = some.chunk * some.geometry.input_side**2
    chunk = max(1, min(some.chunk, pixels // taken.pixels))
    batch_size = max(1, chunk // taken.layout.count)
    chunk = batch_size * taken.layout.count
    chunk = math.ceil(chunk / some.mesh.size) * some.mesh.size
    chunked = {name: encoder.with_chunk(chunk) for name, encoder in encoders.items()}
    return chunked, batch_size * processes.count()


def _batches(
    images: Images, layout: Layout, batch_size: int, on_error: str, progress: tqdm.tqdm
) -> Iterator[Bags]:
    """This process's bags of a split."""
    for batch in images.bags(
        layout.view,
        batch_size=own_part(batch_size),
        on_error=on_error,
        numbers=dealt(len(images), batch_size),
    ):
        yield batch
        progress.update(len(batch.labels) + len(batch.unreadable))
