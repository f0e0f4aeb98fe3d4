"""Curves as SVG, in the colours of the page."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from bagssl_jax.reporting.markup import Element, element, number

WIDTH, HEIGHT = 360, 216
LEFT, RIGHT, TOP, BOTTOM = 48, 16, 10, 40
CHARACTER = 7  # wide, at most, in a label
MOST_POINTS = 300  # of a curve; the rest would lie within a pixel


@dataclasses.dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
      label: of the legend.
      points: (x, y), ascending; y is None where nothing can be drawn, and the curve has a gap.
      style: the class that has its colour: 'a', 'b', or those of a run's second encoder or space.
      intervals: (low, high) of each point, or nothing.
      joined: whether a line goes through the points.
      marked: whether each point is a dot.
      note: what the legend says behind the label.
    """

    label: str
    points: Sequence[tuple[float, float | None]]
    style: str = 'a'
    intervals: Sequence[tuple[float, float] | None] = ()
    joined: bool = True
    marked: bool = False
    note: str = ''


def chart(
    title: str,
    series: Sequence[Series],
    *,
    how: str,
    description: str,
    x_title: str = 'step',
    x_ticks: Sequence[tuple[float, str]] | None = None,
    label: Callable[[float], str] = number,
) -> Element:
    """A figure: title, legend, curves, and a sentence on how to read them.

    Args:
      title: of the figure.
      series: the curves; at least one has a point.
      how: to read it.
      description: what a person hears who does not see it.
      x_title: of the horizontal axis.
      x_ticks: places and their labels; None for round numbers.
      label: of a vertical tick.
    """
    legend = [
        element(
            'li', {'class': one.style}, one.label, element('b', {}, f' {one.note}' * bool(one.note))
        )
        for one in series
        if one.joined
    ]
    return element(
        'figure',
        {'class': 'chart'},
        element('h3', {}, title),
        element('ul', {'class': 'legend'}, legend) if len(series) > 1 or series[0].note else None,
        _drawn(series, description, x_title, x_ticks, label),
        element('figcaption', {}, how),
    )


def _drawn(
    series: Sequence[Series],
    description: str,
    x_title: str,
    x_ticks: Sequence[tuple[float, str]] | None,
    label: Callable[[float], str],
) -> Element:
    xs, ys = _xs(series), _ys(series)
    xs += [x for x, _ in x_ticks or ()]
    x_ticks = x_ticks or [(x, _step_label(x)) for x in ticks(min(xs), max(xs), count=4)]
    y_places = ticks(min(ys), max(ys), count=5)
    ys += [y_places[0], y_places[-1]]
    place = _scale((min(xs), max(xs)), (min(ys), max(ys)))
    drawing = element(
        'svg',
        {
            'viewBox': f'0 0 {WIDTH} {HEIGHT}',
            'role': 'img',
            'aria-label': description,
            'preserveAspectRatio': 'xMidYMid meet',
        },
    )
    for y in y_places:
        _, at = place(0, y)
        line = {'x1': f'{LEFT}', 'x2': f'{WIDTH - RIGHT}', 'y1': f'{at:.1f}', 'y2': f'{at:.1f}'}
        drawing.append(element('line', {'class': 'grid', **line}))
        drawing.append(_text(LEFT - 6, at + 4, label(y), anchor='end'))
    end = 0.0  # of the words before, which the next must not touch
    for x, words in sorted(x_ticks):
        at, _ = place(x, y_places[0])
        half = CHARACTER * len(words) / 2
        if LEFT - 1 <= at <= WIDTH - RIGHT + 1 and at - half > end:
            drawing.append(_text(at, HEIGHT - BOTTOM + 16, words, anchor='middle'))
            end = at + half + CHARACTER
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawing.append(_text(middle, HEIGHT - 4, x_title, anchor='middle', style='title'))
    for one in reversed(series):
        drawing.extend(_curve(one, place))
    return drawing


def ticks(low: float, high: float, *, count: int) -> list[float]:
    """Round numbers from `low` to `high`, about `count` of them, and at least two."""
    if not high > low:
        spread = abs(low) / 2 or 0.5
        low, high = low - spread, high + spread
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    if last <= first:
        first, last = math.floor(low / step), math.ceil(high / step)
    # Rounded, as 3 * 0.1 is not 0.3.
    return [round(place * step, 12) for place in range(first, last + 1)]


def _curve(one: Series, place: Callable[[float, float], tuple[float, float]]) -> list[Element]:
    made = []
    for (x, _), interval in zip(one.points, one.intervals, strict=False):
        if interval is not None:
            (at, low), (_, high) = place(x, interval[0]), place(x, interval[1])
            ends = {'x1': f'{at:.1f}', 'x2': f'{at:.1f}', 'y1': f'{low:.1f}', 'y2': f'{high:.1f}'}
            made.append(element('line', {'class': f'interval {one.style}', **ends}))
    for piece in _pieces(thinned(one.points)) if one.joined else ():
        path = ' '.join(f'{x:.1f},{y:.1f}' for x, y in (place(*point) for point in piece))
        if len(piece) > 1:
            made.append(element('polyline', {'class': one.style, 'points': path}))
        elif not one.marked:
            made.append(_dot(*place(*piece[0]), one.style))
    if one.marked:
        kind = one.style if one.joined else f'{one.style} hollow'
        made += [_dot(*place(x, y), kind) for x, y in one.points if y is not None]
    return made


def thinned(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """The lowest and the highest point of each of some hundred stretches, and every gap."""
    if len(points) <= MOST_POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / MOST_POINTS)
    kept = []
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        known = [point for point in stretch if point[1] is not None]
        if len(known) < len(stretch):
            known.append(next(point for point in stretch if point[1] is None))
        ends = {min(known, key=_height), max(known, key=_height)} if known else set()
        gaps = {point for point in known if point[1] is None}
        kept += sorted(ends | gaps)
    return kept


def _height(point: tuple[float, float | None]) -> float:
    return 0.0 if point[1] is None else point[1]


def _pieces(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """The stretches between the gaps."""
    pieces = [[]]
    for x, y in points:
        if y is None:
            pieces.append([])
        else:
            pieces[-1].append((x, y))
    return [piece for piece in pieces if piece]


def _scale(
    xs: tuple[float, float], ys: tuple[float, float]
) -> Callable[[float, float], tuple[float, float]]:
    """From data to places in the drawing."""
    (left, right), (low, high) = xs, ys
    width, height = (right - left) or 1, (high - low) or 1
    if right == left:
        left -= 0.5

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (WIDTH - LEFT - RIGHT) * (x - left) / width,
            HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (y - low) / height,
        )

    return place


def _xs(series: Sequence[Series]) -> list[float]:
    return [x for one in series for x, _ in one.points]


def _ys(series: Sequence[Series]) -> list[float]:
    values = [y for one in series for _, y in one.points if y is not None]
    return values + [end for one in series for ends in one.intervals if ends for end in ends]


def _dot(x: float, y: float, style: str) -> Element:
    return element('circle', {'class': style, 'cx': f'{x:.1f}', 'cy': f'{y:.1f}', 'r': '3.5'})


def _text(x: float, y: float, words: str, *, anchor: str, style: str = 'tick') -> Element:
    at = {'x': f'{x:.1f}', 'y': f'{y:.1f}', 'text-anchor': anchor, 'class': style}
    return element('text', at, words)


def _step_label(x: float) -> str:
    return f'{x / 1000:g}k' if abs(x) >= 10_000 else f'{x:,g}'
