"""A look at what was learned while training goes on: kNN on a part of the training split."""

from collections.abc import Callable

from ml_collections import ConfigDict

from bagssl_jax.data import pipeline, sources
from bagssl_jax.errors import InputError
from bagssl_jax.evaluation import bags
from bagssl_jax.evaluation.knn import knn
from bagssl_jax.evaluation.labels import held_out
from bagssl_jax.models import make_networks
from bagssl_jax.parallel import check_batch_size, make_mesh

IMAGES = 5000
PATCHES = 4


def make_monitor(config: ConfigDict) -> Callable[[bags.Variables], dict[str, float]]:
    """What training calls now and then, with its encoder's variables.

    It gives {'knn_top1': ...}, or nothing where no class has two images.

    Of at most 5,000 images of the split that the probes learn from, the last fifth of each class
    is told by its 20 nearest neighbours (weighted, T = 0.07) among the others; an image is the
    mean of h over 4 patches. The test split is not touched, so that this may guide a choice.

    Raises:
      InputError: the split has no labels.
    """
    mesh = make_mesh()
    check_batch_size(config.probe.batch_size, mesh, 'probe.batch_size')
    split = config.probe.train_split or config.data.train_split
    source = sources.load(config.data.name, split, data_dir=config.data.dir, in_memory=False)
    if not source.class_names:
        raise InputError(
            f'train.monitor_every needs labels, and {config.data.name} {split} has none'
        )
    part = sources.Part(source, IMAGES, seed=config.seed)
    places, weights = bags.share_places((PATCHES,), ('mean',))
    geometry = {key: config.patches[key] for key in ('size', 'scale', 'resize')}
    view = pipeline.Patches(**geometry, places=places)
    embed = bags.make_embed(make_networks(config).encoder, None, ('h',))
    chunk = config.probe.batch_size
    batch_size = max(1, chunk // PATCHES)

    def monitor(encoder: bags.Variables) -> dict[str, float]:
        batches = pipeline.bag_batches(
            part, view, batch_size=batch_size, on_error=config.data.on_error
        )
        features, labels = bags.represent(
            embed,
            {'online': {'encoder': encoder}},
            batches,
            images=len(part),
            batch_size=batch_size,
            spaces=('h',),
            weights=weights,
            chunk=chunk,
            mesh=mesh,
        )
        [h] = features.values()
        queries = held_out(labels, 0.2)
        if not queries.any():  # one image of every class
            return {}
        found = knn(
            h[~queries],
            labels[~queries],
            h[queries],
            labels[queries],
            num_classes=len(source.class_names),
        )
        return {'knn_top1': found.top1}

    return monitor
