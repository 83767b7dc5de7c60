"""``academy-hpc runs``: what was launched, and how it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from academy_hpc.cli.console import Command, age, json_option, show_json, show_table

if TYPE_CHECKING:
    from academy_hpc.launch.run import Run, RunStatus

__all__ = ["runs"]


@click.command(cls=Command)
@json_option
def runs(as_json: bool) -> None:
    """List the runs of this user, the newest last, and how they are.

    They are kept in ~/.academy_hpc/runs, or where ACADEMY_HPC_RUNS says; a directory there can be removed when its
    run has ended.

    \b
    Example:
      academy-hpc runs
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.cli.job_states import run_statuses
    from academy_hpc.launch.run import Run, default_runs

    known = [(run, _problem(run)) for run in Run.all()]
    statuses = iter(run_statuses(run for run, problem in known if not problem))
    found = [_unreadable(run, problem) if problem else _summary(run, next(statuses)) for run, problem in known]
    if as_json:
        show_json(found)
        return
    columns = ("run", "state", "since", "job", "jobs", "reason")
    rows = [(r["run"], r["state"], age(r["time_s"]), r["job_id"], r["jobs"], r["reason"]) for r in found]
    show_table(columns, rows, empty=f"There are no runs in {default_runs()}.")


def _problem(run: Run) -> str:
    """Why it can't be read; one such run does not hide the others."""
    from academy_hpc.errors import LaunchError

    try:
        run.status(), run.jobs()
    except LaunchError as error:
        return str(error)
    return ""


def _unreadable(run: Run, problem: str) -> dict[str, Any]:
    unknown = dict.fromkeys(("job_id", "jobs", "job_state", "cause", "time_s"))
    return {"run": run.id, "state": "unknown", **unknown, "reason": problem, "path": str(run.path)}


def _summary(run: Run, status: RunStatus) -> dict[str, Any]:
    jobs = run.jobs()
    return {
        "run": run.id,
        "state": status.state,
        "job_id": jobs[-1].job_id if jobs else None,
        "jobs": len(jobs),
        "job_state": status.job_state,
        "cause": status.cause,
        "reason": status.reason,
        "time_s": status.time_s or None,
        "path": str(run.path),
    }
