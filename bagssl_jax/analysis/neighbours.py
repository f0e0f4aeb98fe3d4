"""Neighbours: the patches of a data set that are nearest to a patch, in h and in z.

BagSSL (arXiv 2206.08954) compares the neighbours of patches in both spaces: those in h look like
the patch in what is where, those in z share what it is a part of.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import PercentFormatter

from bagssl_jax.analysis import drawing
from bagssl_jax.analysis.bootstrap import mean_intervals
from bagssl_jax.analysis.look import Inapplicable, Look, Picture
from bagssl_jax.analysis.queries import Query, chosen_queries, drawn_queries
from bagssl_jax.analysis.sample import Sample, take_sample
from bagssl_jax.analysis.windows import embed_windows, notes_of, with_small_chunks
from bagssl_jax.data.datasets import Images
from bagssl_jax.embedding.encoder import FrozenEncoder
from bagssl_jax.probes.nearest import Gallery

AROUND = 3  # sides of a patch: what of an image is drawn around it, if there is as much


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
            'patches': _patches_picture(drawn, nearest, sample, boxes),
            'shares': _shares_picture(rows),
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
        f'images, {first["queries"]:,} queries: share of the own image; in other images, of the '
        'own class',
        f'{"encoder":<11}{"space":<7}{"of":<7}{"share":>7}{"interval":>18}{"chance":>9}',
    ]
    for row in rows:
        low, high = row['interval']
        lines.append(
            f'{row["encoder"]:<11}{row["space"]:<7}{row["of"]:<7}{row["share"]:>7.3f}'
            f'{f"[{low:.3f}, {high:.3f}]":>18}{row["chance"]:>9.3f}'
        )
    return '\n'.join(lines)


def _patches_picture(
    queries: Sequence[Query], nearest: Mapping[str, np.ndarray], sample: Sample, boxes: np.ndarray
) -> Picture:
    """Each query, and beside it a row of neighbours in each space: numbers [q k], as in Search."""
    spaces = list(nearest)
    s, k, p = len(spaces), nearest['h'].shape[1], len(boxes)
    tile = 5 / (s + k + 0.45)
    size = 5, tile * (s + 0.15) * len(queries) + 0.55
    figure = Figure(figsize=size, dpi=drawing.DPI)
    bottom, top = 0.3 / size[1], 1 - 0.25 / size[1]
    blocks = figure.add_gridspec(
        len(queries), 1, left=0.005, right=0.995, bottom=bottom, top=top, hspace=0.15 / s
    )
    labelled = sample.labels.max() >= 0
    for n, query in enumerate(queries):
        left, right = blocks[n].subgridspec(1, 2, width_ratios=(s, k), wspace=0.45 / (s + k) * 2)
        axes = figure.add_subplot(left)
        _tile(axes, query.pixels, query.box)
        if n == 0:
            axes.set_title('patch', fontsize=9)
        grid = right.subgridspec(s, k, wspace=0.06, hspace=0.06)
        for row, (space, found) in enumerate(nearest.items()):
            for column, number in enumerate(found[n].tolist()):
                image = number // p
                axes = figure.add_subplot(grid[row, column])
                _tile(axes, sample.pixels[image], boxes[number % p])
                if image == query.image:
                    _frame(axes, drawing.ORANGE)
                elif labelled and sample.labels[image] == query.label:
                    _frame(axes, drawing.BLUE)
                if column == 0:
                    axes.set_ylabel(space, rotation=0, fontsize=10, labelpad=8, va='center')
                if n == row == 0 and column == k // 2:
                    axes.set_title(f'nearest {k}, the nearest first', fontsize=9)
    handles = [Patch(color=drawing.ORANGE, label="of the patch's own image")]
    if labelled:
        handles.append(Patch(color=drawing.BLUE, label='of its class'))
    figure.legend(
        handles=handles, loc='lower center', ncols=2, frameon=False, fontsize=drawing.SMALL
    )
    counts = []
    for space, found in nearest.items():
        images = found // p  # [q k]
        is_own = images == np.array([[query.image] for query in queries])
        counts.append(f'{space}: {is_own.sum()} of the own image')
        if labelled:
            same = sample.labels[images] == np.array([[query.label] for query in queries])
            counts[-1] += f', {(same & ~is_own).sum()} of the own class in other images'
    return Picture(
        figure,
        alt=(
            f'{len(queries)} patches, and the {k} nearest to each in {" and in ".join(spaces)}, '
            f'bright in their images. Of {k * len(queries)} neighbours in {"; in ".join(counts)}.'
        ),
        caption=(
            'Left a patch, bright in its image; right the patches of the data set that are nearest '
            'to it: look for what they share with it, the same pattern and place, or the same '
            'thing in another form.'
        ),
    )


def _tile(axes: Axes, pixels: np.ndarray, box: np.ndarray) -> None:
    """A patch, bright, in the part of its image that is around it."""
    y, x, side = drawing.surroundings(pixels, box, AROUND)
    inside = box - [y, x, 0, 0]
    drawing.panel(axes, drawing.dimmed(pixels[y : y + side, x : x + side], inside))
    top, left, height, width = inside  # a line, as the dark ones of dark images are hard to see
    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor='white', lw=0.5))


def _frame(axes: Axes, color: str) -> None:
    for spine in axes.spines.values():
        spine.set(visible=True, color=color, linewidth=1.4)


def _shares_picture(rows: Sequence[Mapping[str, Any]]) -> Picture:
    """The shares as points with intervals, beside chance."""
    kinds = list(dict.fromkeys(row['of'] for row in rows))
    titles = {'image': 'of the own image', 'class': 'of the own class,\nin other images'}
    lines = list(dict.fromkeys((row['encoder'], row['space']) for row in rows))
    figure, every = drawing.chart(5, 0.95 + 0.27 * len(lines), len(kinds))
    for axes, of in zip(every, kinds, strict=True):
        shown = [row for row in rows if row['of'] == of]
        for row in shown:
            y = -lines.index((row['encoder'], row['space']))
            color = drawing.STYLES[row['encoder'], row['space']]['color']
            filled = color if row['encoder'] == 'trained' else 'white'
            axes.plot(row['interval'], [y, y], color=color, linewidth=1.5)
            axes.plot(row['share'], y, 'o', color=color, mfc=filled, ms=5)
        chance = np.mean([row['chance'] for row in shown])
        axes.axvline(chance, color='0.6', linestyle='--', linewidth=0.8, zorder=0)
        axes.set_title(titles[of], fontsize=9)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_yticks([-y for y in range(len(lines))], [f'{s}, {e}' for e, s in lines])
        axes.set_ylim(0.5 - len(lines), 0.5)
    figure.supxlabel(f'share of the {rows[0]["neighbours"]} nearest (dashed: chance)', fontsize=9)
    said = '; '.join(
        f'{row["encoder"]} {row["space"]} {row["share"]:.1%} of the own {row["of"]} (chance '
        f'{row["chance"]:.1%})'
        for row in rows
    )
    return Picture(
        figure,
        alt=f'Shares of nearest patches. {said}.',
        caption=(
            'How many of the nearest patches are of the same image, and of the same class '
            'elsewhere, with 95% intervals over images: what goes together has been learned where '
            'they are far to the right of chance and of the untrained encoder.'
        ),
    )
