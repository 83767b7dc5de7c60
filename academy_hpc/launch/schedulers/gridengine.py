"""Grid Engine, of all makes: qsub, qstat, qacct, qdel."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from academy_hpc.errors import LaunchError
from academy_hpc.launch.job import JobRequest, Layout, SchedulerName
from academy_hpc.launch.schedulers import Allocation, JobState, JobStatus
from academy_hpc.launch.schedulers.words import options, refuse, tolerant
from academy_hpc.launch.walltime import clock_text

__all__ = ["GridEngine"]

# qacct(1) and accounting(5), "failed"; all others are failures to start the job.
_FAILURES: dict[int, JobState] = {37: "timeout", 21: "node_failure", 22: "node_failure", 24: "requeued", 25: "requeued"}
_AFTER_JOB = 100
_ASK_ACCOUNTING = 'for job; do qacct -j "$job" 2>/dev/null; done; true'


class GridEngine:
    """Grid Engine."""

    name: SchedulerName = "gridengine"
    title = "Grid Engine"
    comment = "#$"
    job_id = "$JOB_ID"
    # SGE_ROOT, SGE_CELL and its like are of the machine.
    variables = (
        *("JOB_", "PE_", "QUEUE", "NSLOTS", "NHOSTS", "NQUEUES", "REQUEST", "RESTARTED", "TASK_ID"),
        *(f"SGE_{name}" for name in ("ACCOUNT", "BINARY", "CWD", "JOB", "O_", "STDERR", "STDIN", "STDOUT", "TASK")),
    )
    outside = ""

    def starter(self, layout: Layout) -> str:
        """See `Scheduler`."""
        return "processes" if layout.nodes == 1 else "qrsh"

    def directives(self, request: JobRequest, layout: Layout, *, name: str, output: str) -> list[str]:
        """See `Scheduler`: qsub(1). A worker has a slot, or one for each of its CPUs."""
        refuse(request, self.title, "qos", "filesystems")
        if request.parallel_environment is None and layout.nodes > 1:
            raise LaunchError(
                "Grid Engine spreads a job over nodes by a parallel environment: give parallel_environment=..., one of "
                "those that `qconf -spl` lists."
            )
        seconds, slots = request.walltime_s, layout.workers * (request.cpus_per_worker or 1)
        words = [
            ("-N ", "name", f"j{name}" if name[0].isdigit() else name),
            ("-o ", "the run directory", output),
            ("-P ", "account", request.account),
            ("-q ", "queue", request.queue),
            ("-ar ", "reservation", request.reservation),
            ("-l h_rt=", "walltime", None if seconds is None else clock_text(seconds)),
            ("-l ", "constraint", request.constraint),
            ("-l ", "gres", request.gres),
            ("-pe ", "parallel_environment", request.parallel_environment),
        ]
        made = [line if not line.startswith("-pe ") else f"{line} {slots}" for line in options(words)]
        return [*made, "-j y", "-S /bin/bash", "-r y", "-notify"]

    def submit_command(self, script: str) -> list[str]:
        """See `Scheduler`."""
        return ["qsub", "-terse", script]

    def parse_submit(self, output: str) -> str:
        """See `Scheduler`."""
        lines = [line.strip() for line in output.splitlines() if line.strip().isdecimal()]
        if not lines:
            raise ValueError(f"no job id in {output!r}")
        return lines[-1]

    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """See `Scheduler`: of all jobs of the user that have not ended."""
        return ["qstat", "-xml"]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """See `Scheduler`. Raises LaunchError: it is no XML."""
        try:
            root = ElementTree.fromstring(output)  # noqa: S314 - what the scheduler's own command says
        except ElementTree.ParseError as error:
            raise LaunchError(f"What qstat says can't be read: {error}.") from None
        jobs = root.iter("job_list")
        return {job.findtext("JB_job_number", ""): _status(job.findtext("state", "")) for job in jobs}

    def history_command(self, job_ids: Sequence[str]) -> list[str] | None:
        """See `Scheduler`: it takes some seconds until a job that has ended is told of."""
        return ["bash", "-c", _ASK_ACCOUNTING, "academy-hpc", *job_ids]

    def parse_history(self, output: str) -> dict[str, JobStatus]:
        """See `Scheduler`: a job that was started twice has two records, of which the last counts."""
        records = [dict(_pairs(record)) for record in re.split(r"^=+\s*$", output, flags=re.MULTILINE)]
        return {record["jobnumber"]: _ended(record) for record in records if "jobnumber" in record}

    def find_command(self, name: str) -> list[str] | None:
        """See `Scheduler`: qstat shows but the beginnings of names."""
        return None

    def parse_find(self, output: str) -> list[str]:
        """See `Scheduler`."""
        return []

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """See `Scheduler`."""
        return [*tolerant(["qdel"], "does not exist"), *job_ids]

    def allocation(self, environ: Mapping[str, str]) -> Allocation | None:
        """See `Scheduler`."""
        if "SGE_ROOT" not in environ or "JOB_ID" not in environ:
            return None
        hosts = environ.get("NHOSTS", "")
        return Allocation(environ["JOB_ID"], int(hosts) if hosts.isdecimal() else None)


def _status(state: str) -> JobStatus:
    """Letters in a row, see qstat(1): E error, h hold, q queued, w waiting, r running, t transferring, R restarted."""
    if "E" in state:
        return JobStatus("pending", f"Grid Engine has put it into the error state {state}: see `qstat -j`")
    if "q" in state or "w" in state:
        return JobStatus("pending", "held" if "h" in state else "")
    if set(state) & set("rtsSTd"):
        return JobStatus("running")
    return JobStatus("unknown", state)


def _ended(record: Mapping[str, str]) -> JobStatus:
    failed = int(record.get("failed", "0").split()[0])
    code = int(record.get("exit_status", "0").split()[0])
    if failed == _AFTER_JOB:  # ended by a signal: its walltime, or qdel
        return JobStatus("failed", record["failed"], code)
    if failed:
        return JobStatus(_FAILURES.get(failed, "failed"), record["failed"], code)
    return JobStatus("completed" if code == 0 else "failed", "", code)


def _pairs(record: str) -> list[tuple[str, str]]:
    lines = [line.split(None, 1) for line in record.splitlines()]
    return [(line[0], line[1].strip()) for line in lines if len(line) == 2]
