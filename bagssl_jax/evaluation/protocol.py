"""The protocol carried out: images are embedded, and probed."""

import functools
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tqdm

from bagssl_jax import processes
from bagssl_jax.data.datasets import Images
from bagssl_jax.data.pipeline import Bags
from bagssl_jax.embedding.bags import represent
from bagssl_jax.embedding.encoder import FrozenEncoder, load_encoder
from bagssl_jax.errors import InputError
from bagssl_jax.evaluation import augmented, perturbed_results, results, robustness
from bagssl_jax.evaluation.heads import Head, Key, Trial, heads_of
from bagssl_jax.evaluation.paired import differences
from bagssl_jax.evaluation.passes import Pass
from bagssl_jax.evaluation.plan import Plan
from bagssl_jax.evaluation.scoring import Case, score_all
from bagssl_jax.parallel import dealt, own_part
from bagssl_jax.probes.sgd import Batches
from bagssl_jax.records import note
from bagssl_jax.runs import Run


def evaluate(plan: Plan, run: Run) -> None:
    """Probes the newest checkpoint of `run`, or the untrained encoder that it began as, or both.

    Prints the table, and writes results.json and figures/accuracy_by_patches.png; where robustness
    is asked for, also figures/robustness_*.png.

    Raises:
      InputError: there is no checkpoint, the data set has other classes than the run was trained
        on, an image cannot be read, or nothing can be written.
    """
    run.check_writable()  # now, and not after hours of work
    results.read(run)
    trained = load_encoder(run, chunk=1)
    config = run.read_config()
    encoders = {
        name: trained if name == 'trained' else trained.untrained(config['seed'])
        for name in plan.encoders
    }
    _check_classes(plan, run, config['data']['name'])
    _warn_of_overlap(plan.train, plan.test)

    rows, heads, left_out = [], [], set()
    total = len(plan.passes) * own_part(len(plan.train) + len(plan.test))
    with tqdm.tqdm(
        total=total,
        desc='probe',
        unit=' images',
        file=sys.stderr,
        disable=not processes.is_first(),
    ) as progress:
        for one in plan.passes:
            progress.set_postfix_str(f'embedding {_words(one.view, one.layout.count)}')
            chunked = {
                name: encoder.with_chunk(own_part(one.chunk)) for name, encoder in encoders.items()
            }
            (train_features, train_labels), (test_features, test_labels) = (
                represent(
                    chunked,
                    _batches(plan, images, one, left_out, progress),
                    one.layout,
                    images=len(images),
                    batch_size=one.batch_size,
                    spaces=plan.spaces,
                    flip=plan.flip,
                    directory=run.scratch,
                )
                for images in (plan.train, plan.test)
            )
            if not rows:
                _warn_of_classes(train_labels, test_labels, plan.train.class_names)
            for key, features in train_features.items():
                name, space, representation = key
                case = Case(
                    features,
                    train_labels,
                    test_features[key],
                    test_labels,
                    num_classes=len(plan.train.class_names),
                    about={
                        'encoder': name,
                        'view': one.view,
                        'patches': representation.patches,
                        **one.about,
                        'space': space,
                        'aggregation': representation.aggregation,
                        'flip': plan.flip,
                    },
                    seed=plan.seed,
                    fresh_crops=_fresh_crops(plan, one, chunked[name], space, len(train_labels)),
                )
                subject = f'{space} of {_words(one.view, representation.patches)}, {name}'
                tell = _teller(progress, subject)
                scored = score_all(case, plan.probes, plan.labels, tell)
                rows += [outcome.row for outcome in scored]
                heads += heads_of(scored, Key(*key), chunked[name], one)
            found = {'dataset': plan.dataset.name, 'step': trained.step, 'rows': rows}
            results.write(run, found)  # after every pass: the next one may take hours
    print(results.table(found))
    _try_perturbed(plan, heads, found, run)
    if left_out := set().union(*processes.gathered('left out', sorted(left_out))):
        print(f'{len(left_out):,} unreadable images were left out', file=sys.stderr)


def _try_perturbed(plan: Plan, heads: Sequence[Head], found: results.Results, run: Run) -> None:
    """Tries the heads on perturbed test images, where that is asked for; prints and writes it."""
    if not plan.robustness:
        return
    trial = Trial(plan.test, plan.flip, plan.seed, plan.on_error)
    outcomes = []
    for more in robustness.measure(plan.robustness, trial, heads):
        outcomes += more
        rows, compared = [outcome.row for outcome in outcomes], differences(outcomes)
        results.write(run, {**found, 'robustness': rows, 'differences': compared})
    print(perturbed_results.table(rows))
    if compared:
        print(perturbed_results.table_of_differences(compared))


