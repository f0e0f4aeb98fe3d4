"""What a number in a configuration may be, declared beside its default."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bagssl_jax.errors import InputError

Number = int | float


@dataclasses.dataclass(frozen=True)
class Range:
    """A default, and what may stand in its place.

    Attributes:
      default: a number, or a tuple of numbers, for each of which the limits hold.
      least: the smallest that it may be, or what it must be above.
      most: the largest that it may be.
      above: whether `least` itself is too small.
      items: of a tuple, how many it has: at least, and at most.
      ascending: whether the items of a tuple must not fall.
    """

    default: Number | tuple[Number, ...]
    least: Number
    most: Number
    above: bool = False
    items: tuple[int, int] = (1, 1)
    ascending: bool = False

    def check(self, key: str, value: Any) -> None:
        """Raises InputError, which names the key, the value and the range, for what it may not be.

        Numbers that are none and infinities are outside of every range.
        """
        is_tuple = isinstance(self.default, tuple)
        numbers = value if is_tuple else (value,)
        inside = all(self.least <= x <= self.most for x in numbers)
        if self.above:
            inside = inside and self.least not in numbers
        if self.ascending:
            inside = inside and list(numbers) == sorted(numbers)
        if not inside or not self.items[0] <= len(numbers) <= self.items[1]:
            raise InputError(
                f'{key}={value} must be {self._words() if is_tuple else self._limits()}'
            )

    def _words(self) -> str:
        fewest, most = self.items
        count = fewest if fewest == most else f'{fewest} to {most}'
        order = ', the smallest first' if self.ascending else ''
        return f'{count} numbers, each {self._limits()}{order}'

    def _limits(self) -> str:
        if self.above:
            return f'above {_short(self.least)} and at most {_short(self.most)}'
        return f'from {_short(self.least)} to {_short(self.most)}'


def within(
    default: Any,
    least: Number,
    most: Number,
    *,
    items: int | tuple[int, int] = 1,
    ascending: bool = False,
) -> Range:
    """A number, or `items` numbers, from `least` to `most`."""
    items = (items, items) if isinstance(items, int) else items
    return Range(default, least, most, items=items, ascending=ascending)


def above(default: Any, least: Number, most: Number, **options: Any) -> Range:
    """The same, where `least` itself is too small."""
    return dataclasses.replace(within(default, least, most, **options), above=True)


def share(default: float) -> Range:
    """A number from 0 to 1: a probability, a part of a whole."""
    return within(default, 0, 1)


def defaults_of(declared: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with the default of every range in its place."""
    return {
        key: defaults_of(value)
        if isinstance(value, Mapping)
        else (value.default if isinstance(value, Range) else value)
        for key, value in declared.items()
    }


def check_all(declared: Mapping[str, Any], config: Mapping[str, Any], prefix: str = '') -> None:
    """Raises InputError for the first number of a configuration that is outside of its range.

    Args:
      declared: a tree, with ranges among its values.
      config: a tree that has all of its keys, with values of their kinds.
      prefix: of the keys, in the error.
    """
    for key, value in declared.items():
        if isinstance(value, Mapping):
            check_all(value, config[key], f'{prefix}{key}.')
        elif isinstance(value, Range):
            value.check(prefix + key, config[key])


def _short(number: Number) -> str:
    return f'{number:,}' if isinstance(number, int) else f'{number:g}'
