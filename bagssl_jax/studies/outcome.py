"""What the runs of a study came to: the numbers that its measures read off them."""

import json
import math
from typing import Any

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
    chosen = best(study, runs, tried).choice if tried else None
    return [*tried, *chosen_runs(study, variant, chosen)]


def best(study: Study, runs: StudyFolder, tried: list[Planned]) -> Planned:
    """Of finished runs that choose, the one of the highest score; of equals, the first."""
    return max(tried, key=lambda planned: value_of(runs.finished(planned), study.selection.measure))


def value_of(run: Run, measure: Measure) -> float:
    """The number that a measure reads off a run's results.json.

    Raises:
      InputError: there is no such row, more than one, or no number in it.
    """
    results = run.read_json('results.json') or {}
    rows = [row for row in results.get('rows', []) if _fits(row, measure.where)]
    wanted = json.dumps(dict(measure.where))
    if len(rows) != 1:
        count = len(rows) or 'no'
        raise InputError(
            f'{run.directory / "results.json"} has {count} rows of {measure.column!r}, where there '
            f'must be one: {wanted}'
        )
    value = rows[0].get(measure.value)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f'{run.directory / "results.json"} has no {measure.value} of {wanted}')
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
    made = [(one, run) for one in planned if (run := runs.finished(one)) is not None]
    tried = [pair for pair in made if pair[0].choice is not None]
    of_seeds = [pair for pair in made if pair[0].choice is None]
    open_seeds = len(study.seeds) - sum(one.choice is None for one in planned)
    is_chosen = bool(tried) and not open_seeds
    return {
        'variant': variant.name,
        'choices': [
            {'choice': one.choice, 'score': value_of(run, study.selection.measure)}
            for one, run in tried
        ],
        'choice': best(study, runs, [one for one, _ in tried]).choice if is_chosen else None,
        'runs': [
            {
                'name': one.name,
                'seed': one.settings['seed'],
                'values': {m.column: value_of(run, m) for m in study.measures},
                **run.read_json(RECORD),
            }
            for one, run in of_seeds
        ],
        'missing': [one.name for one in planned if runs.finished(one) is None]
        + [f'{variant.name}/seed={seed}' for seed in study.seeds[:open_seeds]],
    }


def _fits(row: dict[str, Any], where: dict[str, Any]) -> bool:
    return all(row.get(key) == value for key, value in where.items())
