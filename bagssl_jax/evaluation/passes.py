"""The passes over the images of a probe, in each of which every patch is embedded once."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bagssl_jax.data.datasets import Images
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.data.views import Center, View, Whole
from bagssl_jax.embedding.bags import Layout, grid_layout, random_layout, single_layout
from bagssl_jax.evaluation.augmented import Augmentation, make_augmentation
from bagssl_jax.memory import refuse_shortage
from bagssl_jax.parallel import make_mesh


@dataclasses.dataclass(frozen=True)
class Pass:
    """One way over the images, in which every patch is embedded once.

    Attributes:
      view: its name: 'bag', 'center' or 'whole'.
      layout: what is cut and represented.
      batch_size: images at a time.
      chunk: patches a forward pass.
      about: what the rows of results.json say of it.
      augment: what is done to the patches, as by `make_augmentation`; None for nothing.
    """

    view: str
    layout: Layout
    batch_size: int
    chunk: int
    about: Mapping[str, Any]
    augment: Augmentation | None = None


def make_passes(config: ConfigDict, images: Images, *, most: int) -> tuple[Pass, ...]:
    """The passes over splits like that of `images`, of `most` images each at most."""
    probe, geometry = config.probe, PatchGeometry.of(config.patches, over=config.probe)
    geometry.check(images.image_shape)
    side = geometry.side(*images.example_shape())
    shape = images.image_shape or (probe.whole_size, probe.whole_size)
    side = geometry.resize or side
    patches = {'patches': probe.batch_size, 'side': side, 'most': most}
    passes = {
        'bag': lambda: _bag_pass(config, geometry, most),
        'whole': lambda: _single_pass('whole', Whole(*shape), shape, **patches),
        'center': lambda: _single_pass('center', Center(*shape), shape, **patches),
    }
    found = tuple(passes[view]() for view in probe.views)
    shapes = {'bag': (side, side)}
    _check_memory(max(one.chunk * math.prod(shapes.get(one.view, shape)) for one in found))
    return found


def _check_memory(pixels: int) -> None:
    """Raises InputError where so many pixels, as bytes and as the networks take them, do not fit.

    What a forward pass needs beside them is known when there is an encoder.
    """
    mesh = make_mesh()
    refuse_shortage(
        'probing',
        on_device={'patches of probe.batch_size': pixels * 3 * (1 + 4) // mesh.size},
        on_host={'their pixels': pixels * 3},
        devices=mesh.local_devices,
    )


def _bag_pass(config: ConfigDict, geometry: PatchGeometry, most: int) -> Pass:
    probe, seed = config.probe, config.seed
    if probe['positions'] == 'grid':
        layout = grid_layout(geometry, probe['patches'], probe['aggregations'])
    else:
        layout = random_layout(geometry, probe['patches'], probe['aggregations'], seed=seed)
    chunk = _no_more_than(most * layout.count, probe['batch_size'])
    about = {'positions': probe['positions'], 'patch': dataclasses.asdict(geometry)}
    one = Pass('bag', layout, max(1, chunk // layout.count), chunk, about)
    if not probe['augment']:
        return one
    augmentation = make_augmentation(config.augment.to_dict(), seed=seed)
    return dataclasses.replace(one, about={**about, 'augment': True}, augment=augmentation)


def _single_pass(
    name: str, view: View, shape: tuple[int, int], *, patches: int, side: int, most: int
) -> Pass:
    """A pass over images of a shape, with as many pixels a forward pass as so many patches have."""
    chunk = _no_more_than(most, math.ceil(patches * side**2 / math.prod(shape)))
    return Pass(name, single_layout(view), chunk, chunk, {'positions': None, 'patch': None})


def _no_more_than(there_are: int, chunk: int) -> int:
    """A chunk that the devices can share, and that is not filled up with what there is not."""
    devices = make_mesh().size
    return math.ceil(min(there_are, chunk) / devices) * devices
