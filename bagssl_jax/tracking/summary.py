"""The rows of results.json as numbers with names."""

from collections.abc import Mapping
from typing import Any

# What a row says of itself, but for its probe and its view, where it is not this.
USUAL = {'encoder': 'trained', 'space': 'h', 'aggregation': 'mean', 'labels': 'all', 'flip': False}


def summary_of(results: Mapping[str, Any]) -> dict[str, float]:
    """What probes have found, by names such as 'probe/linear/16 patches', 'probe/knn/whole/z'.

    Args:
      results: as in results.json; {} where there is none.
    """
    numbers = {}
    for row in results.get('rows', ()):
        value = row.get('top1') if row.get('top1') is not None else row.get('value')
        if isinstance(value, int | float):
            numbers[_name(row)] = value
    return numbers


def _name(row: Mapping[str, Any]) -> str:
    patches = row.get('patches')
    view = row.get('view')
    special = [
        key if value is True else str(value)
        for key, usual in USUAL.items()
        if (value := row.get(key, usual)) != usual
    ]
    what = view if view != 'bag' else f'{patches} patch{"es" * (patches != 1)}'
    return '/'.join(['probe', str(row.get('probe')), str(what), *special])
