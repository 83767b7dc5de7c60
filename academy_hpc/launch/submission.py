"""Submitting the jobs of a run, each of which is on disk before and after.

The next job of a run is claimed by making a file that only one can make: the program that launched, the job that
ends, and whoever else looks after the run never submit twice. Who is killed in between leaves the claim, and a job that
can be found by its name.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from academy_hpc.errors import LaunchError
from academy_hpc.launch.command import CommandError, CommandLateError, interrupts_wait, run_command
from academy_hpc.launch.job import JobRequest
from academy_hpc.launch.run import JobRecord, Run, RunStatus
from academy_hpc.launch.schedulers import Scheduler, find_scheduler

__all__ = ["OWN_VARIABLES", "Job", "find_lost_job", "job_environment", "read_job", "submit", "write_job"]

STALE_S = 300.0
OWN_VARIABLES = frozenset(
    f"ACADEMY_HPC_{name}" for name in ("RUN", "JOB", "DEADLINE", "ATTEMPT", "RANK", "RANKS", "TOLD")
)


class Job(msgspec.Struct, frozen=True):
    """What the scripts of a run were made from: all that is needed to submit again.

    Attributes:
        request: What was asked for.
        workers: How many in all.
        inside: Its script runs inside an allocation that was there, and can't go on after that.
    """

    request: JobRequest
    workers: int
    inside: bool = False

    @property
    def scheduler(self) -> Scheduler:
        """What knows of the job: inside an allocation, this machine."""
        return find_scheduler("local" if self.inside else self.request.scheduler)


def write_job(run: Run, job: Job) -> None:
    """Keep it. Raises LaunchError."""
    run.write_private("request.json", msgspec.json.format(msgspec.json.encode(job)).decode())


def read_job(run: Run) -> Job:
    """What `write_job` kept. Raises LaunchError: there is none, or it is of another version."""
    try:
        return msgspec.json.decode(run.read_private("request.json"), type=Job)
    except msgspec.DecodeError as error:
        raise LaunchError(f"{run.path / 'request.json'} can't be read: {error}.") from None


def submit(run: Run, job: Job, *, number: int | None = None) -> JobRecord | None:
    """Submit the next job of the run; None: somebody else does, or has.

    Args:
        run: Whose.
        job: Which.
        number: The one that is meant, by who has seen the one before it end; None: that after all there are.

    Raises:
        LaunchError: The scheduler would not have it, and why.
    """
    number = len(run.jobs()) + 1 if number is None else number
    if not _claim(run, number):
        if len(run.jobs()) >= number or not _is_stale(_claim_path(run, number)):
            return None
        if (lost := find_lost_job(run, job)) is not None:
            return lost
        _claim_path(run, number).unlink(missing_ok=True)
        if not _claim(run, number):
            return None
    scheduler = job.scheduler
    script = run.path / "job.sh"
    try:
        with interrupts_wait():
            output = run_command(
                scheduler.submit_command(str(script)),
                stdin=script,
                directory=job.request.directory or None,
                environment=job_environment(os.environ, () if job.inside else scheduler.variables),
            )
            record = run.record_job(scheduler.parse_submit(output))
    except CommandLateError:  # the scheduler may have the job: it is found by its name
        raise
    except CommandError:
        _claim_path(run, number).unlink(missing_ok=True)
        raise
    except ValueError as error:
        raise LaunchError(f"{scheduler.title} has taken the job, and did not tell its id: {error}.") from None
    run.event("job_submitted", job_id=record.job_id, number=record.number)
    run.write_status(RunStatus("queued", record.job_id, "pending"))
    return record


def find_lost_job(run: Run, job: Job) -> JobRecord | None:
    """Look for a job that was submitted by a program that did not live to write its id down; keep it if there is one.

    Raises:
        LaunchError: The scheduler could not be asked.
    """
    known = {record.job_id for record in run.jobs()}
    if not _claim_path(run, len(known) + 1).exists():
        return None
    started = [event["job_id"] for event in run.events() if event["event"] == "job_started"]
    command = job.scheduler.find_command(run.id)
    found = [] if command is None else job.scheduler.parse_find(run_command(command))
    lost = [job_id for job_id in [*started, *found] if job_id not in known]
    return run.record_job(lost[0]) if lost else None


def job_environment(environment: Mapping[str, str], prefixes: tuple[str, ...]) -> dict[str, str]:
    """What a job may inherit: not what is about the job, or the worker, that submits it."""
    return {
        name: value
        for name, value in environment.items()
        if name not in OWN_VARIABLES and not name.startswith(prefixes)
    }


def _claim_path(run: Run, number: int) -> Path:
    return run.path / f"job.{number}.claim"


def _is_stale(claim: Path) -> bool:
    """Whether its owner has had time enough."""
    try:
        return time.time() - claim.stat().st_mtime > STALE_S
    except FileNotFoundError:
        return True


def _claim(run: Run, number: int) -> bool:
    path = _claim_path(run, number)
    try:
        with path.open("x") as file:
            file.write(f"{socket.gethostname()} process {os.getpid()}, {time.strftime('%F %T')}\n")
    except FileExistsError:
        return False
    except OSError as error:
        raise LaunchError(f"{path} can't be written: {error}.") from None
    return True
