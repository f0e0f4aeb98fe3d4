"""What the compiler says of a configuration's steps, also for devices that are not there."""

import os
from collections.abc import Mapping
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bagssl_jax.benchmarks.collectives import collective_bytes, sent_bytes
from bagssl_jax.benchmarks.peaks import Peaks, device_peaks
from bagssl_jax.benchmarks.programs import compile_program
from bagssl_jax.benchmarks.stages import STAGES, Split, Work
from bagssl_jax.benchmarks.timing import print_row
from bagssl_jax.benchmarks.traffic import hbm_bytes
from bagssl_jax.data.datasets import open_dataset
from bagssl_jax.data.geometry import PatchGeometry
from bagssl_jax.errors import InputError, check_known, memory_shortage
from bagssl_jax.memory import program_bytes, tree_bytes
from bagssl_jax.parallel import make_mesh
from bagssl_jax.training.setup import Program, check_settings, make_program

IMAGES = {('imagenet2012', 'train'): 1_281_167}  # of data sets that need not be here
CLASSES = {'imagenet2012': 1000}
UTILISATION = 0.4  # of the peak operations: a usual share for large convolutional networks


def run(config: ConfigDict) -> None:
    """Compiles `benchmark.compile.stages` for `benchmark.compile.topology`: a JSON object each.

    Stages: 'train_step', one update; 'spread_step', the look at collapse that goes with a logged
    step; 'forward', the frozen encoder on `probe.batch_size` patches like the training's;
    'knn_search', the nearest training images of 2,048 queries; 'sgd_update', a batch of the linear
    probe by SGD, of every setting, on one device as the probe has it. They are the functions that
    training and probes run. Neither parameters nor images are made; the data set is needed only
    where the side of the patches or of the features depends on it, and else tells the numbers of
    images and classes, if it is there.

    Of each: 'device' and 'devices'; 'seconds' of compiling, or of finding the program in JAX's
    compilation cache where there is one; 'argument_gib', 'temporary_gib' and 'peak_gib' of a
    device's memory; 'operations' and 'bytes_accessed', of a device and step by XLA's count, which
    has also the bytes that stay on the chip; of TPUs 'hbm_bytes', which has not, as `hbm_bytes`
    reads them from the program; 'collectives', kind -> bytes a step. Of 'train_step'
    also 'gradient_bytes', and 'collective_ratio', all collectives' bytes over these.

    Where the peaks of the device are known, 'seconds_by' operations, bytes and links, each at its
    peak; 'least_seconds', the most of these, and which it is, 'bound_by'; 'most_images_per_s' or,
    of 'forward', 'most_patches_per_s' that this allows, over all devices. Of 'train_step', where
    also the number of images is known, 'chip_hours', of the whole training, at 40% of the peak
    operations where bytes and links allow that. These are worked out, not measured.

    XLA counts the body of a loop once. So of a step in parts (`train.accumulate` above 1) and of
    'knn_search' there is neither a count, of operations, bytes or collectives, nor what follows
    from counts.

    Raises:
      InputError: the configuration cannot be carried out or does not fit into memory, or the
        topology is unknown or needs a compiler that is not installed.
    """
    settings = config.benchmark.compile
    for name in settings.stages:
        check_known('benchmark.compile.stages', name, STAGES)
    mesh = make_mesh(_devices(settings.topology))
    check_settings(config, mesh)
    program, split = _program(config, mesh)
    peaks = device_peaks(mesh.devices.flat)
    for name in settings.stages:
        work = STAGES[name](config, mesh, program, split)
        row = _compiled(work.lowered, f'{name} of {work.count} {work.unit}', mesh, peaks)
        if not work.counted:
            for count in ('operations', 'bytes_accessed', 'hbm_bytes', 'collectives'):
                row.pop(count, None)
        if work.counted and name == 'train_step':
            row |= _of_gradient(row['collectives'], program.state_shapes(mesh).params)
        if work.counted and peaks:
            row |= _bounds(row, work, mesh, peaks)
        if work.counted and peaks and name == 'train_step' and (split.images or config.train.steps):
            usual = row['operations'] / (UTILISATION * peaks.operations)
            seconds = program.total_steps * max(usual, row['least_seconds'])
            row['chip_hours'] = seconds * mesh.size / 3600
        print_row('compile', name, row)


