"""A trained encoder: NumPy images in, NumPy embeddings out."""

import collections
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bagssl_jax.checkpoints import restore_items
from bagssl_jax.data import crops
from bagssl_jax.errors import InputError
from bagssl_jax.models import init_variables, input_side, make_networks
from bagssl_jax.parallel import batch_sharded, make_mesh, replicated
from bagssl_jax.workdir import read_config

Images = np.ndarray | Sequence[np.ndarray]  # uint8 [b h w 3], or b images [h w 3] of any sizes

SPACES = ('h', 'z')
AHEAD = 2  # forward passes under way while the next patches are cut


def load_encoder(workdir: str, *, chunk: int) -> 'Encoder':
    """The encoder, and the projector where there is one, of `workdir`'s newest checkpoint.

    Arguments and errors as for `bagssl_jax.load`.
    """
    if chunk < 1:
        raise InputError(f'chunk={chunk} must be a positive number of patches')
    config = read_config(workdir)
    networks = make_networks(config)
    init = functools.partial(init_variables, networks, side=input_side(config))
    everywhere = replicated(make_mesh(jax.local_devices()))
    targets = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
        jax.eval_shape(init, 0),
    )
    step, variables = restore_items(workdir, targets)
    present = {name: getattr(networks, name) for name in variables}
    return Encoder(config, step, present, variables, chunk=chunk)


