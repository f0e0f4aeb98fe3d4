"""Looks into what was learned: each by its name."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from bagssl_jax.analysis import (
    aggregation,
    convergence,
    cooccurrence,
    findings,
    locality,
    neighbours,
    patch_map,
    scales,
)
from bagssl_jax.analysis.look import Inapplicable, Look
from bagssl_jax.data.datasets import Dataset, Images, open_dataset
from bagssl_jax.data.folder import load_files
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.embedding.encoder import load_encoder
from bagssl_jax.errors import InputError, check_known
from bagssl_jax.parallel import check_batch_size, local_mesh
from bagssl_jax.records import note
from bagssl_jax.runs import Run


class Analysis(NamedTuple):
    """An entry of the registry.

    Attributes:
      look: takes the trained encoder, the untrained one, and images, which are of one size;
        further the keyword arguments seed and on_error, and those of its own group in
        config.analysis. Raises Inapplicable where this look cannot be taken.
      asked_for: why it is taken only where --what names it; '' where it is not so.
      labelled: whether it needs labels: its images are then those that probes learn from, and test=
        those that they are scored on.
    """

    look: Callable[..., Look]
    asked_for: str = ''
    labelled: bool = False


ANALYSES: dict[str, Analysis] = {
    'convergence': Analysis(convergence.look),
    'neighbours': Analysis(neighbours.look),
    'locality': Analysis(locality.look),
    'map': Analysis(patch_map.look),
    'scales': Analysis(scales.look, asked_for='it takes minutes', labelled=True),
    'aggregation': Analysis(aggregation.look, asked_for='it takes minutes', labelled=True),
    'cooccurrence': Analysis(cooccurrence.look, asked_for='it takes a minute or more'),
}


def analyze(config: ConfigDict, run: Run, what: str = '', folder: str = '') -> None:
    """Takes looks into the newest checkpoint of `run`.

    Prints their tables; writes analysis.json and figures/NAME_*.png after each.

    Args:
      config: the run's own, of which `analysis`, `probe` and `data` may differ.
      run: trained here or imported.
      what: names of `ANALYSES`, with commas between them. '' for all that apply and need not be
        asked for; those that are left out are named, with the reason.
      folder: of image files at any depth, of which the looks are taken; '' for the data set that
        the configuration names.

    Raises:
      InputError: an unknown name, no checkpoint, no images, nothing can be written, or a look that
        `what` names does not apply.
    """
    names = _names(what, '--what') or _quick()
    run.check_writable()  # now, and not after hours of work
    findings.read(run)
    if folder:
        subject = _photographs(config, folder)
    else:
        subject = _images_of(open_dataset(config.data), config)
    if not _take(config, run, names, subject, named=bool(what)):
        raise InputError('no look is left that applies')
    for name in [] if what else [name for name in ANALYSES if name not in names]:
        reason = f'{ANALYSES[name].asked_for}: ask for it by --what={name}'
        note(f'{name} is left out: {subject.lack(ANALYSES[name]) or reason}')


def check_after_training(config: ConfigDict) -> None:
    """Raises InputError for what `after_training` would refuse."""
    _names(config.analysis.after_training, 'analysis.after_training')


def after_training(config: ConfigDict, run: Run, dataset: Dataset) -> None:
    """As `analyze`, the looks of config.analysis.after_training, as far as they apply.

    Args:
      config: the run's.
      run: that was trained.
      dataset: that it was trained on.

    Raises:
      InputError: no checkpoint, an image cannot be read, or nothing can be written.
    """
    if names := _names(config.analysis.after_training, 'analysis.after_training'):
        _take(config, run, names, _images_of(dataset, config), named=False)


def _take(
    config: ConfigDict, run: Run, names: Sequence[str], subject: '_Subject', *, named: bool
) -> int:
    """Takes looks, and counts them.

    Args:
      config, run: of `analyze`.
      names: of the looks.
      subject: what is looked at.
      named: whether they were named one by one: then one that does not apply ends it.
    """
    mesh, chunk = local_mesh(), config.probe.batch_size  # each process does all of it
    check_batch_size(chunk, mesh, 'probe.batch_size')
    geometry = PatchGeometry.of(config.patches, over=config.analysis)
    geometry.side(*subject.images.image_shape)  # refuses patches that do not fit
    encoder = dataclasses.replace(load_encoder(run, mesh=mesh, chunk=chunk), geometry=geometry)
    untrained = encoder.untrained(config.seed)
    print(f'{subject.images.title}, step {encoder.step:,}')
    taken = 0
    for name in names:
        try:
            one = ANALYSES[name]
            if lack := subject.lack(one):
                raise Inapplicable(lack)
            images = subject.given(one)
            found = one.look(
                encoder,
                untrained,
                **images,
                seed=config.seed,
                on_error=config.data.on_error,
                **config.analysis[name],
            )
        except Inapplicable as reason:
            if named:
                raise InputError(f'--what={name}: {reason}') from None
            note(f'{name} is left out: {reason}')
            continue
        title = images['images'].title
        about = {'dataset': subject.dataset, 'step': encoder.step, 'images': title}
        findings.write(run, found, name=name, **about)
        print('\n'.join([f'\n{name}', found.table, *found.notes]))
        taken += 1
    return taken


@dataclasses.dataclass(frozen=True)
class _Subject:
    """What is looked at: images of one size.

    Attributes:
      dataset: what they are of.
      images: those of all looks but the labelled ones; without labels, of a folder of photographs.
      split: gives the images of another split.
      splits: that probes learn from and are scored on.
    """

    dataset: str
    images: Images
    split: Callable[[str], Images]
    splits: tuple[str, str]

    def lack(self, one: Analysis) -> str:
        """Why this look cannot be taken of these images, as far as can be told now; or ''."""
        if not one.labelled or self.images.class_names:
            return ''
        return f'it needs labels, and {self.images.title} has none'

    def given(self, one: Analysis) -> dict[str, Images]:
        """The images that a look takes, as keyword arguments.

        Raises:
          Inapplicable: labels are needed, and one of the splits has none.
          InputError: there is no such split.
        """
        if not one.labelled:
            return {'images': self.images}
        found = dict(zip(('images', 'test'), map(self.split, self.splits), strict=True))
        for images in found.values():
            if not images.class_names:
                raise Inapplicable(f'it needs labels, and {images.title} has none')
        return found


def _names(text: str, key: str) -> list[str]:
    """Names of looks with commas between them; InputError, which names the key, for others."""
    names = [name.strip() for name in text.split(',')] if text else []
    for name in names:
        check_known(key, name, ANALYSES)
    return names


def _quick() -> list[str]:
    """The looks that need not be asked for."""
    return [name for name, one in ANALYSES.items() if not one.asked_for]


def _photographs(config: ConfigDict, folder: str) -> _Subject:
    """The images in a folder, resized to cover a square of probe.whole_size.

    Raises:
      InputError: there are none.
    """
    name = os.path.basename(folder.rstrip('/'))
    images = Images(name, load_files(folder), in_memory=False)
    images = images.of_one_size(config.probe.whole_size)
    return _Subject(name, images, lambda _: images, ('', ''))


def _images_of(dataset: Dataset, config: ConfigDict) -> _Subject:
    """Those of a data set; of several sizes, resized to cover a square of probe.whole_size.

    With probe.enlarge, smaller ones too.
    """

    def split(name: str) -> Images:
        images, side = dataset.images(name), config.probe.whole_size
        return (images.enlarged(side) if config.probe.enlarge else images).of_one_size(side)

    images = split(config.analysis.split or config.data.train_split)
    splits = config.probe.train_split or config.data.train_split, config.data.test_split
    return _Subject(dataset.name, images, split, splits)
