"""Slurm: sbatch, squeue, sacct, scancel."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from academy_hpc.launch.job import JobRequest, Layout, SchedulerName
from academy_hpc.launch.schedulers import Allocation, JobState, JobStatus
from academy_hpc.launch.schedulers.words import options, refuse, tolerant
from academy_hpc.launch.walltime import clock_text

__all__ = ["Slurm"]

# squeue(1), "JOB STATE CODES".
_STATES: dict[str, JobState] = {
    "BOOT_FAIL": "node_failure",
    "CANCELLED": "cancelled",
    "COMPLETED": "completed",
    "COMPLETING": "running",
    "CONFIGURING": "pending",
    "DEADLINE": "timeout",
    "FAILED": "failed",
    "LAUNCH_FAILED": "node_failure",
    "NODE_FAIL": "node_failure",
    "OUT_OF_MEMORY": "out_of_memory",
    "PENDING": "pending",
    "PREEMPTED": "preempted",
    "REQUEUED": "requeued",
    "REQUEUE_FED": "requeued",
    "REQUEUE_HOLD": "requeued",
    "RESIZING": "running",
    "RESV_DEL_HOLD": "pending",
    "REVOKED": "cancelled",
    "RUNNING": "running",
    "SIGNALING": "running",
    "SPECIAL_EXIT": "requeued",
    "STAGE_OUT": "running",
    "STOPPED": "running",
    "SUSPENDED": "running",
    "TIMEOUT": "timeout",
}
_ABOUT_ONE_JOB = (
    "CPU DISTRIBUTION EXPORT_ENV GPUS GTIDS HET JOB LAUNCH LOCALID MEM MPI NNODES NODE NPROCS NTASKS OVERCOMMIT PRIO "
    "PROCID SRUN STEP SUBMIT TASK TOPOLOGY UMASK WORKING"
)
_JOB_ID = re.compile(r"\d+")


class Slurm:
    """Slurm."""

    name: SchedulerName = "slurm"
    title = "Slurm"
    comment = "#SBATCH"
    job_id = "$SLURM_JOB_ID"
    # srun takes many of these for options; SLURM_CONF and its like are of the machine.
    variables = tuple(f"SLURM_{word}" for word in _ABOUT_ONE_JOB.split())
    outside = ""

    def starter(self, layout: Layout) -> str:
        """See `Scheduler`."""
        return "srun"

    def directives(self, request: JobRequest, layout: Layout, *, name: str, output: str) -> list[str]:
        """See `Scheduler`: sbatch(1)."""
        refuse(request, self.title, "parallel_environment")
        seconds, cpus = request.walltime_s, request.cpus_per_worker
        words = [
            ("--job-name=", "name", name),
            ("--output=", "the run directory", output.replace("%", "%%")),
            ("--account=", "account", request.account),
            ("--partition=", "queue", request.queue),
            ("--qos=", "qos", request.qos),
            ("--nodes=", "nodes", str(layout.nodes)),
            # Some sites ask for it. Workers that share what there is could be more than CPUs.
            ("--ntasks=", "nodes", str(layout.nodes * (1 if cpus is None else layout.workers_per_node))),
            ("--ntasks-per-node=", "workers_per_node", None if cpus is None else str(layout.workers_per_node)),
            ("--cpus-per-task=", "cpus_per_worker", None if cpus is None else str(cpus)),
            ("--time=", "walltime", None if seconds is None else clock_text(seconds)),
            ("--constraint=", "constraint", request.constraint),
            ("--gres=", "gres", request.gres),
            ("--licenses=", "filesystems", request.filesystems),
            ("--reservation=", "reservation", request.reservation),
        ]
        # Without "B:" the tasks get it, and not this script.
        return [*options(words), "--open-mode=append", "--requeue", f"--signal=USR1@{math.ceil(request.grace_s)}"]

    def submit_command(self, script: str) -> list[str]:
        """See `Scheduler`."""
        return ["sbatch", "--parsable", script]

    def parse_submit(self, output: str) -> str:
        """See `Scheduler`: the id, and the name of the cluster where there are several."""
        job_id = output.strip().splitlines()[-1].partition(";")[0] if output.strip() else ""
        if not _JOB_ID.fullmatch(job_id):
            raise ValueError(f"no job id in {output!r}")
        return job_id

    def status_command(self, job_ids: Sequence[str]) -> list[str]:
        """See `Scheduler`: of all jobs of the user, for squeue fails when it is asked for one that it has forgotten."""
        return ["squeue", "--me", "--states=all", "--noheader", "--format=%i|%T|%r"]

    def parse_status(self, output: str) -> dict[str, JobStatus]:
        """See `Scheduler`."""
        rows = [line.split("|", 2) for line in output.splitlines()]
        return {row[0].strip(): _status(row[1], row[2]) for row in rows if len(row) == 3}

    def history_command(self, job_ids: Sequence[str]) -> list[str] | None:
        """See `Scheduler`."""
        words = ["sacct", "--allocations", "--noheader", "--parsable2", "--format=JobIDRaw,State,Reason"]
        return [*words, f"--jobs={','.join(job_ids)}"]

    def parse_history(self, output: str) -> dict[str, JobStatus]:
        """See `Scheduler`: "CANCELLED by 1000" is what sacct says of those."""
        return self.parse_status(output)

    def find_command(self, name: str) -> list[str] | None:
        """See `Scheduler`."""
        return ["squeue", "--me", "--states=all", "--noheader", f"--name={name}", "--format=%i"]

    def parse_find(self, output: str) -> list[str]:
        """See `Scheduler`."""
        return output.split()

    def cancel_command(self, job_ids: Sequence[str]) -> list[str]:
        """See `Scheduler`."""
        return [*tolerant(["scancel"], "Invalid job id|already completing or completed"), *job_ids]

    def allocation(self, environ: Mapping[str, str]) -> Allocation | None:
        """See `Scheduler`."""
        if "SLURM_JOB_ID" not in environ:
            return None
        nodes = environ.get("SLURM_JOB_NUM_NODES", "")
        return Allocation(environ["SLURM_JOB_ID"], int(nodes) if nodes.isdecimal() else None)


def _status(state: str, reason: str) -> JobStatus:
    word, _, _ = state.strip().partition(" ")
    return JobStatus(_STATES.get(word, "unknown"), "" if reason.strip() == "None" else reason.strip())
