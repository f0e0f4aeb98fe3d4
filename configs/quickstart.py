"""A first run: tiles of eight photographs, a tiny encoder, minutes on two CPU cores.

    python -m bagssl_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

It took 4:24 on two idle cores of an Intel Xeon, compiling included (2026-11-26, commit 1557c8a).
Top-1 of bags of 1 / 4 / 16 / 64 patches of 16x16 there: linear .884 / .955 / .929 / .917, kNN
.880 / .946 / .950 / .943; of the untrained encoder, linear .695 / .833 / .854 / .836, kNN .517 /
.656 / .729 / .746.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = 'photos'
    config.data.batch_size = 128
    config.patches.size = 16
    config.patches.count = 8
    config.patches.resize = 16  # what --config.crops=multiscale resizes to
    # The colours of a tile tell most about the photograph that it is from.
    config.augment.brightness = 0.2
    config.augment.contrast = 0.2
    config.augment.saturation = 0.0
    config.augment.hue = 0.0
    config.augment.grey = 0.0
    config.encoder.name = 'tiny'
    config.encoder.tiny.width = 16
    config.projector.widths = (256, 64)
    config.predictor.widths = (256, 64)
    config.objective.name = 'tcr'
    config.optimizer.name = 'adamw'
    config.optimizer.learning_rate = 6e-3
    config.optimizer.weight_decay = 1e-4
    config.train.epochs = 24.0
    config.analysis.convergence.patches = 64
    config.analysis.after_training = 'convergence,neighbours,locality,map'
    return config