def _fresh_crops(
    plan: Plan, one: Pass, encoder: FrozenEncoder, space: str, readable: int
) -> Batches | None:
    """What the augmented linear protocol, which is tested on center crops, learns from."""
    if one.view != 'center' or 'sgd_augmented' not in plan.probes:
        return None
    if readable < len(plan.train):
        raise InputError('probe.probes=sgd_augmented needs a training split without damaged files')
    return augmented.make_batches(
        plan.train,
        functools.partial(_embed_crops, encoder, space, plan.flip),
        side=min(one.layout.view.height, one.layout.view.width),
        batch_size=256,
        seed=plan.seed,
        workers=plan.workers,
    )


def _embed_crops(encoder: FrozenEncoder, space: str, flip: bool, crops: np.ndarray) -> np.ndarray:
    """uint8 [b h w 3] -> float32 [b d]."""
    vectors = encoder.embed_bags(crops[:, None], (space,), flip=flip)
    return np.asarray(vectors[space])[:, 0]


def _teller(progress: tqdm.tqdm, subject: str) -> Callable[[str], None]:
    return lambda probe: progress.set_postfix_str(f'{probe} of {subject}')


def _words(view: str, patches: int) -> str:
    if view == 'bag':
        return f'bags of {patches}'
    return {'whole': 'whole images', 'center': 'center crops'}[view]


def _check_classes(plan: Plan, run: Run, trained_name: str) -> None:
    """Raises InputError where a data set has other classes than when its name was trained on."""
    trained_on = run.read_data()
    if trained_on and trained_on['classes'] and trained_name == plan.dataset.name:
        old, new = set(trained_on['classes']), set(plan.train.class_names)
        if trained_on['classes'] != list(plan.train.class_names):
            example = next(iter(sorted(new ^ old)), 'the order')
            raise InputError(
                f'data.dir={plan.dataset.directory} has not the {len(old)} classes that the run in '
                f'{run} was trained on ({example!r} differs): probe it on those'
            )


def _warn_of_overlap(train: Images, test: Images) -> None:
    """Says in one line that images are in both splits, where some are."""
    if not processes.is_first():
        return
    names = set(map(test.name, range(len(test))))
    if seen := names.intersection(map(train.name, range(len(train)))):
        note(
            f'{len(seen):,} of {len(names):,} test images ({test.title}) are training images of '
            f'the probes too ({train.title}): accuracies on them say little of other images'
        )


def _warn_of_classes(
    train_labels: np.ndarray, test_labels: np.ndarray, class_names: Sequence[str]
) -> None:
    """Says in one line what makes accuracies mean little; nothing where nothing does."""
    train, test = set(train_labels.tolist()), set(test_labels.tolist())
    if unseen := sorted(test - train):
        count = int(np.isin(test_labels, unseen).sum())
        listed = ', '.join(class_names[label] for label in unseen[:3]) + ', ...' * (len(unseen) > 3)
        note(
            f'{count:,} of {len(test_labels):,} test images are of {len(unseen):,} classes of '
            f'which no training image is ({listed}): they count as wrong'
        )
    elif len(test) == 1:
        note(
            f'all {len(test_labels):,} test images are of one class ({class_names[test.pop()]}): '
            'their accuracy does not say how well classes are told apart'
        )


def _batches(
    plan: Plan, images: Images, one: Pass, left_out: set[str], progress: tqdm.tqdm
) -> Iterator[Bags]:
    """This process's bags of a split; `left_out` gathers the names of unreadable images."""
    numbers, size = dealt(len(images), one.batch_size), own_part(one.batch_size)
    bags = images.bags(
        one.layout.view,
        batch_size=size,
        workers=plan.workers,
        on_error=plan.on_error,
        numbers=numbers,
    )
    for start, batch in zip(itertools.count(0, size), bags, strict=False):
        if one.augment is not None:
            own = numbers[start : start + size]
            own = own[~np.isin(own, batch.unreadable)]
            split = int(images is plan.test)
            batch = batch._replace(patches=one.augment(batch.patches, own, split))
        left_out.update(map(images.name, batch.unreadable.tolist()))
        yield batch
        progress.update(len(batch.labels) + len(batch.unreadable))
