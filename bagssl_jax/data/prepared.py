"""Data sets that tensorflow-datasets has prepared as ArrayRecord, and subsets of their classes."""

import dataclasses
import hashlib
import importlib.resources
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from bagssl_jax.data import images
from bagssl_jax.data.splits import split_ranges
from bagssl_jax.errors import InputError

# A subset's name -> the data set that it is of. Its classes are in the file NAME.txt.
SUBSETS = {'imagenet100': 'imagenet2012'}


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A split of a prepared data set, read and decoded record by record."""

    records: Any  # a tfds data source, whose images stay encoded
    image_key: str
    label_key: str | None
    class_names: tuple[str, ...]
    image_shape: tuple[int, int] | None
    fingerprint: str
    title: str

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._decoded(index, self.records[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several at once: ArrayRecord reads one in 240 us, and many in parallel."""
        records = self.records.__getitems__(indices)
        return [self._decoded(i, record) for i, record in zip(indices, records, strict=True)]

    def _decoded(self, index: int, record: dict[str, Any]) -> dict[str, Any]:
        label = -1 if self.label_key is None else int(record[self.label_key])
        return {'image': images.decode(record[self.image_key], self.name(index)), 'label': label}

    def encoded(self, index: int) -> bytes:
        """The bytes of an image file."""
        return self.records[index][self.image_key]

    def name(self, index: int) -> str:
        return f'{self.title} #{index}'


@dataclasses.dataclass(frozen=True)
class SubsetSource:
    """Some records of another source, with labels of their own."""

    source: TfdsSource
    numbers: np.ndarray  # int64 [n], of the records
    labels: np.ndarray  # int64 [n]
    class_names: tuple[str, ...]
    fingerprint: str

    @property
    def image_shape(self) -> tuple[int, int] | None:
        return self.source.image_shape

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**self.source[int(self.numbers[index])], 'label': int(self.labels[index])}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        records = self.source.__getitems__(self.numbers[indices].tolist())
        labels = self.labels[indices].tolist()
        return [{**record, 'label': y} for record, y in zip(records, labels, strict=True)]

    def encoded(self, index: int) -> bytes:
        """The bytes of an image file."""
        return self.source.encoded(int(self.numbers[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.numbers[index]))


def load_prepared(name: str, split: str, data_dir: str) -> TfdsSource | SubsetSource:
    """Opens a split of a prepared data set.

    Args:
      name: 'cifar10', 'imagenet_resized/64x64'; of the versions there are, the newest is taken,
        and of the configurations the only one. Or a subset: 'imagenet100'.
      split: in TFDS's notation.
      data_dir: directory of the prepared data sets, local or remote (gs://, s3://).

    Raises:
      InputError: no such data set or split, or one without images to tell apart.
    """
    if name in SUBSETS:
        return _load_subset(name, split, data_dir)
    builder = tfds.builder_from_directory(prepared_directory(name, data_dir))
    info = builder.info
    if not info.file_format.value.startswith('array_record'):
        raise InputError(
            f'{name} in {data_dir} is prepared as {info.file_format.value}, which has no '
            "random access: prepare it with file_format='array_record'"
        )
    split_ranges(split, {key: part.num_examples for key, part in info.splits.items()})
    image_key, label_key = _keys(info, name)
    shape = info.features[image_key].shape[:2]
    class_names = tuple(info.features[label_key].names) if label_key else ()
    described = (info.full_name, split, info.splits[split].num_examples, class_names)
    return TfdsSource(
        records=builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()}),
        image_key=image_key,
        label_key=label_key,
        class_names=class_names,
        image_shape=None if None in shape else shape,
        fingerprint=hashlib.sha256(repr(described).encode()).hexdigest(),
        title=f'{name} {split}',
    )


