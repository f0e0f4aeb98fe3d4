"""EMP-SSL's recipe at a quarter of the width, on a fifth of CIFAR-10, for CPUs.

    python -m bagssl_jax.study configs/studies/emp_ssl_small.py --workdir=runs/emp_ssl_small \
        --data_dir=DIRECTORY_OF_PREPARED_TFDS_DATA_SETS

`configs/emp_ssl.py` (arXiv 2304.03977) with a ResNet-18 of width 16, on the first 10,000 images:
100 images x 20 patches a step, a cosine over as many epochs as are trained, one and five. Probed
as the authors' evaluate.py does it: hidden1, means of 1 to 128 randomly augmented patches of
training and test images, by their SGD and by kNN; beside it, 1 to 16 patches on a grid, as they
are. Probes learn from 3,000 training images and are scored on 2,000 test images. One seed.
"""

from bagssl_jax.studies import Measure, Study, Variant

GRID = (1, 4, 16)
RANDOM = (1, 4, 16, 64, 128)
PROBES = ('sgd_empssl', 'linear', 'knn')
OF_BAGS = {
    'probe.train_split': 'train[:3000]',
    'data.test_split': 'test[:2000]',
    'probe.encoders': ('trained',),
    'probe.views': ('bag',),
    'probe.spaces': ('hidden1',),
    'probe.probes': PROBES,
}


def get_study() -> Study:
    augmented = {'probe.positions': 'random', 'probe.augment': True, 'probe.patches': RANDOM}
    return Study(
        variants=tuple(_variant(epochs, augmented) for epochs in (1, 5)),
        seeds=(0,),
        measures=tuple(
            Measure(f'{probe}, hidden1, {name}', str(size), _row(probe, size, positions))
            for name, positions, sizes in (
                ('random and augmented', 'random', RANDOM),
                ('on a grid', 'grid', GRID),
            )
            for probe in PROBES
            for size in sizes
        ),
    )


def _variant(epochs: int, augmented: dict[str, object]) -> Variant:
    return Variant(
        name=f'epochs_{epochs}',
        config='configs/emp_ssl.py',
        settings={
            **OF_BAGS,
            'probe.patches': GRID,
            'data.train_split': 'train[:10000]',
            'encoder.width': 16,
            'train.epochs': epochs,
            'optimizer.schedule_epochs': epochs,
            'train.checkpoint_every': 50,
            'analysis.after_training': (),
        },
        probes=({**OF_BAGS, **augmented},),
    )


def _row(probe: str, size: int, positions: str) -> dict[str, object]:
    where = {'encoder': 'trained', 'view': 'bag', 'space': 'hidden1', 'patches': size}
    return {**where, 'probe': probe, 'positions': positions}
