"""Flux: flux batch, flux jobs, flux cancel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from academy_hpc.launch.job import JobRequest, Layout, SchedulerName
from academy_hpc.launch.schedulers import Allocation, JobState, JobStatus
from academy_hpc.launch.schedulers.words import options, refuse, tolerant

__all__ = ["Flux"]

# flux-jobs(1), "JOB STATUS".
_STATES: dict[str, JobState] = {
    "CANCELED": "cancelled",
    "CLEANUP": "running",
    "COMPLETED": "completed",
    "DEPEND": "pending",
    "FAILED": "failed",
    "PRIORITY": "pending",
    "RUN": "running",
    "SCHED": "pending",
    "TIMEOUT": "timeout",
}
_LOST_NODE = "node-failure"


class Flux:
    """Flux."""

    name: SchedulerName = "flux"
    title = "Flux"
    comment = "# flux:"
    # The script runs in an instance of its own, which knows the job that it is to the one around it.
    job_id = "$(flux getattr jobid)"
    variables = ("FLUX_JOB_", "FLUX_TASK_", "FLUX_ENCLOSING_")
    outside = "FLUX_URI=$(flux getattr parent-uri) "

    def starter(self, layout: Layout) -> str:
        """See `Scheduler`."""
        return "flux"

    def directives(self, request: JobRequest, layout: Layout, *, name: str, output: str) -> list[str]:
        """See `Scheduler`: flux-batch(1). Nodes without a number of slots are whole nodes."""
        refuse(request, self.title, "qos", "filesystems", "reservation", "gres", "parallel_environment")
        seconds = request.walltime_s
        words = [
            ("--job-name=", "name", name),
            ("--output=", "the run directory", output),
            ("--bank=", "account", request.account),
            ("--queue=", "queue", request.queue),
            ("--nodes=", "nodes", str(layout.nodes)),
            ("--time-limit=", "walltime", None if seconds is None else f"{seconds}s"),
            ("--requires=", "constraint", request.constraint),
        ]
        return [*options(words), f"--signal=SIGUSR1@{math.ceil(request.grace_s)}s"]

    def submit_command(self, script: str) -> list[str]:
        """See `Scheduler`."""
        return ["flux", "batch", script]

    def parse_submit(self, output: str) -> str:
        """See `Scheduler`: such as ``f2Xy8pzn``."""
        words = output.split()
        if len(words) != 1:
            raise ValueError(f"no job id in {output!r}")
        return _plain(words[0])

    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """See `Scheduler`: of all jobs of the user, for one that is not known makes it fail."""
        return ["flux", "jobs", "-a", "--no-header", "--format={id.f58}|{status}|{exception.type}|{exception.note}"]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """See `Scheduler`."""
        rows = [line.split("|", 3) for line in output.splitlines()]
        return {_plain(row[0].strip()): _status(*(word.strip() for word in row[1:])) for row in rows if len(row) == 4}

    def history_command(self, job_ids: Sequence[str]) -> list[str] | None:
        """See `Scheduler`."""
        return None

    def parse_history(self, output: str) -> dict[str, JobStatus]:
        """See `Scheduler`."""
        return {}

    def find_command(self, name: str) -> list[str] | None:
        """See `Scheduler`."""
        return ["flux", "jobs", "-a", "--no-header", f"--name={name}", "--format={id.f58}"]

    def parse_find(self, output: str) -> list[str]:
        """See `Scheduler`."""
        return [_plain(word) for word in output.split()]

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """See `Scheduler`."""
        return [*tolerant(["flux", "cancel"], "inactive|unknown"), *job_ids]

    def allocation(self, environ: Mapping[str, str]) -> Allocation | None:
        """See `Scheduler`: outside of a job, programs find the system's instance without this variable."""
        return Allocation(environ["FLUX_URI"], None) if "FLUX_URI" in environ else None


def _plain(job_id: str) -> str:
    """Ids begin with an f that has a hook where the locale has one; Flux takes both."""
    return f"f{job_id[1:]}" if job_id.startswith("ƒ") else job_id


def _status(status: str, exception: str, note: str) -> JobStatus:
    state = _STATES.get(status, "unknown")
    if state == "failed" and exception == _LOST_NODE:
        state = "node_failure"
    return JobStatus(state, note)
