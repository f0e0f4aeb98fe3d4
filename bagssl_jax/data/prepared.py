"""Image sets that tensorflow-datasets has prepared as ArrayRecord, read record by record.

A directory of prepared data sets holds NAME/VERSION or NAME/CONFIG/VERSION; it may be remote
(gs://, s3://).
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from bagssl_jax.data import images
from bagssl_jax.data.sources import Records
from bagssl_jax.data.splits import split_ranges
from bagssl_jax.data.subsets import SUBSETS, Index, read_index
from bagssl_jax.errors import InputError, UnreadableImage


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """Part of a prepared image set; every record stays encoded until it is read.

    Attributes:
      records: a tfds data source that leaves images encoded.
      image_key: the record's feature that is the image.
      label_key: the record's feature that is the label; None where images have none.
      numbers: int64 [n], which of the records are those of a subset; None for all.
      labels: int64 [n], those of a subset; None where the records' own hold.
      title: the data set's name, with the configuration where it has one.
      parts: (split, first record, last record + 1) of each part, in their order.
      class_names: as of any source.
      image_shape: as of any source.
      fingerprint: of the data set's version, the parts and the subset.
    """

    records: Any
    image_key: str
    label_key: str | None
    numbers: np.ndarray | None
    labels: np.ndarray | None
    title: str
    parts: tuple[tuple[str, int, int], ...]
    class_names: tuple[str, ...]
    image_shape: tuple[int, int] | None
    fingerprint: str
    in_memory: ClassVar[bool] = False

    def __len__(self) -> int:
        return sum(stop - start for _, start, stop in self.parts)

    def read(self, numbers: np.ndarray) -> Records:
        """The images of these numbers, which ArrayRecord reads in parallel."""
        indices = numbers.tolist()
        try:
            records = self.records.__getitems__([self._number(i) for i in indices])
        except RuntimeError:  # one by one, to name the one that cannot be read
            records = [self._record(i) for i in indices]
        pairs = list(zip(indices, records, strict=True))
        decoded = [images.decode(record[self.image_key], self.name(i)) for i, record in pairs]
        return Records(decoded, np.array([self._label(i, record) for i, record in pairs], np.int64))

    def encoded(self, index: int) -> bytes:
        """The bytes of an image file."""
        return self._record(index)[self.image_key]

    def name(self, index: int) -> str:
        """Where a record is, such as 'cifar10 train #17'; train[17:18] would load it alone."""
        for split, start, stop in self.parts:
            if index < stop - start:
                return f'{self.title} {split} #{start + index}'
            index -= stop - start
        raise IndexError(f'{self.title} has {len(self)} records')

    def _number(self, index: int) -> int:
        return int(index if self.numbers is None else self.numbers[index])

    def _record(self, index: int) -> dict[str, Any]:
        try:
            return self.records[self._number(index)]
        except RuntimeError as error:  # array_record's, for whatever is wrong with its file
            raise UnreadableImage(f'{self.name(index)}: {error}') from None

    def _label(self, index: int, record: dict[str, Any]) -> int:
        if self.labels is not None:
            return self.labels[index]
        return -1 if self.label_key is None else record[self.label_key]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared image set that was found: `load_prepared` without the choice of a split.

    `title` is its name, with the configuration where it has one; `sizes` the number of images of
    each split; `index` that of a subset, else None.
    """

    title: str
    path: epath.Path
    builder: tfds.core.DatasetBuilder
    sizes: dict[str, int]
    class_names: tuple[str, ...]
    index: dict[str, Index] | None = None

    def open(self, split: str) -> TfdsSource:
        """Opens part of it; InputError where TFDS's split notation names nothing."""
        info = self.builder.info
        parts = split_ranges(split, self.sizes)
        image_key, label_key = image_and_label(info)
        numbers = labels = None
        wanted = split
        if self.index is not None:
            wanted = '+'.join(dict.fromkeys(name for name, _, _ in parts))
            numbers, labels = self._chosen(parts)
        height, width = info.features[image_key].shape[:2]
        encoded = {key: tfds.decode.SkipDecoding() for key in _keys(info, tfds.features.Image)}
        return TfdsSource(
            records=self.builder.as_data_source(wanted, decoders=encoded),
            image_key=image_key,
            label_key=label_key,
            numbers=numbers,
            labels=labels,
            title=self.title,
            parts=tuple(parts),
            class_names=self.class_names,
            image_shape=(height, width) if height and width else None,
            fingerprint=_digest(
                [
                    *(self.title, self.class_names, parts),
                    *(split_fingerprint(self.builder, name) for name, _, _ in parts),
                    *(array.tolist() for array in (numbers, labels) if array is not None),
                ]
            ),
        )

    def _chosen(self, parts: Sequence[tuple[str, int, int]]) -> tuple[np.ndarray, np.ndarray]:
        """Record numbers in the base's splits, one after the other, and labels: int64 [n] each."""
        offsets, offset = {}, 0
        numbers, labels = [], []
        for name, start, stop in parts:
            if name not in offsets:
                offsets[name] = offset
                offset += self.builder.info.splits[name].num_examples
            numbers.append(offsets[name] + self.index[name].numbers[start:stop])
            labels.append(self.index[name].labels[start:stop])
        return np.concatenate(numbers), np.concatenate(labels)


