"""``academy-hpc launch``: agents in jobs, that go on without the program that launched them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from academy_hpc.cli.console import Command, fail, json_option, say, say_when_interrupted, show_json
from academy_hpc.cli.launch_options import SECONDS, launch_options

if TYPE_CHECKING:
    from collections.abc import Collection

    from academy_hpc.cli.launching import Outcome, Until, Waits
    from academy_hpc.launch.run import Run
    from academy_hpc.launch.spec import AgentReport

__all__ = ["launch", "launch_until"]

STOP_S = 10.0


@click.command(cls=Command)
@launch_options
@click.option(
    "--timeout",
    type=SECONDS,
    metavar="SECONDS",
    help="Seconds for all agents to be ready, waiting in the queue included; then they are left as they are, and "
    "those that are missing are listed. Default: any time.",
)
@click.option("--detach", "until", flag_value="submitted", help="Return when the job is submitted.")
@click.option("--follow", "until", flag_value="ended", help="Stay, and tell how the agents end, until all have.")
@json_option
def launch(*, until: Until | None, timeout: float | None, as_json: bool, **options: Any) -> None:
    """Launch agents in a job of this machine's scheduler, and return when all are ready: they go on.

    The class is imported from the current directory, or from the file. The id of the run is printed as soon as the
    job is submitted; `agents` and `job` take it.

    \b
    Examples:
      academy-hpc launch sim.py:Simulator --site perlmutter -A m1234 -t 2:00:00 --nodes 2 --count 16
      academy-hpc launch package.module:Monitor --kwarg interval=5 --name monitor --detach

    Exit code 0: all are ready; 1: they are not, and why; 2: wrong usage; 130: interrupted, and the run goes on.
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    launch_until(until or "ready", timeout, options, as_json=as_json)


def launch_until(until: Until, timeout_s: float | None, options: dict[str, Any], *, as_json: bool) -> None:
    """Launch what the options say, and tell about it."""
    import asyncio

    from academy_hpc.cli.launch_plan import plan_launch
    from academy_hpc.cli.launching import Launch
    from academy_hpc.cli.login_exchange import connection_for

    plan = plan_launch(**options)
    connection = connection_for(plan.exchange)
    say_when_interrupted("Interrupted before a job was submitted.")
    show = _Show(as_json=as_json)
    outcome = asyncio.run(Launch(plan, show).run(connection, until=until, timeout_s=timeout_s))
    show.outcome(outcome)


class _Show:
    """What is told of a launch, for people or for programs."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._run: Run | None = None
        self._ended = self._failed = 0

    def submitted(self, run: Run, job_id: str) -> None:
        """The job is submitted."""
        self._run = run
        say_when_interrupted(f"The run goes on. {_how_to_go_on(run)}")
        if self._as_json:
            show_json({"run": run.id, "state": "submitted", "job_id": job_id, "path": str(run.path)})
        else:
            click.echo(f"Run {run.id}, job {job_id}")

    def ready(self, names: Collection[str], waits: Waits) -> None:
        """All agents are ready."""
        assert self._run is not None  # told when it was submitted
        if self._as_json:
            show_json({"run": self._run.id, "state": "ready", "agents": list(names), **waits._asdict()})
        else:
            click.echo(f"Ready after {waits.queue_s:.1f} s in the queue and {waits.start_s:.1f} s to start.")

    def ended(self, name: str, report: AgentReport) -> None:
        """One agent has ended."""
        self._ended += 1
        self._failed += report.state in ("failed", "lost")
        if self._as_json:
            show_json({"agent": name, "state": report.state, "cause": report.cause, "reason": report.reason})
        else:
            click.echo(f"{name}: {report.state}{f', {report.reason}' if report.reason else ''}")

    def outcome(self, outcome: Outcome) -> None:
        """The launch is over."""
        assert self._run is not None  # told when it was submitted
        if outcome.error is not None:
            self._not_ready(self._run, outcome)
        if self._failed:
            raise fail(
                f"{self._failed} agents have ended badly; `academy-hpc agents logs {self._run.id}` may say more."
            )
        if not (self._ended or self._as_json):
            click.echo(_how_to_go_on(self._run))

    def _not_ready(self, run: Run, outcome: Outcome) -> None:
        from academy_hpc.cli.run_agents import agents_of
        from academy_hpc.cli.stopping import stop_run

        known = agents_of(run)
        missing = [agent for agent in known if agent.state != "ready"]
        if outcome.failed:
            if any(not agent.ended for agent in known):
                say("The others are ended, too.")
            stop_run(run, timeout_s=STOP_S)
        if self._as_json:
            words = [{"name": agent.name, "state": agent.state, "reason": agent.reason} for agent in missing]
            show_json({"run": run.id, "state": "failed" if outcome.failed else "late", "missing": words})
        for note in getattr(outcome.error, "__notes__", ()):
            say(note)
        raise fail(f"{outcome.error}" + ("" if outcome.failed else f"\nThe run goes on. {_how_to_go_on(run)}"))


def _how_to_go_on(run: Run) -> str:
    return (
        f"`academy-hpc agents list {run.id}` shows its agents, `agents call` calls one, "
        f"`academy-hpc agents stop {run.id}` ends it."
    )
