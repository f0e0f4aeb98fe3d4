"""The protocol: which encoders, views and spaces are probed, and by which probes."""

import math
import sys
from typing import Any

import jax
import tqdm
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bagssl_jax.checkpoints import restore_items
from bagssl_jax.data import crops, pipeline, sources
from bagssl_jax.errors import InputError
from bagssl_jax.evaluation import bags, report
from bagssl_jax.evaluation.knn import knn
from bagssl_jax.evaluation.linear import fit_linear
from bagssl_jax.models import init_variables, make_encoder, make_projector
from bagssl_jax.parallel import check_batch_size, make_mesh, replicated

SPACES = ('h', 'z')


def evaluate(config: ConfigDict, workdir: str) -> None:
    """Probes the newest checkpoint in `workdir`, and the untrained encoder that it began as.

    Prints the table, and writes results.json and figures/accuracy_by_patches.png.

    Raises:
      InputError: there is no checkpoint, or the configuration cannot be carried out.
    """
    check(config)
    mesh = make_mesh()
    step, encoder, projector, encoders = restore_encoders(config, workdir, mesh)
    train, test = (
        sources.load(
            config.data.name, split, data_dir=config.data.dir, in_memory=config.data.in_memory
        )
        for split in (config.data.train_split, config.data.test_split)
    )

    embed = bags.make_embed(encoder, projector, config.probe.spaces)
    rows = []
    views = [('bag', count) for count in config.probe.patches] + [('whole', 1)]
    progress = tqdm.tqdm(views, desc='probe', unit=' views', file=sys.stderr)
    for view, count in progress:
        progress.set_postfix_str(f'{view} of {count}' if view == 'bag' else view)
        transform, images, chunk = _view(config, view, count, train, mesh)
        (train_features, train_labels), (test_features, test_labels) = (
            bags.bag_means(
                embed,
                encoders,
                pipeline.bag_batches(source, transform, batch_size=images),
                spaces=config.probe.spaces,
                chunk=chunk,
                mesh=mesh,
            )
            for source in (train, test)
        )
        for name, space in train_features:
            shared = {'encoder': name, 'view': view, 'patches': count, 'space': space}
            data = (
                train_features[name, space],
                train_labels,
                test_features[name, space],
                test_labels,
            )
            rows += _probe(shared, data, len(train.class_names))
    results = {'dataset': config.data.name, 'step': step, 'rows': rows}
    report.write(workdir, results)
    print(report.table(results))


def check(config: ConfigDict) -> None:
    """Finds out whether `evaluate` can be carried out, before hours of training are spent on it.

    Raises:
      InputError: it cannot.
    """
    mesh = make_mesh()
    check_batch_size(config.probe.batch_size, mesh, 'probe.batch_size')
    pipeline.check_patches(config.patches, in_memory=config.data.in_memory)
    for key in ('patches', 'spaces'):
        if not config.probe[key]:
            raise InputError(f'probe.{key} is empty: give one or more')
    for count in config.probe.patches:
        if count > config.probe.batch_size:
            raise InputError(
                f'probe.batch_size={config.probe.batch_size} is less than a bag of '
                f'{count} patches: raise it'
            )
        crops.grid_boxes(2, 2, side=1, count=count)
    for space in config.probe.spaces:
        if space not in SPACES:
            raise InputError(f'unknown probe.spaces {space!r}: choose from {", ".join(SPACES)}')
    for split in (config.data.train_split, config.data.test_split):
        sources.load(config.data.name, split, data_dir=config.data.dir, in_memory=False)


def restore_encoders(
    config: ConfigDict, workdir: str, mesh: Mesh
) -> tuple[int, nn.Module, nn.Module, dict[str, bags.Variables]]:
    """The newest checkpoint's encoder and projector, and those that its training began with.

    Returns:
      The step, the two modules, and their variables 'trained' and 'untrained', on every device.

    Raises:
      InputError: there is no undamaged checkpoint in `workdir`.
    """
    encoder = make_encoder(**config.encoder)
    projector = make_projector(**config.projector, dtype=config.encoder.dtype)
    networks = {'encoder': encoder, 'projector': projector}
    untrained = jax.device_put(init_variables(networks, config.seed), replicated(mesh))
    step, trained = restore_items(workdir, untrained)
    return step, encoder, projector, {'trained': trained, 'untrained': untrained}


def _probe(shared: dict[str, Any], data: tuple, num_classes: int) -> list[dict[str, Any]]:
    """One row for each probe of one set of features."""
    linear = fit_linear(*data, num_classes=num_classes)
    neighbours = knn(*data, num_classes=num_classes)
    sizes = {'n_train': len(data[1]), 'n_test': len(data[3])}
    return [
        {**shared, 'probe': name, 'top1': result.top1, 'top5': result.top5, **sizes}
        for name, result in (('linear', linear), ('knn', neighbours))
    ]


def _view(config, view, count, source, mesh):
    """What cuts a view's patches, images a batch, and patches a forward pass."""
    height, width = source[0]['image'].shape[:2]
    side = crops.patch_side(height, width, size=config.patches.size, scale=config.patches.scale)
    chunk = config.probe.batch_size
    if view == 'whole':
        # As many pixels a forward pass as with patches.
        pixels = chunk * (config.patches.resize or side) ** 2
        chunk = math.ceil(pixels / (height * width) / mesh.size) * mesh.size
        return pipeline.Whole(height, width), chunk, chunk
    crops.grid_boxes(height, width, side=side, count=count)
    transform = pipeline.GridPatches(**{**config.patches, 'count': count})
    return transform, chunk // count, chunk
