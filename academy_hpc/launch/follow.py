"""Following one run: from what its scheduler says and what its files say, what becomes of its workers."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from pathlib import Path

from academy_hpc.errors import LaunchError
from academy_hpc.launch.chain import AGAIN, go_on, last_words, unfinished_ranks
from academy_hpc.launch.command import run_command
from academy_hpc.launch.launcher import WorkerEndedError
from academy_hpc.launch.run import Run, RunState, RunStatus
from academy_hpc.launch.schedulers import CAUSES, ENDED, JobState, JobStatus
from academy_hpc.launch.spec import EndCause, WorkerReport
from academy_hpc.launch.submission import Job

__all__ = ["RunFollower"]

logger = logging.getLogger(__name__)

# A scheduler may requeue a job that it has just ended; files of a worker may be seen late on another host.
SETTLE_S = 10.0
# For so long a job may be unknown to its scheduler: just submitted, or while that restarts.
UNKNOWN_S = 120.0
CLOSE_PAUSE_S = 0.05
LOG_LINES = 3
LOG_BYTES = 4096
KILLED = 128
NOT_STARTED = (126, 127)

_NOT_ASKED_FOR = ("timeout", "node_failure", "preempted")
_RUN_STATES: dict[JobState, RunState] = {"pending": "queued", "requeued": "queued", "running": "running"}


class RunFollower:
    """The futures of one run, and what makes them done. One thread at a time."""

    def __init__(self, run: Run, job: Job) -> None:
        self.run = run
        self.job = job
        self.futures: list[Future[str]] = [Future() for _ in range(job.workers)]
        self.status = JobStatus("pending")
        self.since_s: float | None = None
        """When the job came into the state that it is in, by the clock of `look`."""
        self.over = False
        self.trouble = ""
        """What kept it from looking the last time."""
        self._records = run.jobs()

    @property
    def job_id(self) -> str | None:
        """The job that is to be asked for."""
        return self._records[-1].job_id if self._records and not self.over else None

    def look(self, now_s: float, status: JobStatus | None) -> None:
        """Look at the files, and at what the scheduler says, unless it was not asked (None)."""
        if self.over:
            return
        if not self.run.path.exists():  # what is written would make it again
            self._lose()
            return
        if status is not None and (status != self.status or self.since_s is None):
            self._changed(now_s, status)
        self._settle_ended()
        if self._left():
            if self._has_ended(now_s):
                self._job_ended()
        elif any(future.cancelled() for future in self.futures):
            self.cancel("nobody wants its workers any more")
        else:
            self._finish("ended" if all(_is_fine(future) for future in self.futures) else "failed", "", None)

    def waiting(self) -> str | None:
        """What its workers wait for, for people; None: they do not wait, as far as is known."""
        if self.over or self.status.state not in ("pending", "requeued"):
            return None
        seconds = "" if not self._records else f", {time.time() - self._records[-1].time_s:.0f} s"
        reason = f" ({self.status.reason})" if self.status.reason else ""
        return f"job {self.job_id} is pending{reason}{seconds}"

    @property
    def urgent(self) -> bool:
        """Whether the scheduler should be asked now: the script of the job has ended."""
        return self.job_id is not None and self.run.job_exit_code(self.job_id) is not None

    def cancel(self, reason: str) -> None:
        """End the job, and start none any more. Raises LaunchError: the scheduler would not."""
        self.run.ask_to_stop()
        if (records := self.run.jobs()) and records[-1:] != self._records[-1:]:  # it has gone on in another one
            self._records, self.status = records, JobStatus("pending")
        if self.job_id is not None and self.status.state not in ENDED:
            run_command(self.job.scheduler.cancel_command([self.job_id]))
        self.abandon(reason, "stopped")

    def close(self, until_s: float) -> None:
        """Let workers that are ending by themselves end until then, on the monotonic clock; then cancel what is left.

        Raises:
            LaunchError: The scheduler would not.
        """
        while not self.over and self._has_started() and time.monotonic() < until_s:
            self.look(time.monotonic(), None)
            time.sleep(CLOSE_PAUSE_S)
        if not self.over:
            self.cancel("its launcher was closed")

    def abandon(self, reason: str, cause: EndCause) -> None:
        """No worker comes back."""
        self._finish("failed" if cause != "stopped" else "ended", reason, cause)
        for future in self._left():
            _set_exception(future, WorkerEndedError(reason, cause))

    # Steps

    def _lose(self) -> None:
        self.over = True
        for future in self._left():
            _set_exception(future, WorkerEndedError(f"its run directory {self.run.path} is gone", "lost"))

    def _left(self) -> list[Future[str]]:
        return [future for future in self.futures if not future.done()]

    def _changed(self, now_s: float, status: JobStatus) -> None:
        new_state = status.state != self.status.state
        self.status = status
        if new_state or self.since_s is None:
            self.since_s = now_s
            self.run.event("job_state", job_id=self.job_id, state=status.state, reason=status.reason)
        state = _RUN_STATES.get(status.state, "running")
        self.run.write_status(RunStatus(state, self.job_id, status.state, status.reason))

    def _settle_ended(self) -> None:
        for rank, future in enumerate(self.futures):
            if not future.done() and (code := self.run.exit_code(rank)) not in (None, AGAIN):
                assert code is not None
                self._settle(rank, code, future)

    def _settle(self, rank: int, code: int, future: Future[str]) -> None:
        status = self.run.worker(rank)
        if code > KILLED:
            cause: EndCause = "out_of_memory" if self.status.state == "out_of_memory" else "lost"
            _set_exception(future, WorkerEndedError(f"worker {rank} was killed by signal {code - KILLED}", cause))
        elif status is None or code in NOT_STARTED:
            reason = f"worker {rank} ended with exit status {code}; {_log_end(self.run.worker_log(rank))}"
            _set_exception(future, WorkerEndedError(reason, "agent_error"))
        elif not future.cancelled():
            future.set_result(WorkerReport(status.origin, status.agents, status.error).to_json())

    def _has_ended(self, now_s: float) -> bool:
        local = self.job.scheduler.name == "local"
        if local and self.urgent:  # on another host, nobody else says so
            return True
        if self.since_s is None or self.status.state not in {*ENDED, "unknown"}:
            return False
        # Where its script was killed, the scheduler may start it again.
        settle_s = UNKNOWN_S if self.status.state == "unknown" else SETTLE_S
        return local or self.urgent or now_s - self.since_s >= settle_s

    def _job_ended(self) -> None:
        """The job is over, and some workers are not."""
        records = self.run.jobs()
        if records[-1] != self._records[-1]:  # it has gone on in another one
            self._records, self.status, self.since_s = records, JobStatus("pending"), None
            return
        said, words = self.run.status(), last_words(self.run, str(self.job_id))
        if self.run.asked_to_stop or self.status.state == "cancelled":
            self.abandon(f"job {self.job_id} was cancelled", "stopped")
        elif said.state in ("ended", "failed"):
            self.abandon(said.reason, said.cause or "lost")
        elif "signal" in words and self.status.state not in _NOT_ASKED_FOR:
            self.abandon(f"SIG{words['signal']} has ended job {self.job_id} before its walltime", "preempted")
        elif "code" in words:
            end = _log_end(self.run.job_log(str(self.job_id)))
            self.abandon(
                f"the script of job {self.job_id} ended with exit status {words['code']} before its workers; {end}",
                "lost",
            )
        elif not self._has_started():
            self._abandon_unstarted()
        else:
            self._go_on()

    def _has_started(self) -> bool:
        return self.job_id is not None and self.run.job_log(self.job_id).exists()

    def _abandon_unstarted(self) -> None:
        """Another job would fare no better."""
        said = " ".join(word for word in (self.status.state, self.status.reason) if word)
        self.abandon(
            f"job {self.job_id} has ended ({said}) before its script could write into {self.run.path}: see what is in "
            f"{self.run.path / 'scheduler.log'}; is this on a file system that the nodes share?",
            CAUSES.get(self.status.state, "lost"),
        )

    def _go_on(self) -> None:
        cause = CAUSES.get(self.status.state, "lost")
        reason = f"job {self.job_id} has ended: {self.status.reason or self.status.state}"
        logger.info("%s; %d workers want to go on", reason, len(unfinished_ranks(self.run, self.job)))
        try:
            if self.job.scheduler.name == "local":  # workers that have outlived their script
                run_command(self.job.scheduler.cancel_command([str(self.job_id)]))
            go_on(self.run, self.job, cause, because=reason, after=len(self._records))
        except LaunchError as error:
            self.abandon(f"{reason}, and the next job could not be submitted: {error}", cause)

    def _finish(self, state: RunState, reason: str, cause: EndCause | None) -> None:
        self.over = True
        self.run.write_status(RunStatus(state, self._last_job_id(), self.status.state, reason, cause))

    def _last_job_id(self) -> str | None:
        return self._records[-1].job_id if self._records else None


def _is_fine(future: Future[str]) -> bool:
    return future.exception() is None


def _set_exception(future: Future[str], error: Exception) -> None:
    if not future.cancelled():
        future.set_exception(error)


def _log_end(log: Path) -> str:
    """The last lines of a log: they may be all that is known."""
    try:
        text = log.read_bytes()[-LOG_BYTES:].decode(errors="replace")
    except OSError as error:
        return f"it has no log: {error}"
    return f"its log {log} ends: {' | '.join(text.strip().splitlines()[-LOG_LINES:])}"
