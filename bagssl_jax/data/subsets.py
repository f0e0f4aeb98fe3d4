"""Subsets of prepared data sets by a class list: which records, found once and kept in an index."""

import dataclasses
import importlib.resources
from collections.abc import Mapping

import numpy as np
import tensorflow_datasets as tfds
from etils import epath


@dataclasses.dataclass(frozen=True)
class Subset:
    """The classes of `base`, a TFDS data set, that the file beside this module lists by name."""

    base: str
    file: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of their labels, 0 up: sorted, as a folder of class folders would be."""
        names = importlib.resources.files(__package__).joinpath(self.file).read_text().split()
        return tuple(sorted(names))


SUBSETS = {
    # The 100 classes of Contrastive Multiview Coding (Tian, Krishnan and Isola, 2020).
    'imagenet100': Subset('imagenet2012', 'imagenet100.txt'),
}


@dataclasses.dataclass(frozen=True)
class Index:
    """Which records of one split of the base belong to a subset, in their order there.

    `numbers` int64 [n] are record numbers in the whole split, `labels` int64 [n] the subset's;
    `base` is the fingerprint of the split that was read.
    """

    numbers: np.ndarray
    labels: np.ndarray
    base: str


def read_index(directory: epath.Path) -> dict[str, Index]:
    """The index of every split that `directory` holds; empty where it does not exist."""
    if not directory.is_dir():
        return {}
    indices = {}
    for path in sorted(directory.iterdir()):
        with path.open('rb') as file, np.load(file) as arrays:
            name = path.name.removesuffix('.npz')
            indices[name] = Index(arrays['numbers'], arrays['labels'], str(arrays['base']))
    return indices


def write_index(directory: epath.Path, indices: Mapping[str, Index]) -> None:
    """Replaces what `directory` holds, in one move once everything is written."""
    with tfds.core.utils.incomplete_dir(directory, overwrite=True) as place:
        for name, index in indices.items():
            with (epath.Path(place) / f'{name}.npz').open('wb') as file:
                np.savez(file, numbers=index.numbers, labels=index.labels, base=index.base)
