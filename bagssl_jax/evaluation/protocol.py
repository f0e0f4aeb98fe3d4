"""The protocol: which encoders, views, spaces and bags are probed, and by which probes."""

import functools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from flax import linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bagssl_jax.checkpoints import restore_items
from bagssl_jax.data import crops, pipeline, sources
from bagssl_jax.errors import InputError
from bagssl_jax.evaluation import augmented, bags, probes, report
from bagssl_jax.models import init_variables, input_side, make_networks
from bagssl_jax.parallel import check_batch_size, make_mesh, replicated
from bagssl_jax.workdir import read_config, read_data

VIEWS = ('bag', 'center', 'whole')


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
    passes = _passes(config, train, mesh)

    embed = bags.make_embed(encoder, projector, config.probe.spaces, flip=config.probe.flip)
    rows, left_out = [], set()
    total = len(passes) * (len(train) + len(test))
    with tqdm.tqdm(total=total, desc='probe', unit=' images', file=sys.stderr) as progress:
        for one in passes:
            progress.set_postfix_str(one.name)
            (train_features, train_labels), (test_features, test_labels) = (
                bags.represent(
                    embed,
                    encoders,
                    _batches(config, source, one, left_out, progress),
                    images=len(source),
                    batch_size=one.images,
                    spaces=config.probe.spaces,
                    weights=one.weights,
                    chunk=one.chunk,
                    mesh=mesh,
                    directory=workdir,
                )
                for source in (train, test)
            )
            for key in train_features:
                data = train_features[key], train_labels, test_features[key], test_labels
                shared = _described(config, one, *key)
                rows += probes.score_all(data, shared, config.probe, len(train.class_names))
                if one.name == 'center' and 'sgd_augmented' in config.probe.probes:
                    name, space, _ = key
                    embed_one = functools.partial(
                        _embed_crops, embed, encoders[name], space, mesh, one.chunk
                    )
                    rows += _augmented(config, train, one, embed_one, data, shared)
            results = {'dataset': config.data.name, 'step': step, 'rows': rows}
            report.write(workdir, results)  # after every pass: the next one may take hours
    print(report.table(results))
    if left_out:
        print(f'{len(left_out):,} unreadable images were left out', file=sys.stderr)


def check(config: ConfigDict) -> None:
    """Finds out whether `evaluate` can be carried out, before hours of training are spent on it.

    Raises:
      InputError: it cannot.
    """
    _check_settings(config)
    train, _ = _labelled(config, in_memory=False)
    _passes(config, train, make_mesh())


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
    networks = make_networks(config)
    untrained = init_variables(networks, config.seed, side=input_side(config))
    untrained = jax.device_put(untrained, replicated(mesh))
    step, trained = restore_items(workdir, untrained)
    return step, networks.encoder, networks.projector, {'trained': trained, 'untrained': untrained}


class _Pass(NamedTuple):
    """One way over the images, in which every patch is embedded once."""

    name: str  # of VIEWS
    view: pipeline.View
    images: int  # a batch
    chunk: int  # patches a forward pass
    weights: dict[bags.Representation, np.ndarray]


