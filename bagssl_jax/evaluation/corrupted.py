"""Linear probes on corrupted test images: accuracy by corruption and severity."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from bagssl_jax.data.corruptions import Corrupted
from bagssl_jax.data.views import View
from bagssl_jax.embedding.bags import represent
from bagssl_jax.evaluation.heads import Head, Trial
from bagssl_jax.evaluation.scoring import Row
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
) -> Iterator[list[Row]]:
    """The rows of the heads of one pass, with 'corruption' and 'severity'; 'none' and 0 first.

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
    rows = []
    for name, severity, corrupted in conditions:
        features, labels = _represented(trial, heads, corrupted, numbers)
        for head in heads:
            logits = features[head.key] @ head.classifier.weights + head.classifier.bias
            right = int((ranks(logits, labels) < 1).sum())
            rows.append(head.row(right, len(labels), corruption=name, severity=severity))
        progress.update(len(labels))
    yield rows


def _represented(
    trial: Trial,
    heads: Sequence[Head],
    view: View,
    numbers: np.ndarray,
) -> tuple[Mapping[Any, np.ndarray], np.ndarray]:
    one = heads[0].one
    batches = trial.images.bags(
        view,
        batch_size=own_part(one.batch_size),
        workers=0,  # processes would take longer to start, every time, than a corruption
        on_error=trial.on_error,
        numbers=numbers[dealt(len(numbers), one.batch_size)],
    )
    return represent(
        {head.key.encoder: head.encoder for head in heads},
        batches,
        one.layout,
        images=len(numbers),
        batch_size=one.batch_size,
        spaces=tuple(dict.fromkeys(head.key.space for head in heads)),
        flip=trial.flip,
    )
