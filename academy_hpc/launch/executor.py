"""Workers in any `concurrent.futures.Executor`."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing.process import BaseProcess

from academy_hpc.errors import LaunchError
from academy_hpc.launch.launcher import run_worker

__all__ = ["ExecutorLauncher"]

logger = logging.getLogger(__name__)

# What a killed process needs to be gone.
KILL_S = 2.0


class ExecutorLauncher:
    """Starts workers in `executor`; the executor is shut down with the manager.

    Give a `ProcessPoolExecutor` the argument ``mp_context=multiprocessing.get_context("spawn")``: a forked worker keeps
    copies of the program's connections open. In a `ThreadPoolExecutor` agents run in threads of this process.

    Args:
        executor: Where to run.
        slots: How many workers it runs at one time; known by itself for the pools of the standard library.
        label: What it is called in errors; default: its class.
        shutdown: False: leave the executor open at the end, for something else.
    """

    def __init__(
        self, executor: Executor, *, slots: int | None = None, label: str | None = None, shutdown: bool = True
    ) -> None:
        self._executor = executor
        self._slots = slots
        self._label = label or type(executor).__name__
        self._shutdown = shutdown
        self._futures: list[Future[str]] = []

    @property
    def label(self) -> str:
        """See `Launcher`."""
        return self._label

    @property
    def restarts(self) -> bool:
        """See `Launcher`."""
        return False

    def slots(self) -> int | None:
        """See `Launcher`."""
        if self._slots is None and isinstance(self._executor, ProcessPoolExecutor | ThreadPoolExecutor):
            workers: int = self._executor._max_workers  # type: ignore[union-attr]  # it has no public name
            return workers
        return self._slots

    def start(self, specs: Sequence[str]) -> list[Future[str]]:
        """See `Launcher`."""
        try:
            futures = [self._executor.submit(_run_in_pool, spec) for spec in specs]
        except RuntimeError as error:  # it is broken, or was shut down
            raise LaunchError(f"{self._label} takes no more workers: {error}") from error
        self._futures = [*(future for future in self._futures if not future.done()), *futures]
        return futures

    def waiting(self) -> str | None:
        """See `Launcher`."""
        return None

    def failure(self) -> str | None:
        """See `Launcher`: where an executor breaks, it says so in its futures."""
        return None

    def close(self, *, timeout: float) -> None:
        """See `Launcher`."""
        if not self._shutdown:
            return
        until = time.monotonic() + timeout
        for future in self._futures:  # those that have not started
            with contextlib.suppress(NotImplementedError):  # Parsl's futures can't
                future.cancel()
        _, left = wait(self._futures, timeout)
        if left:
            logger.warning("%s: %d workers did not end within %s s", self._label, len(left), timeout)
        # Nothing public names the processes before Python 3.14, and nothing at all after the shutdown.
        processes = list((getattr(self._executor, "_processes", None) or {}).values())
        self._executor.shutdown(wait=False)  # it would wait for threads that agents have left in its processes
        _end(processes, until)


def _end(processes: list[BaseProcess], until: float) -> None:
    """Python would wait at its end, for ever, for a process that does not return."""
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
    for process in late:
        process.join(KILL_S)


def _run_in_pool(spec: str) -> str:
    """Run a worker; a pool's process whose program was killed meanwhile would else wait for more work for ever."""
    report = run_worker(spec)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        os._exit(0)
    return report
