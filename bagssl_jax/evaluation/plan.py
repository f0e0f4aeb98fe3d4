"""What a probe will do, known before it begins."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from bagssl_jax import processes
from bagssl_jax.data.datasets import Dataset, Images
from bagssl_jax.errors import InputError
from bagssl_jax.evaluation.passes import Pass, make_passes
from bagssl_jax.evaluation.settings import check_settings


@dataclasses.dataclass(frozen=True)
class Plan:
    """All that a probe will do; that it can be done is known.

    Attributes:
      dataset: whose images are embedded.
      train: images that the probes learn from.
      test: images that they are scored on.
      passes: over the images, one after the other.
      encoders: 'trained', and 'untrained', what it began as.
      spaces: of the embeddings: 'h', 'hidden1', ..., 'z'.
      flip: whether mirrored patches are averaged in.
      probes: names of `scoring.PROBES`, with the settings of each.
      labels: parts of the training split, such as 'all' or '1%'.
      robustness: names of `robustness.ROBUSTNESS`, with the settings of each.
      seed: of the labels that are drawn, and of the probes.
      workers: processes that read and cut.
      on_error: 'stop' at an unreadable image, or 'skip' it.
    """

    dataset: Dataset
    train: Images
    test: Images
    passes: tuple[Pass, ...]
    encoders: tuple[str, ...]
    spaces: tuple[str, ...]
    flip: bool
    probes: Mapping[str, Mapping[str, Any]]
    labels: tuple[str, ...]
    robustness: Mapping[str, Mapping[str, Any]]
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
    side = probe.whole_size if probe.enlarge else 0
    train = _labelled(dataset, probe.train_split or config.data.train_split).enlarged(side)
    test = _labelled(dataset, config.data.test_split).enlarged(side)
    return Plan(
        dataset=dataset,
        train=train,
        test=test,
        passes=make_passes(config, train, most=max(len(train), len(test))),
        encoders=tuple(probe.encoders),
        spaces=tuple(probe.spaces),
        flip=probe.flip,
        probes={name: probe[name].to_dict() for name in probe.probes},
        labels=tuple(probe.labels),
        robustness={name: probe[name].to_dict() for name in probe.robustness},
        seed=probe.seed,
        workers=config.data.workers,
        on_error=config.data.on_error,
    )


def plan_after_training(config: ConfigDict, dataset: Dataset) -> Plan | None:
    """The plan of the probes that follow a training.

    None where `probe.after_training` is off, or the images that are trained on have no labels or
    one class and no others are named, which is said on standard error.

    Raises:
      InputError: the configuration cannot be carried out.
    """
    if not config.probe.after_training:
        return None
    split = config.data.train_split
    classes = len(dataset.images(split).class_names)
    if not config.probe.train_split and classes < 2:
        if processes.is_first():
            lack = 'one class' if classes else 'no labels'
            print(
                f'{dataset.name} {split} has {lack}: it is not probed after training',
                file=sys.stderr,
            )
        return None
    return make_plan(config, dataset)


def _labelled(dataset: Dataset, split: str) -> Images:
    images = dataset.images(split)
    if not images.class_names:
        raise InputError(
            f'{dataset.name} {split} has no labels for a probe to learn: give '
            'probe.train_split and data.test_split, or train with probe.after_training=False'
        )
    return images
