"""Fixed-scale patches against multi-scale crops, for seven objectives, on CPUs.

    python -m bagssl_jax.study configs/studies/cifar10_scales.py --workdir=runs/cifar10_scales \
        --data_dir=DIRECTORY_OF_PREPARED_TFDS_DATA_SETS

BagSSL (arXiv 2206.08954, section 4) says that training on patches of one scale, whose embeddings
are averaged, gives representations as good as training on crops of many scales does, or better.
Here, `configs/cifar10.py:OBJECTIVE,small` and `:OBJECTIVE,small,multiscale`, with the objectives'
weights and temperatures of bagssl_jax/defaults.py, for 300 steps on the first 10,000 images, in
three seeds. The learning rate is one of three, chosen for each by a run of 100 steps, which a
linear probe of bags of 16 scores on training images 10,001 to 12,000. Probes learn from 5,000
training images and are scored on 5,000 test images. 42 runs, and 42 by which rates are chosen; and
an untrained encoder in three seeds.
"""

import dataclasses

from bagssl_jax.studies import Comparison, Measure, Selection, Study, Variant

OBJECTIVES = ('tcr', 'vicreg', 'simclr', 'byol', 'barlow', 'spectral', 'sigreg')
CROPS = {'fixed': '', 'multiscale': ',multiscale'}
RATES = (2e-3, 6e-3, 18e-3)  # at 256 images a step
COLUMNS = (1, 4, 16, 64, 'whole')


def get_study() -> Study:
    return Study(
        variants=(
            *(_variant(name, crops) for name in OBJECTIVES for crops in CROPS),
            _untrained(),
        ),
        seeds=(0, 1, 2),
        measures=tuple(
            _measure(probe, space, column)
            for space in ('h', 'hidden1')
            for probe in ('linear', 'knn')
            for column in COLUMNS
        ),
        selection=Selection(
            settings={
                'train.steps': 100,
                'probe.train_split': 'train[:5000]',
                'data.test_split': 'train[10000:12000]',
                'probe.patches': (16,),
                'probe.views': ('bag',),
                'probe.spaces': ('h',),
                'probe.probes': ('linear',),
                'seed': 100,
            },
            measure=_measure('linear', 'h', 16),
        ),
        comparisons=tuple(_comparisons()),
    )


def _variant(objective: str, crops: str) -> Variant:
    return Variant(
        name=f'{objective}_{crops}',
        config=f'configs/cifar10.py:{objective},small{CROPS[crops]}',
        settings={
            'train.steps': 300,
            'optimizer.warmup_epochs': 0.25,  # 20 steps
            'probe.train_split': 'train[:5000]',
            'data.test_split': 'test[:5000]',
            'probe.encoders': ('trained',),
            'probe.patches': (1, 4, 16, 64),
            'probe.spaces': ('h', 'hidden1'),
            'analysis.after_training': (),
        },
        choices=('optimizer.learning_rate', RATES),
    )


def _untrained() -> Variant:
    like = _variant('tcr', 'fixed')
    settings = {
        **like.settings,
        'train.steps': 1,
        'optimizer.warmup_epochs': 0.0,
        'probe.encoders': ('untrained',),
    }
    return dataclasses.replace(
        like, name='untrained', settings=settings, choices=None, rows={'encoder': 'untrained'}
    )


def _measure(probe: str, space: str, column: int | str) -> Measure:
    where = {'encoder': 'trained', 'space': space, 'probe': probe}
    of_view = {'view': 'whole'} if column == 'whole' else {'view': 'bag', 'patches': column}
    return Measure(f'{probe}, {space}', str(column), {**where, **of_view})


def _comparisons():
    """Of fixed against multi-scale; then of bags, spaces and training, with the same crops."""
    for probe in ('linear', 'knn'):
        for left, right in ((16, 16), (64, 64), (16, 'whole'), (64, 'whole'), ('whole', 'whole')):
            pairs = tuple(
                (
                    (f'{name}_fixed', f'{probe}, h: {left}'),
                    (f'{name}_multiscale', f'{probe}, h: {right}'),
                )
                for name in OBJECTIVES
            )
            what = f'{probe}, h: fixed {left} less multi-scale {right}'
            yield Comparison(f'{what}, all objectives', pairs)
            if probe == 'linear' and (left, right) in ((16, 16), (16, 'whole')):
                for name, pair in zip(OBJECTIVES, pairs, strict=True):
                    yield Comparison(f'{what}, {name}', (pair,))
    for crops in CROPS:
        names = tuple(f'{name}_{crops}' for name in OBJECTIVES)
        for left, right in (
            ('h: 16', 'h: 1'),
            ('h: 64', 'h: whole'),
            ('hidden1: 16', 'h: 16'),
            ('hidden1: whole', 'h: whole'),
        ):
            pairs = tuple(((name, f'linear, {left}'), (name, f'linear, {right}')) for name in names)
            yield Comparison(f'linear, {crops}: {left} less {right}, all objectives', pairs)
        column = 'linear, h: 16'
        pairs = tuple(((name, column), ('untrained', column)) for name in names)
        yield Comparison(f'{column}: {crops} less untrained, all objectives', pairs)
