"""Neighbours: the patches of a data set that are nearest to a patch, in h and in z.

BagSSL (arXiv 2206.08954) compares the neighbours of patches in both spaces: those in h look like
the patch in what is where, those in z share what it is a part of.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from bagssl_jax.analysis import neighbour_pictures
from bagssl_jax.analysis.bootstrap import mean_intervals
from bagssl_jax.analysis.look import Inapplicable, Look
from bagssl_jax.analysis.queries import chosen_queries, drawn_queries
from bagssl_jax.analysis.sample import take_sample
from bagssl_jax.analysis.windows import embed_windows, notes_of, with_small_chunks
from bagssl_jax.data.datasets import Images
from bagssl_jax.embedding.encoder import FrozenEncoder
from bagssl_jax.probes.nearest import Gallery


def look(
    trained: FrozenEncoder,
    untrained: FrozenEncoder,
    images: Images,
    *,
    seed: int,
    on_error: str,
    max_images: int,
    patches: int,
    neighbours: int,
    queries: int,
    shown: int,
    chosen: Sequence[int],
) -> Look:
    """Finds the nearest patches by cosine, and of what image and class they are.

    A patch's own window never counts among its neighbours, nor do those of its image that overlap
    it.

    Args:
      trained, untrained: encoders of one geometry, which is that of the patches.
      images: of one size.
      seed: of the choice of images and queries.
      on_error: 'stop' at an unreadable image, or 'skip' it.
      max_images: whose patches are searched, drawn at random where there are more.
      patches: of each of them, on a grid.
      neighbours: k.
      queries: about so many, that the numbers are of.
      shown: queries that are drawn, at random.
      chosen: of those that are drawn, instead: as in `queries.chosen_queries`.

    Returns:
      Rows as in `shares`, and the figures 'patches' and 'shares'.

    Raises:
      Inapplicable: the images have fewer than k patches beside those of one of them.
      InputError: an image cannot be read, or `chosen` is not of these images.
    """
    sample = take_sample(images, max_images, seed=seed, on_error=on_error)
    b = len(sample.pixels)
    if (b - 1) * patches < neighbours:
        raise Inapplicable(f'{images.title} has too few patches for {neighbours} neighbours')
    boxes = trained.geometry.grid_boxes(*images.image_shape, patches)
    if chosen:
        key = 'analysis.neighbours.chosen'
        drawn = chosen_queries(chosen, images, sample, trained, key=key)
    else:
        drawn = drawn_queries(sample, boxes, shown, seed=seed)
    encoders = with_small_chunks(trained, untrained)
    vectors = embed_windows(encoders, sample.pixels, boxes)
    searches = {key: Search(own, boxes, trained.mesh) for key, own in vectors.items()}

    asked = drawn_places(b, patches, queries, seed=seed)
    rows = []
    for (name, space), search in searches.items():
        own = vectors[name, space][asked.image, asked.place]
        found = search.nearest(own, asked.image, boxes[asked.place], neighbours)
        elsewhere = search.nearest(own, asked.image, None, neighbours)
        about = {'encoder': name, 'space': space}
        rows += shares(asked, found // patches, elsewhere // patches, boxes, sample.labels, about)

    pixels, places, of = (
        np.stack([getattr(query, field) for query in drawn]) for field in ('pixels', 'box', 'image')
    )
    own = embed_windows({'trained': encoders['trained']}, pixels, places[:, None])
    nearest = {
        space: searches['trained', space].nearest(vectors[:, 0], of, places, neighbours)
        for (_, space), vectors in own.items()
    }
    return Look(
        rows=rows,
        table=table(rows),
        figures={
            'patches': neighbour_pictures.of_patches(drawn, nearest, sample, boxes),
            'shares': neighbour_pictures.of_shares(rows),
        },
        notes=notes_of(trained),
    )


class Places(NamedTuple):
    """Patches of a sample.

    Attributes:
      image: int [q], of which image each is.
      place: int [q], at which place of the grid.
    """

    image: np.ndarray
    place: np.ndarray


def drawn_places(images: int, patches: int, count: int, *, seed: int) -> Places:
    """Draws about so many patches: equally many of every image, or one each of some."""
    rng = np.random.default_rng([seed, images])
    each = min(patches, max(1, count // images))
    image = np.sort(rng.permutation(images)[:count])
    place = np.stack([rng.permutation(patches)[:each] for _ in image])  # [b each]
    return Places(np.repeat(image, each), place.ravel())


class Search:
    """The search among the patches of all images, in one space of one encoder.

    Args:
      vectors: float32 [b p d].
      boxes: int [p 4], of the patches, in every image.
      mesh: the devices that share the patches.
    """

    def __init__(self, vectors: np.ndarray, boxes: np.ndarray, mesh: Mesh):
        self._boxes, self._images = boxes, len(vectors)
        self._gallery = Gallery(vectors.reshape(-1, vectors.shape[-1]), mesh=mesh)

    def nearest(
        self, queries: np.ndarray, images: np.ndarray, boxes: np.ndarray | None, k: int
    ) -> np.ndarray:
        """The numbers of the nearest patches, in the order of [b p]; the nearest comes first.

        Args:
          queries: float32 [q d].
          images: int [q], of which image each query is; -1 where of none of them.
          boxes: int [q 4], of the queries, which patches of the same image must not overlap; None
            to leave out all patches of the same image.
          k: neighbours.

        Returns:
          int [q k].
        """
        p = len(self._boxes)
        most = min(k + p, self._images * p)  # an image has no more patches to leave out than p
        _, found = self._gallery.nearest(queries, np.ones(self._images * p, bool), most)
        left_out = found // p == images[:, None]
        if boxes is not None:
            left_out &= overlap(boxes[:, None], self._boxes[found % p])
        order = np.argsort(left_out, axis=1, kind='stable')[:, :k]
        return np.take_along_axis(found, order, axis=1)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether boxes (y, x, height, width) share a pixel: int [... 4] each -> bool [...]."""
    starts = np.maximum(a[..., :2], b[..., :2])
    ends = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:])
    return (starts < ends).all(axis=-1)


