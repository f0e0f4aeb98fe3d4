"""A frozen encoder: pixels in, embeddings out, for probes, pictures and people."""

import collections
import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bagssl_jax.checkpoints import restore_items
from bagssl_jax.data.cut import Pixels, cut
from bagssl_jax.data.geometry import PatchGeometry, grid_places
from bagssl_jax.errors import InputError
from bagssl_jax.memory import program_bytes, refuse_shortage, tree_bytes
from bagssl_jax.models import (
    Networks,
    init_variables,
    make_networks,
    with_statistics_of,
)
from bagssl_jax.parallel import batch_sharded, make_mesh, replicated, sharded_shapes
from bagssl_jax.progress import waiting
from bagssl_jax.runs import Run

Variables = Mapping[str, Any]
Spaces = dict[str, jax.Array]

AHEAD = 1  # batches on their way through the devices while the next patches are cut
CHUNKS = 4  # that are filled by the bags of one batch, to leave little room empty


def load_encoder(run: Run, *, chunk: int, mesh: Mesh | None = None) -> 'FrozenEncoder':
    """The encoder, and the projector where there is one, of the newest checkpoint of `run`.

    Args:
      run: trained here or imported.
      chunk: patches a forward pass, over all devices; rounded up to what they can share.
      mesh: the devices; by default those of this process.

    Raises:
      InputError: there is no run, or no undamaged checkpoint, or `chunk` is not positive.
    """
    if chunk < 1:
        raise InputError(f'chunk={chunk} must be a positive number of patches')
    config = run.read_config()
    networks, geometry = make_networks(config), PatchGeometry.of(config['patches'])
    mesh = make_mesh(jax.local_devices()) if mesh is None else mesh
    shapes = jax.eval_shape(lambda: init_variables(networks, 0, side=geometry.input_side))
    with waiting(f'reading the checkpoint of {run}'):
        step, variables = restore_items(run, sharded_shapes(shapes, replicated(mesh)))
    chunk = math.ceil(chunk / mesh.size) * mesh.size
    return FrozenEncoder(networks, variables, geometry, mesh, chunk, step)


