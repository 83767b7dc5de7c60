"""What a worker writes of itself into the directory of its run, where other programs and people find it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from academy_hpc.errors import LaunchError
from academy_hpc.launch.run import Run, WorkerStatus

__all__ = ["RUN_VARIABLE", "WorkerRecord", "run_here"]

logger = logging.getLogger(__name__)

RUN_VARIABLE = "ACADEMY_HPC_RUN"
"""What a job script exports: the directory of the run."""


def run_here(environment: Mapping[str, str]) -> Run | None:
    """The run that this worker belongs to, if it belongs to one."""
    path = environment.get(RUN_VARIABLE)
    return Run(Path(path)) if path else None


class WorkerRecord:
    """Writes in a thread of its own: the file system may be slow, and a worker has hundreds of agents.

    A file that can't be written is logged, and keeps no agent from running.

    Args:
        run: Where; None: nowhere.
        rank: Of this worker.
        status: What to write, when it is written.
    """

    def __init__(self, run: Run | None, rank: int, status: Callable[[], WorkerStatus]) -> None:
        self._run = run
        self._rank = rank
        self._status = status
        self._waiting = False
        self._thread: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        """From now on it is written."""
        if self._run is not None:
            self._thread = ThreadPoolExecutor(1, "worker record")
            self.changed()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """All is written when this returns."""
        if self._thread is not None:
            self.changed()
            self._thread.shutdown()

    def changed(self) -> None:
        """Write the status soon; once, however often it changes until then."""
        if self._thread is not None and not self._waiting:
            self._waiting = True
            self._thread.submit(self._write)

    def event(self, event: str, **fields: Any) -> None:
        """Add a line to the worker's events."""
        if self._thread is not None:
            self._thread.submit(self._append, event, fields)

    def asked_to_stop(self) -> bool:
        """Whether the user wants the run to end. May block."""
        return self._run is not None and self._run.asked_to_stop

    def _write(self) -> None:
        self._waiting = False  # before: what changes while it is written is written again
        assert self._run is not None
        self._logged(self._run.write_worker, self._status())

    def _append(self, event: str, fields: dict[str, Any]) -> None:
        assert self._run is not None
        self._logged(self._run.event, event, rank=self._rank, pid=os.getpid(), **fields)

    def _logged(self, function: Callable[..., None], *arguments: Any, **fields: Any) -> None:
        try:
            function(*arguments, **fields)
        except LaunchError as error:
            logger.warning("%s", error)
