"""The port between a manager and whatever starts worker processes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol, cast, runtime_checkable

__all__ = ["Launcher", "run_worker"]


@runtime_checkable
class Launcher(Protocol):
    """Starts workers somewhere. It knows nothing of agents: whether they are up and well is told by the exchange.

    All methods may be called from any thread, one call at a time.
    """

    @property
    def label(self) -> str:
        """What it is called in errors."""
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

    def failure(self) -> str | None:
        """Why its workers are lost and no more can start, or None as long as all seems well. Returns at once."""
        ...

    def close(self, *, timeout: float) -> None:
        """Let go, and end the workers that are left, as far as that is possible, within about `timeout` seconds.

        Blocks. Calling it again does nothing.
        """
        ...


def run_worker(spec: str) -> str:
    """What a launcher has called on the node.

    The worker is imported there, by name: the launching process has no use for the runtime.
    """
    worker = importlib.import_module("academy_hpc.worker")
    return cast(str, worker.run(spec))