def _passes(config: ConfigDict, source: sources.Source, mesh: Mesh) -> list[_Pass]:
    probe = config.probe
    patches = patch_geometry(config)
    crops.check_patches(patches, source.image_shape)
    height, width = source.image_shape or pipeline.first_image(source).shape[:2]
    side = crops.patch_side(height, width, size=patches['size'], scale=patches['scale'])
    passes = []
    for name in probe.views:
        if name == 'bag':
            if probe.positions == 'grid':
                places, weights = bags.share_places(probe.patches, probe.aggregations)
                view, count = pipeline.Patches(**patches, places=places), len(places)
            else:
                weights = bags.prefix_weights(probe.patches, probe.aggregations)
                count = max(probe.patches)
                view = pipeline.Patches(**patches, places=None, count=count, seed=config.seed)
            if not weights:
                raise InputError(
                    f'probe.aggregations={probe.aggregations} needs more patches than '
                    f'probe.patches={probe.patches}: one in every cell'
                )
            images = max(1, probe.batch_size // count)
            passes.append(_Pass(name, view, images, probe.batch_size, weights))
        else:
            shape = source.image_shape or (probe.whole_size, probe.whole_size)
            # As many pixels a forward pass as with patches.
            pixels = probe.batch_size * (patches['resize'] or side) ** 2
            chunk = math.ceil(pixels / math.prod(shape) / mesh.size) * mesh.size
            view = {'whole': pipeline.Whole, 'center': pipeline.Center}[name](*shape)
            weights = {bags.Representation(1, 'mean'): np.ones((1, 1), np.float32)}
            passes.append(_Pass(name, view, chunk, chunk, weights))
    return passes


def patch_geometry(config: ConfigDict) -> dict[str, Any]:
    """Size, scale and resize of the probed patches: those of the training, or the probe's own."""
    probe, patches = config.probe, config.patches
    own = probe.size or probe.scale
    return {
        'size': probe.size if own else patches.size,
        'scale': probe.scale if own else patches.scale,
        'resize': probe.resize or patches.resize,
    }


def _augmented(
    config: ConfigDict,
    source: sources.Source,
    one: _Pass,
    embed: Callable[[np.ndarray], np.ndarray],
    data: probes.Data,
    shared: dict[str, Any],
) -> list[dict[str, Any]]:
    """The row of the augmented linear protocol, tested on center crops."""
    if len(data[1]) < len(source):
        raise InputError('probe.probes=sgd_augmented needs a training split without damaged files')
    batches = augmented.make_batches(
        source,
        embed,
        side=min(one.view.height, one.view.width),
        batch_size=256,
        seed=config.probe.seed,
        workers=config.data.workers,
    )
    return probes.sgd_augmented(data, shared, batches, config.probe, len(source.class_names))


def _embed_crops(
    embed: bags.Embed,
    variables: bags.Variables,
    space: str,
    mesh: Mesh,
    chunk: int,
    crops_: np.ndarray,
) -> np.ndarray:
    """uint8 [b h w c] -> float32 [b d]."""
    rows = bags.padded(crops_[:, None], chunk)
    vectors = bags.embed_all(embed, variables, rows, mesh, chunk)
    return np.asarray(vectors[space])[: len(crops_)]


def _described(
    config: ConfigDict,
    one: _Pass,
    encoder: str,
    space: str,
    representation: bags.Representation,
) -> dict[str, Any]:
    """What a row of results.json says of the features that it scores."""
    is_bag = one.name == 'bag'
    geometry = patch_geometry(config)
    return {
        'encoder': encoder,
        'view': one.name,
        'patches': representation.patches,
        'positions': config.probe.positions if is_bag else None,
        'patch': geometry if is_bag else None,
        'space': space,
        'aggregation': representation.aggregation,
        'flip': config.probe.flip,
    }


def _check_settings(config: ConfigDict) -> None:
    probe = config.probe
    check_batch_size(probe.batch_size, make_mesh(), 'probe.batch_size')
    hidden = [f'hidden{i}' for i in range(1, len(config.projector.widths))]
    spaces = ('h', *hidden, 'z') if config.projector.widths else ('h',)
    for key, known in (
        ('views', VIEWS),
        ('spaces', spaces),
        ('aggregations', bags.AGGREGATIONS),
        ('probes', (*probes.PROBES, 'sgd_augmented', *probes.LABEL_FREE)),
    ):
        if not probe[key]:
            raise InputError(f'probe.{key} is empty: give one or more')
        for name in probe[key]:
            if name not in known:
                raise InputError(f'unknown probe.{key} {name!r}: choose from {", ".join(known)}')
    if not probe.labels:
        raise InputError('probe.labels is empty: give one or more, such as all')
    if not 0 <= probe.seed < 2**32 or probe.whole_size < 1 or config.data.workers < 0:
        raise InputError(
            f'probe.seed={probe.seed}, probe.whole_size={probe.whole_size} and data.workers='
            f'{config.data.workers} must be at least 0, 1 and 0'
        )
    if config.data.on_error not in ('stop', 'skip'):
        raise InputError(f'unknown data.on_error {config.data.on_error!r}: choose from stop, skip')
    if not probe.patches or min(probe.patches) < 1:
        raise InputError(f'probe.patches={probe.patches} must be one or more positive numbers')
    if probe.positions not in ('grid', 'random'):
        raise InputError(f'unknown probe.positions {probe.positions!r}: choose from grid, random')
    for labels in probe.labels:
        probes.check_labels(labels)
    if 'sgd_augmented' in probe.probes and 'center' not in probe.views:
        raise InputError('probe.probes=sgd_augmented needs probe.views=center, its test images')
    for name in ('sgd', 'sgd_augmented'):
        if probe[name].epochs < 1:
            raise InputError(f'probe.{name}.epochs={probe[name].epochs} must be at least 1')
    pairs = 'bag' in probe.views and max(probe.patches) > 1
    if 'alignment' in probe.probes and not (pairs and 'mean_unit' in probe.aggregations):
        raise InputError(
            'probe.probes=alignment needs probe.aggregations=mean_unit, and bags of 2 or more'
        )
    if probe.positions == 'random':
        bags.prefix_weights(probe.patches, probe.aggregations)


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


def _batches(
    config: ConfigDict,
    source: sources.Source,
    one: _Pass,
    left_out: set[str],
    progress: tqdm.tqdm,
) -> Iterator[pipeline.Bags]:
    """The bags of a source; `left_out` gathers the names of unreadable images."""
    data = config.data
    for batch in pipeline.bag_batches(
        source, one.view, batch_size=one.images, workers=data.workers, on_error=data.on_error
    ):
        left_out.update(map(source.name, batch.unreadable.tolist()))
        yield batch
        progress.update(len(batch.labels) + len(batch.unreadable))
