"""A folder of image files as a source."""

import collections
import dataclasses
import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from typing import ClassVar, NamedTuple

import fsspec
import numpy as np

from bagssl_jax import processes
from bagssl_jax.data import images
from bagssl_jax.data.sources import Records
from bagssl_jax.data.splits import split_ranges
from bagssl_jax.errors import InputError, LostImage, UnreadableImage

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp')
FLAT_SPLIT = 'train'  # what the only split of a folder without splits is called
LAYOUT = 'lay it out as PATH/SPLIT/CLASS/*.jpg, PATH/CLASS/*.jpg, PATH/SPLIT/*.jpg or PATH/*.jpg'
# Folders of these names are splits; without them, folders are classes.
SPLITS = {'train', 'training', 'val', 'valid', 'validation', 'test', 'testing'}
HELD_OUT = 0.2  # of each class: the split 'test' of a folder of classes


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Image files, read and decoded one by one.

    Attributes:
      directory: local or remote, below which the files lie.
      names: the files' paths below the directory, one after the other; a million take some 50 MB.
      ends: int64 [n], where in `names` each name ends.
      labels: int64 [n]; -1 where a file has no class.
      class_names: as of any source.
      fingerprint: of the files' names, sizes and labels.
    """

    directory: str
    names: bytes
    ends: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    fingerprint: str
    in_memory: ClassVar[bool] = False
    image_shape: ClassVar[None] = None

    def __len__(self) -> int:
        return len(self.ends)

    def read(self, numbers: np.ndarray) -> Records:
        decoded = [images.decode(self.encoded(i), self.name(i)) for i in numbers.tolist()]
        return Records(decoded, self.labels[numbers])

    def encoded(self, index: int) -> bytes:
        """The bytes of a file."""
        path = _join(self.directory, self.name(index))
        try:
            if _is_remote(path):
                return _filesystem(path).cat_file(path)
            with open(path, 'rb') as file:
                return file.read()
        except FileNotFoundError:
            raise LostImage(f'{self.name(index)}: No such file or directory') from None
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise UnreadableImage(f'{self.name(index)}: {reason}') from None

    def name(self, index: int) -> str:
        """The file's path below the directory."""
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.names[start : self.ends[index]])


def load_folder(path: str, split: str) -> FolderSource:
    """Finds the image files of a split.

    Files are ordered so that any part of a split has about the same share of every class, and
    within a class by name: 'train[:10%]' is a tenth of each class, and the last tenth, which the
    linear probe holds out, is too.

    Args:
      path: a directory, local or remote (gs://, s3://), laid out as path/SPLIT/CLASS/*.jpg (at any
        depth below CLASS); as path/CLASS/*.jpg, of which the last fifth of each class is the split
        'test' and the rest 'train', which is said on standard error; as path/SPLIT/*.jpg, without
        labels; or as path/*.jpg, without labels and with 'train' as its only split. Also .jpeg,
        .png, .webp and .bmp, in any case. What starts with a dot or with two underscores is passed
        over, and so are other files. The classes are the folders of all splits together, so that
        labels agree between splits.
      split: in TFDS's notation: 'train', 'train[:10%]', 'train[:500]+val'.

    Raises:
      InputError: no such directory or split, another layout, or no image.
    """
    if not path:
        raise InputError(f'data.name=folder needs data.dir=PATH: {LAYOUT}')
    path = _directory(path, 'data.dir=')
    top = _list(path)
    if _holds_classes(path, top, split):
        return _load_held_out(path, tuple(sorted(top.folders)), split)
    if top.images:
        _refuse_images_below(path, top)
        splits, class_names = {FLAT_SPLIT: ''}, ()
    else:
        splits = {folder: folder for folder in top.folders if next(_walk(path, folder), None)}
        classes = {name for folder in splits for name in _list(_join(path, folder)).folders}
        class_names = tuple(sorted(classes))
    files = {
        name: _ordered(path, folder, class_names)
        for name, folder in splits.items()
        if name in split or split.startswith('all')
    }
    if not any(files.values()):
        some = ', '.join(sorted(splits)[:5]) or 'no folder'
        raise InputError(
            f'data.dir={path} has no image of the split {split!r}; it holds {some}: {LAYOUT}'
        )
    sizes = {name: len(files.get(name, 'x')) for name in splits}
    chosen = [file for part, i, j in split_ranges(split, sizes) for file in files[part][i:j]]
    return _source(path, chosen, class_names)


def load_files(path: str) -> FolderSource:
    """Finds the image files at any depth in a directory, whatever its layout: by name, unlabelled.

    Raises:
      InputError: no such directory, or no image.
    """
    path = _directory(path, '')
    files = [_File(os.fsencode(name), size, -1) for name, size in _walk(path, '')]
    if not files:
        raise InputError(f'{path} holds no image: its files must be {", ".join(EXTENSIONS)}')
    return _source(path, sorted(files), ())


