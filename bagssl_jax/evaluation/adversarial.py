"""Linear probes under attack: accuracy by norm and radius of the ball that an adversary has."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from bagssl_jax import processes
from bagssl_jax.data.reading import read_or_replace, unreadable_image
from bagssl_jax.embedding.differentiable import Places, find_places, make_cutter, represent_pixels
from bagssl_jax.embedding.encoder import Variables
from bagssl_jax.errors import InputError
from bagssl_jax.evaluation.heads import Head, Outcome, Trial
from bagssl_jax.evaluation.passes import Pass
from bagssl_jax.memory import program_bytes, refuse_shortage, tree_bytes
from bagssl_jax.models import Networks
from bagssl_jax.parallel import batch_sharded, dealt, own_part
from bagssl_jax.probes.attacks import noisy, pgd
from bagssl_jax.probes.scores import ranks
from bagssl_jax.progress import waiting

AT_ONCE = 1024  # images that are held at a time, of which those that still stand are attacked on
NONE = 'none'
ROUND = 64  # pixels: images of several sizes are brought onto one of a multiple of that


class Method(NamedTuple):
    """What of a head a program is compiled for."""

    networks: Networks
    space: str
    unit: bool
    flip: bool
    shape: tuple[int, int]  # of a patch


class Model(NamedTuple):
    """The arrays of a head."""

    variables: Variables
    representation: np.ndarray  # float32 [cells p]
    weights: np.ndarray  # float32 [d c]
    bias: np.ndarray  # float32 [c]


class Batch(NamedTuple):
    """b images, and all that is known of them."""

    pixels: np.ndarray  # uint8 [b h w 3]; smaller images lie at the upper left
    sizes: np.ndarray  # int32 [b 2]
    places: Places  # of p patches each
    labels: np.ndarray  # int32 [b]
    numbers: np.ndarray  # int32 [b], of the images

    def part(self, index: np.ndarray) -> 'Batch':
        """Some of them."""
        return jax.tree.map(lambda array: array[index], self)


def measure(
    trial: Trial,
    heads: Sequence[Head],
    progress: tqdm.tqdm,
    *,
    images: int,
    linf: Sequence[float],
    l2: Sequence[float],
    steps: int,
    restarts: int,
    batch_size: int,
) -> Iterator[list[Outcome]]:
    """The outcomes of each head of one pass, with 'attack', 'norm' and 'radius'.

    'none' is the image as it is, 'pgd' the attack of `probes.attacks.pgd`, 'noise' a random
    perturbation of the same size, once. The image is what is perturbed, in numbers from 0 to 1
    that need not be grey levels, and the patches are cut from it: bags, whole images and center
    crops face the same adversary, which knows the encoder, the places of the patches, and the
    head. An image counts where it is told right as it is, and after every restart, with this
    radius and with all smaller ones of the norm. Where a view resizes, its patches are not rounded
    to grey levels as the probe's are: that tells about an image in a hundred otherwise.

    Raises:
      InputError: an image cannot be read, or an attack does not fit into memory.
    """
    one, numbers = heads[0].one, trial.draw(images)
    numbers = numbers[dealt(len(numbers), batch_size)]
    balls = [('linf', radius / 255) for radius in linf] + [('l2', radius) for radius in l2]
    conditions = [{'attack': NONE, 'norm': None, 'radius': 0.0}]
    for norm, radius in balls:
        ball = {'norm': norm, 'radius': radius}
        conditions += [
            {'attack': 'pgd', **ball, 'steps': steps, 'restarts': restarts},
            {'attack': 'noise', **ball},
        ]
    progress.reset(len(heads) * len(balls) * len(numbers))
    for turn, head in enumerate(heads):
        right, seen = [[np.zeros(0, bool)] for _ in conditions], [np.zeros(0, int)]
        for start in range(0, len(numbers), AT_ONCE):
            found = _read(trial, one, numbers[start : start + AT_ONCE])
            if found is None:
                continue
            batch, shape = found
            devices = head.encoder.mesh.size
            chunk = min(own_part(batch_size), -(-len(batch.labels) // devices) * devices)
            target = _Target(trial, head, shape, chunk)
            for i, told in enumerate(target.right(batch, balls, steps, restarts)):
                right[i].append(told)
                progress.update(len(batch.labels) * (i % 2))  # once for every ball
            seen.append(batch.numbers)
        seen, right = _gathered(f'attacked {turn % 2}', seen, right)
        if not len(seen):
            raise InputError(f'none of {images:,} images of {trial.images.title} can be read')
        yield [
            head.outcome(seen, told, **condition)
            for condition, told in zip(conditions, right, strict=True)
        ]


def _gathered(
    topic: str, seen: Sequence[np.ndarray], right: Sequence[Sequence[np.ndarray]]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The numbers of all processes' images, int [n]; of every condition, bool [n]."""
    numbers = np.concatenate(seen).tolist()
    bits = [np.packbits(np.concatenate(parts)).tobytes().hex() for parts in right]
    said = processes.gathered(topic, [numbers, bits])

    def unpacked(text: str, count: int) -> np.ndarray:
        return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count) > 0

    return np.concatenate([np.array(own, int) for own, _ in said]), [
        np.concatenate([unpacked(bits[i], len(own)) for own, bits in said])
        for i in range(len(right))
    ]


