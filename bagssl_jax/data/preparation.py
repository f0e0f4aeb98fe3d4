"""Makes prepared data sets: from the TFDS catalogue, and the indices of subsets."""

import concurrent.futures
import difflib
import importlib.util
import sys

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from etils import epath

from bagssl_jax import signals
from bagssl_jax.data.prepared import (
    Prepared,
    find_prepared,
    image_and_label,
    split_fingerprint,
)
from bagssl_jax.data.subsets import SUBSETS, Index, write_index
from bagssl_jax.errors import InputError

# Archives that cannot be downloaded without an account. Their builders go on without a missing one.
ARCHIVES = {
    'imagenet2012': ('ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar'),
}
THREADS = 16
CHUNK = 64  # records that a thread reads at a time


def prepare(name: str, data_dir: str) -> None:
    """Prepares a data set in `data_dir`, unless it is there, and prints how to use it.

    Args:
      name: as in the TFDS catalogue, such as 'cifar10' or 'imagenet_resized/64x64', which is
        downloaded and written as ArrayRecord; or one of `subsets.SUBSETS`, an index over a
        prepared data set. What is interrupted leaves nothing that loads.
      data_dir: directory of the prepared data sets, local or remote.

    Raises:
      InputError: the data set is unknown or no image set, or something that it needs is missing.
    """
    if not data_dir:
        raise InputError(
            '--data_dir is missing: give --data_dir=DIR, where prepared data sets are to lie'
        )
    with signals.unwinding():  # which removes what is half written
        is_new = _index(name, data_dir) if name in SUBSETS else _prepare_catalogued(name, data_dir)
    prepared = find_prepared(name, data_dir)
    sizes = ', '.join(f'{split} {size:,}' for split, size in prepared.sizes.items())
    print(f'{name} {"is" if is_new else "was already"} prepared in {prepared.path}: {sizes}')
    print(f'use it with --config.data.name={prepared.title} --config.data.dir={data_dir}')


def _prepare_catalogued(name: str, data_dir: str) -> bool:
    """Writes a data set of the catalogue; False where it is there already."""
    builder = _builder(name, data_dir)
    if (builder.data_path / 'dataset_info.json').exists():
        return False
    image_and_label(builder.info)
    by_hand = epath.Path(data_dir) / 'downloads' / 'manual'
    _check_archives(builder, by_hand)
    needs_tensorflow = hasattr(sys.modules[type(builder).__module__], 'tf')
    if needs_tensorflow and not importlib.util.find_spec('tensorflow'):
        raise _needs_tensorflow(name)
    try:
        builder.download_and_prepare()
    except ImportError as error:
        if error.name and error.name.startswith('tensorflow'):
            raise _needs_tensorflow(name) from None
        raise InputError(f'{name} cannot be prepared: {_line(error)}') from None
    except tfds.core.download.download_manager.NonMatchingChecksumError as error:
        raise InputError(f'what was downloaded for {name} is damaged: {_line(error)}') from None
    except (OSError, tfds.download.DownloadError) as error:  # the network's errors among them
        raise InputError(
            f'{name} cannot be prepared: {_line(error)}; the same command tries again, and takes '
            f'what was downloaded by hand into {by_hand}'
        ) from None
    return True


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(name, data_dir=data_dir, file_format='array_record')
    except tfds.core.DatasetNotFoundError:
        known = [*tfds.list_builders(with_community_datasets=False), *SUBSETS]
        near = difflib.get_close_matches(name, known)
        hint = f'did you mean {" or ".join(near)}?' if near else 'see tensorflow.org/datasets'
        raise InputError(f'{name!r} is not in the TFDS catalogue: {hint}') from None
    except (ValueError, AssertionError, ImportError) as error:  # configuration, version, gs://
        raise InputError(f'{name!r}: {_line(error)}') from None


def _check_archives(builder: tfds.core.DatasetBuilder, directory: epath.Path) -> None:
    instructions = ' '.join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or '').split())
    archives = [file for file in ARCHIVES.get(builder.name, ()) if not (directory / file).exists()]
    if archives:
        raise InputError(
            f'{builder.name} needs {" and ".join(archives)} in {directory}: put the files there, '
            f'and run the same command again ({instructions})'
        )
    if instructions and not (directory.is_dir() and any(directory.iterdir())):
        raise InputError(f'{builder.name} needs files in {directory}: {instructions}')


def _needs_tensorflow(name: str) -> InputError:
    return InputError(
        f"preparing {name} needs TensorFlow, which reading it will not: pip install '.[prepare]'"
    )


def _line(error: Exception) -> str:
    return ' '.join(str(error).split())


def _index(name: str, data_dir: str) -> bool:
    """Writes the index of a subset; False where it is there already."""
    subset = SUBSETS[name]
    base = find_prepared(subset.base, data_dir)
    try:
        find_prepared(name, data_dir)
    except InputError:  # none, or one of other records
        pass
    else:
        return False
    absent = sorted(set(subset.class_names) - set(base.class_names))
    if absent:
        raise InputError(f'{subset.base} in {base.path} has no class {", ".join(absent)}')
    indices = {split: _split_index(base, split, subset.class_names) for split in base.sizes}
    found = {split: index for split, index in indices.items() if len(index.numbers)}
    if not found:
        raise InputError(f'{subset.base} in {base.path} has no image of the classes of {name}')
    write_index(epath.Path(data_dir) / name / base.path.name, found)
    return True


def _split_index(base: Prepared, split: str, class_names: tuple[str, ...]) -> Index:
    new_labels = np.full(len(base.class_names) + 1, -1)  # the last: what -1, no label, refers to
    new_labels[[base.class_names.index(name) for name in class_names]] = range(len(class_names))
    labels = new_labels[_labels(base, split)]
    numbers = np.flatnonzero(labels >= 0)
    return Index(numbers, labels[numbers], split_fingerprint(base.builder, split))


def _labels(base: Prepared, split: str) -> np.ndarray:
    """The labels of a split, in the order of its records: int64 [n]."""
    source = base.open(split)

    def read(start: int) -> list[int]:
        chunk = range(start, min(start + CHUNK, len(source)))
        return [record[source.label_key] for record in source.records.__getitems__(chunk)]

    labels = []
    progress = tqdm.tqdm(total=len(source), desc=f'labels of {split}', unit=' images')
    with progress, concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        try:
            for chunk in pool.map(read, range(0, len(source), CHUNK)):
                labels += chunk
                progress.update(len(chunk))
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    return np.array(labels, np.int64)
