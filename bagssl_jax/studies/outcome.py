"""What the runs of a study came to: the numbers that its measures read off them."""

import json
import math
from collections.abc import Sequence
from typing import Any

from etils import epath

from bagssl_jax.errors import InputError
from bagssl_jax.runs import Run
from bagssl_jax.studies.folder import RECORD, StudyFolder
from bagssl_jax.studies.plan import Measure, Planned, Study, Variant, choosing, chosen_runs


def plan(study: Study, runs: StudyFolder, variant: Variant) -> list[Planned]:
    """The runs of a variant that are known: those of its seeds once its choice is made.

    Raises:
      InputError: a run that is finished cannot be read, or lacks what it is chosen by.
    """
    tried = list(choosing(study, variant))
    if tried and None in map(runs.finished, tried):
        return tried
    measure = [study.selection.measure] if tried else []
    # The highest score; of equals, the first.
    best = max(tried, key=lambda one: values_of(runs.finished(one), variant, measure), default=None)
    return [*tried, *chosen_runs(study, variant, best and best.choice)]


def values_of(run: Run, variant: Variant, measures: Sequence[Measure]) -> list[float]:
    """The numbers that measures read off the results.json of a run of a variant.

    Raises:
      InputError: of one there is no such row, more than one, or no number in it.
    """
    place, rows = run.directory / 'results.json', (run.read_json('results.json') or {}).get('rows')
    return [_value_in(rows or [], measure, variant, place) for measure in measures]


def _value_in(
    rows: list[dict[str, Any]], measure: Measure, variant: Variant, place: epath.Path
) -> float:
    where = {**measure.where, **variant.rows}
    fitting = [row for row in rows if _fits(row, where)]
    wanted = json.dumps(where)
    if len(fitting) != 1:
        raise InputError(
            f'{place} has {len(fitting) or "no"} rows of {measure.column!r}, where there must be '
            f'one: {wanted}'
        )
    value = fitting[0].get(measure.value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f'{place} has no {measure.value} of {wanted}')
    return float(value)


def outcome(study: Study, runs: StudyFolder, variant: Variant) -> dict[str, Any]:
    """What is known of a variant.

    Returns:
      'variant': its name; 'choices': what was tried, each with its 'choice' and 'score'; 'choice':
      what was taken, None where it is open, or there was none; 'runs': of the seeds, each with
      its 'name', 'seed', 'values' (by `Measure.column`) and what `RECORD` says; 'missing': the
      names of runs that are not finished.
    """
    planned = plan(study, runs, variant)
    made = {one.name: run for one in planned if (run := runs.finished(one)) is not None}
    of_seeds = [one for one in planned if one.choice is None]
    later = [] if of_seeds else list(chosen_runs(study, variant, None))
    columns = [measure.column for measure in study.measures]
    return {
        'variant': variant.name,
        'choices': [
            {
                'choice': one.choice,
                'score': values_of(made[one.name], variant, [study.selection.measure])[0],
            }
            for one in planned
            if one.choice is not None and one.name in made
        ],
        'choice': of_seeds[0].settings[variant.choices[0]]
        if variant.choices and of_seeds
        else None,
        'runs': [
            {
                'name': one.name,
                'seed': one.settings['seed'],
                'values': dict(
                    zip(columns, values_of(made[one.name], variant, study.measures), strict=True)
                ),
                **made[one.name].read_json(RECORD),
            }
            for one in of_seeds
            if one.name in made
        ],
        'missing': [one.name for one in (*planned, *later) if one.name not in made],
    }


def _fits(row: dict[str, Any], where: dict[str, Any]) -> bool:
    return all(row.get(key) == value for key, value in where.items())