def prepared_directory(name: str, data_dir: str) -> epath.Path:
    """The newest prepared version of a data set, or an InputError that tells what there is."""
    if not data_dir:
        raise InputError(
            f'unknown data set {name!r}: choose photos or folder, or give data.dir=DIR, where it '
            f'was prepared by python -m bagssl_jax.prepare {name} --data_dir=DIR'
        )
    root = epath.Path(data_dir)
    if not root.is_dir():
        raise InputError(f'data.dir={data_dir} is not a directory')
    versions = _versions(root / name)
    if not versions:
        configs = _below(root / name)
        if len(configs) == 1:
            return prepared_directory(f'{name}/{configs[0]}', data_dir)
        if configs:
            known = ', '.join(f'{name}/{config}' for config in configs)
            raise InputError(f'{name} is prepared in several configurations: give one of {known}')
        known = ', '.join(
            set_name
            for set_name in _children(root)
            if _versions(root / set_name) or _below(root / set_name)
        )
        raise InputError(
            f'unknown data set {name!r}: not prepared in data.dir={data_dir} (it holds '
            f'{known or "no prepared data set"}): choose photos or folder, or run python -m '
            f'bagssl_jax.prepare {name} --data_dir={data_dir}'
        )
    return max(versions, key=lambda path: tfds.core.Version(path.name))


def subset_classes(name: str) -> list[str]:
    """The class names of a subset, in the order of its labels."""
    text = importlib.resources.files(__package__).joinpath(f'{name}.txt').read_text()
    return text.split()


def subset_index(name: str, split: str, directory: epath.Path) -> epath.Path:
    """Where the record numbers and labels of a subset's split lie.

    Args:
      directory: of the prepared data set that it is a subset of.
    """
    return directory / f'{name}_{split}.npy'


def _load_subset(name: str, split: str, data_dir: str) -> SubsetSource:
    whole = SUBSETS[name]
    directory = prepared_directory(whole, data_dir)
    splits = tfds.builder_from_directory(directory).info.splits
    indexes = {}
    for part in splits:
        path = subset_index(name, part, directory)
        if path.exists():
            indexes[part] = np.load(io.BytesIO(path.read_bytes()))  # [n 2]
    if not indexes:
        raise InputError(
            f'{name} needs an index of the {whole} in {data_dir}: run python -m '
            f'bagssl_jax.prepare {name} --data_dir={data_dir}'
        )
    parts = split_ranges(split, {part: len(index) for part, index in indexes.items()})
    names = {part for part, _, _ in parts}
    if len(names) > 1:
        raise InputError(f'split {split!r}: of {name} give parts of one split')
    part = names.pop()
    chosen = np.concatenate([indexes[part][start:stop] for _, start, stop in parts])
    return SubsetSource(
        source=load_prepared(whole, part, data_dir),
        numbers=chosen[:, 0],
        labels=chosen[:, 1],
        class_names=tuple(subset_classes(name)),
        fingerprint=hashlib.sha256(chosen.tobytes()).hexdigest(),
    )


def _keys(info: tfds.core.DatasetInfo, name: str) -> tuple[str, str | None]:
    """The features that hold the image and its label; no label for a set without classes."""
    image_keys = _keys_of(info.features, tfds.features.Image)
    label_keys = _keys_of(info.features, tfds.features.ClassLabel)
    if info.supervised_keys and info.supervised_keys[0] in image_keys:
        image_keys = [info.supervised_keys[0]]
    if len(image_keys) != 1:
        raise InputError(
            f'{name} is not an image-classification data set: it has {len(image_keys)} features '
            'of type Image, and one is needed'
        )
    for label_key in (*(info.supervised_keys or ()), 'label', *label_keys[:1]):
        if label_key in label_keys:
            return image_keys[0], label_key
    return image_keys[0], None


def _keys_of(features: Any, kind: type) -> list[str]:
    return [key for key, feature in features.items() if isinstance(feature, kind)]


def _children(directory: epath.Path) -> list[str]:
    if not directory.is_dir():
        return []
    return sorted(path.name for path in directory.iterdir() if path.is_dir())


def _below(directory: epath.Path) -> list[str]:
    """The configurations of a data set that have a prepared version."""
    return [config for config in _children(directory) if _versions(directory / config)]


def _versions(directory: epath.Path) -> list[epath.Path]:
    return [
        directory / name
        for name in _children(directory)
        if tfds.core.Version.is_valid(name) and (directory / name / 'dataset_info.json').exists()
    ]
