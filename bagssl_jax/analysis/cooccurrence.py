"""Co-occurrence, run: in a world where the truth is known, and on the patches of a training.

On real patches the truth is counted: pixels are quantised to codes, and how often two codes occur
in one image, against independence, is compared with the inner products of their projections. The
theorem is about single patches, but it averages: if w z1 . z2 is the ratio of patches, then its
mean over the patches of two codes is the ratio of the codes, and that mean is the inner product
of the codes' mean vectors.
"""

import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import scipy.stats
import tqdm
from matplotlib.figure import Figure

from bagssl_jax import processes
from bagssl_jax.analysis import discrete_world
from bagssl_jax.analysis.look import Inapplicable, Look, Picture
from bagssl_jax.data.cut import resized
from bagssl_jax.data.datasets import Images
from bagssl_jax.data.geometry import grid_places
from bagssl_jax.data.views import GridPatches
from bagssl_jax.embedding.encoder import FrozenEncoder
from bagssl_jax.errors import InputError
from bagssl_jax.progress import waiting

THUMBNAIL = 8


def look(
    trained: FrozenEncoder,
    untrained: FrozenEncoder,
    images: Images,
    *,
    seed: int,
    on_error: str,
    max_images: int,
    patches: int,
    codes: int,
    min_expected: float,
) -> Look:
    """Runs the theorem in the known world, and on training patches.

    Arguments and errors are those of `compare_patches`. The rows have a 'part': 'known' or
    'identity' (keys in `discrete_world.known_truth`) or 'patches' (keys in `compare_patches`).
    """
    compared, patches_figure = compare_patches(
        {'trained': trained, 'untrained': untrained},
        images,
        seed=seed,
        on_error=on_error,
        max_images=max_images,
        patches=patches,
        codes=codes,
        min_expected=min_expected,
    )
    with (
        waiting('training in the world whose truth is known'),
        jax.default_matmul_precision('highest'),  # accelerators would round to TF32 or bfloat16
    ):
        known, known_figure = discrete_world.known_truth()
    spearman = {(row['encoder'], row['centered']): row['spearman'] for row in compared}
    return Look(
        rows=known + compared,
        table=f'{discrete_world.table(known)}\n\n{table(compared)}',
        figures={
            'known': Picture(
                known_figure,
                alt=(
                    'Left, learned inner products against the true co-occurrence ratio of 64 '
                    'words: at width 8, the rank of the truth, all lie on the diagonal. Right, the '
                    'relative error at each width: that of the best approximation of that rank, '
                    'and from width 8 on nearly none.'
                ),
                caption=(
                    'In a small world whose truth is known, the spectral loss has learned the '
                    'ratio where the points lie on the diagonal.'
                ),
            ),
            'patches': Picture(
                patches_figure,
                alt=(
                    'Inner products of projections against how often two kinds of patches occur '
                    'in one image, for the trained and the untrained encoder. Rank correlation: '
                    + ', '.join(
                        f'{name}{" centered" if centered else ""} {value:.2f}'
                        for (name, centered), value in spearman.items()
                    )
                    + '.'
                ),
                caption=(
                    'A point is a pair of kinds of patches; the more the points rise from left to '
                    'right, the better inner products tell what occurs together.'
                ),
            ),
        },
    )