def _holds_classes(path: str, top: '_Listing', split: str) -> bool:
    """Whether what is asked for are splits of a folder that has none, but folders of images."""
    asked = {part.partition('[')[0].strip() for part in split.split('+')}
    return (
        not top.images
        and asked <= {'train', 'test'}
        and not SPLITS & {folder.lower() for folder in top.folders}
        and any(next(_walk(path, folder), None) for folder in top.folders)
    )


def _load_held_out(path: str, class_names: tuple[str, ...], split: str) -> FolderSource:
    files = _ordered(path, '', class_names)
    held_out = max(1, round(HELD_OUT * len(files)))
    parts = {'train': files[:-held_out], 'test': files[-held_out:]}
    if 'train' in split and processes.is_first():
        print(
            f'{path} has no splits: its folders are classes, and {held_out:,} of its '
            f'{len(files):,} images, of all classes alike, are held out as the split test',
            file=sys.stderr,
        )
    ranges = split_ranges(split, {name: len(part) for name, part in parts.items()})
    return _source(path, [file for name, i, j in ranges for file in parts[name][i:j]], class_names)


class _Listing(NamedTuple):
    folders: list[str]
    images: list[tuple[str, int]]  # name, bytes


class _File(NamedTuple):
    name: bytes
    size: int
    label: int


def _directory(path: str, key: str) -> str:
    """The path, once it is a directory's; else InputError, with `key` before the path."""
    path = path if _is_remote(path) else os.path.expanduser(path)
    if not (_filesystem(path).isdir(path) if _is_remote(path) else os.path.isdir(path)):
        raise InputError(f'{key}{path} is not a directory')
    return path


def _source(path: str, files: list[_File], class_names: tuple[str, ...]) -> FolderSource:
    digest = hashlib.sha256()
    for file in files:
        digest.update(b'%b\0%d\0%d\0' % file)
    labels = np.array([file.label for file in files])
    return FolderSource(
        directory=path,
        names=b''.join(file.name for file in files),
        ends=np.cumsum([len(file.name) for file in files]),
        labels=labels,
        class_names=class_names if labels.max() >= 0 else (),
        fingerprint=digest.hexdigest(),
    )


def _ordered(path: str, folder: str, class_names: tuple[str, ...]) -> list[_File]:
    """The files of a split."""
    listing = _list(_join(path, folder))
    if listing.images and folder:
        _refuse_images_below(_join(path, folder), listing)
    walked = [(_join(folder, name), size, -1) for name, size in listing.images]
    if not listing.images:
        label_of = {name: label for label, name in enumerate(class_names)}
        for name in listing.folders:
            below = _walk(path, _join(folder, name))
            walked += [(file, size, label_of[name]) for file, size in below]
    walked.sort(key=lambda file: (file[2], os.fsencode(file[0])))
    counts = collections.Counter(label for _, _, label in walked)
    ranks = collections.Counter()
    keyed = []
    for name, size, label in walked:
        keyed.append(((ranks[label] + 0.5) / counts[label], label, os.fsencode(name), size))
        ranks[label] += 1
    return [_File(name, size, label) for _, label, name, size in sorted(keyed)]


def _walk(path: str, folder: str) -> Iterator[tuple[str, int]]:
    """Path below `path`, and bytes, of the images at any depth in a folder."""
    listing = _list(_join(path, folder))
    for name, size in listing.images:
        yield _join(folder, name), size
    for name in listing.folders:
        yield from _walk(path, _join(folder, name))


def _list(directory: str) -> _Listing:
    folders, found = [], []
    for name, is_folder, size in _entries(directory):
        if name.startswith(('.', '__')):
            continue
        if is_folder:
            folders.append(name)
        elif name.lower().endswith(EXTENSIONS):
            found.append((name, size))
    return _Listing(folders, found)


def _entries(directory: str) -> Iterator[tuple[str, bool, int]]:
    """Name, whether it is a folder, and bytes, of everything in a directory."""
    if _is_remote(directory):
        for row in _filesystem(directory).ls(directory, detail=True):
            name = row['name'].rstrip('/').rpartition('/')[2]
            yield name, row['type'] == 'directory', row['size']
        return
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                # A link to nowhere too: reading it will tell. To read a pipe would take for ever.
                found = entry.stat() if os.path.exists(entry.path) else None
                if found is None or stat.S_ISREG(found.st_mode) or entry.is_dir():
                    yield entry.name, entry.is_dir(), found.st_size if found else 0
    except OSError as error:  # no permission, or a link that leads in a circle
        raise InputError(f'{directory}: {error.strerror}') from None


def _refuse_images_below(directory: str, listing: _Listing) -> None:
    for folder in listing.folders:
        below = next(_walk(directory, folder), None)
        if below:
            raise InputError(
                f'{directory} holds images ({listing.images[0][0]}) beside folders of images '
                f'({below[0]}): {LAYOUT}'
            )


def _join(*parts: str) -> str:
    return '/'.join(part.rstrip('/') for part in parts if part)


def _is_remote(path: str) -> bool:
    return '://' in path


def _filesystem(path: str) -> fsspec.AbstractFileSystem:
    try:
        return fsspec.url_to_fs(path)[0]
    except (ImportError, ValueError) as error:  # no package, or no such protocol
        raise InputError(f'{path} cannot be read: {error}') from None
