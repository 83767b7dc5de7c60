"""When a worker has to end before its agents do: its job is near its walltime, or it is told by a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any, Self

import msgspec

from academy_hpc.errors import LaunchError
from academy_hpc.launch.spec import EndCause, LaunchSpec

__all__ = ["ATTEMPT_VARIABLE", "DEADLINE_VARIABLE", "END_SIGNALS", "Ending", "ToldToEndError", "with_environment"]

logger = logging.getLogger(__name__)

ATTEMPT_VARIABLE, DEADLINE_VARIABLE = "ACADEMY_HPC_ATTEMPT", "ACADEMY_HPC_DEADLINE"
"""What job scripts export: which life of the worker this is, and the Unix time at which the job ends."""

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
"""Sent some time before the end: by Slurm and Flux with ``--signal``, Grid Engine with ``-notify``, LSF."""
END_SIGNALS = (signal.SIGTERM, signal.SIGINT, *WARNINGS)

# After the first SIGTERM, PBS waits 10 s by default before it kills, Slurm 30 s and Flux 5 s.
TOLD_S = 5.0
# Told again, by whoever does not want to wait. One signal may come twice: schedulers send it to every process of a job,
# and the script around a worker passes it on.
HURRIED_S = 1.5
SAME_S = 2.0
# Slurm may send its warning up to a minute early.
EARLY_S = 60.0
# The part of the grace that is left to the job script.
RESERVED = 0.1
# The clock may be set while a worker runs for days.
LOOK_S = 60.0


class ToldToEndError(BaseException):
    """Raised out of the constructor of an agent when a signal comes."""


class Ending:
    """Why the worker has to end, and by when; enter it in the main thread to heed signals.

    Args:
        deadline_s: Unix time at which the job ends; None: not known.
        grace_s: How many seconds before that the agents are told.
        clock: What tells the Unix time.
        overdue: Called in a thread when the deadline is all but there and the block was not left: code of an agent may
            hold up the event loop, and the job has to do something after its workers have ended.
    """

    def __init__(
        self,
        *,
        deadline_s: float | None,
        grace_s: float,
        clock: Callable[[], float] = time.time,
        overdue: Callable[[], object] | None = None,
    ) -> None:
        self._clock = clock
        self._deadline_s = deadline_s
        # A job that is short in any case, or a worker that was started again near the end, still gets something done.
        left_s = grace_s if deadline_s is None else max(0.0, (deadline_s - clock()) / 2)
        self._grace_s = min(grace_s, left_s)
        self._overdue = overdue
        self._over = threading.Event()
        self._before: dict[signal.Signals, Any] = {}
        self._listener: Callable[[], object] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.cause: EndCause | None = None
        self.reason = ""
        self._until_s: float | None = None
        self._told_s: float | None = None  # when the last SIGTERM or SIGINT came
        self.constructing = False

    @property
    def asked(self) -> bool:
        """Whether the worker has to end."""
        return self.cause is not None

    @property
    def left_s(self) -> float:
        """Seconds that are left for it."""
        return 0.0 if self._until_s is None else max(0.0, self._until_s - self._clock())

    # Signals

    def __enter__(self) -> Self:
        """Heed signals, where Python lets a thread have them."""
        if threading.current_thread() is threading.main_thread():
            for number in END_SIGNALS:
                self._before[number] = signal.signal(number, self._signalled)
        if self._overdue is not None and self._grace_s > 0 and self._deadline_s is not None:
            last_s = self._deadline_s - RESERVED * self._grace_s
            threading.Thread(target=self._leave_late, args=(last_s, self._overdue), daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Leave signals to whoever heeded them before."""
        self._over.set()
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def listen(self, listener: Callable[[], object]) -> None:
        """Call `listener` in this event loop, now and whenever less time is left than was thought."""
        self._loop, self._listener = asyncio.get_running_loop(), listener
        if self.asked:
            listener()

    def ignore(self) -> None:
        """End `listen`: the event loop is going to be closed."""
        self._loop = self._listener = None

    def tell(self, name: str) -> None:
        """The worker was told to end, by the signal `name`."""
        now = self._clock()
        if name in (number.name for number in WARNINGS):
            left_s = self._grace_s if self._deadline_s is None else self._deadline_s - now
            within_s = min(self._grace_s, left_s)
        elif self._told_s is None:
            self._told_s, within_s = now, TOLD_S
        elif now - self._told_s > SAME_S:
            within_s = HURRIED_S
        else:
            return
        near = self._deadline_s is not None and now >= self._deadline_s - self._grace_s - EARLY_S
        self._end("walltime" if near else "preempted", f"its worker was told to end by {name}", within_s)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        self.tell(signal.Signals(number).name)
        if self.constructing:
            raise ToldToEndError

    # Time

    def _leave_late(self, last_s: float, overdue: Callable[[], object]) -> None:
        while (wait_s := last_s - self._clock()) > 0:
            if self._over.wait(min(wait_s, LOOK_S)):
                return
        logger.error("the worker ends before its agents have: code of one may block the event loop")
        overdue()

    async def watch_deadline(self) -> None:
        """Return when the worker has to end for its deadline; for ever, if there is none."""
        while self._deadline_s is not None:
            wait_s = self._deadline_s - self._grace_s - self._clock()
            if wait_s <= 0:
                self._end("walltime", "its job is near its walltime", self._deadline_s - self._clock())
                return
            await asyncio.sleep(min(wait_s, LOOK_S))
        await asyncio.get_running_loop().create_future()

    def _end(self, cause: EndCause, reason: str, within_s: float) -> None:
        until_s = self._clock() + within_s
        if self._until_s is None or until_s < self._until_s:
            self._until_s = until_s
        if self.cause is None:
            self.cause, self.reason = cause, reason
            logger.info("the agents here are going to end within %.0f s: %s", self.left_s, reason)
        if self._loop is not None and self._listener is not None:
            self._loop.call_soon_threadsafe(self._listener)


def with_environment(spec: LaunchSpec, environment: Mapping[str, str]) -> LaunchSpec:
    """The spec with what the job script knows better. Raises LaunchError: a variable holds something else."""
    changes: dict[str, Any] = {}
    for name, field, kind in ((ATTEMPT_VARIABLE, "attempt", int), (DEADLINE_VARIABLE, "deadline_s", float)):
        if text := environment.get(name):
            try:
                changes[field] = kind(text)
            except ValueError:
                raise LaunchError(f"{name}={text!r} is no number. The job script exports it.") from None
    return msgspec.structs.replace(spec, **changes)
