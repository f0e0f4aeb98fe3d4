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
from bagssl_jax.workdir import read_config, read_data

SPACES = ('h', 'z')


def evaluate(config: ConfigDict, workdir: str) -> None:
    """Probes the newest checkpoint in `workdir`, and the untrained encoder that it began as.

    Prints the table, and writes results.json and figures/accuracy_by_patches.png.

    Raises:
      InputError: there is no checkpoint, or the configuration cannot be carried out.
    """
    _check_settings(config)
    mesh = make_mesh()
    step, encoder, projector, encoders = restore_encoders(config, workdir, mesh)
    train, test = _labelled(config, in_memory=config.data.in_memory)
    _check_classes(config, workdir, train)
    crops.check_patches(config.patches, train.image_shape)

    embed = bags.make_embed(encoder, projector, config.probe.spaces)
    rows, left_out = [], set()
    views = [('bag', count) for count in config.probe.patches] + [('whole', 1)]
    progress = tqdm.tqdm(views, desc='probe', unit=' views', file=sys.stderr)
    for view, count in progress:
        progress.set_postfix_str(f'{view} of {count}' if view == 'bag' else view)
        transform, images, chunk = _view(config, view, count, train, mesh)
        (train_features, train_labels), (test_features, test_labels) = (
            bags.bag_means(
                embed,
                encoders,
                _bags(config, source, transform, images, left_out),
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
    if left_out:
        print(f'{len(left_out):,} unreadable images were left out', file=sys.stderr)


def check(config: ConfigDict) -> None:
    """Finds out whether `evaluate` can be carried out, before hours of training are spent on it.

    Raises:
      InputError: it cannot.
    """
    _check_settings(config)
    _labelled(config, in_memory=False)


def _check_settings(config: ConfigDict) -> None:
    mesh = make_mesh()
    check_batch_size(config.probe.batch_size, mesh, 'probe.batch_size')
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
        if space != 'h' and not config.projector.widths:
            raise InputError(f'this encoder has no projector, and so no {space}: probe h')


def _labelled(config: ConfigDict, *, in_memory: bool) -> list[sources.Source]:
    """The splits that the probes learn from and are scored on."""
    loaded = []
    for split in (config.probe.train_split or config.data.train_split, config.data.test_split):
        source = sources.load(
            config.data.name, split, data_dir=config.data.dir, in_memory=in_memory
        )
        if not source.class_names:
            raise InputError(
                f'{config.data.name} {split} has no labels for a probe to learn: give '
                'probe.train_split and data.test_split, or train with probe.after_training=False'
            )
        loaded.append(source)
    return loaded


def _check_classes(config: ConfigDict, workdir: str, source: sources.Source) -> None:
    """Raises InputError where a data set has other classes than when its name was trained on."""
    trained_on = read_data(workdir)
    same_name = read_config(workdir)['data']['name'] == config.data.name
    if trained_on and trained_on['classes'] and same_name:
        old, new = set(trained_on['classes']), set(source.class_names)
        if trained_on['classes'] != list(source.class_names):
            example = next(iter(sorted(new ^ old)), 'the order')
            raise InputError(
                f'data.dir={config.data.dir} has not the {len(old)} classes that the run in '
                f'{workdir} was trained on ({example!r} differs): probe it on those'
            )


def _bags(config, source, view, images, left_out):
    """The bags of a source; `left_out` gathers the names of unreadable images."""
    data = config.data
    for batch in pipeline.bag_batches(
        source, view, batch_size=images, workers=data.workers, on_error=data.on_error
    ):
        left_out.update(map(source.name, batch.unreadable.tolist()))
        yield batch


def restore_encoders(
    config: ConfigDict, workdir: str, mesh: Mesh
) -> tuple[int, nn.Module, nn.Module | None, dict[str, bags.Variables]]:
    """The newest checkpoint's encoder and projector, and those that its training began with.

    Returns:
      The step, the two modules, and their variables 'trained' and 'untrained', on every device. An
      imported encoder has no projector: None, and no variables for it.

    Raises:
      InputError: there is no undamaged checkpoint in `workdir`.
    """
    encoder = make_encoder(**config.encoder)
    projector = None
    if config.projector.widths:
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
    height, width = source.image_shape or pipeline.first_image(source).shape[:2]
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
