"""Random-access image data sets: `len(source)`, `source[i] -> {'image', 'label'}`, class names."""

import dataclasses
import functools
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from bagssl_jax.data import photos
from bagssl_jax.data.splits import split_ranges
from bagssl_jax.errors import InputError

EMBEDDED = ('photos',)


class Source(Protocol):
    """What the pipeline reads: images of any size, uint8 [h w 3], with int labels."""

    class_names: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images that are already decoded and of one size: uint8 [n h w 3], labels int [n]."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {'image': self.images[index], 'label': int(self.labels[index])}


@dataclasses.dataclass(frozen=True)
class TfdsSource:
    """A split of a prepared TFDS image-classification data set, decoded record by record."""

    records: Any  # a tfds data source
    image_key: str
    label_key: str
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        image = record[self.image_key]
        if image.shape[-1] == 1:
            image = np.repeat(image, 3, axis=-1)
        return {'image': image, 'label': int(record[self.label_key])}


def load(name: str, split: str, *, data_dir: str, in_memory: bool) -> Source:
    """Opens one split of a data set.

    Args:
      name: 'photos', or the name of a TFDS data set prepared as ArrayRecord under `data_dir`
        ('cifar10', 'imagenet_resized/64x64').
      split: a split in TFDS's notation: 'train', 'train[:10%]', 'train[:500]+test'.
      data_dir: directory of the prepared data sets, local or remote; unused by 'photos'.
      in_memory: decode every image once, now; the images must be of one size.

    Raises:
      InputError: an unknown data set or split, or a directory without a prepared data set.
    """
    if name == 'photos':
        return _load_photos(split)
    source = _load_tfds(name, split, data_dir)
    return _decoded(source, name) if in_memory else source


def _load_photos(split: str) -> ArraySource:
    names = tuple(photos.PHOTOGRAPHS)
    sizes = {name: count * len(names) for name, count in photos.TILES_PER_CLASS.items()}
    tiles = functools.cache(photos.tiles)
    parts = [
        [array[start:stop] for array in tiles(part)]
        for part, start, stop in split_ranges(split, sizes)
    ]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return ArraySource(images, labels, names)


def _load_tfds(name: str, split: str, data_dir: str) -> TfdsSource:
    builder = tfds.builder_from_directory(_prepared_directory(name, data_dir))
    if not builder.info.file_format.value.startswith('array_record'):
        raise InputError(
            f'{name} in {data_dir} is prepared as {builder.info.file_format.value}, which has no '
            "random access: prepare it with file_format='array_record'"
        )
    split_ranges(split, {key: info.num_examples for key, info in builder.info.splits.items()})
    image_key = _feature_key(builder.info.features, tfds.features.Image, name)
    label_key = _feature_key(builder.info.features, tfds.features.ClassLabel, name)
    return TfdsSource(
        records=builder.as_data_source(split),
        image_key=image_key,
        label_key=label_key,
        class_names=tuple(builder.info.features[label_key].names),
    )


def _prepared_directory(name: str, data_dir: str) -> epath.Path:
    """The newest prepared version of a data set, or an InputError that tells what there is."""
    if not data_dir:
        raise InputError(
            f'unknown data set {name!r}: {", ".join(EMBEDDED)} is embedded; any other name is '
            'looked for in the directory of prepared TFDS data sets that data.dir gives'
        )
    root = epath.Path(data_dir)
    if not root.is_dir():
        raise InputError(f'data.dir={data_dir} is not a directory')
    versions = _versions(root / name)
    if not versions:
        known = sorted(path.name for path in root.iterdir() if path.is_dir() and _versions(path))
        found = f'it holds {", ".join(known)}' if known else 'it holds no prepared data set'
        raise InputError(
            f'unknown data set {name!r}: not prepared in data.dir={data_dir} ({found}); '
            f'embedded: {", ".join(EMBEDDED)}'
        )
    return max(versions, key=lambda path: tfds.core.Version(path.name))


def _versions(directory: epath.Path) -> list[epath.Path]:
    if not directory.is_dir():
        return []
    return [
        path
        for path in directory.iterdir()
        if tfds.core.Version.is_valid(path.name) and (path / 'dataset_info.json').exists()
    ]


def _feature_key(features: Any, kind: type, name: str) -> str:
    keys = [key for key, feature in features.items() if isinstance(feature, kind)]
    if len(keys) != 1:
        raise InputError(
            f'{name} is not an image-classification data set: it has {len(keys)} features of '
            f'type {kind.__name__}, and one is needed'
        )
    return keys[0]


def _decoded(source: Source, name: str) -> ArraySource:
    first = source[0]['image']
    images = np.empty((len(source), *first.shape), np.uint8)
    labels = np.empty(len(source), np.int64)
    for i in range(len(source)):
        record = source[i]
        if record['image'].shape != first.shape:
            raise InputError(
                f'{name} has images of several sizes, {first.shape} and '
                f'{record["image"].shape}: it needs data.in_memory=False, and patches.resize'
            )
        images[i], labels[i] = record['image'], record['label']
    return ArraySource(images, labels, source.class_names)
