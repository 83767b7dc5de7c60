"""``academy-hpc job``: the jobs in which runs are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from academy_hpc.cli.console import Group, age, json_option, say_when_interrupted, show_json, show_table
from academy_hpc.cli.launch_options import launch_options
from academy_hpc.cli.parameters import run_argument

if TYPE_CHECKING:
    from academy_hpc.launch.run import Run

__all__ = ["job"]


@click.group(cls=Group)
def job() -> None:
    """See the script of a job, submit it, ask for it, and end it."""


@job.command()
@launch_options
@json_option
def render(*, as_json: bool, **options: Any) -> None:
    """Print the job script that `launch` would submit with these options, and submit nothing.

    RUN in the script stands for the directory of the run, which there is not yet.

    \b
    Example:
      academy-hpc job render sim.py:Simulator --scheduler slurm -A m1234 -p regular -t 2:00:00 -N 2 --count 16
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.cli.launch_plan import plan_launch

    plan = plan_launch(**options)
    script = plan.launcher.render(workers=-(-len(plan.agents) // plan.agents_per_worker))
    if as_json:
        show_json({"script": script})
    else:
        click.echo(script, nl=False)


@job.command()
@launch_options
@json_option
def submit(*, as_json: bool, **options: Any) -> None:
    """Submit the job that launches agents, and wait for nothing, as `launch --detach`.

    \b
    Example:
      academy-hpc job submit sim.py:Simulator --site perlmutter -A m1234 -t 2:00:00 --nodes 2 --count 16
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.cli.launch import launch_until

    launch_until("submitted", None, options, as_json=as_json)


@job.command()
@run_argument
@json_option
def status(run: Run, as_json: bool) -> None:
    """Ask the scheduler for the jobs of a run.

    \b
    Example:
      academy-hpc job status latest
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.cli.job_states import job_states

    states = job_states(run)
    jobs: list[dict[str, Any]] = [
        {
            "job_id": record.job_id,
            "number": record.number,
            "time_s": record.time_s,
            "state": said.state if (said := states.get(record.job_id)) else "unknown",
            "reason": said.reason if said else "",
            "exit_code": run.job_exit_code(record.job_id),
        }
        for record in run.jobs()
    ]
    if as_json:
        show_json({"run": run.id, "jobs": jobs})
        return
    rows = [(j["number"], j["job_id"], j["state"], age(j["time_s"]), j["exit_code"], j["reason"]) for j in jobs]
    columns = ("number", "job", "state", "submitted", "exit code", "reason")
    show_table(columns, rows, empty=f"Nothing was submitted of {run.id}.")


@job.command()
@run_argument
@json_option
def cancel(run: Run, as_json: bool) -> None:
    """End the job of a run at once, and start no other; `agents stop` asks the agents to end first.

    \b
    Example:
      academy-hpc job cancel latest
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.launch.batch import BatchLauncher

    say_when_interrupted(f"`academy-hpc job status {run.id}` says whether it was cancelled.")
    BatchLauncher.of_run(run).cancel(run)
    if as_json:
        show_json({"run": run.id, "cancelled": [record.job_id for record in run.jobs()[-1:]]})
    else:
        click.echo(f"{run.id} was cancelled.")


@job.command()
@run_argument
@json_option
def resubmit(run: Run, as_json: bool) -> None:
    """Submit the next job of a run, if it is to go on: a job does so itself when its walltime is near.

    \b
    Example, where a run has failed and its agents' mailboxes are open still:
      academy-hpc job resubmit latest
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.launch.chain import resubmit as submit_next

    said = submit_next(run)
    if as_json:
        show_json({"run": run.id, "jobs": [record.job_id for record in run.jobs()], "said": said})
    else:
        click.echo(said)