def load_prepared(name: str, split: str, data_dir: str) -> TfdsSource:
    """Opens part of a prepared image set.

    Args:
      name: as in the TFDS catalogue, such as 'cifar10', 'imagenet_resized/64x64' or
        'cifar10:3.0.2', or that of one of `subsets.SUBSETS`. The configuration may be left out
        where only one is prepared; without a version it is the newest.
      split: TFDS's notation; of a subset it counts the subset's records.
      data_dir: directory of the prepared data sets, local or remote.

    Raises:
      InputError: there is no such image set or split, or it cannot be read record by record.
    """
    return find_prepared(name, data_dir).open(split)


def find_prepared(name: str, data_dir: str) -> Prepared:
    """Finds a prepared image set; `name`, `data_dir` and errors are those of `load_prepared`."""
    bare, version = _split_version(name)
    if bare in SUBSETS:
        return _find_subset(bare, version, data_dir)
    path = _directory(bare, version, data_dir)
    try:
        builder = tfds.builder_from_directory(path)
    except Exception as error:  # protobuf's, and TFDS's own of several kinds
        reason = ' '.join(str(error).split())
        raise InputError(f'{path} is damaged ({reason}): prepare it again') from None
    info = builder.info
    if not info.file_format.value.startswith('array_record'):
        raise InputError(
            f'{name} in {data_dir} is prepared as {info.file_format.value}, which has no '
            "random access: prepare it with file_format='array_record'"
        )
    _, label_key = image_and_label(info)
    return Prepared(
        title=f'{info.name}/{info.config_name}' if info.config_name else info.name,
        path=path,
        builder=builder,
        sizes={key: split.num_examples for key, split in info.splits.items()},
        class_names=tuple(info.features[label_key].names) if label_key else (),
    )


def image_and_label(info: tfds.core.DatasetInfo) -> tuple[str, str | None]:
    """The names of the features that are the image and its label; None for an unlabelled set.

    Raises:
      InputError: it is not a set of 8-bit images, or which feature is meant is not clear.
    """
    features = info.features
    images, labels = _keys(info, tfds.features.Image), _keys(info, tfds.features.ClassLabel)
    supervised = info.supervised_keys or ()
    if len(supervised) == 2 and supervised[0] in images and supervised[1] in labels:
        images, labels = [supervised[0]], [supervised[1]]
    elif 'label' in labels:
        labels = ['label']
    if len(images) != 1 or len(labels) > 1:
        kinds = f'{len(images)} images and {len(labels)} class labels'
        raise InputError(
            f'{info.name} is not an image-classification data set: a record has {kinds}, and one '
            'image and at most one label are needed'
        )
    image = features[images[0]]
    if image.np_dtype != np.uint8 or len(image.shape) != 3:
        raise InputError(
            f'{info.name} has images of type {image.np_dtype} and shape {image.shape}: only single '
            'images of 8 bits a channel are read'
        )
    return images[0], labels[0] if labels else None