def compare_patches(
    encoders: Mapping[str, FrozenEncoder],
    images: Images,
    *,
    seed: int,
    on_error: str,
    max_images: int,
    patches: int,
    codes: int,
    min_expected: float,
) -> tuple[list[dict[str, Any]], Figure]:
    """Compares how codes of training patches co-occur with the inner products of projections.

    Of each encoder, two inner products are compared. The plain one takes z at unit length, as
    most objectives do before they compare: only then do z of different objectives, and of an
    encoder that was never trained, mean the same. (One trained with L_S loses its lengths, which
    it uses; all are treated alike.) The centered one then subtracts the mean of z. At the minimum
    of L_S that takes nothing away: sum_j p_j ratio_ij = 1, so w z_i . mean = 1, and
    w (z_i - mean) . (z_j - mean) = ratio_ij - 1. Other objectives leave the mean free (VICReg
    and Barlow Twins do not see it), and it can hide what they learned.

    Memory is that of the patches' thumbnails, and of one batch.

    Args:
      encoders: 'trained' and 'untrained', of one geometry.
      images: of the training split.
      seed: of the choice of images, and of the codes.
      on_error: 'stop' at an unreadable image, or 'skip' it.
      max_images: chosen at random, where there are more.
      patches: an image's, on a grid.
      codes: number of codes.
      min_expected: pairs of codes are kept that independence would let occur this often.

    Returns:
      A row for each inner product of each encoder: 'part' ('patches'), 'encoder' ('trained',
      'untrained'), 'centered', 'spearman' (rank correlation with the ratio, over pairs of codes),
      'pairs' (of codes), 'codes', 'images', 'patches' (an image's); and the figure.

    Raises:
      Inapplicable: there is no projector.
      InputError: scikit-learn is not installed, the images are too few, or one cannot be read.
    """
    trained = encoders['trained']
    if trained.chunk < patches:
        raise InputError(
            f'probe.batch_size={trained.chunk} is less than a bag of {patches}: raise it'
        )
    if 'z' not in trained.widths:
        raise Inapplicable('this encoder has no projector, whose output is what is compared here')
    images = images.part(max_images, seed=seed)
    view = GridPatches(trained.geometry, grid_places(patches))

    def bags():
        progress = tqdm.tqdm(
            total=len(images),
            desc='patches',
            unit=' images',
            file=sys.stderr,
            disable=not processes.is_first(),
        )
        with progress:
            for batch in images.bags(view, batch_size=trained.chunk // patches, on_error=on_error):
                yield batch.patches
                progress.update(len(batch.patches))

    thumbnails = np.concatenate([_thumbnails(bag) for bag in bags()])  # [b p f]
    code_of = quantize(thumbnails.reshape(-1, thumbnails.shape[-1]), codes, seed=seed)
    code_of = code_of.reshape(thumbnails.shape[:2])  # [b p]
    ratio, expected = cooccurrence_ratio(count_pairs(code_of, codes))
    pairs = frequent_pairs(expected, min_expected)

    means = {name: CodeMeans(codes) for name in encoders}
    start = 0
    for bag in bags():
        batch_codes = code_of[start : start + len(bag)].ravel()
        start += len(bag)
        for name, encoder in encoders.items():
            z = np.asarray(encoder.embed_bags(bag, ('z',))['z'])
            means[name].add(z.reshape(-1, z.shape[-1]), batch_codes)  # [b p k] -> [n k]

    products = {
        (name, centered): means[name].products(centered=centered)[pairs]
        for centered in (False, True)
        for name in encoders
    }
    rows = [
        {
            'part': 'patches',
            'encoder': name,
            'centered': centered,
            'spearman': float(scipy.stats.spearmanr(ratio[pairs], product).statistic),
            'pairs': len(product),
            'codes': codes,
            'images': len(images),
            'patches': patches,
        }
        for (name, centered), product in products.items()
    ]
    return rows, _figure(ratio[pairs], products, rows)


def quantize(pixels: np.ndarray, codes: int, *, seed: int) -> np.ndarray:
    """The k-means code of every row of `pixels` [n f]: int [n], in [0, codes).

    Raises:
      InputError: scikit-learn is not installed, or there are fewer rows than codes.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
        from threadpoolctl import threadpool_limits
    except ImportError:
        raise InputError(
            "quantising patches needs scikit-learn: pip install 'bagssl-jax[analysis]'"
        ) from None
    if len(pixels) < codes:
        raise InputError(f'{len(pixels)} training patches are too few for {codes} codes')
    pixels = pixels.astype(np.float32)
    # Several threads would add up in an order that varies, and wait for each other.
    with threadpool_limits(1):
        kmeans = MiniBatchKMeans(codes, batch_size=4096, n_init=1, random_state=seed)
        return kmeans.fit(pixels).predict(pixels)


def count_pairs(code_of: np.ndarray, codes: int) -> np.ndarray:
    """How often code i and code j are those of two different patches of one image.

    Args:
      code_of: the code of every patch, int [b p].
      codes: number of codes.

    Returns:
      float64 [codes codes], symmetric: b p (p - 1) ordered pairs in all.
    """
    images = len(code_of)
    histograms = np.zeros((images, codes))
    np.add.at(histograms, (np.arange(images)[:, None], code_of), 1)
    # All ordered pairs of patches of an image, less every patch with itself.
    return histograms.T @ histograms - np.diag(histograms.sum(axis=0))


def cooccurrence_ratio(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p_ij / (p_i p_j) from counts n_ij [codes codes], 0 where p_i p_j is; and n p_i p_j."""
    marginal = counts.sum(axis=1)
    expected = np.outer(marginal, marginal) / counts.sum()
    return np.divide(counts, expected, out=np.zeros_like(expected), where=expected > 0), expected


def frequent_pairs(expected: np.ndarray, min_expected: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices (i, j), i < j, of the pairs of codes with at least `min_expected`; [codes codes].

    No code is paired with itself: patches of one code look alike by construction, so any smooth
    encoder would make their inner products large.

    Raises:
      InputError: they are too few to correlate anything.
    """
    pairs = np.nonzero(np.triu(expected >= min_expected, k=1))
    if len(pairs[0]) < 10:
        raise InputError(
            f'only {len(pairs[0])} pairs of codes are frequent enough to compare: give more '
            'training images'
        )
    return pairs


class CodeMeans:
    """Gathers, over batches, the mean of the unit-length projections of each code."""

    def __init__(self, codes: int):
        self._codes = codes
        self._sums = 0.0
        self._counts = np.zeros(codes)

    def add(self, z: np.ndarray, code_of: np.ndarray) -> None:
        """Projections [n k] of any length, and their codes int [n]."""
        lengths = np.linalg.norm(z, axis=1, keepdims=True)
        one_hot = np.eye(self._codes)[code_of]  # [n codes]
        self._sums = self._sums + one_hot.T @ (z / np.maximum(lengths, 1e-12))
        self._counts += one_hot.sum(axis=0)

    def products(self, *, centered: bool) -> np.ndarray:
        """Mean z1 . z2 over patches of code i and of code j: [codes codes].

        Centered, the mean z of all patches is subtracted from each before.
        """
        means = self._sums / np.maximum(self._counts, 1)[:, None]
        if centered:
            means -= self._sums.sum(axis=0) / self._counts.sum()
        return means @ means.T


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of `compare_patches`: a line for each encoder and inner product."""
    first = rows[0]
    title = (
        f'{first["pairs"]:,} pairs of {first["codes"]} codes, {first["images"]:,} images of '
        f'{first["patches"]} patches'
    )
    body = [
        f'{row["encoder"]:<11}{"centered" if row["centered"] else "plain":<10}'
        f'{row["spearman"]:>9.3f}'
        for row in rows
    ]
    return '\n'.join([title, f'{"encoder":<11}{"z":<10}{"spearman":>9}', *body])


def _thumbnails(bag: np.ndarray) -> np.ndarray:
    """uint8 [b p h w c] -> [b p f]: the pixels that k-means sees.

    Patches of 16x16 keep 99% of their variance at 8x8; larger ones would take memory that
    grows with their area, for detail that no distance between pixels notices.
    """
    height, width = (min(THUMBNAIL, side) for side in bag.shape[2:4])
    flat = bag.reshape(-1, *bag.shape[2:])
    small = np.stack([resized(patch, height, width) for patch in flat])
    return small.reshape(*bag.shape[:2], -1)


def _figure(
    ratio: np.ndarray,
    products: Mapping[tuple[str, bool], np.ndarray],
    rows: list[dict[str, Any]],
) -> Figure:
    """Inner product against ratio: a column for each encoder, centered in the lower row.

    The axis of ratios, whose tail is long, is logarithmic; pairs that never occurred stand at its
    left end.
    """
    figure = Figure(figsize=(7, 6), dpi=200, layout='constrained')
    grid = figure.subplots(2, 2, sharex=True, sharey='row')
    smallest = ratio[ratio > 0].min()
    never = 10 ** np.floor(np.log10(smallest)) / 3
    shown = np.where(ratio > 0, ratio, never)
    for row, ((name, centered), product) in zip(rows, products.items(), strict=True):
        axes = grid[int(centered), int(name == 'untrained')]
        color = 'C0' if name == 'trained' else '0.4'
        axes.scatter(shown, product, s=5, color=color, alpha=0.4, linewidths=0, rasterized=True)
        axes.axvline(1, color='0.85', linewidth=0.8, zorder=0)
        axes.set_title(f'{name}: Spearman {row["spearman"]:.2f}', fontsize=10)
        axes.set_xscale('log')
        axes.spines[['top', 'right']].set_visible(False)
    grid[0, 0].set_ylabel(r'mean $z_i \cdot z_j$')
    grid[1, 0].set_ylabel(r'mean $(z_i - \bar z) \cdot (z_j - \bar z)$')
    powers = np.arange(np.ceil(np.log10(smallest)), np.log10(ratio.max()) + 0.5)
    ticks = [never, *10.0**powers]
    for axes in grid[1]:
        axes.set_xticks(ticks, ['0', *(f'{10.0**power:g}' for power in powers)])
        axes.minorticks_off()
    figure.supxlabel(
        'times that two codes occur in one image / times expected if independent', fontsize=10
    )
    return figure
