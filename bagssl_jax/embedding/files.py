"""Files of features: in parts while they are made, and one for all in the end.

Nothing is ever half written: a file appears under its name when it is complete.
"""

import contextlib
import importlib.util
import json
import os
import pathlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import numpy as np

from bagssl_jax.errors import InputError
from bagssl_jax.storage import at_once, writing


class Parts:
    """The parts beside `out`, in the folder OUT.parts."""

    def __init__(self, out: str, settings: Mapping[str, Any]):
        """Opens the parts of an earlier start, or begins.

        Args:
          out: the file that they will become.
          settings: all that the features depend on.

        Raises:
          InputError: there are parts with other settings, or the folder cannot be written.
        """
        self._out = out
        self.directory = pathlib.Path(f'{out}.parts')
        notes = self.directory / 'settings.json'
        with writing(f'--out={out}'):
            self.directory.mkdir(parents=True, exist_ok=True)
            if not notes.exists():
                with _at_once(notes) as file:
                    file.write(json.dumps(settings, indent=2).encode())
        began = _read_settings(notes)
        for key, value in settings.items():
            if began.get(key) != value:
                raise InputError(
                    f'{self.directory} was begun with another {key} ({began.get(key)} then, '
                    f'{value} now): go on as then, or delete it to begin anew'
                )

    def __contains__(self, number: int) -> bool:
        return self._path(number).exists()

    def write(self, number: int, names: list[str], features: np.ndarray, failures: list[str]):
        """Saves a part: the names and features [n d] of images, and what is said of the others."""
        with writing(f'--out={self._out}'), _at_once(self._path(number)) as file:
            np.savez(file, names=_texts(names), features=features, failures=_texts(failures))

    def read(self, *keys: str) -> Iterator[tuple[np.ndarray, ...]]:
        """Of every part, in order, the arrays that `keys` name; InputError where one is damaged."""
        for path in sorted(self.directory.glob('*.npz')):
            try:
                with open(path, 'rb') as file, np.load(file) as part:
                    arrays = tuple(part[key] for key in keys)
            except Exception:  # zipfile and numpy raise whatever the bytes make them
                raise InputError(f'{path} is damaged: delete it, and start again') from None
            yield arrays

    def remove(self) -> None:
        """Removes them all."""
        with writing(f'--out={self._out}'):
            # The settings last: parts without them could pass for those of another start.
            for path in sorted(self.directory.iterdir()):
                path.unlink()
            self.directory.rmdir()

    def _path(self, number: int) -> pathlib.Path:
        return self.directory / f'{number:05}.npz'


def check_out(out: str) -> None:
    """Raises InputError where no features can be written to `out`."""
    suffix = pathlib.Path(out).suffix
    if suffix not in WRITERS:
        raise InputError(f'--out={out} must end in one of {", ".join(WRITERS)}')
    if suffix == '.parquet' and not importlib.util.find_spec('pyarrow'):
        raise InputError("a .parquet file needs pyarrow: pip install '.[parquet]'")
    if os.path.exists(out):
        raise InputError(f'{out} exists: delete it, or give another --out')


def join(parts: Parts, out: str, settings: Mapping[str, int | str]) -> None:
    """Writes all parts into one file, which takes the memory of one of them.

    Args:
      parts: all of them.
      out: ends in .npz, for the arrays 'names' and 'features' and one for each setting; or in
        .parquet, for the columns 'name' and 'features' and the settings as metadata.
      settings: what to note beside the features.

    Raises:
      InputError: a part is damaged, or `out` cannot be written.
    """
    with writing(f'--out={out}'), _at_once(pathlib.Path(out)) as file:
        WRITERS[pathlib.Path(out).suffix](file, parts, settings)


def _write_npz(file: IO[bytes], parts: Parts, settings: Mapping[str, int | str]) -> None:
    sizes = [(names.dtype.itemsize, len(names)) for (names,) in parts.read('names')]
    length = max(itemsize for itemsize, _ in sizes) // np.dtype('U1').itemsize
    rows = sum(count for _, count in sizes)
    (features,) = next(parts.read('features'))
    columns = {
        'names': (np.dtype(f'U{length}'), (rows,)),
        'features': (features.dtype, (rows, features.shape[1])),
    }
    # As numpy.savez does, but for arrays that are never in memory.
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED) as archive:
        for key, (dtype, shape) in columns.items():
            with archive.open(f'{key}.npy', 'w', force_zip64=True) as entry:
                header = {'descr': dtype.str, 'fortran_order': False, 'shape': shape}
                np.lib.format.write_array_header_1_0(entry, header)
                for (array,) in parts.read(key):
                    entry.write(array.astype(dtype).tobytes())
        for key, value in settings.items():
            with archive.open(f'{key}.npy', 'w') as entry:
                np.lib.format.write_array(entry, np.array(value))


def _write_parquet(file: IO[bytes], parts: Parts, settings: Mapping[str, int | str]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(
        {'name': pa.string(), 'features': pa.list_(pa.float32())},
        metadata={key: str(value) for key, value in settings.items()},
    )
    # Hardly two features are equal: a dictionary of them would only take room.
    with parquet.ParquetWriter(file, schema, use_dictionary=False) as writer:
        for texts, vectors in parts.read('names', 'features'):
            # A file's name can be any bytes; a string of Parquet's is UTF-8.
            names = [os.fsencode(name).decode(errors='replace') for name in texts.tolist()]
            rows, width = vectors.shape
            features = pa.ListArray.from_arrays(
                np.arange(rows + 1, dtype=np.int32) * width, vectors.ravel()
            )
            writer.write_table(pa.table([pa.array(names, pa.string()), features], schema=schema))


WRITERS = {'.npz': _write_npz, '.parquet': _write_parquet}


def _texts(texts: Sequence[str]) -> np.ndarray:
    return np.array(texts, dtype=np.str_)


def _read_settings(path: pathlib.Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError):
        settings = None
    if not isinstance(settings, dict):
        raise InputError(f'{path} is damaged: delete {path.parent} to begin anew')
    return settings


@contextlib.contextmanager
def _at_once(path: pathlib.Path) -> Iterator[IO[bytes]]:
    """A file that gets its name when the block ends well."""
    with at_once(path) as draft, open(draft, 'wb') as file:
        yield file