def forward(networks: Networks, variables: Variables, pixels: jax.Array) -> Spaces:
    """The frozen networks as one pure function, differentiable also in the pixels.

    Every patch is embedded on its own, with the running statistics.

    Args:
      networks: the Linen modules.
      variables: those of the encoder and, where there is one, of the projector, by these names.
      pixels: float [n h w 3] in [0, 1].

    Returns:
      float32 [n d] for every space: 'h', the encoder's output, and with a projector 'hidden1',
      'hidden2', ..., inside it, and 'z', its output.
    """
    h, _ = networks.encoder.apply(variables['encoder'], pixels, train=False)
    found = {'h': h}
    if 'projector' in variables:
        z, hidden = networks.projector.apply(variables['projector'], h, train=False)
        found |= {**hidden, 'z': z}
    return {space: vectors.astype(jnp.float32) for space, vectors in found.items()}


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenEncoder:
    """What a run has learned.

    Attributes:
      networks: the Linen modules.
      variables: those of the encoder and, where there is one, of the projector, on every device.
      geometry: of the patches that the run was trained on.
      mesh: the devices that share every forward pass.
      chunk: patches a forward pass; a multiple of the devices.
      step: of the checkpoint.
    """

    networks: Networks
    variables: Variables
    geometry: PatchGeometry
    mesh: Mesh
    chunk: int
    step: int

    @functools.cached_property
    def widths(self) -> dict[str, int]:
        """The number of features in each space that `forward` gives."""
        side = self.geometry.input_side
        pixels = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        found = jax.eval_shape(functools.partial(forward, self.networks), self.variables, pixels)
        return {space: vectors.shape[1] for space, vectors in found.items()}

    @property
    def width(self) -> int:
        """The number of features in 'h': d."""
        return self.widths['h']

    def embed(self, images: Pixels, patches: int = 16, *, space: str = 'h') -> np.ndarray:
        """The representation of every image: the mean of its patches' embeddings.

        Args:
          images: uint8 RGB [b h w 3], or b images [h w 3] of any sizes.
          patches: how many an image, on an even grid; 1 is the center.
          space: 'h' for embeddings, 'z' for projections, 'hidden1', ... for what is between.

        Returns:
          float32 [b d].

        Raises:
          InputError (a ValueError): other images, no patch, an image that is smaller than a
            patch, or no such space.
        """
        self.check(patches, space)
        bags = (self.cut(image, patches) for image in _uint8_rgb(images))
        means = [bag.mean(axis=0) for bag in self.embed_each(bags, space)]
        return np.stack(means) if means else np.empty((0, self.widths[space]), np.float32)

    def embed_patches(
        self, images: Pixels, grid: int = 16, *, space: str = 'h'
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
        images = _uint8_rgb(images)
        embeddings = list(self.embed_each((self.cut(image, grid) for image in images), space))
        boxes = [self.geometry.grid_boxes(*image.shape[:2], grid) for image in images]
        shape = (len(images), grid)
        return (
            np.array(embeddings, np.float32).reshape(*shape, self.widths[space]),
            np.array(boxes, np.int32).reshape(*shape, 4),
        )

    def embed_bags(
        self, bags: np.ndarray, spaces: Sequence[str] = ('h',), *, flip: bool = False
    ) -> Spaces:
        """The embeddings of patches of one size, on the devices.

        Args:
          bags: uint8 [b p h w 3].
          spaces: some of those that `forward` gives.
          flip: whether every patch is embedded mirrored too, and the mean of both is taken.

        Returns:
          space -> float32 [b p d].

        Raises:
          InputError: a forward pass does not fit into the memory that there is.
        """
        shape = bags.shape[:2]
        patches = bags.reshape(-1, *bags.shape[2:])  # [b p h w c] -> [n h w c]
        self.check_memory(patches.shape[1:3], spaces, flip=flip)
        run = functools.partial(
            embed_chunk, self.networks, self.variables, spaces=tuple(spaces), flip=flip
        )
        parts = [
            run(jax.device_put(part, batch_sharded(self.mesh)))
            for part in _chunks(patches, self.chunk)
        ]
        vectors = (
            parts[0] if len(parts) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
        )
        return jax.tree.map(
            lambda x: x[: len(patches)].reshape(*shape, -1), vectors
        )  # [n d] -> [b p d]

    def check_memory(
        self, shape: tuple[int, int], spaces: Sequence[str] = ('h',), *, flip: bool = False
    ) -> None:
        """Raises InputError where a forward pass does not fit into the memory that there is.

        The compiler tells, once for every shape; the forward pass finds what was compiled. The
        variables may be shapes alone.

        Args:
          shape: (height, width) of the patches.
          spaces, flip: as for `embed_bags`.
        """
        asked = tuple(shape), tuple(spaces), flip
        if asked in self._fitting:
            return
        pixels = (self.chunk, *shape, 3)
        with waiting(f'compiling the encoder for patches of {shape[0]}x{shape[1]} pixels'):
            compiled = embed_chunk.lower(
                self.networks,
                self.variables,
                jax.ShapeDtypeStruct(pixels, np.uint8, sharding=batch_sharded(self.mesh)),
                spaces=tuple(spaces),
                flip=flip,
            ).compile()
        parameters = tree_bytes(self.variables)
        are_there = all(isinstance(x, jax.Array) for x in jax.tree.leaves(self.variables))
        needed = program_bytes(compiled, self.mesh.devices.flat[0].platform)
        refuse_shortage(
            f'embedding {self.chunk:,} patches of {shape[0]}x{shape[1]} pixels at a time',
            on_device={
                'parameters': parameters,
                'the rest of a forward pass': needed - parameters,
            },
            on_host={'pixels': math.prod(pixels)},
            devices=self.mesh.local_devices,
            held=parameters if are_there else 0,
        )
        self._fitting.add(asked)

    @functools.cached_property
    def _fitting(self) -> set[tuple]:
        """What `check_memory` has been asked, and has passed."""
        return set()

    def embed_each(self, bags: Iterable[np.ndarray], space: str) -> Iterator[np.ndarray]:
        """Embeds bags one after the other, with the next ones asked for in advance.

        Args:
          bags: uint8 [p s s 3] each, with the same p; best all of one size: one program serves
            all bags that follow one another in the same size.
          space: one of those that `forward` gives.

        Yields:
          float32 [p d] for every bag.
        """
        under_way = collections.deque()
        for batch in _batches(bags, CHUNKS * self.chunk):
            under_way.append(self.embed_bags(batch, (space,))[space])
            if len(under_way) > AHEAD:
                yield from np.asarray(under_way.popleft())
        for vectors in under_way:
            yield from np.asarray(vectors)

    def cut(self, image: np.ndarray, patches: int) -> np.ndarray:
        """The grid of an image, uint8 [h w 3], cut out: uint8 [p s s 3].

        Raises:
          InputError: the image is smaller than a patch.
        """
        boxes = self.geometry.grid_boxes(*image.shape[:2], patches)
        return cut(image[None], boxes[None], resize=self.geometry.resize)[0]

    def check(self, patches: int, space: str) -> None:
        """Raises InputError where no bags of `patches` can be embedded, or not in `space`."""
        grid_places(patches)
        if space not in self.widths:
            raise InputError(
                f'no space {space!r} in this run: choose from {", ".join(self.widths)}'
            )

    def untrained(self, seed: int) -> 'FrozenEncoder':
        """The same networks as a training with this seed begins with them."""
        with waiting('making an untrained encoder'):
            variables = init_variables(self.networks, seed, side=self.geometry.input_side)
            variables['encoder'] = with_statistics_of(
                self.networks, variables['encoder'], self.variables['encoder']
            )
        return self.with_variables(jax.device_put(variables, replicated(self.mesh)))

    def with_variables(self, variables: Variables) -> 'FrozenEncoder':
        """The same networks with other variables, which lie on every device."""
        return dataclasses.replace(self, variables=variables)

    def with_chunk(self, chunk: int) -> 'FrozenEncoder':
        """The same encoder with another number of patches a forward pass."""
        return dataclasses.replace(self, chunk=chunk)

    def fingerprint(self) -> str:
        """A digest of the variables, as hexadecimal digits."""
        digest = hashlib.sha256()
        for leaf in jax.tree.leaves(jax.device_get(self.variables)):
            digest.update(leaf.tobytes())
        return digest.hexdigest()


@functools.partial(jax.jit, static_argnames=('networks', 'spaces', 'flip'))
def embed_chunk(
    networks: Networks,
    variables: Variables,
    patches: jax.Array,
    *,
    spaces: tuple[str, ...],
    flip: bool,
) -> Spaces:
    """What `FrozenEncoder` runs on its devices: uint8 [n h w 3] -> space -> float32 [n d]."""

    pixels = patches.astype(jnp.float32) / 255
    return embed_pixels(networks, variables, pixels, spaces=spaces, flip=flip)


def embed_pixels(
    networks: Networks,
    variables: Variables,
    pixels: jax.Array,
    *,
    spaces: Sequence[str],
    flip: bool,
) -> Spaces:
    """Those of the spaces that `forward` gives; if `flip`, the mean with the mirrored patches'."""

    def wanted(pixels: jax.Array) -> Spaces:
        found = forward(networks, variables, pixels)
        return {space: found[space] for space in spaces}

    vectors = wanted(pixels)
    if flip:
        vectors = jax.tree.map(lambda a, b: (a + b) / 2, vectors, wanted(pixels[:, :, ::-1]))
    return vectors


def _chunks(patches: np.ndarray, chunk: int) -> Iterator[np.ndarray]:
    """The patches, `chunk` at a time, with zeros behind the last: one program serves all."""
    for start in range(0, len(patches), chunk):
        part = patches[start : start + chunk]
        missing = chunk - len(part)
        yield np.pad(part, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else part


def _batches(bags: Iterable[np.ndarray], patches: int) -> Iterator[np.ndarray]:
    """Consecutive bags of one size as [b p s s 3], of `patches` or fewer in all, or of one bag."""
    batch = []
    for bag in bags:
        if batch and (bag.shape != batch[0].shape or (len(batch) + 1) * len(bag) > patches):
            yield np.stack(batch)
            batch = []
        batch.append(bag)
    if batch:
        yield np.stack(batch)


def _uint8_rgb(images: Pixels) -> list[np.ndarray] | np.ndarray:
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
