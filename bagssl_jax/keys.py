"""What the keys of a configuration mean: the comments of `defaults.declared`, to be printed.

It reads that file's source, so that every key is explained in one place.
"""

import ast
import difflib
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bagssl_jax import defaults
from bagssl_jax.configurations import flat
from bagssl_jax.errors import InputError

WIDTH = 100  # columns
EVERYTHING = 'all'


def overview(config: Mapping[str, Any], groups: Sequence[str] | None = None) -> str:
    """Every key with its value, a paragraph for each group.

    Args:
      config: nested, with every key.
      groups: of the keys that can be set; None for all.
    """
    paragraphs = {}
    for key, value in _values(config, groups, documented()).items():
        group, _, name = key.rpartition('.')
        text = textwrap.shorten(_typed(value).replace(',', ', '), 60, placeholder=' ...')
        paragraphs.setdefault(group, []).append(f'{name}={text.replace(", ", ",")}')
    return '\n'.join(
        textwrap.fill(
            ' '.join([f'{group}.' if group else 'without a group:', *settings]),
            WIDTH,
            initial_indent='  ',
            subsequent_indent='      ',
            break_long_words=False,
            break_on_hyphens=False,
        )
        for group, settings in paragraphs.items()
    )


def explain(word: str, config: Mapping[str, Any], groups: Sequence[str] | None = None) -> str:
    """The keys that a word names, each with its value and what it means.

    Args:
      word: a key, a group, a part of keys, or of what is said of them; 'all' for all keys. What is
        found in this order is taken.
      config, groups: as for `overview`.

    Raises:
      InputError: there is no such key.
    """
    comments = documented()
    values = _values(config, groups, comments)
    word = word.removeprefix('config.').rstrip('.*').lower()
    matches = (
        lambda key: word == EVERYTHING or key == word or key.startswith(f'{word}.'),
        lambda key: word in key,
        lambda key: word in comments.get(key, '').lower(),
    )
    found = next(filter(None, ([key for key in values if match(key)] for match in matches)), None)
    if found is None:
        near = difflib.get_close_matches(word, {part for key in values for part in key.split('.')})
        hint = f'did you mean {near[0]}?' if near else f'--help={EVERYTHING} has all'
        raise InputError(f'--help={word}: no key has that in its name or its meaning; {hint}')
    lines, last, shown = [], None, set()
    for key in found:
        parts = key.split('.')
        groups_of = ['.'.join(parts[:i]) for i in range(1, len(parts))]
        if groups_of != last:
            last = groups_of
            lines.append('')
        for group in groups_of:
            if comments.get(group) and group not in shown:
                lines += _paragraph(f'{group}.*', comments[group])
            shown.add(group)
        lines += _paragraph(f'{key}={_typed(values[key])}', comments.get(key, ''))
    return '\n'.join(lines).lstrip('\n')


def documented() -> dict[str, str]:
    """Key or group -> the comment that stands above and behind it in `defaults.declared`."""
    source = textwrap.dedent(inspect.getsource(defaults.declared))
    above, behind = _comments(source)
    found, names = {}, {'config': ''}

    def path(node: ast.expr) -> str:
        """The dotted key of `probe.sgd.epochs` or `encoder[name]`."""
        if isinstance(node, ast.Name):
            return names[node.id]
        last = node.attr if isinstance(node, ast.Attribute) else names[node.slice.id]
        return f'{path(node.value)}.{last}'.lstrip('.')

    def visit(statements: Iterable[ast.stmt]) -> None:
        for statement in statements:
            if isinstance(statement, ast.For):
                for name in getattr(defaults, statement.iter.id):
                    names[statement.target.id] = name
                    visit(statement.body)
            if not isinstance(statement, ast.Assign):
                continue
            first, *others = statement.targets
            if isinstance(first, ast.Name):
                continue  # `config` itself
            key = path(first)
            names.update((other.id, key) for other in others)
            start, words = statement.lineno, []
            while start - 1 in above:
                start -= 1
                words.append(above[start])
            words.reverse()
            lines = range(statement.lineno, statement.end_lineno + 1)
            words += [behind[line] for line in lines if line in behind]
            found[key] = ' '.join(words)

    visit(ast.parse(source).body[0].body)
    return found


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """The comments that have a line of their own, and those behind code, by the line."""
    above, behind = {}, {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = not token.line[: token.start[1]].strip()
            (above if alone else behind)[token.start[0]] = token.string.lstrip('# ')
    return above, behind


def _values(
    config: Mapping[str, Any], groups: Sequence[str] | None, order: Iterable[str]
) -> dict[str, Any]:
    """Dotted key -> value, in that order; of encoders that have the same keys, one alone."""
    chosen, hidden = config['encoder']['name'], set()
    for family in map(list, (defaults.RESNETS, defaults.VITS)):
        hidden |= {*family} - {chosen if chosen in family else family[0]}
    values = flat(config)
    return {
        key: values[key]
        for key in order
        if (groups is None or key.partition('.')[0] in groups)
        and not (key.startswith('encoder.') and key.split('.')[1] in hidden)
        and not isinstance(values.get(key, {}), Mapping)
    }


def _typed(value: Any) -> str:
    """A value as it is typed on a command line."""
    if isinstance(value, tuple):
        return ','.join(map(str, value)) or '()'
    return f'{value:g}' if isinstance(value, float) else str(value) or "''"


def _paragraph(head: str, comment: str) -> list[str]:
    """A key and its comment: side by side, or below each other where the key is long."""
    column = 44
    lines = textwrap.wrap(comment, WIDTH - column)
    if len(head) > column - 2:
        return [head, *(' ' * column + line for line in lines)]
    first = f'{head:<{column}}{lines[0] if lines else ""}'.rstrip()
    return [first, *(' ' * column + line for line in lines[1:])]
