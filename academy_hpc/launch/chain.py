"""The chain of jobs of a run: whether another one follows when one has ended.

It is decided by the job itself at its end, and where that was killed, by a program that follows the run.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from academy_hpc.launch.run import Run, RunState, RunStatus
from academy_hpc.launch.spec import EndCause
from academy_hpc.launch.submission import Job, read_job, submit

__all__ = ["AGAIN", "WARNING_SPREAD_S", "go_on", "last_words", "resubmit", "unfinished_ranks"]

logger = logging.getLogger(__name__)

AGAIN = 75
"""The exit code of a worker whose agents want to go on in another life."""

# Slurm's early warning may come so much earlier than asked for.
WARNING_SPREAD_S = 60.0
GIVE_UP_S = 60.0


def resubmit(run: Run, *, environment: Mapping[str, str] | None = None) -> str:
    """What a job calls at its end while there are workers that want to go on: submit the next job, if one is to be.

    Args:
        run: Whose.
        environment: Of the job: its deadline, and the signal by which it was told to end; None: of this process.

    Returns:
        What was done, and why: a sentence for people.

    Raises:
        LaunchError: The scheduler would not have the job.
    """
    environment = os.environ if environment is None else environment
    told, deadline = environment.get("ACADEMY_HPC_TOLD", ""), environment.get("ACADEMY_HPC_DEADLINE")
    job = read_job(run)
    near = bool(deadline) and time.time() > float(deadline or 0) - job.request.grace_s - WARNING_SPREAD_S
    if told and not near:
        # It was cancelled, or else its scheduler starts it again by itself.
        return f"Nothing was submitted: SIG{told} ended the job before its walltime."
    own = environment.get("ACADEMY_HPC_JOB")
    after = next((record.number for record in run.jobs() if record.job_id == own), None)
    return go_on(run, job, "walltime" if near else "lost", because=_because(own, near), after=after)


def _because(job_id: str | None, near: bool) -> str:
    return f"job {job_id} has come near its walltime" if near else f"job {job_id} has lost workers"


def go_on(run: Run, job: Job, cause: EndCause, *, because: str, after: int | None = None) -> str:
    """Submit the next job, unless the run has ended: the reason is in its status then.

    Args:
        run: Whose.
        job: As it was.
        cause: Why the last one has ended.
        because: The same for people.
        after: The number of the job that has ended: others may see that as well, and be faster; None: the last one.

    Raises:
        LaunchError: The scheduler would not have the job.
    """
    jobs = len(run.jobs())
    after = jobs if after is None else after
    if jobs > after:
        return "Somebody else has submitted the next job."
    if run.asked_to_stop:
        return _over(run, "ended", "The run was asked to end.", "stopped")
    if not unfinished_ranks(run, job):
        return _over(run, "ended", "All its workers have ended.", None)
    if job.inside:
        return _give_up(run, job, f"{because}, and there is no allocation for another one.", cause)
    if after >= job.request.max_jobs:
        return _give_up(run, job, f"{because}, and the run has had its max_jobs={job.request.max_jobs} jobs.", cause)
    record = submit(run, job, number=after + 1)
    return "Somebody else submits the next job." if record is None else f"Submitted job {record.job_id}."


def last_words(run: Run, job_id: str) -> dict[str, Any]:
    """What a job has said since it last started.

    Returns:
        The event with the ``signal`` that ended it before its time, or with the ``code`` with which its script ended
        before its workers.
    """
    words: dict[str, Any] = {}
    for event in run.events():
        if event.get("job_id") == job_id and event["event"] in ("job_started", "told_to_end", "script_ended"):
            words = event
    return words


def unfinished_ranks(run: Run, job: Job) -> list[int]:
    """The workers that have not ended for good."""
    return [rank for rank in range(job.workers) if run.exit_code(rank) in (None, AGAIN)]


def _over(run: Run, state: RunState, reason: str, cause: EndCause | None) -> str:
    run.write_status(RunStatus(state, run.status().job_id, "", reason, cause))
    run.event("run_over", reason=reason)
    return reason


def _give_up(run: Run, job: Job, reason: str, cause: EndCause) -> str:
    """The agents never come back: those who wait for them are told so, by a program that knows agents.

    An exchange inside the job has ended with it.
    """
    for rank in unfinished_ranks(run, job) if job.request.exchange == "login" else ():
        words = [job.request.python, "-m", "academy_hpc", "worker", "--spec", str(run.spec_path), "--give-up", reason]
        place = {"ACADEMY_HPC_RUN": str(run.path), "ACADEMY_HPC_RANK": str(rank), "ACADEMY_HPC_RANKS": str(job.workers)}
        try:
            subprocess.run(words, env=os.environ | place, timeout=GIVE_UP_S, check=False)  # noqa: S603 - our own
        except (OSError, subprocess.TimeoutExpired) as error:
            logger.warning("the agents of worker %s could not be given up: %s", rank, error)
    return _over(run, "failed", reason, cause)
