"""The processes of one program: where each stands among them, and what they decide together.

JAX's coordination service, which process 0 runs, carries what they tell each other: a millisecond
an exchange, and none of the devices waits for it. All processes must take part in every exchange,
in the same order.
"""

import dataclasses
import glob
import importlib.util
import json
import re
import sys
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from bagssl_jax.errors import InputError

Value = TypeVar('Value')

FLAGS = ('coordinator', 'processes', 'process')
SLURM = ('JOB_ID', 'STEP_NODELIST', 'NTASKS', 'PROCID', 'LOCALID')  # all of them inside srun alone
LONG = 7 * 24 * 3600 * 1000  # ms; processes that die are noticed otherwise: by group.Group


@dataclasses.dataclass(frozen=True)
class Place:
    """Which of several processes this is.

    Attributes:
      coordinator: HOST:PORT, where process 0 listens; None where the cluster tells JAX all three.
      processes: how many there are.
      process: the number of this one, from 0.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


def find_place(flags: Mapping[str, str], environ: Mapping[str, str]) -> Place | None:
    """Where this process stands among several; None where it is alone, and needs no network.

    Flags win over BAGSSL_COORDINATOR, BAGSSL_PROCESSES and BAGSSL_PROCESS; `processes` may be
    'auto', what the cluster says. Without any of them, the cluster is asked inside srun, on GKE's
    slices of several TPU hosts, and on Cloud TPU VMs.

    Args:
      flags: by name, those of `FLAGS` that were given.
      environ: the environment.

    Raises:
      InputError: some are missing, or cannot be.
    """
    given = {name: flags.get(name) or environ.get(f'BAGSSL_{name.upper()}', '') for name in FLAGS}
    if given['processes'] == 'auto':
        return Place()
    if any(given.values()):
        return _explicit(given)
    if all(f'SLURM_{name}' in environ for name in SLURM):
        return Place() if environ['SLURM_NTASKS'] != '1' else None
    hosts = environ.get('TPU_WORKER_HOSTNAMES') or _hosts_of_tpu_vm(environ)
    return Place() if ',' in hosts else None


def _explicit(given: Mapping[str, str]) -> Place | None:
    if missing := [f'--{name}' for name in FLAGS if not given[name]]:
        raise InputError(
            f'{" and ".join(missing)} missing: --coordinator=HOST:PORT, --processes=N and '
            '--process=I go together'
        )
    numbers = []
    for name, least in (('processes', 1), ('process', 0)):
        if not re.fullmatch(r'\d{1,6}', given[name]) or int(given[name]) < least:
            raise InputError(f'--{name}={given[name]} must be a number, at least {least}')
        numbers.append(int(given[name]))
    processes, process = numbers
    if process >= processes:
        raise InputError(f'--process={process} must be below --processes={processes}')
    if not re.fullmatch(r'\S+:\d{1,5}', given['coordinator']):
        raise InputError(f'--coordinator={given["coordinator"]} must be HOST:PORT')
    return Place(given['coordinator'], processes, process) if processes > 1 else None


def _hosts_of_tpu_vm(environ: Mapping[str, str]) -> str:
    """What the metadata server says of a slice's hosts, with commas; '' where no TPU VM is."""
    chips = glob.glob('/dev/accel[0-9]*') or glob.glob('/dev/vfio/[0-9]*')
    if not chips or 'TPU_SKIP_MDS_QUERY' in environ or not importlib.util.find_spec('libtpu'):
        return ''
    request = urllib.request.Request(
        f'http://{environ.get("GCE_METADATA_IP", "metadata.google.internal")}'
        '/computeMetadata/v1/instance/attributes/worker-network-endpoints',
        headers={'Metadata-Flavor': 'Google'},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except OSError:  # no slice, or no Cloud at all
        return ''


def client() -> Any:
    """What speaks with the coordination service; None where the process is alone."""
    return _state().client if 'jax' in sys.modules else None


def number() -> int:
    """Of this process, from 0; known before JAX looks for devices."""
    return _state().process_id if 'jax' in sys.modules else 0


def count() -> int:
    """How many processes there are; known before JAX looks for devices."""
    return _state().num_processes if client() else 1


def is_first() -> bool:
    """Whether this process is the one that writes files, prints and shows progress."""
    return number() == 0


def _state() -> Any:
    """JAX's, in a program that has imported JAX: one that has not is alone."""
    # JAX has no public name for it; Orbax and others take it from here too.
    from jax._src import distributed

    return distributed.global_state


def barrier(topic: str) -> None:
    """Returns when all processes have come here."""
    if count() > 1:
        client().wait_at_barrier(f'bagssl/{topic}', LONG)


def gathered(topic: str, value: Value) -> list[Value]:
    """What every process has said, in the order of their numbers.

    Args:
      topic: may come again once another has been between.
      value: as JSON has it; short.
    """
    if count() == 1:
        return [value]
    service, directory = client(), f'bagssl/{topic}/'
    service.key_value_set(f'{directory}{number()}', json.dumps(value), allow_overwrite=True)
    barrier(topic)
    said = {int(key.rpartition('/')[2]): text for key, text in service.key_value_dir_get(directory)}
    return [json.loads(said[process]) for process in range(count())]


def from_first(topic: str, decide: Callable[[], Value]) -> Value:
    """What process 0 decides, in all of them; `topic` and the value as for `gathered`."""
    return gathered(topic, decide() if is_first() else None)[0]
