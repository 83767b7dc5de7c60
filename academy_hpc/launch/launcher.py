"""The port between a manager and whatever starts worker processes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol, cast, runtime_checkable

from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.launch.run import Run
from academy_hpc.launch.spec import EndCause

__all__ = ["Launcher", "RunKeeper", "WorkerEndedError", "run_worker"]


class WorkerEndedError(Exception):
    """What the future of a worker fails with where the launcher knows why it ended."""

    def __init__(self, reason: str, cause: EndCause) -> None:
        """`reason`: a sentence for people."""
        super().__init__(reason)
        self.cause = cause


@runtime_checkable
class Launcher(Protocol):
    """Starts workers somewhere. It knows nothing of agents: whether they are up and well is told by the exchange.

    All methods may be called from any thread, one call at a time.
    """

    @property
    def label(self) -> str:
        """What it is called in errors."""
        ...

    @property
    def restarts(self) -> bool:
        """Whether it brings workers back by itself, so that a future is done only when there is no further life.

        Where it is False, a manager that wants a worker back calls `start` again.
        """
        ...

    def slots(self) -> int | None:
        """How many workers it can run at one time, counting those that run; None: that can't be known.

        Returns at once, also before anything was started.
        """
        ...

    def start(self, specs: Sequence[str]) -> list[Future[str]]:
        """Have `academy_hpc.worker.run` called once for each of `specs`, each in a slot of its own. May block.

        A future is done when its worker has ended: its result is the report of the worker; an exception says that
        the worker was lost or could not start. It may also stay pending for ever when the launcher itself dies, and
        it may fail while the worker lives on: whoever needs to know asks the exchange.

        Raises:
            LaunchError: Nothing was started.
        """
        ...

    def waiting(self) -> str | None:
        """What workers that have not started wait for, such as ``"job 4711 is pending (Priority)"``; None: not known.

        Returns at once.
        """
        ...

    def failure(self) -> str | None:
        """Why its workers are lost and no more can start, or None as long as all seems well. Returns at once."""
        ...

    def close(self, *, timeout: float) -> None:
        """Let go, and end the workers that are left, as far as that is possible, within about `timeout` seconds.

        Blocks. Calling it again does nothing.
        """
        ...


@runtime_checkable
class RunKeeper(Launcher, Protocol):
    """A launcher whose workers outlive the program: all that is known of them is kept in run directories."""

    @property
    def runs(self) -> Sequence[Run]:
        """Those that were started, or attached to, here; each call of `start` makes one."""
        ...

    def keep_connection(self, connection: ConnectionInfo) -> None:
        """What each new run directory has before anything is submitted: a later program attaches with it."""
        ...

    def attach(self, run: Run) -> list[Future[str]]:
        """Watch a run that exists, and starts nothing: a future for each of its workers, as from `start`.

        Raises:
            LaunchError: The run is of no use, and why.
        """
        ...

    def release(self) -> None:
        """Let go of all runs, and leave their workers running. Blocks for a moment."""
        ...


def run_worker(spec: str) -> str:
    """What a launcher has called on the node.

    The worker is imported there, by name: the launching process has no use for the runtime.
    """
    worker = importlib.import_module("academy_hpc.worker")
    return cast(str, worker.run(spec))
