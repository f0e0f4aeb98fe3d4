"""The features of every image in a folder, in one file; an interrupted start is gone on from."""

import collections
import contextlib
import dataclasses
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import tqdm

from bagssl_jax import processes
from bagssl_jax.data.folder import FolderSource, load_files
from bagssl_jax.data.sources import Source
from bagssl_jax.embedding.encoder import FrozenEncoder, load_encoder
from bagssl_jax.embedding.files import Parts, check_out, join
from bagssl_jax.errors import Incomplete, InputError
from bagssl_jax.runs import Run

AHEAD = 4096  # patches, cut and waiting for the devices, at most
PART = 1024  # images; an interrupted start loses one part at most
Item = TypeVar('Item')
Result = TypeVar('Result')


def embed_folder(
    *, workdir: str, images: str, out: str, patches: int, space: str, chunk: int
) -> None:
    """Writes the names and the features of all images below a folder, in the order of the names.

    Args:
      workdir: of the run whose newest checkpoint is used.
      images: the folder, local or remote.
      out: the file, .npz or .parquet; there must be none yet.
      patches: a bag, as for `FrozenEncoder.embed`.
      space: likewise.
      chunk: patches a forward pass.

    Raises:
      InputError: any of these is wrong, or parts of an earlier start are of something else.
      Incomplete: all is written, but some images could not be read or are smaller than a patch.
    """
    for name, value in (('workdir', workdir), ('images', images), ('out', out)):
        if not value:
            raise InputError(f'--{name} is missing: give --{name}=PATH')
    check_out(out)
    encoder = load_encoder(Run.at(workdir), chunk=chunk)
    encoder.check(patches, space)
    encoder.check_memory((encoder.geometry.input_side,) * 2, (space,))
    source = load_files(images)
    noted = {'step': encoder.step, 'patches': patches, 'space': space}
    settings = noted | {
        'encoder': encoder.fingerprint(),
        'patch': dataclasses.asdict(encoder.geometry),
        'list of images': source.fingerprint,
        'images a part': PART,
    }
    if processes.is_first():
        Parts(out, settings)  # which begins them
    processes.barrier('parts')
    parts = Parts(out, settings)
    _write_parts(parts, source, encoder, patches, space)
    processes.barrier('parts written')
    if not processes.is_first():
        return
    join(parts, out, noted)
    failures = [text for (texts,) in parts.read('failures') for text in texts.tolist()]
    parts.remove()
    if failures:
        head = f'{out} lacks {len(failures):,} of {len(source):,} images:'
        raise Incomplete('\n'.join([head, *failures]))


class CutBag(NamedTuple):
    """The patches of one image.

    Attributes:
      name: of the image.
      patches: uint8 [p s s 3], or None where there are none.
      failure: why there are none; '' where there are.
    """

    name: str
    patches: np.ndarray | None
    failure: str


def cut_ahead(
    source: Source, encoder: FrozenEncoder, count: int, numbers: Sequence[int]
) -> Iterator[CutBag]:
    """Reads images and cuts their grids of patches, in threads, the next ones in advance.

    Args:
      source: images.
      encoder: whose patches are cut.
      count: p, patches an image.
      numbers: of the images, in the order that is wanted.
    """
    bag_of = functools.partial(_bag, source, encoder, count)
    threads = os.cpu_count() or 1
    ahead = max(1, min(4 * threads, AHEAD // count))
    with ThreadPoolExecutor(threads) as pool:
        yield from _map_ahead(pool, bag_of, numbers, ahead=ahead)


def _write_parts(
    parts: Parts, source: FolderSource, encoder: FrozenEncoder, count: int, space: str
) -> None:
    """Writes the parts that are missing; of several processes, each its share."""
    starts = range(0, len(source), PART)
    ranges = [range(start, min(start + PART, len(source))) for start in starts]
    missing = processes.from_first(
        'missing', lambda: [number for number in range(len(ranges)) if number not in parts]
    )
    missing = missing[processes.number() :: processes.count()]
    indices = [i for number in missing for i in ranges[number]]
    own = len(source) if processes.count() == 1 else len(indices)  # of those that are done, shares
    with (
        contextlib.closing(cut_ahead(source, encoder, count, indices)) as ahead,
        tqdm.tqdm(
            ahead,
            desc='embed',
            total=own,
            initial=own - len(indices),
            unit=' images',
            file=sys.stderr,
            disable=not processes.is_first(),
        ) as progress,
    ):
        bags = iter(progress)
        for number in missing:
            own = itertools.islice(bags, len(ranges[number]))
            parts.write(number, *_embedded(own, encoder, count, space))
        next(bags, None)  # there is none, and the bar is brought to its end


def _embedded(
    bags: Iterable[CutBag], encoder: FrozenEncoder, count: int, space: str
) -> tuple[list[str], np.ndarray, list[str]]:
    """Names and features, float32 [n d], of the bags with patches; failures of the others."""
    names, failures = [], []

    def good():
        for bag in bags:
            if bag.patches is None:
                failures.append(bag.failure)
            else:
                names.append(bag.name)
                yield bag.patches

    means = [bag.mean(axis=0) for bag in encoder.embed_each(good(), space)]
    return names, np.array(means, np.float32).reshape(-1, encoder.widths[space]), failures


def _bag(source: Source, encoder: FrozenEncoder, count: int, index: int) -> CutBag:
    name = source.name(index)
    try:
        image = source.read(np.array([index])).images[0]
    except InputError as error:
        return CutBag(name, None, str(error))  # which says the name
    try:
        return CutBag(name, encoder.cut(image, count), '')
    except InputError as error:
        return CutBag(name, None, f'{name}: {error}')


def _map_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ahead: int,
) -> Iterator[Result]:
    """The results in the order of the items, with those of the next `ahead` under way."""
    under_way = collections.deque()
    for item in items:
        under_way.append(pool.submit(function, item))
        if len(under_way) > ahead:
            yield under_way.popleft().result()
    for future in under_way:
        yield future.result()
