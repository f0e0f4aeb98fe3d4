"""A tracker that a training never waits for, and that never ends it."""

import queue
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol

from bagssl_jax.configurations import without_unchosen
from bagssl_jax.errors import Interrupted
from bagssl_jax.progress import waiting
from bagssl_jax.records import note
from bagssl_jax.reporting import NAME as REPORT
from bagssl_jax.runs import Run
from bagssl_jax.tracking.summary import summary_of

FILE = 'tracker.json'  # name of the tracker -> what it calls the run
# Seconds that it has for what is left in the end; after a signal, hardly any.
PATIENCE, SHORT_PATIENCE = 30.0, 3.0

Row = Mapping[str, float | None]


class Service(Protocol):
    """What a library does with a run; every call may take long, and raise whatever it likes."""

    def open(self, run: Run, known: str | None, config: Mapping[str, Any]) -> tuple[str, str]:
        """Begins a run, or goes on with the one that is `known`: its name there, and where it is.

        Args:
          run: what is followed.
          known: what the service calls it; None at the first time.
          config: nested.
        """

    def log(self, step: int, row: Row) -> None:
        """Takes the metrics of a step; None of what is not finite."""

    def conclude(self, step: int, numbers: Mapping[str, float], report: bytes | None) -> None:
        """Takes what the run has come to.

        Args:
          step: that the numbers are of.
          numbers: of probes, by name; {} without any.
          report: a page of HTML; None where there is none.
        """

    def close(self, status: str) -> None:
        """Ends it: 'finished', 'stopped' by a signal, or 'failed'."""

    def abandon(self) -> None:
        """Lets go of a call that takes too long, so that the program can end. At any time."""


class Tracker:
    """Hands all of a run's metrics, in their order, to a service, from a thread of its own.

    What the service says of an error is printed, once; after that it is left alone. A context: when
    it is left, the service has some time to take what it has not taken yet.
    """

    def __init__(
        self,
        run: Run,
        name: str = '',
        service: Service | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        """
        Args:
          run: what is followed.
          name: of the service.
          service: None for a tracker that does nothing.
          config: nested; of a service.
        """
        self._run, self._name, self._service, self._config = run, name, service, config
        self._calls = queue.SimpleQueue()
        self._thread = None
        self._is_left = False  # with calls that it has not made

    def begin(self) -> None:
        """Begins to follow the run, or goes on with it; once the directory is the run's."""
        if self._service is not None and self._thread is None:
            self._calls.put(self._open)
            self._thread = threading.Thread(target=self._work, name='tracker', daemon=True)
            self._thread.start()

    def log(self, step: int, row: Row) -> None:
        """Hands over the metrics of a step, as a row of metrics.jsonl has them."""
        if self._service is not None:
            self.begin()
            self._calls.put(lambda: self._service.log(step, row))

    def conclude(self) -> None:
        """Hands over what results.json and report.html say now."""
        if self._service is not None:
            self.begin()
            self._calls.put(self._conclude)

    def __enter__(self) -> 'Tracker':
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread is None:
            return
        is_stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        status = 'stopped' if is_stopped else 'failed' if error else 'finished'
        self._calls.put(lambda: self._service.close(status))
        self._calls.put(None)
        patience = SHORT_PATIENCE if is_stopped else PATIENCE
        with waiting(f'handing over to {self._name} what is left'):
            self._thread.join(patience)
        if self._thread.is_alive():
            self._is_left = True
            self._service.abandon()
            note(f'{self._name} has not taken everything within {patience:.0f} s')

    def _work(self) -> None:
        """Makes the calls one after the other, up to the one that fails."""
        for call in iter(self._calls.get, None):
            try:
                call()
            except Exception as error:  # a library's, a server's, or of the disk
                if not self._is_left:
                    lines = str(error).strip().splitlines() or ['']
                    note(
                        f'{self._name} failed, and takes nothing more of this start: '
                        f'{type(error).__name__}: {lines[0][:200]}'
                    )
                return

    def _open(self) -> None:
        names = self._run.read_json(FILE) or {}
        config = without_unchosen(self._config)
        name, place = self._service.open(self._run, names.get(self._name), config)
        if names.get(self._name) != name:
            self._run.write_json(FILE, names | {self._name: name})
        note(f'{self._name}: run {name}, {place}')

    def _conclude(self) -> None:
        results = self._run.read_json('results.json') or {}
        report = self._run.read(REPORT)
        self._service.conclude(results.get('step', 0), summary_of(results), report)