def split_fingerprint(builder: tfds.core.DatasetBuilder, split: str) -> str:
    """A hex digest that changes when a split is prepared from other records."""
    info = builder.info
    stored = info.splits[split]
    identity = [info.name, info.config_name, str(info.version), split]
    return _digest([*identity, list(stored.shard_lengths), stored.num_bytes])


def _keys(info: tfds.core.DatasetInfo, kind: type) -> list[str]:
    return [key for key, feature in info.features.items() if isinstance(feature, kind)]


def _find_subset(name: str, version: str, data_dir: str) -> Prepared:
    subset = SUBSETS[name]
    base = find_prepared(f'{subset.base}:{version}' if version else subset.base, data_dir)
    path = epath.Path(data_dir) / name / base.path.name
    index = read_index(path)
    if not index or any(
        split not in base.sizes or found.base != split_fingerprint(base.builder, split)
        for split, found in index.items()
    ):
        problem = f'was made from another {subset.base}' if index else 'is missing'
        raise InputError(
            f'the index of {name} {problem}: make it with '
            f'python -m bagssl_jax.prepare {name} --data_dir={data_dir}'
        )
    return dataclasses.replace(
        base,
        title=name,
        path=path,
        sizes={split: len(found.numbers) for split, found in index.items()},
        class_names=subset.class_names,
        index=index,
    )


def _split_version(name: str) -> tuple[str, str]:
    """NAME:VERSION or NAME/VERSION in two; an empty version where there is none."""
    bare, _, version = name.partition(':')
    parent, _, last = bare.rpartition('/')
    if not version and parent and tfds.core.Version.is_valid(last):
        return parent, last
    return bare, version


def _directory(name: str, version: str, data_dir: str) -> epath.Path:
    """The prepared version of a data set, or an InputError that tells what there is."""
    if not data_dir:
        raise InputError(
            f'unknown data set {name!r}: choose photos or folder, or give data.dir=DIR, where it '
            f'was prepared by python -m bagssl_jax.prepare {name} --data_dir=DIR'
        )
    root = epath.Path(data_dir)
    try:
        found = root.is_dir()
    except ImportError as error:  # gs:// and s3:// need a package of their own
        raise InputError(f'data.dir={data_dir}: {error}') from None
    if not found:
        raise InputError(f'data.dir={data_dir} is not a directory')
    versions = _versions(root / name)
    if not versions and name:
        configs = {path.name: _versions(path) for path in _folders(root / name)}
        configs = {config: found for config, found in sorted(configs.items()) if found}
        if len(configs) > 1:
            choice = ', '.join(f'{name}/{config}' for config in configs)
            raise InputError(f'{name} is prepared in several configurations: choose from {choice}')
        versions = next(iter(configs.values()), {})
    if not versions:
        known = sorted(path.name for path in _folders(root) if _is_prepared(path))
        found = f'it holds {", ".join(known)}' if known else 'it holds no prepared data set'
        raise InputError(
            f'unknown data set {name!r}: not prepared in data.dir={data_dir} ({found}): choose '
            f'photos or folder, or run python -m bagssl_jax.prepare {name} --data_dir={data_dir}'
        )
    if version and version not in versions:
        raise InputError(
            f'{name} is not prepared in version {version}, but in {", ".join(sorted(versions))}'
        )
    return versions[version or max(versions, key=tfds.core.Version)]


def _is_prepared(directory: epath.Path) -> bool:
    return bool(_versions(directory)) or any(_versions(path) for path in _folders(directory))


def _versions(directory: epath.Path) -> dict[str, epath.Path]:
    return {
        path.name: path
        for path in _folders(directory)
        if tfds.core.Version.is_valid(path.name) and (path / 'dataset_info.json').exists()
    }


def _folders(directory: epath.Path) -> list[epath.Path]:
    return [path for path in directory.iterdir() if path.is_dir()] if directory.is_dir() else []


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
