"""What looks leave in a run: analysis.json, and figures."""

from collections.abc import Mapping
from typing import Any

from bagssl_jax.analysis.look import Look
from bagssl_jax.errors import InputError
from bagssl_jax.runs import Run

Findings = dict[str, Any]
NAME = 'analysis.json'


def read(run: Run, name: str = NAME) -> Findings | None:
    """What earlier looks have left in a file; None where there is none.

    Raises:
      InputError: the file is damaged, or cannot be read.
    """
    findings = run.read_json(name)
    looks = {} if findings is None else findings.get('looks')
    if not isinstance(looks, dict) or not all(isinstance(look, dict) for look in looks.values()):
        raise InputError(f'{run.directory / name} is damaged: it holds no looks: take it away')
    return findings


def write(run: Run, look: Look, *, name: str, dataset: str, step: int, images: str) -> None:
    """Adds one look to analysis.json, and writes its figures, figures/NAME_FIGURE.png.

    analysis.json is {'dataset', 'step', 'looks': {name: {'images', 'rows', 'table', 'notes',
    'figures': [{'file', 'alt', 'caption'}]}}}. An earlier look of the same name is replaced; all of
    another data set or step go into analysis-DATASET-STEP.json, without their figures, whose files
    are written anew.

    Args:
      run: whose directory is written to.
      look: what was found.
      name: of the look.
      dataset: what the images are of.
      step: of the checkpoint.
      images: what they are called: the data set and the split.

    Raises:
      InputError: a file is damaged, or cannot be written.
    """
    looks = _earlier(run, dataset, step)
    figures = []
    for key, picture in look.figures.items():
        run.write_figure(f'{name}_{key}', picture.figure)
        file = f'figures/{name}_{key}.png'
        figures.append({'file': file, 'alt': picture.alt, 'caption': picture.caption})
    looks[name] = {
        'images': images,
        'rows': look.rows,
        'table': look.table,
        'notes': list(look.notes),
        'figures': figures,
    }
    run.write_json(NAME, {'dataset': dataset, 'step': step, 'looks': looks}, indent=1)


def _earlier(run: Run, dataset: str, step: int) -> dict[str, Any]:
    """The looks that stay in analysis.json; all others are moved aside."""
    earlier = read(run)
    if earlier is None:
        return {}
    if (earlier.get('dataset'), earlier.get('step')) == (dataset, step):
        return dict(earlier['looks'])
    aside = f'analysis-{earlier.get("dataset")}-{earlier.get("step")}.json'.replace('/', '-')
    older = read(run, aside) or {'looks': {}}
    moved = {name: _without_figures(look) for name, look in earlier['looks'].items()}
    run.write_json(aside, {**earlier, 'looks': {**older['looks'], **moved}}, indent=1)
    return {}


def _without_figures(look: Mapping[str, Any]) -> dict[str, Any]:
    return {**look, 'figures': []}
