"""Linear probes on corrupted test images: accuracy by corruption and severity."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from bagssl_jax import processes
from bagssl_jax.data.corruptions import Corrupted
from bagssl_jax.data.pipeline import Bags
from bagssl_jax.data.views import View
from bagssl_jax.embedding.bags import represent
from bagssl_jax.evaluation.heads import Head, Outcome, Trial
from bagssl_jax.parallel import dealt, own_part
from bagssl_jax.probes.scores import ranks

CLEAN = 'none'


def measure(
    trial: Trial,
    heads: Sequence[Head],
    progress: tqdm.tqdm,
    *,
    images: int,
    names: Sequence[str],
    severities: Sequence[int],
) -> Iterator[list[Outcome]]:
    """The outcomes of the heads of one pass, with 'corruption' and 'severity'; 'none' and 0 first.

    Whole test images are corrupted, and what the view cuts of them is embedded, each patch once
    for all heads.
    """
    numbers, view = trial.draw(images), heads[0].one.layout.view
    conditions: list[tuple[str, int, View]] = [(CLEAN, 0, view)]
    conditions += [
        (name, severity, Corrupted(view, name, severity, trial.seed))
        for name in names
        for severity in severities
    ]
    progress.reset(len(conditions) * len(numbers))
    outcomes = []
    for name, severity, corrupted in conditions:
        features, labels, seen = _represented(trial, heads, corrupted, numbers)
        for head in heads:
            logits = features[head.key] @ head.classifier.weights + head.classifier.bias
            right = ranks(logits, labels) < 1
            outcomes.append(head.outcome(seen, right, corruption=name, severity=severity))
        progress.update(len(labels))
    yield outcomes


def _represented(
    trial: Trial,
    heads: Sequence[Head],
    view: View,
    numbers: np.ndarray,
) -> tuple[Mapping[Any, np.ndarray], np.ndarray, np.ndarray]:
    """The features by their keys, the labels, and the numbers of the images that were read."""
    one, unreadable = heads[0].one, []
    bags = trial.images.bags(
        view,
        batch_size=own_part(one.batch_size),
        workers=0,  # processes would take longer to start, every time, than a corruption
        on_error=trial.on_error,
        numbers=numbers[dealt(len(numbers), one.batch_size)],
    )

    def batches() -> Iterator[Bags]:
        for batch in bags:
            unreadable.extend(batch.unreadable.tolist())
            yield batch

    features, labels = represent(
        {head.key.encoder: head.encoder for head in heads},
        batches(),
        one.layout,
        images=len(numbers),
        batch_size=one.batch_size,
        spaces=tuple(dict.fromkeys(head.key.space for head in heads)),
        flip=trial.flip,
    )
    unreadable = set().union(*processes.gathered('unreadable', unreadable))
    return features, labels, numbers[~np.isin(numbers, list(unreadable))]
