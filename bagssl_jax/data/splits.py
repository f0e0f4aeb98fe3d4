"""Split notation: which records `train[:10%]+test` names."""

import tensorflow_datasets as tfds

from bagssl_jax.errors import InputError


def split_ranges(split: str, sizes: dict[str, int]) -> list[tuple[str, int, int]]:
    """Resolves TFDS split notation to (split name, first record, last record + 1) parts.

    Raises:
      InputError: the notation is malformed, or names an unknown split or no record.
    """
    infos = {
        name: tfds.core.SplitInfo(
            name=name, shard_lengths=[size], num_bytes=0, filename_template=None
        )
        for name, size in sizes.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, NotImplementedError) as error:  # the latter: parts of 'all'
        raise InputError(
            f'split {split!r}: {str(error).splitlines()[-1]} (splits here: {", ".join(sizes)})'
        ) from None
    ranges = [
        (p.splitname, p.from_ or 0, sizes[p.splitname] if p.to is None else p.to) for p in parts
    ]
    if any(start >= stop for _, start, stop in ranges):
        raise InputError(f'split {split!r} holds no image (splits here: {", ".join(sizes)})')
    return ranges
