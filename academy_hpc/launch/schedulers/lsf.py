"""IBM Spectrum LSF: bsub, bjobs, bkill."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from academy_hpc.launch.job import JobRequest, Layout, SchedulerName
from academy_hpc.launch.schedulers import Allocation, JobState, JobStatus
from academy_hpc.launch.schedulers.words import options, refuse, tolerant

__all__ = ["Lsf"]

# bjobs(1), "STAT"; a job that can't be reached (UNKWN) is LSF's to give up.
_STATES: dict[str, JobState] = {
    "DONE": "completed",
    "EXIT": "failed",
    "PEND": "pending",
    "PROV": "pending",
    "PSUSP": "pending",
    "RUN": "running",
    "SSUSP": "running",
    "UNKWN": "running",
    "USUSP": "running",
    "WAIT": "pending",
    "ZOMBI": "node_failure",
}
# "Termination reasons displayed by bacct, bhist, and bjobs" in the administrator's guide.
_REASONS: dict[str, JobState] = {
    "TERM_ADMIN": "cancelled",
    "TERM_BUCKET_KILL": "cancelled",
    "TERM_DEADLINE": "timeout",
    "TERM_FORCE_ADMIN": "cancelled",
    "TERM_FORCE_OWNER": "cancelled",
    "TERM_MEMLIMIT": "out_of_memory",
    "TERM_OWNER": "cancelled",
    "TERM_PREEMPT": "preempted",
    "TERM_RC": "preempted",
    "TERM_REQUEUE_ADMIN": "requeued",
    "TERM_REQUEUE_OWNER": "requeued",
    "TERM_REQUEUE_RC": "requeued",
    "TERM_RUNLIMIT": "timeout",
    "TERM_SWAP": "out_of_memory",
    "TERM_WINDOW": "preempted",
    "TERM_ZOMBIE": "node_failure",
}
_SUBMITTED = re.compile(r"Job <(\d+)> is submitted")
_FIELDS = "jobid stat exit_code exit_reason pend_reason delimiter='|'"


class Lsf:
    """LSF."""

    name: SchedulerName = "lsf"
    title = "LSF"
    comment = "#BSUB"
    job_id = "$LSB_JOBID"
    variables = ("LSB_", "LS_")
    outside = ""

    def starter(self, layout: Layout) -> str:
        """See `Scheduler`: machines with jsrun say so in their profiles."""
        return "processes" if layout.nodes == 1 else "blaunch"

    def directives(self, request: JobRequest, layout: Layout, *, name: str, output: str) -> list[str]:
        """See `Scheduler`: bsub(1). LSF counts walltimes, and warnings before them, in minutes."""
        refuse(request, self.title, "qos", "filesystems", "parallel_environment")
        seconds = request.walltime_s
        words = [
            ("-J ", "name", name),
            ("-o ", "the run directory", output),
            ("-P ", "account", request.account),
            ("-q ", "queue", request.queue),
            ("-W ", "walltime", None if seconds is None else str(math.ceil(seconds / 60))),
            ("-R ", "constraint", request.constraint),
            ("-gpu ", "gres", request.gres),
            ("-U ", "reservation", request.reservation),
        ]
        minutes = max(1, math.ceil(request.grace_s / 60))
        warning = [f"-wt {minutes} -wa USR1"] if seconds is not None and seconds > minutes * 60 else []
        return [*options(words), *self._nodes(request, layout), *warning, "-r"]

    def _nodes(self, request: JobRequest, layout: Layout) -> list[str]:
        if request.starter == "jsrun":  # where a job has whole nodes, and its script is on another one
            return [f"-nnodes {layout.nodes}"]
        cpus = request.cpus_per_worker or 1
        return [f"-n {layout.workers * cpus}", f'-R "span[ptile={layout.workers_per_node * cpus}]"']

    def submit_command(self, script: str) -> list[str]:
        """See `Scheduler`: bsub reads its directives from the standard input only."""
        return ["bsub"]

    def parse_submit(self, output: str) -> str:
        """See `Scheduler`."""
        found = _SUBMITTED.search(output)
        if found is None:
            raise ValueError(f"no job id in {output!r}")
        return found[1]

    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """See `Scheduler`: -a for those that have ended lately, too."""
        return [*tolerant(["bjobs", "-a", "-noheader", "-o", _FIELDS], "is not found|No job found"), *job_ids]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """See `Scheduler`."""
        rows = [line.split("|") for line in output.splitlines()]
        return {row[0].strip(): _status(*(word.strip() for word in row[1:])) for row in rows if len(row) == 5}

    def history_command(self, job_ids: Sequence[str]) -> list[str] | None:
        """See `Scheduler`."""
        return None

    def parse_history(self, output: str) -> dict[str, JobStatus]:
        """See `Scheduler`."""
        return {}

    def find_command(self, name: str) -> list[str] | None:
        """See `Scheduler`."""
        return tolerant(["bjobs", "-a", "-noheader", "-o", "jobid", "-J", name], "is not found|No job found")

    def parse_find(self, output: str) -> list[str]:
        """See `Scheduler`."""
        return [word for word in output.split() if word.isdecimal()]

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """See `Scheduler`: INT, TERM and KILL, with pauses."""
        return [*tolerant(["bkill"], "already finished|No matching job"), *job_ids]

    def allocation(self, environ: Mapping[str, str]) -> Allocation | None:
        """See `Scheduler`: LSB_MCPU_HOSTS has the name of a host and its slots in turn."""
        if "LSB_JOBID" not in environ:
            return None
        hosts = len(environ.get("LSB_MCPU_HOSTS", "").split()) // 2
        return Allocation(environ["LSB_JOBID"], hosts or None)


def _status(stat: str, exit_code: str, exit_reason: str, pend_reason: str) -> JobStatus:
    state = _STATES.get(stat, "unknown")
    if state == "failed":
        state = _REASONS.get(exit_reason.partition(":")[0], "failed")
    reason = pend_reason if state == "pending" else exit_reason
    return JobStatus(state, "" if reason == "-" else reason, int(exit_code) if exit_code.isdecimal() else None)