class Encoder:
    """What a run has learned. The patches have the size, scale and resizing of its training.

    Attributes:
      config: the run's configuration, nested.
      step: of the checkpoint.
      widths: the number of features in each space: 'h', embeddings, and, where the run has a
        projector, 'z', projections.
      width: that in 'h': d.
    """

    def __init__(
        self,
        config: dict[str, Any],
        step: int,
        networks: dict[str, nn.Module],
        variables: dict[str, Any],
        *,
        chunk: int,
    ):
        """As `load_encoder` makes it: `variables` are those of `networks`, on every device."""
        self.config = config
        self.step = step
        self._networks = tuple(networks.values())
        self._variables = tuple(variables[name] for name in networks)
        self._sharding = batch_sharded(make_mesh(jax.local_devices()))
        devices = self._sharding.mesh.size
        self._chunk = math.ceil(chunk / devices) * devices
        self.widths = {space: self._width(space) for space in SPACES[: len(networks)]}
        self.width = self.widths['h']

    def embed(self, images: Images, patches: int = 16, *, space: str = 'h') -> np.ndarray:
        """The representation of every image: the mean of its patches' embeddings.

        Args:
          images: uint8 RGB [b h w 3], or b images [h w 3] of any sizes.
          patches: how many an image, on an even grid; 1 is the center.
          space: 'h' for embeddings, 'z' for projections.

        Returns:
          float32 [b d].

        Raises:
          InputError (a ValueError): other images, no patch, an image that is smaller than a
            patch, or no such space.
        """
        self.check(patches, space)
        bags = (self.cut(image, patches) for image in _checked(images))
        means = [bag.mean(axis=0) for bag in self.embed_bags(bags, patches, space=space)]
        return np.stack(means) if means else np.empty((0, self.widths[space]), np.float32)

    def embed_patches(
        self, images: Images, grid: int = 16, *, space: str = 'h'
    ) -> tuple[np.ndarray, np.ndarray]:
        """The embedding of every patch, and where it lies.

        Args:
          images: as for `embed`.
          grid: p, how many patches an image; 1 is the center.
          space: as for `embed`.

        Returns:
          float32 [b p d], and int32 [b p 4], which is (y, x, height, width) in pixels of the image.
          Row by row, from the upper left.

        Raises:
          InputError: as for `embed`.
        """
        self.check(grid, space)
        images = _checked(images)
        bags = (self.cut(image, grid) for image in images)
        embeddings = list(self.embed_bags(bags, grid, space=space))
        boxes = [self._boxes(image, grid) for image in images]
        shape = (len(images), grid)
        return (
            np.array(embeddings, np.float32).reshape(*shape, self.widths[space]),
            np.array(boxes, np.int32).reshape(*shape, 4),
        )

    def check(self, patches: int, space: str) -> None:
        """Raises InputError where no bags of `patches` can be embedded, or not in `space`."""
        crops.grid_boxes(1, 1, side=1, count=patches)
        if space not in self.widths:
            raise InputError(
                f'no space {space!r} in this run: choose from {", ".join(self.widths)}'
            )

    def cut(self, image: np.ndarray, patches: int) -> np.ndarray:
        """The patches of one image, uint8 [h w 3]: uint8 [p s s 3]. InputError as for `embed`."""
        boxes = self._boxes(image, patches)
        return crops.cut(image[None], boxes[None], resize=self.config['patches']['resize'])[0]

    def embed_bags(
        self, bags: Iterable[np.ndarray], patches: int, *, space: str
    ) -> Iterator[np.ndarray]:
        """Embeds bags one after the other, with the next ones asked for in advance.

        Args:
          bags: of `cut`, uint8 [p s s 3]; best all of one size: one program serves all bags that
            follow one another in the same size.
          patches: p.
          space: one of `widths`.

        Yields:
          float32 [p d] for every bag.
        """
        rest = np.empty((0, self.widths[space]), np.float32)
        for rows in self._embed_chunks(_chunks(bags, self._chunk), space):
            rest = np.concatenate([rest, rows])
            whole = len(rest) // patches * patches
            yield from rest[:whole].reshape(-1, patches, rest.shape[1])  # [n d] -> [b p d]
            rest = rest[whole:]

    def fingerprint(self) -> str:
        """A digest of the variables, as hexadecimal digits."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(jax.device_get(self._variables)):
            digest.update(leaf.tobytes())
        return digest.hexdigest()

    def _boxes(self, image: np.ndarray, patches: int) -> np.ndarray:
        """The grid in an image: int32 [p 4]."""
        height, width = image.shape[:2]
        settings = self.config['patches']
        side = crops.patch_side(height, width, size=settings['size'], scale=settings['scale'])
        return crops.grid_boxes(height, width, side=side, count=patches)

    def _embed_chunks(
        self, chunks: Iterable[tuple[np.ndarray, int]], space: str
    ) -> Iterator[np.ndarray]:
        """Embeddings, float32 [n d], of the first n patches of every chunk."""
        under_way = collections.deque()
        for patches, count in chunks:
            on_devices = jax.device_put(patches, self._sharding)
            under_way.append((_forward(*self._reaching(space), on_devices), count))
            if len(under_way) > AHEAD:
                rows, count = under_way.popleft()
                yield np.asarray(rows)[:count]
        for rows, count in under_way:
            yield np.asarray(rows)[:count]

    def _reaching(self, space: str) -> tuple[tuple[nn.Module, ...], tuple[Any, ...]]:
        """The networks that lead to a space, and their variables."""
        depth = SPACES.index(space) + 1
        return self._networks[:depth], self._variables[:depth]

    def _width(self, space: str) -> int:
        networks, variables = self._reaching(space)
        one = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
        return jax.eval_shape(functools.partial(_forward, networks), variables, one).shape[-1]


@functools.partial(jax.jit, static_argnames='networks')
def _forward(
    networks: tuple[nn.Module, ...], variables: tuple[Any, ...], patches: jax.Array
) -> jax.Array:
    """uint8 [n s s 3] through one frozen network after the other: float32 [n d]."""
    x = patches.astype(jnp.float32) / 255
    for network, own in zip(networks, variables, strict=True):
        x, _ = network.apply(own, x, train=False)
    return x


def _chunks(bags: Iterable[np.ndarray], chunk: int) -> Iterator[tuple[np.ndarray, int]]:
    """The patches of consecutive bags, `chunk` at a time, and how many of them are not padding.

    A chunk is padded with zeros at the end, and where the next bag's patches have another size.
    """
    buffer, filled = np.empty((0, 0, 0, 0), np.uint8), 0
    for bag in bags:
        if bag.shape[1:] != buffer.shape[1:]:
            if filled:
                yield buffer, filled
            buffer, filled = np.zeros((chunk, *bag.shape[1:]), np.uint8), 0
        while len(bag):
            taken = bag[: chunk - filled]
            buffer[filled : filled + len(taken)] = taken
            filled += len(taken)
            bag = bag[len(taken) :]
            if filled == chunk:
                yield buffer, filled
                # A new one: the devices may still be reading, or even own, the old one.
                buffer, filled = np.zeros_like(buffer), 0
    if filled:
        yield buffer, filled


def _checked(images: Images) -> list[np.ndarray] | np.ndarray:
    """The images, once each of them is uint8 [h w 3]; else InputError."""
    if not isinstance(images, np.ndarray):
        images = [np.asarray(image) for image in images]
    elif images.ndim != 4:
        raise InputError(
            f'images of the shape {images.shape}: give a batch [b h w 3], such as image[None], or '
            'a list of images [h w 3]'
        )
    for i, image in enumerate(images):
        if image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(
                f'image {i} has the shape {image.shape}, not [h w 3]: give RGB; of a grey one '
                '[h w], np.stack([image] * 3, axis=-1)'
            )
        if image.dtype != np.uint8:
            raise InputError(f'image {i} is {image.dtype}: give uint8, from 0 to 255')
    return images
