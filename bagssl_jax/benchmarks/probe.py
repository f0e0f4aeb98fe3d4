"""How long the probes take here: embedding, on a part of the images, and each probe."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bagssl_jax.benchmarks.embed import untrained_encoder
from bagssl_jax.benchmarks.timing import print_row
from bagssl_jax.data.datasets import Images, open_dataset
from bagssl_jax.embedding.bags import represent
from bagssl_jax.embedding.encoder import FrozenEncoder
from bagssl_jax.evaluation.passes import Pass
from bagssl_jax.evaluation.plan import Plan, make_plan
from bagssl_jax.evaluation.scoring import Case, score_all
from bagssl_jax.progress import waiting

PATCHES = 16  # a bag, of which alignment is


def run(config: ConfigDict) -> None:
    """Prints a JSON object for each pass over the images and for each of `probe.probes`.

    'embed_bag', 'embed_center' and 'embed_whole', for each of `probe.views`: images are read, cut,
    embedded by as many encoders as `probe.encoders` names, and brought into bags; all of them are
    untrained here. Measured once compiled, on `benchmark.probe.images` images of the split that
    the probes learn from. 'seconds'; 'images', that were measured; 'images_per_s' and
    'patches_per_s', each counted once for all encoders; 'splits_seconds', which follows for all
    images of both splits.

    'linear', 'knn', and so on: fitted, chosen and scored with each of `probe.labels`, on made-up
    features of as many rows, dimensions of h and classes as the data set's splits have: points
    around a centre for each class, so close that neighbours overlap. How long the search for the
    linear probe's optimum takes depends on the features, and is another of real ones. Of
    'sgd_augmented' it is the time of the classifiers alone, not that of embedding fresh crops.
    'first_seconds', with compiling; 'seconds', of the second time; 'rows', 'width' and 'classes';
    'cases', how many sets of features the whole probe has: encoders, views, sizes of bags,
    aggregations and spaces, some of which may be wider. Each takes so long, but that
    'sgd_augmented' is of center crops alone and 'alignment' of mean_unit.

    Raises:
      InputError: the configuration cannot be carried out, or an image cannot be read.
    """
    plan = make_plan(config, open_dataset(config.data))
    encoder = untrained_encoder(config)
    part = plan.train.part(config.benchmark.probe.images, seed=config.seed)
    for one in plan.passes:
        with waiting(f'embedding for the view {one.view}'):
            _embedding(plan, one, encoder.with_chunk(one.chunk), part)
    case = _made_up(plan, encoder.width)
    cases = (
        len(plan.encoders) * len(plan.spaces) * sum(len(one.layout.weights) for one in plan.passes)
    )
    for name, settings in plan.probes.items():
        with waiting(f'fitting {name} twice'):
            first, second = (_scoring(case, {name: settings}, plan.labels) for _ in range(2))
        row = {
            'seconds': second,
            'first_seconds': first,
            'rows': {'train': len(case.train_x), 'test': len(case.test_x)},
            'width': case.train_x.shape[1],
            'classes': case.num_classes,
            'cases': cases,
        }
        print_row('probe', name, row)


def _embedding(plan: Plan, one: Pass, encoder: FrozenEncoder, images: Images) -> None:
    """Measures a pass, on the batches after the first, which compiles."""

    def represented(numbers: np.ndarray) -> float:
        batches = images.bags(
            one.layout.view,
            batch_size=one.batch_size,
            workers=plan.workers,
            on_error=plan.on_error,
            numbers=numbers,
        )
        start = time.perf_counter()
        represent(
            dict.fromkeys(plan.encoders, encoder),
            batches,
            one.layout,
            images=len(numbers),
            batch_size=one.batch_size,
            spaces=plan.spaces,
            flip=plan.flip,
        )
        return time.perf_counter() - start

    numbers = np.arange(len(images))
    represented(numbers[: one.batch_size])
    seconds = represented(numbers)
    rate = len(images) / seconds
    row = {
        'seconds': seconds,
        'images': len(images),
        'images_per_s': rate,
        'patches_per_s': rate * one.layout.count,
        'splits_seconds': (len(plan.train) + len(plan.test)) / rate,
    }
    print_row('probe', f'embed_{one.view}', row)


def _made_up(plan: Plan, width: int) -> Case:
    """Features of the splits' sizes."""
    rng = np.random.default_rng(0)
    classes = len(plan.train.class_names)
    centres = rng.standard_normal((classes, width), np.float32)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.permutation(np.arange(count) % classes)
        noise = rng.standard_normal((count, width), np.float32)
        return centres[labels] + np.float32(np.sqrt(width) / 4) * noise, labels

    train_x, train_y = split(len(plan.train))

    def crops(rows: np.ndarray, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        size = min(256, len(rows))
        for start in range(0, len(rows) - size + 1, size):
            chosen = rows[start : start + size]
            yield train_x[chosen], train_y[chosen]

    return Case(
        train_x,
        train_y,
        *split(len(plan.test)),
        num_classes=classes,
        about={'aggregation': 'mean_unit', 'patches': PATCHES},
        seed=plan.seed,
        fresh_crops=crops,
    )


def _scoring(case: Case, probes: Mapping[str, Mapping[str, Any]], labels: tuple[str, ...]) -> float:
    start = time.perf_counter()
    score_all(case, probes, labels)
    return time.perf_counter() - start
