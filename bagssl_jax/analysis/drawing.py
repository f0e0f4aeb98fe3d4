"""What the figures of several looks have in common: photographs, windows in them, axes."""

from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, VERMILION = '#0072B2', '#E69F00', '#009E73', '#D55E00'
STYLES = {  # of the lines and points of an encoder and a space
    ('trained', 'h'): {'color': BLUE, 'linestyle': '-', 'marker': 'o'},
    ('trained', 'z'): {'color': VERMILION, 'linestyle': '-', 'marker': 's'},
    ('untrained', 'h'): {'color': BLUE, 'linestyle': ':', 'marker': 'o', 'mfc': 'white'},
    ('untrained', 'z'): {'color': VERMILION, 'linestyle': ':', 'marker': 's', 'mfc': 'white'},
}
DPI = 160
SMALL = 8  # points: at 360 pixels, a figure of 5 inches shows them 8 pixels high


def panel(axes: Axes, image: np.ndarray) -> None:
    """Draws an image, uint8 [h w 3] or [h w], over all of the axes, without ticks.

    Positions are then in pixels of the image, whose upper left corner is (0, 0).
    """
    height, width = image.shape[:2]
    grey = {'cmap': 'gray', 'vmin': 0, 'vmax': 255} if image.ndim == 2 else {}
    axes.imshow(image, extent=(0, width, height, 0), interpolation='antialiased', **grey)
    bare(axes)


def lay_over(
    axes: Axes, pixels: np.ndarray, boxes: np.ndarray, values: np.ndarray, **style: Any
) -> AxesImage:
    """Draws the values of places over a grey image, as far as there are centers of places.

    Args:
      axes: that are drawn on.
      pixels: of the image, uint8 [h w 3].
      boxes: of the places, int [rows columns 4], evenly spaced.
      values: [rows columns], or colours [rows columns 3].
      style: of `Axes.imshow`.
    """
    panel(axes, gray(pixels))
    centers = boxes[..., :2] + boxes[..., 2:] / 2
    (top, bottom), (left, right) = (
        (line[0] - step / 2, line[-1] + step / 2)
        for line in (centers[:, 0, 0], centers[0, :, 1])
        for step in [(line[-1] - line[0]) / max(1, len(line) - 1)]
    )
    extent = left, right, bottom, top
    image = axes.imshow(values, extent=extent, interpolation='bilinear', **style)
    axes.set_xlim(0, pixels.shape[1])
    axes.set_ylim(pixels.shape[0], 0)
    return image


def photographs(rows: int, columns: int, shape: tuple[int, int], *, below: float) -> Figure:
    """A figure of equal panels for images of a shape (height, width), close to each other.

    There is room for titles above, for a label on the left, and so many inches below.
    """
    left, right, gap, above = 0.04, 0.995, 0.03, 0.25
    across = 5 * (right - left) / (columns + gap * (columns - 1))
    height = across * shape[0] / shape[1] * (rows + gap * (rows - 1)) + above + below
    figure = Figure(figsize=(5, height), dpi=DPI)
    figure.subplots(
        rows,
        columns,
        squeeze=False,
        gridspec_kw={
            'left': left,
            'right': right,
            'top': 1 - above / height,
            'bottom': below / height,
            'wspace': gap,
            'hspace': gap,
        },
    )
    return figure


def bare(axes: Axes) -> None:
    """Takes ticks and spines away."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def outline(axes: Axes, box: np.ndarray, color: str = 'white') -> None:
    """Draws the edge of a box, (y, x, height, width), visible on any ground."""
    y, x, height, width = box
    for edge, thick in (('black', 2.4), (color, 1.2)):
        axes.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=edge, lw=thick))


def dimmed(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The image, uint8 [h w 3], grey and dark but for a box (y, x, height, width)."""
    result = np.repeat(0.45 * gray(image)[..., None], 3, axis=2).astype(np.uint8)
    y, x, height, width = box
    result[y : y + height, x : x + width] = image[y : y + height, x : x + width]
    return result


def gray(image: np.ndarray) -> np.ndarray:
    """uint8 [h w 3] -> uint8 [h w]."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)


def surroundings(image: np.ndarray, box: np.ndarray, times: float) -> tuple[int, int, int]:
    """The square around a box, `times` its side where the image has room: y, x and side."""
    y, x, side, _ = box
    large = min(round(times * side), *image.shape[:2])
    corner = [
        min(max(0, start + side // 2 - large // 2), length - large)
        for start, length in zip((y, x), image.shape[:2], strict=True)
    ]
    return *corner, large


def chart(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of that size in inches, with axes beside one another that share the vertical one."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout='constrained')
    found = figure.subplots(1, columns, sharey=True, squeeze=False)[0]
    for axes in found:
        axes.spines[['top', 'right']].set_visible(False)
        axes.tick_params(labelsize=SMALL)
    return figure, list(found)