def _read(trial: Trial, one: Pass, numbers: np.ndarray) -> tuple[Batch, tuple[int, int]] | None:
    """Images of these numbers and the shape of their patches; None where none can be read."""
    view, source = one.layout.view, trial.images.source
    (images, labels), unreadable = read_or_replace(source, numbers, min_side=view.min_side)
    if (unreadable >= 0).any() and trial.on_error == 'stop':
        raise unreadable_image(source, int(unreadable.max()), min_side=view.min_side)
    kept = np.flatnonzero(unreadable < 0)
    if not len(kept):
        return None
    images, numbers = [images[i] for i in kept], numbers[kept]
    sizes = np.array([image.shape[:2] for image in images], np.int32)
    largest = sizes.max(axis=0)
    height, width = largest if trial.images.image_shape else -(-largest // ROUND) * ROUND
    pixels = np.zeros((len(images), height, width, 3), np.uint8)
    for place, image in zip(pixels, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    places, shape = find_places(view, sizes.tolist(), numbers)
    labels, numbers = labels[kept].astype(np.int32), numbers.astype(np.int32)
    return Batch(pixels, sizes, places, labels, numbers), shape


class _Target:
    """A head, and what attacks it."""

    def __init__(self, trial: Trial, head: Head, shape: tuple[int, int], chunk: int):
        encoder, representation = head.encoder, head.key.representation
        weights = head.one.layout.weights[representation]
        self._members = np.flatnonzero(weights.any(axis=0))  # of the pass's patches, those of this
        unit = representation.aggregation == 'mean_unit'
        self._method = Method(encoder.networks, head.key.space, unit, trial.flip, shape)
        self._model = Model(encoder.variables, weights[:, self._members], *head.classifier)
        self._mesh = encoder.mesh
        self._chunk = chunk
        self._key = jax.random.key(trial.seed)
        self._fitting = set()  # what was compiled, and fits into memory

    def right(
        self, batch: Batch, balls: Sequence[tuple[str, float]], steps: int, restarts: int
    ) -> Iterator[np.ndarray]:
        """Which are right as they are, and in each ball under attack and with noise: bool [b]."""
        places = batch.places._replace(boxes=batch.places.boxes[:, self._members])
        batch = batch._replace(places=places)
        right = ~self._run(_wrong_with_noise, batch, 0, 0.0, norm='linf')
        clean = np.flatnonzero(right)
        yield right
        standing = {}
        for norm, radius in balls:
            left = standing.get(norm, clean)
            for restart in range(restarts):
                fooled = self._run(
                    _fooled, batch.part(left), restart, radius, norm=norm, steps=steps
                )
                left = left[~fooled]
            standing[norm] = left
            wrong = self._run(_wrong_with_noise, batch, 0, radius, norm=norm)
            yield np.isin(np.arange(len(right)), left)
            yield ~wrong

    def _run(self, program: Any, batch: Batch, turn: int, radius: float, **how: Any) -> np.ndarray:
        """What a program says of every image: bool [n]."""
        count, parts = len(batch.labels), [np.zeros(0, bool)]
        for start in range(0, count, self._chunk):
            index = np.resize(np.arange(start, min(start + self._chunk, count)), self._chunk)
            part = jax.device_put(batch.part(index), batch_sharded(self._mesh))
            key = jax.random.fold_in(self._key, turn)
            arguments = self._method, self._model, part, key, np.float32(radius)
            self._check_memory(program, arguments, how)
            parts.append(np.asarray(program(*arguments, **how)))
        return np.concatenate(parts)[:count]

    def _check_memory(self, program: Any, arguments: tuple, how: dict[str, Any]) -> None:
        """Raises InputError where a program does not fit into the memory that there is."""
        if (name := str((program, how))) in self._fitting:
            return
        with waiting('compiling an attack'):
            compiled = program.lower(*arguments, **how).compile()
        parameters = tree_bytes(self._model.variables)
        needed = program_bytes(compiled, self._mesh.devices.flat[0].platform)
        refuse_shortage(
            f'attacking {self._chunk:,} images of {len(self._members):,} patches at a time '
            '(probe.pgd.batch_size)',
            on_device={'parameters': parameters, 'the rest of a step': needed - parameters},
            on_host={},
            devices=self._mesh.local_devices,
            held=parameters,
        )
        self._fitting.add(name)


@functools.partial(jax.jit, static_argnames=('method', 'norm', 'steps'))
def _fooled(
    method: Method,
    model: Model,
    batch: Batch,
    key: jax.Array,
    radius: jax.Array,
    *,
    norm: str,
    steps: int,
) -> jax.Array:
    images, valid, keys = _images(batch, key)
    logits_of = _logits(method, model, batch)
    found = pgd(logits_of, images, batch.labels, keys, valid, radius, norm=norm, steps=steps)
    return found.fooled


@functools.partial(jax.jit, static_argnames=('method', 'norm'))
def _wrong_with_noise(
    method: Method,
    model: Model,
    batch: Batch,
    key: jax.Array,
    radius: jax.Array,
    *,
    norm: str,
) -> jax.Array:
    images, valid, keys = _images(batch, key)
    logits = _logits(method, model, batch)(noisy(images, keys, valid, radius, norm=norm))
    return ranks(logits, batch.labels) > 0


def _images(batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Float images [b h w 3], which pixels are theirs [b h w 1], and keys of their own [b]."""
    height, width = batch.pixels.shape[1:3]
    down = jnp.arange(height)[None] < batch.sizes[:, :1]
    right = jnp.arange(width)[None] < batch.sizes[:, 1:]
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(batch.numbers)
    valid = (down[:, :, None] & right[:, None])[..., None]
    return batch.pixels.astype(jnp.float32) / 255, valid, keys


def _logits(method: Method, model: Model, batch: Batch) -> Callable[[jax.Array], jax.Array]:
    cutter = make_cutter(batch.places, batch.pixels.shape[1:3], method.shape)

    def of_images(x: jax.Array) -> jax.Array:
        vectors = represent_pixels(
            method.networks,
            model.variables,
            x,
            cutter,
            model.representation,
            space=method.space,
            unit=method.unit,
            flip=method.flip,
        )
        exact = jax.lax.Precision.HIGHEST
        return jnp.matmul(vectors, model.weights, precision=exact) + model.bias[None]

    return of_images
