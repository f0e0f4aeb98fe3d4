"""Convergence: how near the mean of N patch embeddings comes to the whole image's embedding.

BagSSL (arXiv 2206.08954) finds that the mean of the embeddings of an image's patches converges to
the embedding of the whole image as patches are added. Whether that says something is seen beside
two other things: the same curve against other images, and that of an untrained encoder.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bagssl_jax import processes
from bagssl_jax.analysis.bootstrap import mean_intervals
from bagssl_jax.analysis.look import Inapplicable, Look, Picture
from bagssl_jax.analysis.sample import take_sample
from bagssl_jax.data.datasets import Images
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.data.views import RandomPatches
from bagssl_jax.embedding.encoder import FrozenEncoder
from bagssl_jax.errors import InputError

COLORS = ('#c45a00', '#0b7a75', '#5b4bb5', '#a3195b', '#6b6b00')  # of patch sizes; equally dark


def look(
    trained: FrozenEncoder,
    untrained: FrozenEncoder,
    images: Images,
    *,
    seed: int,
    on_error: str,
    max_images: int,
    patches: int,
    scales: Sequence[float],
    spaces: Sequence[str],
) -> Look:
    """Compares means of 1, 2, 4, ... patches with the whole image's embedding, by their cosine.

    Patches lie at random; those of a smaller bag are among those of a larger one. The whole image
    is one input, as the probe's view 'whole' has it. As embeddings of all images can have much in
    common (those of an untrained network all but coincide), every cosine is also taken 'centered':
    less the mean over the images, of whole images and of bags each their own.

    Args:
      trained, untrained: the encoders, of one geometry.
      images: of one size.
      seed: of the choice of images, and of the patches' places.
      on_error: 'stop' at an unreadable image, or 'skip' it.
      max_images: drawn at random, where there are more.
      patches: the largest bag.
      scales: shares of the image's area that patches have, which keep their pixels; beside the
        run's own patches, which are resized as the run says.
      spaces: 'h', 'z', 'hidden1', ...; those that the encoder lacks are left out.

    Returns:
      The rows have 'encoder', 'space', 'side' (of the patches, in pixels), 'scale' (their share of
      the image's area), 'resized' (to how many pixels; None where they are not), 'patches',
      'centered'; 'own' (the mean cosine with the whole of the same image), 'other'
      (with the wholes of all others), 'own_interval', 'other_interval' (of 95%, over images, by
      the bootstrap), 'found' (the share of bags that are nearest to their own image of all), and
      'images'.

    Raises:
      Inapplicable: there are fewer than two images.
      InputError: an image cannot be read, none of the spaces is there, or a patch of the run does
        not fit into the images.
    """
    spaces, notes = _present(spaces, trained)
    pixels = take_sample(images, max_images, seed=seed, on_error=on_error).pixels
    if len(pixels) < 2:
        raise Inapplicable(f'{images.title} has one image, and others are needed to compare with')
    geometries = _geometries(trained.geometry, scales, pixels.shape[1:3])
    counts = [2**i for i in range(patches.bit_length())]
    rows = []
    encoders = {'trained': trained, 'untrained': untrained}
    total = len(encoders) * (1 + len(geometries)) * len(pixels)
    with tqdm.tqdm(
        total=total,
        desc='convergence',
        unit=' images',
        file=sys.stderr,
        disable=not processes.is_first(),
    ) as progress:
        for name, encoder in encoders.items():
            wholes = _wholes(encoder, pixels, spaces)
            progress.update(len(pixels))
            for (side, input_side), geometry in geometries.items():
                view = RandomPatches(geometry, counts[-1], seed)
                means = _means(encoder, pixels, view, counts, spaces, progress)
                about = {
                    'side': side,
                    'scale': side**2 / float(np.prod(pixels.shape[1:3])),
                    'resized': None if input_side == side else input_side,
                }
                for space in spaces:
                    for centered in (False, True):
                        found = _curves(wholes[space], means[space], centered=centered)
                        rows += [
                            {
                                'encoder': name,
                                'space': space,
                                **about,
                                'patches': count,
                                'centered': centered,
                                **curve,
                                'images': len(pixels),
                            }
                            for count, curve in zip(counts, found, strict=True)
                        ]
    return Look(rows, table(rows), _pictures(rows), notes)


def _present(spaces: Sequence[str], encoder: FrozenEncoder) -> tuple[list[str], tuple[str, ...]]:
    """The spaces that the encoder has, and a line on those that it lacks."""
    there = [space for space in spaces if space in encoder.widths]
    lacking = [space for space in spaces if space not in encoder.widths]
    if not there:
        known = ', '.join(encoder.widths)
        raise InputError(f'no space of {", ".join(spaces)} in this run: choose from {known}')
    if not lacking:
        return there, ()
    return there, (f'{", ".join(there)} alone: the encoder has no {", ".join(lacking)}',)


def _geometries(
    own: PatchGeometry, scales: Sequence[float], shape: tuple[int, int]
) -> dict[tuple[int, int], PatchGeometry]:
    """Patches by their side, as cut and as embedded, in an image of that shape; small ones first.

    Those of the run are among them. The others keep their pixels, so that things are as large in
    them as in the whole image, which is what they are compared with.
    """
    found = {}
    for geometry in (own, *(PatchGeometry(0, scale, 0) for scale in scales)):
        side = geometry.side(*shape)
        found.setdefault((side, geometry.resize or side), geometry)
    return dict(sorted(found.items()))


def _wholes(
    encoder: FrozenEncoder, pixels: np.ndarray, spaces: Sequence[str]
) -> dict[str, np.ndarray]:
    """The embeddings of whole images: space -> float32 [b d]."""
    devices = encoder.mesh.size
    encoder = encoder.with_chunk(-(-min(len(pixels), encoder.chunk) // devices) * devices)
    vectors = encoder.embed_bags(pixels[:, None], spaces)
    return {space: np.asarray(vectors[space])[:, 0] for space in spaces}


def _means(
    encoder: FrozenEncoder,
    pixels: np.ndarray,
    view: RandomPatches,
    counts: Sequence[int],
    spaces: Sequence[str],
    progress: tqdm.tqdm,
) -> dict[str, np.ndarray]:
    """The means of the first 1, 2, 4, ... patches: space -> float64 [b n d]."""
    parts = {space: [] for space in spaces}
    step = max(1, encoder.chunk // view.count)
    for start in range(0, len(pixels), step):
        numbers = np.arange(start, min(start + step, len(pixels)))
        vectors = encoder.embed_bags(view.cut(pixels[numbers], numbers), spaces)
        for space in spaces:
            sums = np.cumsum(np.asarray(vectors[space]), axis=1, dtype=np.float64)  # [b p d]
            ends = np.array(counts)
            parts[space].append(sums[:, ends - 1] / ends[:, None])  # [b n d]
        progress.update(len(numbers))
    return {space: np.concatenate(part) for space, part in parts.items()}


def _curves(wholes: np.ndarray, means: np.ndarray, *, centered: bool) -> list[dict[str, Any]]:
    """For each size of bag, what a row says of cosines: of wholes [b d] and means [b n d]."""
    if centered:
        wholes, means = wholes - wholes.mean(axis=0), means - means.mean(axis=0)
    cosines = np.einsum('ind,kd->nik', _unit(means), _unit(wholes))  # [n b b]
    own = np.diagonal(cosines, axis1=1, axis2=2)  # [n b]
    other = (cosines.sum(axis=2) - own) / (cosines.shape[2] - 1)
    found = (cosines.argmax(axis=2) == np.arange(cosines.shape[1])).mean(axis=1)
    own_ends, other_ends = mean_intervals(np.stack([own.T, other.T], axis=1)).transpose(1, 2, 0)
    return [
        {
            'own': float(own[i].mean()),
            'own_interval': own_ends[i].tolist(),
            'other': float(other[i].mean()),
            'other_interval': other_ends[i].tolist(),
            'found': float(found[i]),
        }
        for i in range(len(own))
    ]


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


class Curve(NamedTuple):
    """What one curve is of."""

    encoder: str
    space: str
    patch: str
    centered: bool


def _by_curve(rows: Sequence[Mapping[str, Any]]) -> dict[Curve, list[Mapping[str, Any]]]:
    """The rows of each curve, by the number of patches."""
    curves = {}
    for row in rows:
        patch = f'{row["side"]} px'
        if row['resized']:
            patch += f' at {row["resized"]}'
        curve = Curve(row['encoder'], row['space'], patch, row['centered'])
        curves.setdefault(curve, []).append(row)
    return curves


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each encoder, space and size of patches."""
    counts = sorted({row['patches'] for row in rows})
    counts = [count for i, count in enumerate(counts) if i % 2 == 0 or count == counts[-1]]
    lines = [
        f'cosine of the mean of N patches with the whole image, and with all others; centered, '
        f'at {counts[-1]}: less the mean',
        f'of all images; nearest: bags that are nearest to their own of {rows[0]["images"]} images',
        f'{"encoder":<11}{"space":<8}{"patch":<14}'
        + ''.join(f'{f"N={count}":>6}' for count in counts)
        + f'{"others":>8}{"centered":>10}{"others":>8}{"nearest":>9}',
    ]
    curves = _by_curve(rows)
    for curve, points in curves.items():
        if curve.centered:
            continue
        shown = {row['patches']: row for row in points}
        last, centered = points[-1], curves[curve._replace(centered=True)][-1]
        lines.append(
            f'{curve.encoder:<11}{curve.space:<8}{curve.patch:<14}'
            + ''.join(f'{shown[count]["own"]:>6.2f}' for count in counts)
            + f'{last["other"]:>8.2f}{centered["own"]:>10.2f}{centered["other"]:>8.2f}'
            + f'{last["found"]:>9.2f}'
        )
    return '\n'.join(lines)


def _pictures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
    """The curves of plain cosines, and those of centered ones."""
    caption = (
        'Solid: the cosine of an image with the mean of N of its own patches; dashed: with the '
        'mean of N patches of another image; where solid rises towards 1 and stays clear of '
        'dashed, bags of patches have become the image.'
    )
    return {
        'cosine': Picture(
            _figure(rows, centered=False), alt=_alt(rows, centered=False), caption=caption
        ),
        'centered': Picture(
            _figure(rows, centered=True),
            alt=_alt(rows, centered=True),
            caption=f'The same, less what the embeddings of all images have in common. {caption}',
        ),
    }


def _alt(rows: Sequence[Mapping[str, Any]], *, centered: bool) -> str:
    """The ends of every curve in words."""
    parts = []
    for curve, points in _by_curve(rows).items():
        if curve.centered == centered:
            first, last = points[0], points[-1]
            parts.append(
                f'{curve.encoder} {curve.space}, patches of {curve.patch}: '
                f'{first["own"]:.2f} with {first["patches"]}, {last["own"]:.2f} with '
                f'{last["patches"]}, other images {last["other"]:.2f}'
            )
    kind = 'Centered cosine' if centered else 'Cosine'
    return f'{kind} of the mean of N patches with the whole image. {"; ".join(parts)}.'


def _figure(rows: Sequence[Mapping[str, Any]], *, centered: bool) -> Figure:
    """A panel for each encoder and space; a colour for each size of patches."""
    curves = {c: points for c, points in _by_curve(rows).items() if c.centered == centered}
    panels = list(dict.fromkeys((curve.encoder, curve.space) for curve in curves))
    patches = list(dict.fromkeys(curve.patch for curve in curves))
    # Trained above untrained; of one space alone, beside it.
    columns = max(2, len({space for _, space in panels}))
    lines = len(panels) // columns
    figure = Figure(figsize=(3.1 * columns, 1.1 + 2.2 * lines), dpi=150, layout='constrained')
    grid = figure.subplots(lines, columns, sharex=True, sharey=True).ravel()
    for curve, points in curves.items():
        color = COLORS[patches.index(curve.patch) % len(COLORS)]
        axes = grid[panels.index((curve.encoder, curve.space))]
        axes.set_title(f'{curve.encoder}, {curve.space}', fontsize=10)
        _draw(axes, points, color)
    counts = sorted({row['patches'] for row in rows})
    for axes in grid:
        axes.axhline(0, color='0.75', linewidth=0.8, zorder=0)
        axes.set_xscale('log', base=2)
        axes.set_xticks(counts[::2], [str(count) for count in counts[::2]])
        axes.minorticks_off()
        axes.set_ylim(top=1.03)
        axes.spines[['top', 'right']].set_visible(False)
    figure.supxlabel('N, patches in the bag', fontsize=10)
    figure.supylabel(f'{"centered " if centered else ""}cosine with the whole image', fontsize=10)
    _add_legend(figure, patches)
    return figure


def _draw(axes: Axes, points: Sequence[Mapping[str, Any]], color: str) -> None:
    counts = [row['patches'] for row in points]
    for key, style in (('own', '-'), ('other', '--')):
        axes.plot(counts, [row[key] for row in points], style, color=color, linewidth=1.6)
        low, high = zip(*(row[f'{key}_interval'] for row in points), strict=True)
        axes.fill_between(counts, low, high, color=color, alpha=0.18, linewidth=0)


def _add_legend(figure: Figure, patches: Sequence[str]) -> None:
    """Above the panels: what the colours and the lines stand for."""
    axes = figure.axes[0]
    handles = [
        axes.plot([], [], color=COLORS[i % len(COLORS)], label=f'patches of {patch}')[0]
        for i, patch in enumerate(patches)
    ]
    for style, label in (('-', 'own image'), ('--', 'other images')):
        handles += axes.plot([], [], style, color='0.3', label=label)
    figure.legend(handles=handles, loc='outside upper center', ncols=2, frameon=False, fontsize=9)
