"""What convergence prints and draws."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bagssl_jax.analysis.look import Picture

COLORS = ('#c45a00', '#0b7a75', '#5b4bb5', '#a3195b', '#6b6b00')  # of patch sizes; equally dark


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
    """A line for each encoder, space and size of patches, of the rows of `convergence.look`."""
    counts = sorted({row['patches'] for row in rows})
    counts = [count for i, count in enumerate(counts) if i % 2 == 0 or count == counts[-1]]
    lines = [
        f'cosine of the mean of N patches with the whole image; at {counts[-1]}, with all others, '
        'and the share of bags',
        f'that are nearest to their own of {rows[0]["images"]} images; centered: the same less the '
        'mean of all images',
        f'{"encoder":<11}{"space":<8}{"patch":<14}'
        + ''.join(f'{f"N={count}":>6}' for count in counts)
        + f'{"others":>8}{"nearest":>9}{"centered":>10}{"nearest":>9}',
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
            + f'{last["other"]:>8.2f}{last["found"]:>9.2f}'
            + f'{centered["own"]:>10.2f}{centered["found"]:>9.2f}'
        )
    return '\n'.join(lines)


def pictures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Picture]:
    """The curves of plain and of centered cosines, of the rows of `convergence.look`."""
    caption = (
        'the cosine of an image with the mean of N of its own patches (solid) and of another '
        "image's (dashed); where solid rises towards 1 and stays clear of dashed, bags of patches "
        'have become the image.'
    )
    leads = {
        'cosine': 'A curve is ',
        'centered': 'Less what the embeddings of all images have in common, a curve is ',
    }
    return {
        name: Picture(
            _figure(rows, centered=name == 'centered'),
            alt=_alt(rows, centered=name == 'centered'),
            caption=lead + caption,
        )
        for name, lead in leads.items()
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
