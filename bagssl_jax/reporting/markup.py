"""HTML as a tree, which escapes whatever it holds; and tables in Markdown."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

Element = ElementTree.Element
Content = Element | str | Iterable['Content'] | None

# What no HTML document may hold: controls, halves of pairs, code points that are no characters.
_FORBIDDEN = re.compile(
    '[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef'
    + ''.join(
        f'{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}' for plane in range(0, 0x110000, 0x10000)
    )
    + ']'
)


def element(name: str, attributes: Mapping[str, str] | None = None, *content: Content) -> Element:
    """An element with texts, elements, and what holds such; None is nothing."""
    made = Element(name, {key: clean(value) for key, value in (attributes or {}).items()})
    append(made, *content)
    return made


def append(parent: Element, *content: Content) -> None:
    """Puts content behind what an element has."""
    for part in content:
        if part is None:
            continue
        if isinstance(part, str):
            if len(parent):
                parent[-1].tail = (parent[-1].tail or '') + clean(part)
            else:
                parent.text = (parent.text or '') + clean(part)
        elif isinstance(part, Element):
            parent.append(part)
        else:
            append(parent, *part)


def render(root: Element) -> bytes:
    """The document, in UTF-8."""
    return (
        b'<!DOCTYPE html>\n' + ElementTree.tostring(root, encoding='utf-8', method='html') + b'\n'
    )


def clean(text: str) -> str:
    """The text with a mark in the place of each character that HTML cannot hold."""
    return _FORBIDDEN.sub('\N{REPLACEMENT CHARACTER}', text)


def number(value: float) -> str:
    """Four digits that count, or all of a whole number's; a true minus."""
    if not is_number(value):
        text = str(value)
    elif float(value).is_integer() and abs(value) < 1e15:
        text = f'{int(value):,}'
    elif abs(value) < 0.001 or abs(value) >= 1e7:
        text = f'{value:.1e}'
    else:
        text = f'{value:.4g}' if abs(value) < 1000 else f'{value:,.0f}'
    return text.replace('-', '\N{MINUS SIGN}')


def share(value: float) -> str:
    """A share of one in percent, without the sign."""
    return f'{100 * value:.1f}'


def shown(value: Any) -> str:
    """Whatever JSON can hold, as a person reads it; nothing for null and for what is empty."""
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, Mapping):
        return ', '.join(f'{key} {shown(below)}' for key, below in value.items())
    if isinstance(value, list | tuple):
        return ', '.join(map(shown, value))
    return '' if value is None else str(value)


def is_number(value: Any) -> bool:
    """Whether it is one that can be drawn: neither infinite nor next to it."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table of text in Markdown."""
    rows = [head, ['---'] * len(head), *body]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)
