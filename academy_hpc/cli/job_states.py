"""What schedulers say of the jobs of runs: one command for all of a scheduler."""

from __future__ import annotations

from collections.abc import Iterable

from academy_hpc.errors import LaunchError
from academy_hpc.launch.chain import unfinished_ranks
from academy_hpc.launch.run import Run, RunState, RunStatus
from academy_hpc.launch.schedulers import ENDED, JobStatus
from academy_hpc.launch.submission import Job, read_job
from academy_hpc.launch.watch import StatusDesk

__all__ = ["job_states", "run_statuses"]

_STATES: dict[str, RunState] = {"pending": "queued", "requeued": "queued", "running": "running"}


def job_states(run: Run) -> dict[str, JobStatus]:
    """All jobs of a run, by their ids. Raises LaunchError: it is no run of jobs."""
    job, ids = read_job(run), [record.job_id for record in run.jobs()]
    return StatusDesk().ask(job.scheduler, ids, now_s=0, changed_s=0) if ids else {}


def run_statuses(runs: Iterable[Run]) -> list[RunStatus]:
    """How runs are: what was written last, and what has become of it since. Nothing is changed by asking."""
    runs, jobs = list(runs), dict[str, Job]()
    known = {run.id: run.status() for run in runs}
    for run in runs:
        if known[run.id].state in ("queued", "running"):
            try:
                jobs[run.id] = read_job(run)
            except LaunchError:  # it is shown as it was
                continue
    said = _ask([(jobs[run.id], run) for run in runs if run.id in jobs])
    return [_status(run, known[run.id], jobs.get(run.id), said.get(run.id)) for run in runs]


def _ask(asked: list[tuple[Job, Run]]) -> dict[str, JobStatus]:
    """By the id of the run, what is said of its latest job."""
    said: dict[str, JobStatus] = {}
    for name in {job.scheduler.name for job, _ in asked}:
        latest = {run.id: run.jobs()[-1].job_id for job, run in asked if job.scheduler.name == name and run.jobs()}
        scheduler = next(job.scheduler for job, _ in asked if job.scheduler.name == name)
        states = StatusDesk().ask(scheduler, list(latest.values()), now_s=0, changed_s=0)
        said |= {run_id: states[job_id] for run_id, job_id in latest.items() if job_id in states}
    return said


def _status(run: Run, written: RunStatus, job: Job | None, said: JobStatus | None) -> RunStatus:
    if job is None or said is None:
        return written
    job_id = run.jobs()[-1].job_id
    if said.state not in ENDED:
        return RunStatus(_STATES.get(said.state, written.state), job_id, said.state, said.reason, time_s=written.time_s)
    left = unfinished_ranks(run, job)
    fine = not left and all(run.exit_code(rank) == 0 for rank in range(job.workers))
    reason = (
        "" if not left else f"job {job_id} has ended ({said.state}), and {len(left)} of {job.workers} workers have not"
    )
    return RunStatus("ended" if fine else "failed", job_id, said.state, reason, time_s=written.time_s)
