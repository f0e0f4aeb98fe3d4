"""What a probe will do, known before it begins."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bagssl_jax.data.datasets import Dataset, Images
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.data.views import Center, Whole
from bagssl_jax.embedding.bags import Layout, grid_layout, random_layout, single_layout
from bagssl_jax.errors import InputError
from bagssl_jax.evaluation.settings import check_settings, probed_geometry
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
    """

    view: str
    layout: Layout
    batch_size: int
    chunk: int
    about: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a probe will do; that it can be done is known.

    Attributes:
      dataset: whose images are embedded.
      train: images that the probes learn from.
      test: images that they are scored on.
      passes: over the images, one after the other.
      spaces: of the embeddings: 'h', 'hidden1', ..., 'z'.
      flip: whether mirrored patches are averaged in.
      probes: names of `scoring.PROBES`, with the settings of each.
      labels: parts of the training split, such as 'all' or '1%'.
      seed: of the labels that are drawn, and of the probes.
      workers: processes that read and cut.
      on_error: 'stop' at an unreadable image, or 'skip' it.
    """

    dataset: Dataset
    train: Images
    test: Images
    passes: tuple[Pass, ...]
    spaces: tuple[str, ...]
    flip: bool
    probes: Mapping[str, Mapping[str, Any]]
    labels: tuple[str, ...]
    seed: int
    workers: int
    on_error: str


def make_plan(config: ConfigDict, dataset: Dataset) -> Plan:
    """Checks the settings, opens the splits, and lays out the passes; embeds nothing.

    Raises:
      InputError: the configuration cannot be carried out.
    """
    check_settings(config)
    probe = config.probe
    train = _labelled(dataset, probe.train_split or config.data.train_split)
    test = _labelled(dataset, config.data.test_split)
    return Plan(
        dataset=dataset,
        train=train,
        test=test,
        passes=tuple(_make_pass(config, view, train) for view in probe.views),
        spaces=tuple(probe.spaces),
        flip=probe.flip,
        probes={name: probe[name].to_dict() for name in probe.probes},
        labels=tuple(probe.labels),
        seed=probe.seed,
        workers=config.data.workers,
        on_error=config.data.on_error,
    )


def _labelled(dataset: Dataset, split: str) -> Images:
    images = dataset.images(split)
    if not images.class_names:
        raise InputError(
            f'{dataset.name} {split} has no labels for a probe to learn: give '
            'probe.train_split and data.test_split, or train with probe.after_training=False'
        )
    return images


def _make_pass(config: ConfigDict, view: str, images: Images) -> Pass:
    probe, geometry = config.probe, probed_geometry(config)
    geometry.check(images.image_shape)
    shape = images.image_shape or images.first().shape[:2]
    side = geometry.side(*shape)
    if view == 'bag':
        layout = _bag_layout(config, geometry)
        batch_size, chunk = max(1, probe.batch_size // layout.count), probe.batch_size
        about = {'positions': probe.positions, 'patch': dataclasses.asdict(geometry)}
    else:
        height, width = images.image_shape or (probe.whole_size, probe.whole_size)
        layout = single_layout({'whole': Whole, 'center': Center}[view](height, width))
        # As many pixels a forward pass as with patches.
        pixels, devices = probe.batch_size * (geometry.resize or side) ** 2, make_mesh().size
        batch_size = chunk = math.ceil(pixels / (height * width) / devices) * devices
        about = {'positions': None, 'patch': None}
    return Pass(view, layout, batch_size, chunk, about)


def _bag_layout(config: ConfigDict, geometry: PatchGeometry) -> Layout:
    probe = config.probe
    if probe.positions == 'grid':
        return grid_layout(geometry, probe.patches, probe.aggregations)
    return random_layout(geometry, probe.patches, probe.aggregations, seed=config.seed)
