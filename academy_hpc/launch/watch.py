"""One thread that watches the jobs of all runs of a process, and is kind to the login node while it does.

One status command serves all jobs of a scheduler. It comes the more seldom the longer nothing has changed, and after it
has failed. Files of run directories are looked at more often: that costs no more than the file system.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from academy_hpc.errors import LaunchError
from academy_hpc.launch.command import run_command
from academy_hpc.launch.follow import RunFollower
from academy_hpc.launch.schedulers import JobStatus, Scheduler

__all__ = ["StatusDesk", "Watcher", "watcher"]

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 60.0
LOCAL_FIRST_PAUSE_S, LOCAL_LAST_PAUSE_S = 0.2, 1.0
# A job that has been as it is for so long is asked for every tenth of that.
AGE_SHARE = 0.1
URGENT_PAUSE_S = 3.0
MOST_FAILURES_DOUBLED = 5
JITTER = 0.2
FILES_PAUSE_S = 2.0


class Runner(Protocol):
    """What runs commands."""

    def __call__(self, words: Sequence[str]) -> str:
        """Raises LaunchError."""
        ...


class StatusDesk:
    """When which scheduler is asked, and what it said: its clock is an argument.

    Args:
        run: Runs a command. Raises LaunchError.
        draw: A random number between 0 and 1.
    """

    def __init__(self, run: Runner = run_command, draw: Callable[[], float] = random.random) -> None:
        self._run = run
        self._draw = draw
        self._due: dict[str, float] = {}
        self._asked: dict[str, float] = {}
        self._failures: dict[str, int] = {}

    def ask(
        self, scheduler: Scheduler, job_ids: Sequence[str], *, now_s: float, changed_s: float, urgent: bool = False
    ) -> dict[str, JobStatus]:
        """What is said of these jobs; nothing where it is too early to ask, or the command failed.

        Args:
            scheduler: Who is asked.
            job_ids: The jobs.
            now_s: The time.
            changed_s: When one of the jobs was last seen to change, or was submitted.
            urgent: One is known to have changed: do not wait for long.
        """
        due_s = self._due.get(scheduler.name, 0.0)
        if urgent and not self._failures.get(scheduler.name):
            due_s = min(due_s, self._asked.get(scheduler.name, 0.0) + URGENT_PAUSE_S)
        if now_s < due_s:
            return {}
        self._asked[scheduler.name] = now_s
        try:
            statuses = self._statuses(scheduler, job_ids)
            self._failures[scheduler.name] = 0
        except LaunchError as error:
            self._failures[scheduler.name] = self._failures.get(scheduler.name, 0) + 1
            logger.warning("%s could not be asked for jobs: %s", scheduler.title, error)
            statuses = {}
        self._due[scheduler.name] = now_s + self._pause_s(scheduler, now_s - changed_s)
        return statuses

    def hurry(self, scheduler: Scheduler) -> None:
        """A job was submitted: ask soon."""
        self._due.pop(scheduler.name, None)

    def _statuses(self, scheduler: Scheduler, job_ids: Sequence[str]) -> dict[str, JobStatus]:
        known = scheduler.parse_status(self._run(scheduler.status_command(job_ids)))
        missing = [job_id for job_id in job_ids if job_id not in known]
        command = scheduler.history_command(missing) if missing else None
        if command is not None:
            try:
                known |= scheduler.parse_history(self._run(command))
            except LaunchError as error:  # many sites keep no history
                logger.debug("no history of %s: %s", missing, error)
        return {job_id: known.get(job_id, JobStatus("unknown", "its scheduler does not know it")) for job_id in job_ids}

    def _pause_s(self, scheduler: Scheduler, age_s: float) -> float:
        local = scheduler.name == "local"
        first, last = (LOCAL_FIRST_PAUSE_S, LOCAL_LAST_PAUSE_S) if local else (FIRST_PAUSE_S, LAST_PAUSE_S)
        pause_s = min(max(age_s * AGE_SHARE, first), last)
        pause_s *= 2.0 ** min(self._failures.get(scheduler.name, 0), MOST_FAILURES_DOUBLED)
        return pause_s * (1 + JITTER * (2 * self._draw() - 1))


class Watcher:
    """The thread. It lives while there is something to watch."""

    def __init__(self, desk: StatusDesk | None = None) -> None:
        self._desk = desk or StatusDesk()
        self._followers: list[RunFollower] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, follower: RunFollower) -> None:
        """Watch a run until it is over."""
        with self._lock:
            self._followers.append(follower)
            self._desk.hurry(follower.job.scheduler)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="academy-hpc jobs", daemon=True)
                self._thread.start()
        self._wake.set()

    def remove(self, follower: RunFollower) -> None:
        """Watch it no more; when this returns, nobody looks at it."""
        with self._lock:
            self._followers = [one for one in self._followers if one is not follower]

    def _watch(self) -> None:
        while True:
            self.look(time.monotonic())
            with self._lock:
                self._followers = [follower for follower in self._followers if not follower.over]
                if not self._followers:
                    self._thread = None
                    return
                pause_s = min(_files_pause_s(follower) for follower in self._followers)
            self._wake.wait(pause_s)
            self._wake.clear()

    def look(self, now_s: float) -> None:
        """Look at all runs once."""
        with self._lock:
            watched = list(self._followers)
        for name in {follower.job.scheduler.name for follower in watched}:
            followers = [follower for follower in watched if follower.job.scheduler.name == name]
            statuses = self._ask(followers, now_s)
            for follower in followers:
                with self._lock:
                    if follower in self._followers:
                        _look(follower, now_s, statuses.get(follower.job_id or ""))

    def _ask(self, followers: list[RunFollower], now_s: float) -> dict[str, JobStatus]:
        jobs = [follower.job_id for follower in followers if follower.job_id is not None]
        if not jobs:
            return {}
        changed_s = max(now_s if follower.since_s is None else follower.since_s for follower in followers)
        urgent = any(follower.urgent for follower in followers)
        return self._desk.ask(followers[0].job.scheduler, jobs, now_s=now_s, changed_s=changed_s, urgent=urgent)


def _files_pause_s(follower: RunFollower) -> float:
    return LOCAL_FIRST_PAUSE_S if follower.job.scheduler.name == "local" else FILES_PAUSE_S


def _look(follower: RunFollower, now_s: float, status: JobStatus | None) -> None:
    try:
        follower.look(now_s, status)
    except Exception as error:  # one run that can't be read does not keep the others from being watched
        if str(error) != follower.trouble:
            logger.exception("%s can't be followed", follower.run)
        follower.trouble = str(error)


_watcher = Watcher()


def watcher() -> Watcher:
    """That of this process."""
    return _watcher