def _devices(topology: str) -> list[jax.Device]:
    """The devices of a TPU slice, such as 'v5e:2x4', or with 'here' those at hand."""
    if topology == 'here':
        return jax.devices()
    # Outside Google's cloud, libtpu would wait for a server that tells what machine this is.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    try:
        return topologies.get_topology_desc(topology_name=topology, platform='tpu').devices
    except jax.errors.JaxRuntimeError as error:
        if 'lockfile' in str(error):
            raise InputError(
                f"--topology={topology}: another process has the TPU's compiler, which serves one "
                'at a time: wait for it; if there is none, delete /tmp/libtpu_lockfile'
            ) from None
        raise InputError(
            f'--topology={topology}: {str(error).splitlines()[0]}; give here, or one such as '
            'v4:2x2x2, v5e:2x4, v5p:2x2x2 or v6e:2x4'
        ) from None
    except RuntimeError:  # JAX's, where there is no libtpu
        raise InputError(
            f"--topology={topology} needs the TPU's compiler: pip install '.[tpu]'"
        ) from None


def _program(config: ConfigDict, mesh: Mesh) -> tuple[Program, Split]:
    name, split = config.data.name, config.data.train_split
    geometry, shape = PatchGeometry.of(config.patches), None
    needs_shape = config.data.crop_on != 'host' or not (geometry.resize or geometry.size)
    try:
        opened = open_dataset(config.data).images(split)
    except InputError:
        if needs_shape:
            raise
        known = Split(IMAGES.get((name, split)), CLASSES.get(name))
    else:
        known = Split(len(opened), len(opened.class_names))
        if needs_shape:
            shape = opened.image_shape
            geometry.check(shape)
    # Without the number, nothing but the schedule is another one.
    program = make_program(
        config, mesh, images=known.images or 1000 * config.data.batch_size, image_shape=shape
    )
    return program, known


def _compiled(
    lowered: jax.stages.Lowered, what: str, mesh: Mesh, peaks: Peaks | None
) -> dict[str, Any]:
    """What the compiler says of a function; InputError where it does not fit into memory."""
    device = mesh.devices.flat[0]
    what = f'{what} on {mesh.size} of {device.device_kind}'
    compiled, seconds = compile_program(lowered, what)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    peak = program_bytes(compiled, device.platform)
    if peaks and peak > peaks.memory:
        raise InputError(f'{what}: {memory_shortage(peak, peaks.memory)}')
    text = compiled.as_text()
    row = {
        'device': device.device_kind,
        'devices': mesh.size,
        'seconds': seconds,
        'argument_gib': memory.argument_size_in_bytes / 2**30,
        'temporary_gib': memory.temp_size_in_bytes / 2**30,
        'peak_gib': peak / 2**30,
        'operations': cost['flops'],
        'bytes_accessed': cost['bytes accessed'],
        'collectives': collective_bytes(text),
    }
    return row | {'hbm_bytes': hbm_bytes(text)} if device.platform == 'tpu' else row


def _of_gradient(collectives: Mapping[str, int], params: Any) -> dict[str, Any]:
    size = tree_bytes(params)
    return {'gradient_bytes': size, 'collective_ratio': sum(collectives.values()) / size}


def _bounds(row: Mapping[str, Any], work: Work, mesh: Mesh, peaks: Peaks) -> dict[str, Any]:
    """What no device with these peaks can be faster than."""
    seconds = {
        'operations': row['operations'] / peaks.operations,
        'bytes': row.get('hbm_bytes', row['bytes_accessed']) / peaks.bandwidth,
    }
    if peaks.links:
        seconds['links'] = sent_bytes(row['collectives'], mesh.size) / peaks.links
    bound = max(seconds, key=seconds.get)
    return {
        'seconds_by': seconds,
        'bound_by': bound,
        'least_seconds': seconds[bound],
        f'most_{work.unit}_per_s': work.count / seconds[bound],
    }
