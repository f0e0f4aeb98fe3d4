"""Heat maps: one patch's similarity to every place of its image, and of another image."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bagssl_jax.analysis import drawing
from bagssl_jax.analysis.look import Picture
from bagssl_jax.analysis.queries import Query
from bagssl_jax.analysis.sample import Sample
from bagssl_jax.analysis.windows import centered, compared, embed_windows
from bagssl_jax.embedding.encoder import FrozenEncoder

COLORS = 'inferno'
OPACITY = 0.75  # of the colours over a photograph


class SimilarityMap(NamedTuple):
    """How alike a patch and every place of an image are.

    Attributes:
      pixels: of the image: uint8 [h w 3].
      box: of the patch, int [4], where it is of this image; else None.
      boxes: of the places: int [rows columns 4].
      cosines: what of -> float [rows columns], around the data set's mean.
    """

    pixels: np.ndarray
    box: np.ndarray | None
    boxes: np.ndarray
    cosines: dict[str, np.ndarray]


def compare(
    queries: Sequence[Query],
    sample: Sample,
    encoders: Mapping[str, FrozenEncoder],
    centers: Mapping[tuple[str, str], np.ndarray],
    boxes: np.ndarray,
    *,
    seed: int,
) -> list[SimilarityMap]:
    """Compares each patch with every place of its own image, and then of another.

    Args:
      queries: the patches.
      sample: where the other image is drawn from, one of another class if there is one.
      encoders: by name, of the patches and places.
      centers: (encoder, space) -> the mean of the data set's embeddings at unit length, [d].
      boxes: the places, int [rows columns 4].
      seed: of the choice of the other images.

    Returns:
      Two maps for each query.
    """
    rng = np.random.default_rng([seed, len(queries)])
    pixels = []
    for query in queries:
        pixels += [query.pixels, sample.pixels[_another(query, sample, rng)]]
    pixels = np.stack(pixels)
    places = boxes.reshape(-1, 4)
    # The patch comes first, and is embedded beside the places.
    each = np.stack([np.concatenate([query.box[None], places]) for query in queries])
    names = compared(centers)
    encoders = {name: encoders[name] for name in dict.fromkeys(name for name, _ in names)}
    vectors = embed_windows(encoders, pixels, np.repeat(each, 2, axis=0))
    maps = []
    for i, image in enumerate(pixels):
        cosines = {}
        for key, title in names.items():
            around = centered(vectors[key][[i - i % 2, i]], centers[key])
            cosines[title] = (around[1, 1:] @ around[0, 0]).reshape(boxes.shape[:2])
        box = None if i % 2 else queries[i // 2].box
        maps.append(SimilarityMap(image, box, boxes, cosines))
    return maps


def _another(query: Query, sample: Sample, rng: np.random.Generator) -> int:
    """The number of another image, of another class and not a plain one, if there are such."""
    fits = np.arange(len(sample.labels)) != query.image
    contrast = np.array([drawing.gray(image).std() for image in sample.pixels])
    for wish in (sample.labels != query.label, contrast >= np.median(contrast)):
        fits = fits & wish if (fits & wish).any() else fits
    return int(rng.choice(np.flatnonzero(fits)))


def picture(maps: Sequence[SimilarityMap]) -> Picture:
    """A row for each map: the photograph, and beside it heat maps over it."""
    titles = list(maps[0].cosines)
    figure = drawing.photographs(len(maps), 1 + len(titles), maps[0].pixels.shape[:2], below=0.6)
    grid = np.reshape(figure.axes, (len(maps), -1))
    for row, one in zip(grid, maps, strict=True):
        drawing.panel(row[0], one.pixels)
        for axes, cosines in zip(row[1:], one.cosines.values(), strict=True):
            style = {'cmap': COLORS, 'vmin': 0, 'vmax': 1, 'alpha': OPACITY}
            image = drawing.lay_over(axes, one.pixels, one.boxes, cosines, **style)
        if one.box is not None:
            for axes in row:
                drawing.outline(axes, one.box)
    for axes, title in zip(grid[0], ('photograph', *titles), strict=True):
        axes.set_title(title, fontsize=9)
    for i, axes in enumerate(grid[:, 0]):
        axes.set_ylabel('another image' if i % 2 else 'own image', fontsize=drawing.SMALL)
    height = figure.get_figheight()
    place = figure.add_axes((0.2, 0.42 / height, 0.6, 0.1 / height))
    bar = figure.colorbar(image, cax=place, orientation='horizontal')
    bar.set_label('similarity to the outlined patch (centered cosine)', fontsize=drawing.SMALL)
    place.tick_params(labelsize=drawing.SMALL)
    bar.outline.set_visible(False)
    means = '; '.join(
        f'{title}: {np.mean([one.cosines[title].mean() for one in maps[::2]]):.2f} on its own '
        f'image, {np.mean([one.cosines[title].mean() for one in maps[1::2]]):.2f} on another'
        for title in titles
    )
    return Picture(
        figure,
        alt=(
            f'Heat maps over {len(maps)} photographs of how alike an outlined patch and every '
            f'place are. Mean centered cosine, {means}.'
        ),
        caption=(
            'A place is as bright as the window around it is similar to the outlined patch, 0 '
            'being the mean over patches of different images: a small bright spot is locality, a '
            'bright image invariance, and the other image should stay dark.'
        ),
    )
