"""Torque: the words of PBS as they were, with nodes and processors per node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from academy_hpc.launch.job import JobRequest, Layout, SchedulerName
from academy_hpc.launch.schedulers import JobState, JobStatus
from academy_hpc.launch.schedulers.pbs import Pbs, read_full_status
from academy_hpc.launch.schedulers.words import refuse, tolerant

__all__ = ["Torque"]

# qstat(1) of Torque: S is a job that Moab suspended.
_STATES: dict[str, JobState] = {
    "C": "completed",
    "E": "running",
    "H": "pending",
    "Q": "pending",
    "R": "running",
    "S": "running",
    "T": "pending",
    "W": "pending",
}
# Torque Administrator Guide, "Job exit status": over its limits of memory and walltime; aborted when the node came up
# again.
_SERVER_CODES: dict[int, JobState] = {-10: "out_of_memory", -11: "timeout", -4: "node_failure"}
# 256 and a signal: TERM at the walltime, and by qdel.
_TERMINATED = 271


class Torque(Pbs):
    """Torque, and what speaks its words."""

    name: SchedulerName = "torque"
    title = "Torque"

    def directives(self, request: JobRequest, layout: Layout, *, name: str, output: str) -> list[str]:
        """See `Scheduler`."""
        refuse(request, self.title, "filesystems", "reservation")
        return super().directives(request, layout, name=_short(name), output=output)

    def _nodes(self, request: JobRequest, layout: Layout) -> str:
        cpus = layout.workers_per_node * (request.cpus_per_worker or 0)
        parts = [f"nodes={layout.nodes}", f"ppn={cpus or 1}", request.constraint, request.gres]
        return ":".join(part for part in parts if part)

    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """See `Scheduler`: jobs that have ended are known for keep_completed seconds."""
        return [*tolerant(["qstat", "-f"], "Unknown Job Id"), *job_ids]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """See `Scheduler`."""
        return {job_id: self._status(fields) for job_id, fields in read_full_status(output)}

    def _status(self, fields: Mapping[str, str]) -> JobStatus:
        state = _STATES.get(fields.get("job_state", ""), "unknown")
        text = fields.get("exit_status", "")
        code = int(text) if text.lstrip("-").isdecimal() else None
        if state == "completed" and code:
            state = "cancelled" if code == _TERMINATED else _SERVER_CODES.get(code, "failed")
        return JobStatus(state, fields.get("comment", ""), code)

    def find_command(self, name: str) -> list[str] | None:
        """See `Scheduler`."""
        return ["qselect", "-N", _short(name)]


def _short(name: str) -> str:
    """Names have up to 15 characters; what makes that of a run its own comes last."""
    return f"{name[:10]}-{name[-4:]}"
