"""PBS Professional and OpenPBS: qsub, qstat, qselect, qdel."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from academy_hpc.errors import LaunchError
from academy_hpc.launch.job import JobRequest, Layout, SchedulerName
from academy_hpc.launch.schedulers import Allocation, JobState, JobStatus
from academy_hpc.launch.schedulers.words import options, refuse, tolerant
from academy_hpc.launch.walltime import clock_text

__all__ = ["Pbs", "read_full_status"]

# PBS Professional Reference Guide, "Job States".
_STATES: dict[str, JobState] = {
    "B": "running",
    "E": "running",
    "F": "completed",
    "H": "pending",
    "M": "unknown",
    "Q": "pending",
    "R": "running",
    "S": "running",
    "T": "pending",
    "U": "running",
    "W": "pending",
    "X": "completed",
}
# The same guide, "Job Exit Status Codes": JOB_EXEC_KILL_MEM and its like are the server's, not the script's.
_SERVER_CODES: dict[int, JobState] = {
    -26: "out_of_memory",
    -27: "out_of_memory",
    -29: "timeout",
    -4: "node_failure",  # aborted when the node came up again
}
# "Job Substates".
_DELETED = "91"
_JOB_ID = re.compile(r"[\w.\[\]-]+")


class Pbs:
    """PBS Pro."""

    name: SchedulerName = "pbs"
    title = "PBS Pro"
    comment = "#PBS"
    job_id = "$PBS_JOBID"
    variables: tuple[str, ...] = ("PBS_",)
    outside = ""

    def starter(self, layout: Layout) -> str:
        """See `Scheduler`: the script is on the first node."""
        return "processes" if layout.nodes == 1 else "mpiexec"

    def directives(self, request: JobRequest, layout: Layout, *, name: str, output: str) -> list[str]:
        """See `Scheduler`: qsub(1B). A reservation is a queue of its own."""
        refuse(request, self.title, "qos", "parallel_environment")
        if request.reservation is not None and request.queue is not None:
            raise LaunchError("PBS Pro takes a reservation in place of a queue: give one of them.")
        seconds = request.walltime_s
        words = [
            ("-N ", "name", name),
            ("-A ", "account", request.account),
            ("-q ", "queue", request.reservation or request.queue),
            ("-l ", "nodes", self._nodes(request, layout)),
            ("-l walltime=", "walltime", None if seconds is None else clock_text(seconds)),
            ("-l filesystems=", "filesystems", request.filesystems),
            ("-o ", "the run directory", output),
        ]
        return [*options(words), "-j oe", "-r y", "-S /bin/bash"]

    def _nodes(self, request: JobRequest, layout: Layout) -> str:
        cpus = layout.workers_per_node * (request.cpus_per_worker or 0)
        parts = [f"select={layout.nodes}", f"ncpus={cpus}" if cpus else "", request.constraint, request.gres]
        return ":".join(part for part in parts if part)

    def submit_command(self, script: str) -> list[str]:
        """See `Scheduler`."""
        return ["qsub", script]

    def parse_submit(self, output: str) -> str:
        """See `Scheduler`: ``123.server``."""
        last = output.strip().splitlines()[-1].strip() if output.strip() else ""
        if not _JOB_ID.fullmatch(last) or not last[0].isdigit():
            raise ValueError(f"no job id in {output!r}")
        return last

    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """See `Scheduler`: -x for those that have ended, too."""
        return [*tolerant(["qstat", "-x", "-f"], "Unknown Job Id"), *job_ids]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """See `Scheduler`."""
        return {job_id: self._status(fields) for job_id, fields in read_full_status(output)}

    def _status(self, fields: Mapping[str, str]) -> JobStatus:
        state = _STATES.get(fields.get("job_state", ""), "unknown")
        code = _number(fields.get("Exit_status"))
        if state == "completed":
            state = _ended(fields, code)
        return JobStatus(state, fields.get("comment", ""), code)

    def history_command(self, job_ids: Sequence[str]) -> list[str] | None:
        """See `Scheduler`: the status command asks for that already."""
        return None

    def parse_history(self, output: str) -> dict[str, JobStatus]:
        """See `Scheduler`."""
        return {}

    def find_command(self, name: str) -> list[str] | None:
        """See `Scheduler`."""
        return ["qselect", "-x", "-N", name]

    def parse_find(self, output: str) -> list[str]:
        """See `Scheduler`."""
        return output.split()

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """See `Scheduler`."""
        return [*tolerant(["qdel"], "has finished|Unknown Job Id|invalid state"), *job_ids]

    def allocation(self, environ: Mapping[str, str]) -> Allocation | None:
        """See `Scheduler`: the hosts are in a file."""
        return Allocation(environ["PBS_JOBID"], None) if "PBS_JOBID" in environ else None


def read_full_status(output: str) -> Iterator[tuple[str, dict[str, str]]]:
    """What ``qstat -f`` says: of each job its id, and its attributes by name.

    Long lines go on after a tab, with which Slurm's front for PBS begins every line.
    """
    for block in re.split(r"^Job Id:\s*", output, flags=re.MULTILINE)[1:]:
        job_id, _, rest = block.partition("\n")
        lines = re.sub(r"\n\t(?![\w.]+ = )", "", rest).splitlines()
        pairs = [line.strip().partition(" = ") for line in lines if " = " in line]
        yield job_id.strip(), {name: value for name, _, value in pairs}


def _ended(fields: Mapping[str, str], code: int | None) -> JobState:
    if fields.get("substate") == _DELETED:
        return "cancelled"
    if code in _SERVER_CODES:
        return _SERVER_CODES[code]
    if code:
        used, limit = fields.get("resources_used.walltime"), fields.get("Resource_List.walltime")
        return "timeout" if used and limit and _seconds(used) >= _seconds(limit) else "failed"
    return "completed"


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.lstrip("-").isdecimal() else None


def _seconds(clock: str) -> int:
    hours, minutes, seconds = ([0, 0] + [int(part) for part in clock.split(":") if part.isdecimal()])[-3:]
    return (hours * 60 + minutes) * 60 + seconds
