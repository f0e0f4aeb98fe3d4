"""What the analyses drew, with how to read it, and any other picture of the run."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from bagssl_jax.reporting.found import Found
from bagssl_jax.reporting.markup import Element, element, is_number, shown
from bagssl_jax.reporting.pictures import Picture, encode
from bagssl_jax.reporting.tables import details, table

MOST_ROWS = 400  # of a table
# Each look by its name: its title, and what a person learns from it.
LOOKS = {
    'convergence': (
        'Do patches add up to the image?',
        'Whether the mean of ever more patch embeddings comes to the embedding of the whole image.',
    ),
    'neighbours': (
        'What lies beside a patch?',
        'The patches whose embeddings are nearest to a patch, in h and in z.',
    ),
    'locality': (
        'How far does a patch reach?',
        'How similar one patch is to every other place of its image.',
    ),
    'scales': ('Does the size of patches matter?', 'Accuracy against the scale of the patches.'),
    'aggregation': (
        'How are patches best put together?',
        'Accuracy of several ways to make one vector of a bag of patches.',
    ),
    'map': ('A map of patches', 'Patches laid out so that similar embeddings lie together.'),
    'cooccurrence': (
        'Which patches occur together?',
        'Whether inner products of projections follow how often two patches share an image.',
    ),
}
# Of pictures that no analysis.json describes: what they show, how to read them.
KNOWN = {
    'accuracy_by_patches': (
        'Top-1 accuracy against the number of patches in the bag, trained and untrained.',
        'Trained above untrained is what training has added.',
    ),
    'cooccurrence_known': (
        'Learned against true co-occurrence in a small world, and the error at each width.',
        'The nearer to the diagonal, the better the spectral loss has learned which words occur '
        'together; the error can fall no further than the best approximation of that rank.',
    ),
    'cooccurrence_patches': (
        'Inner products of projections against co-occurrence of codes of patches.',
        'The more the points rise from left to right, the more the encoder has learned which '
        'patches occur together; untrained, they hardly should.',
    ),
}


def looks_section(runs: Sequence[Found], problems: list[str]) -> list[Element]:
    """Each look of either run with its pictures and numbers, then pictures of no look.

    Args:
      runs: one or two.
      problems: gets a line for each picture that cannot be shown.
    """
    shelves = [_Shelf(run, problems, several=len(runs) > 1) for run in runs]
    names = [name for name in LOOKS if any(name in run.looks for run in runs)]
    names += [name for run in runs for name in run.looks if name not in (*LOOKS, *names)]
    made = []
    for run in runs:
        if len(images := _images_of(run)) == 1:
            who = f'{run.name}: at' if len(runs) > 1 else 'At'
            said = f'{who} {images[0]}, step {shown(run.looked.get("step"))}.'
            made.append(element('p', {'class': 'lede'}, said))
    for name in dict.fromkeys(names):
        title, about = LOOKS.get(name, (name, ''))
        parts = [shelf.look(name) for shelf in shelves]
        made.append(
            element(
                'section',
                {'class': 'look', 'id': f'look-{len(made)}'},
                element('h3', {}, title),
                element('p', {'class': 'lede'}, about) if about else None,
                element('div', {'class': 'sides'}, parts) if len(runs) > 1 else parts,
            )
        )
    for run in runs:
        if run.earlier:
            where = f'Looks at other images, or of other steps: {", ".join(run.earlier)}.'
            made.append(element('p', {'class': 'lede'}, where))
    rest = [shelf.rest() for shelf in shelves]
    if any(len(part) for part in rest):
        title = element('h3', {}, 'Other pictures' if made else 'Pictures')
        sides = element('div', {'class': 'sides'}, rest) if len(runs) > 1 else rest
        made.append(element('section', {'class': 'look'}, title, sides))
    return made


def _images_of(run: Found) -> list[str]:
    """What the looks of a run were taken of."""
    return sorted({shown(look['images']) for look in run.looks.values()} - {''})


class _Shelf:
    """The pictures of one run, each shown once."""

    def __init__(self, run: Found, problems: list[str], *, several: bool):
        self._run, self._problems, self._several = run, problems, several
        # Drawn from the numbers themselves, where there are any.
        hidden = {'accuracy_by_patches'} if run.results else set()
        if run.results and run.results[0].get('robustness'):
            hidden |= {'robustness_pgd', 'robustness_severity', 'robustness_corruptions'}
        contents = {
            name: content
            for name, content in run.pictures.items()
            if pathlib.PurePath(name).stem not in hidden
        }
        self._pictures, damaged = encode(contents)
        problems += [f'{run.name}: figures/{name} is damaged' for name in damaged]
        self._left = dict.fromkeys(self._pictures)

    def look(self, name: str) -> Element:
        """What one look has left."""
        found = self._run.looks.get(name)
        part = element('div')
        if self._several:
            part.append(element('h4', {}, self._run.name))
        if found is None:
            part.append(element('p', {'class': 'none'}, 'Not made of this run.'))
            return part
        if len(_images_of(self._run)) > 1:
            part.append(element('p', {'class': 'lede'}, f'Images: {shown(found["images"])}.'))
        pictures = element('div', {'class': 'pictures'})
        for figure in found['figures']:
            file = pathlib.PurePosixPath(shown(figure.get('file'))).name
            if file not in self._pictures:
                self._problems.append(f'{self._run.name}: figures/{file} of {name} is missing')
                part.append(element('p', {'class': 'none'}, f'The picture {file} is missing.'))
                continue
            self._left.pop(file, None)
            alt, caption = shown(figure.get('alt')), shown(figure.get('caption'))
            pictures.append(_figure(self._pictures[file], alt or caption or file, caption))
        part.extend([pictures] if len(pictures) else [])
        part.extend(element('p', {'class': 'lede'}, shown(note)) for note in found['notes'])
        if found['rows']:
            part.append(_numbers(found['rows']))
        return part

    def rest(self) -> Element:
        """The pictures that no look has shown."""
        part = element('div')
        if self._left and self._several:
            part.append(element('h4', {}, self._run.name))
        pictures = element('div', {'class': 'pictures'})
        for name in self._left:
            stem = pathlib.PurePath(name).stem
            alt, caption = KNOWN.get(stem, (f'Picture {stem.replace("_", " ")} of the run.', name))
            pictures.append(_figure(self._pictures[name], alt, caption))
        part.extend([pictures] if len(pictures) else [])
        return part


def _figure(picture: Picture, alt: str, caption: str) -> Element:
    """A picture that fits its column, or, where that is asked for, has its full size."""
    size = {'width': str(picture.width), 'height': str(picture.height)}
    image = element('img', {'src': picture.source, 'alt': alt, **size})
    is_wide = picture.width > max(1000, 1.8 * picture.height)
    whole = element('span', {}, ' full size')
    zoom = element('label', {'class': 'zoom'}, element('input', {'type': 'checkbox'}), whole)
    return element(
        'figure',
        {'class': 'picture wide' if is_wide else 'picture'},
        element('div', {'class': 'frame'}, image),
        element('figcaption', {}, caption or alt, zoom),
    )


def _numbers(rows: Sequence[Mapping[str, Any]]) -> Element:
    """All rows, but for what is the same in each, which the caption says."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    alike = [
        key for key in keys if len(rows) > 1 and len({shown(row.get(key)) for row in rows}) == 1
    ]
    columns = [key for key in keys if key not in alike] or keys
    columns.sort(key=lambda key: any(is_number(row.get(key)) for row in rows))
    words = sum(not any(is_number(row.get(key)) for row in rows) for key in columns)
    said = '; '.join(f'{key} {shown(rows[0].get(key))}' for key in alike)
    caption = f'All of {said}' if said else 'Its numbers'
    if len(rows) > MOST_ROWS:
        caption += f'; the first {MOST_ROWS} of {len(rows):,} rows, all are in analysis.json'
    cells = [[shown(row.get(key)) for key in columns] for row in rows[:MOST_ROWS]]
    return details(f'The numbers ({len(rows):,})', table(caption, columns, cells, words=words))
