"""What a study is: its runs, what is read off them, and what is compared."""

import dataclasses
import pathlib
import runpy
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from bagssl_jax.errors import InputError

Settings = Mapping[str, Any]  # --config.KEY=VALUE, by KEY


@dataclasses.dataclass(frozen=True)
class Variant:
    """A configuration that is run once for every seed.

    Attributes:
      name: in tables, and of the folder of its runs.
      config: FILE.py[:ARGUMENT], from the folder that the study is started in.
      settings: of all its runs.
      choices: (key, values) of which one is chosen by runs of their own, as `Study.selection` says;
        the others take it. None where there is nothing to choose.
      probes: settings of further probes, which follow that of the training.
      rows: what rows of results.json must have for it, in place of what `Measure.where` says:
        {'encoder': 'untrained'} makes it a baseline.
    """

    name: str
    config: str
    settings: Settings = dataclasses.field(default_factory=dict)
    choices: tuple[str, tuple[Any, ...]] | None = None
    probes: tuple[Settings, ...] = ()
    rows: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Measure:
    """A column: one row of results.json, and which number of it.

    Attributes:
      table: the heading of the table that the column is in.
      name: of the column.
      where: keys of the row, and what they must be; one row alone may fit.
      value: the key of the number.
    """

    table: str
    name: str
    where: Mapping[str, Any]
    value: str = 'top1'

    @property
    def column(self) -> str:
        """What tells it from all others."""
        return f'{self.table}: {self.name}'


@dataclasses.dataclass(frozen=True)
class Selection:
    """How one of a variant's `choices` is chosen: by one run each, the highest of which wins.

    Attributes:
      settings: of these runs beside the variant's. They must not touch the images that the
        study is scored on.
      measure: what is highest.
    """

    settings: Settings
    measure: Measure


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A difference, with an interval: left less right, over pairs.

    Of one pair, the interval is over the seeds, which both have; of several, over the pairs, each
    of which is a mean over seeds.

    Attributes:
      name: what is compared.
      pairs: ((variant, column), (variant, column)), by `Variant.name` and `Measure.column`.
    """

    name: str
    pairs: tuple[tuple[tuple[str, str], tuple[str, str]], ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """What a study's file returns from `get_study()`.

    Attributes:
      variants: in the order in which they are run.
      seeds: of the runs of each.
      measures: the columns of the tables.
      selection: where variants have choices.
      comparisons: below the tables.
    """

    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    measures: tuple[Measure, ...]
    selection: Selection | None = None
    comparisons: tuple[Comparison, ...] = ()


@dataclasses.dataclass(frozen=True)
class Planned:
    """One run of a study.

    Attributes:
      name: of its folder in the study's.
      variant: that it is of.
      settings: of its training, with its seed.
      choice: which of the variant's choices it tries; None of a run of a seed.
    """

    name: str
    variant: Variant
    settings: Settings
    choice: Any = None

    def commands(self, workdir: str, data_dir: str = '') -> list[list[str]]:
        """The arguments of `python -m`, one list a program.

        Args:
          workdir: of the run.
          data_dir: where the data sets are; '' leaves that to the configuration.
        """
        place = [f'--workdir={workdir}']
        place += [f'--config.data.dir={data_dir}'] if data_dir else []
        main = ['bagssl_jax.main', f'--config={self.variant.config}']
        commands = [[*main, *place, *_arguments(self.settings)]]
        if self.choice is None:
            probes = self.variant.probes
            commands += [['bagssl_jax.probe', *place, *_arguments(probe)] for probe in probes]
        return commands


def read_study(path: str) -> Study:
    """The study that a file describes.

    Raises:
      InputError: there is no such file, or it describes none.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        known = sorted(map(str, pathlib.Path('configs/studies').glob('[!_]*.py')))
        raise InputError(f'{path}: no such file; give one of {", ".join(known) or "your studies"}')
    # A study may import its neighbours, wherever the program is started from.
    sys.path.append(str(file.resolve().parents[2]))
    try:
        study = runpy.run_path(path)['get_study']()
    except Exception as error:  # whatever a Python file can raise
        lines = str(error).strip().splitlines() or ['']
        raise InputError(f'{path}: {type(error).__name__}: {lines[-1]}') from None
    if not isinstance(study, Study):
        raise InputError(f'{path}: its get_study() does not return a bagssl_jax.studies.Study')
    _check(study, path)
    return study


def choosing(study: Study, variant: Variant) -> Iterator[Planned]:
    """The runs by which a variant's choice is made."""
    key, values = variant.choices or (None, ())
    for value in values:
        settings = {**variant.settings, **study.selection.settings, key: value}
        name = f'{variant.name}/{key.rpartition(".")[2]}={value:g}'
        yield Planned(name, variant, settings, choice=value)


def chosen_runs(study: Study, variant: Variant, choice: Any) -> Iterator[Planned]:
    """The runs of a variant's seeds, with what was chosen."""
    chosen = {variant.choices[0]: choice} if variant.choices else {}
    for seed in study.seeds:
        settings = {**variant.settings, **chosen, 'seed': seed}
        yield Planned(f'{variant.name}/seed={seed}', variant, settings)


def _check(study: Study, path: str) -> None:
    names = [variant.name for variant in study.variants]
    columns = {measure.column for measure in study.measures}
    known = {(name, column) for name in names for column in columns}
    if not (names and study.seeds and study.measures):
        raise InputError(f'{path}: a study needs variants, seeds and measures')
    if len(names) > len(set(names)):
        raise InputError(f'{path}: two variants have the same name')
    if any(variant.choices for variant in study.variants) and study.selection is None:
        raise InputError(f'{path}: a study whose variants have choices needs a selection')
    for comparison in study.comparisons:
        for side in (side for pair in comparison.pairs for side in pair):
            if tuple(side) not in known:
                raise InputError(f'{path}: {comparison.name!r} compares {side}, which is not there')


def _arguments(settings: Settings) -> list[str]:
    return [f'--config.{key}={_text(value)}' for key, value in settings.items()]


def _text(value: Any) -> str:
    return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
