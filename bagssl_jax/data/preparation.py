"""Preparing a data set of the TFDS catalogue as ArrayRecord, which may need TensorFlow."""

import difflib
import importlib.util
import io
import sys

import numpy as np
import requests
import tensorflow_datasets as tfds
import tqdm
from etils import epath

from bagssl_jax.data.prepared import (
    SUBSETS,
    prepared_directory,
    subset_classes,
    subset_index,
)
from bagssl_jax.errors import InputError

# What must be there before a set is prepared: TFDS would prepare what it finds, and no more.
ARCHIVES = {'imagenet2012': ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar')}


def prepare(name: str, data_dir: str) -> None:
    """Downloads and prepares a data set, or finds that it is; says where it lies and how to use it.

    A subset ('imagenet100') is prepared as an index of the data set that it is of. Cut off, it
    leaves nothing that loads.

    Args:
      name: of the catalogue, with its configuration where it has several: 'cifar10',
        'imagenet_resized/64x64'.
      data_dir: directory of prepared data sets; archives that must be downloaded by hand go to
        its downloads/manual.

    Raises:
      InputError: an unknown name, an archive that is missing, no TensorFlow or no network.
    """
    if not data_dir:
        raise InputError('--data_dir is missing: give --data_dir=DIR, where to prepare it')
    sizes = _index(name, data_dir) if name in SUBSETS else _prepare(name, data_dir)
    splits = ', '.join(f'{split} ({size:,} images)' for split, size in sizes.items())
    print(f'{name} is prepared: {splits}')
    print(f'use it with --config.data.name={name} --config.data.dir={data_dir}')


def _prepare(name: str, data_dir: str) -> dict[str, int]:
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format='array_record')
    except tfds.core.registered.DatasetNotFoundError:
        known = [*tfds.list_builders(with_community_datasets=False), *SUBSETS]
        near = difflib.get_close_matches(name, known)
        hint = f'did you mean {" or ".join(near)}?' if near else 'see tensorflow.org/datasets'
        raise InputError(f'unknown data set {name!r}: {hint}') from None
    except ValueError as error:  # an unknown configuration or version
        raise InputError(' '.join(str(error).split())) from None
    manual = epath.Path(data_dir) / 'downloads' / 'manual'
    if not builder.is_prepared():
        missing = [file for file in ARCHIVES.get(name, ()) if not (manual / file).exists()]
        if missing:
            raise InputError(
                f'{name} must be downloaded by hand: put {" and ".join(missing)} into {manual}. '
                f'{_one_line(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)}'
            )
    try:
        builder.download_and_prepare()
    except ImportError as error:
        raise InputError(_missing_package(name, error)) from None
    except AssertionError as error:  # of the manual directory
        if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
            raise
        raise InputError(
            f'{name} must be downloaded by hand into {manual}. '
            f'{_one_line(builder.MANUAL_DOWNLOAD_INSTRUCTIONS)} ({_one_line(str(error))})'
        ) from None
    except (requests.ConnectionError, tfds.download.DownloadError) as error:
        raise InputError(f'{name} could not be downloaded: {_one_line(str(error))}') from None
    return {split: info.num_examples for split, info in builder.info.splits.items()}


def _missing_package(name: str, error: ImportError) -> str:
    if importlib.util.find_spec('tensorflow') is None:
        return f"preparing {name} needs TensorFlow: pip install 'bagssl_jax[prepare]'"
    return f'preparing {name} needs a package: {_one_line(str(error))}'


def _index(name: str, data_dir: str) -> dict[str, int]:
    """Writes the record numbers and labels of a subset, for each split of the whole set."""
    whole = SUBSETS[name]
    directory = prepared_directory(whole, data_dir)
    builder = tfds.builder_from_directory(directory)
    label_of = {class_name: label for label, class_name in enumerate(subset_classes(name))}
    names = builder.info.features['label'].names
    label_map = np.array([label_of.get(class_name, -1) for class_name in names])
    missing = sorted(set(label_of) - set(names))
    if missing:
        raise InputError(
            f'{whole} in {data_dir} has no class {missing[0]}: {name} is no part of it'
        )
    sizes = {}
    for split in builder.info.splits:
        labels = _labels(builder, split)
        if (labels < 0).any():  # the test split of ImageNet is unlabelled
            continue
        mapped = label_map[labels]
        (numbers,) = np.nonzero(mapped >= 0)
        buffer = io.BytesIO()
        np.save(buffer, np.stack([numbers, mapped[numbers]], axis=1))
        path = subset_index(name, split, directory)
        draft = path.with_name(f'{path.name}.new')
        draft.write_bytes(buffer.getvalue())
        draft.replace(path)
        sizes[split] = len(numbers)
    return sizes


def _labels(builder: tfds.core.DatasetBuilder, split: str) -> np.ndarray:
    """The label of every record, int64 [n]; reads them all."""
    source = builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
    labels = np.empty(len(source), np.int64)
    with tqdm.tqdm(total=len(source), desc=split, unit=' records', file=sys.stderr) as progress:
        for start in range(0, len(source), 256):
            chunk = range(start, min(start + 256, len(source)))
            labels[chunk] = [record['label'] for record in source.__getitems__(chunk)]
            progress.update(len(chunk))
    return labels


def _one_line(text: str) -> str:
    return ' '.join(text.split())