def shares(
    asked: Places,
    found: np.ndarray,
    elsewhere: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    about: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Of what image and class the neighbours of many patches are.

    Args:
      asked: the patches, equally many of an image, one image after the other.
      found: int [q k], the images of their neighbours.
      elsewhere: int [q k], those of their nearest k in other images alone.
      boxes: int [p 4], of the patches of every image.
      labels: int [b], the classes of the images; -1 where one has none.
      about: what further is in the rows.

    Returns:
      A row whose 'of' is 'image': the share of the neighbours that are of the query's own image;
      and where there are classes one whose 'of' is 'class': of the nearest in other images, the
      share that are of the query's class. With 'share', 'interval' (of 95%, over the queries'
      images, by the bootstrap), 'chance' (the share among all that could have been neighbours),
      'neighbours' (k), 'queries', 'images' (b) and 'patches' (of each).
    """
    b, p, k = len(labels), len(boxes), found.shape[1]
    apart = (~overlap(boxes[:, None], boxes)).sum(axis=1)  # patches of the image that may be found
    could = apart + (b - 1) * p
    sizes = np.array([np.sum(labels == label) for label in labels])
    label = labels[asked.image]
    measured = {
        'image': (found == asked.image[:, None], apart[asked.place] / could[asked.place]),
        'class': (labels[elsewhere] == label[:, None], (sizes[asked.image] - 1) / (b - 1)),
    }
    rows = []
    for of, (same, chance) in measured.items():
        counted = np.full(len(label), True) if of == 'image' else label >= 0
        if not counted.any():
            continue
        _, first = np.unique(asked.image[counted], return_index=True)
        of_images = np.add.reduceat(same[counted].mean(axis=1), first) / np.diff(
            [*first, counted.sum()]
        )
        rows.append(
            {
                **about,
                'of': of,
                'share': float(of_images.mean()),
                'interval': mean_intervals(of_images).tolist(),
                'chance': float(chance[counted].mean()),
                'neighbours': k,
                'queries': int(counted.sum()),
                'images': b,
                'patches': p,
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each encoder, space and share."""
    first = rows[0]
    lines = [
        f'{first["neighbours"]} nearest of {first["patches"]} patches of {first["images"]:,} '
        f'images, {first["queries"]:,} queries:',
        'share that is of the own image; of those in other images, of the own class',
        f'{"encoder":<11}{"space":<7}{"of":<7}{"share":>7}{"interval":>18}{"chance":>9}',
    ]
    for row in rows:
        low, high = row['interval']
        lines.append(
            f'{row["encoder"]:<11}{row["space"]:<7}{row["of"]:<7}{row["share"]:>7.3f}'
            f'{f"[{low:.3f}, {high:.3f}]":>18}{row["chance"]:>9.3f}'
        )
    return '\n'.join(lines)
