"""Batch schedulers: their words. A scheduler module builds commands and reads what they say; it runs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, cast, get_args

from academy_hpc.errors import LaunchError
from academy_hpc.launch.job import JobRequest, Layout, SchedulerName
from academy_hpc.launch.spec import EndCause

__all__ = ["CAUSES", "ENDED", "Allocation", "JobState", "JobStatus", "Scheduler", "find_scheduler", "scheduler_names"]

JobState = Literal[
    "pending",
    "running",
    "completed",
    "failed",
    "cancelled",
    "timeout",
    "preempted",
    "node_failure",
    "out_of_memory",
    "requeued",
    "unknown",
]
"""What a scheduler says of a job. Words that are not known here, and jobs that it does not know, are "unknown"."""

ENDED: frozenset[JobState] = frozenset(
    {"completed", "failed", "cancelled", "timeout", "preempted", "node_failure", "out_of_memory"}
)
"""The states in which a job does not run, and is not going to."""

CAUSES: dict[JobState, EndCause] = {
    "failed": "lost",
    "cancelled": "stopped",
    "timeout": "walltime",
    "preempted": "preempted",
    "node_failure": "node_failure",
    "out_of_memory": "out_of_memory",
}
"""Why the workers of a job that ended in such a state have ended."""


class JobStatus(NamedTuple):
    """What a scheduler says of one job.

    Attributes:
        state: In our words.
        reason: Why it waits, or ended, in the scheduler's words.
        exit_code: Of its script, where that is told.
    """

    state: JobState
    reason: str = ""
    exit_code: int | None = None


class Allocation(NamedTuple):
    """The job that this program is in.

    Attributes:
        job_id: Its id.
        nodes: How many nodes it has; None: not told.
    """

    job_id: str
    nodes: int | None


class Scheduler(Protocol):
    """One batch system."""

    name: SchedulerName
    title: str
    """What people call it."""
    comment: str
    """What begins a line of the script that is for the scheduler."""
    job_id: str
    """Shell, in the script: the id that the scheduler has given the job."""
    variables: tuple[str, ...]
    """What the names of the variables begin with that are about one job: another job must not inherit them."""

    outside: str
    """Shell, before a command in the script: with what it speaks to the scheduler that has started the job."""

    def starter(self, layout: Layout) -> str:
        """What starts the workers, unless the user says otherwise: see `academy_hpc.launch.starters`."""
        ...

    def directives(self, request: JobRequest, layout: Layout, *, name: str, output: str) -> list[str]:
        """What stands after `comment` in the script, a line each.

        Args:
            request: The job.
            layout: Its workers and nodes.
            name: What it is called; no other job is called that.
            output: Where the scheduler puts what the script says before it has opened its own log.

        Raises:
            LaunchError: An option is missing, or can't be said to this scheduler.
        """
        ...

    def submit_command(self, script: str) -> list[str]:
        """Submits the script, which it finds at this path, and on its standard input."""
        ...

    def parse_submit(self, output: str) -> str:
        """The job's id. Raises ValueError: it is not there."""
        ...

    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """Asks for all these jobs at once; that some are not known any more is no failure of the command."""
        ...

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """By job id. Jobs that are not mentioned are not known."""
        ...

    def history_command(self, job_ids: Sequence[str]) -> list[str] | None:
        """Asks for jobs that the status command does not know any more; None: there is nobody to be asked."""
        ...

    def parse_history(self, output: str) -> dict[str, JobStatus]:
        """By job id."""
        ...

    def find_command(self, name: str) -> list[str] | None:
        """Asks for the jobs of this name; None: that can't be asked."""
        ...

    def parse_find(self, output: str) -> list[str]:
        """Their ids."""
        ...

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """Ends jobs, whether they wait or run; that one has ended already is no failure of the command."""
        ...

    def allocation(self, environ: Mapping[str, str]) -> Allocation | None:
        """The job that a program with this environment runs in, if it is one of this scheduler."""
        ...


_MODULES = {"slurm": "Slurm", "pbs": "Pbs", "torque": "Torque", "lsf": "Lsf", "flux": "Flux"} | {
    "gridengine": "GridEngine",
    "local": "Local",
}


def find_scheduler(name: str) -> Scheduler:
    """The scheduler of this name. Raises LaunchError: there is none."""
    if name not in _MODULES:
        raise LaunchError(f"There is no scheduler {name!r}; there are: {', '.join(scheduler_names())}.")
    module = importlib.import_module(f"{__name__}.{name}")
    return cast(Scheduler, getattr(module, _MODULES[name])())


def scheduler_names() -> tuple[str, ...]:
    """All that can be used."""
    return cast(tuple[str, ...], get_args(SchedulerName))
