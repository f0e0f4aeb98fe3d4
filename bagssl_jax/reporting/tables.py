"""Tables, which scroll inside their own box."""

from collections.abc import Sequence

from bagssl_jax.reporting.markup import Content, Element, element


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[Content] | str],
    *,
    words: int = 1,
    marked: Sequence[bool] = (),
) -> Element:
    """A table whose first column names its rows.

    Args:
      caption: says what it holds.
      head: of the columns.
      rows: cells of each; or a text, the heading of those that follow.
      words: columns from the left that hold words; the others hold numbers.
      marked: of each row, whether it stands out; none does where nothing is given.
    """
    body = []
    for place, row in enumerate(rows):
        if isinstance(row, str):
            across = {'colspan': str(len(head)), 'scope': 'rowgroup'}
            body.append(element('tr', {'class': 'group'}, element('th', across, row)))
            continue
        attributes = {'class': 'differs'} if marked and marked[place] else {}
        body.append(element('tr', attributes, _cells(row, words, first='th', others='td')))
    made = element(
        'table',
        {'aria-label': caption},
        element('thead', {}, element('tr', {}, _cells(head, words, first='th', others='th'))),
        element('tbody', {}, body),
    )
    # A box that scrolls must be reached by the keyboard too.
    box = {'class': 'scroll', 'tabindex': '0', 'role': 'region', 'aria-label': caption}
    # Outside of the box, or it would scroll away with it.
    words_above = element('p', {'class': 'caption'}, caption)
    return element('div', {'class': 'table'}, words_above, element('div', box, made))


def _cells(row: Sequence[Content], words: int, *, first: str, others: str) -> list[Element]:
    cells = []
    for column, content in enumerate(row):
        name = others if column else first
        attributes = {} if column < words else {'class': 'number'}
        if name == 'th':
            attributes['scope'] = 'col' if others == 'th' else 'row'
        cells.append(element(name, attributes, content))
    return cells


def details(summary: str, *content: Content) -> Element:
    """What opens when it is asked for."""
    return element('details', {}, element('summary', {}, summary), *content)
