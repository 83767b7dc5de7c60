"""``academy-hpc agents``: see, call and end the agents of a run."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from academy_hpc.cli.console import Group, fail, json_option, say, say_when_interrupted, show_json, show_table
from academy_hpc.cli.parameters import JsonType, NamedJsonType, complete_names, run_argument

if TYPE_CHECKING:
    from academy_hpc.cli.run_agents import RunAgent
    from academy_hpc.launch.run import Run

__all__ = ["agents"]


@click.group(cls=Group)
def agents() -> None:
    """See, call and end the agents of a run, and read their logs.

    A run is named by its id, by a beginning of the id that only one has, or as `latest`.
    """


@agents.command("list")
@run_argument
@json_option
def list_(run: Run, as_json: bool) -> None:
    """List the agents of a run: how and where they are, and when they last gave a sign of life.

    \b
    Example:
      academy-hpc agents list latest
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.cli.run_agents import agents_of

    known = agents_of(run)
    seen = _seen(run, known)
    if as_json:
        show_json([_agent_json(agent, seconds) for agent, seconds in zip(known, seen, strict=True)])
        return
    rows = [
        (
            agent.name,
            agent.state,
            agent.rank,
            agent.host,
            agent.attempt or "",
            "" if seconds is None else f"{seconds:.0f} s",
            agent.reason,
        )
        for agent, seconds in zip(known, seen, strict=True)
    ]
    columns = ("agent", "state", "worker", "host", "life", "last seen", "reason")
    show_table(columns, rows, empty=f"{run.id} has no agents.")


def _agent_json(agent: RunAgent, seconds: float | None) -> dict[str, Any]:
    return {
        "name": agent.name,
        "uid": str(agent.agent_id.uid),
        "state": agent.state,
        "worker": agent.rank,
        "host": agent.host or None,
        "attempt": agent.attempt,
        "reason": agent.reason,
        "seconds_since_seen": seconds,
    }


def _seen(run: Run, known: list[RunAgent]) -> list[float | None]:
    """What the exchange says; without it, the run's directory says enough to be shown."""
    from academy_hpc.cli.run_agents import seconds_since_seen
    from academy_hpc.errors import AcademyError

    try:
        return seconds_since_seen(run, known)
    except AcademyError as error:
        say(f"Shown is what the workers wrote last: {error}")
        return [None] * len(known)


@agents.command(context_settings={"ignore_unknown_options": True})  # -5 is a value
@run_argument
@click.argument("name", shell_complete=complete_names)
@click.argument("action")
@click.argument("arguments", nargs=-1, type=JsonType(), metavar="[VALUE]...")
@click.option("--kwarg", "kwargs", type=NamedJsonType(), multiple=True, help="A keyword argument, NAME=VALUE; repeat.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds to wait for the answer; then the action is cancelled.",
)
@json_option
def call(
    run: Run,
    name: str,
    action: str,
    arguments: tuple[Any, ...],
    kwargs: tuple[tuple[str, Any], ...],
    timeout: float,
    as_json: bool,
) -> None:
    """Call an action of an agent and print its result, which has to be JSON.

    Each VALUE is JSON; a word that is none is a text.

    \b
    Examples:
      academy-hpc agents call latest sim-1 run 100 --kwarg output=energy.csv
      academy-hpc agents call latest sim-1 move '[0.5, 1.0]' '"7"'
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.cli.run_agents import call_agent, find_agent
    from academy_hpc.errors import AcademyRemoteError

    agent = find_agent(run, name)
    if agent.ended:
        reason = f", {agent.reason.rstrip('.')}" if agent.reason else ""
        raise fail(f"{name} has ended: {agent.state}{reason}.")
    say_when_interrupted(f"The call was cancelled; {name} goes on.")
    try:
        result = call_agent(run, agent, action, arguments, dict(kwargs), timeout_s=timeout)
    except AcademyRemoteError as error:
        *before, last = str(error).strip().splitlines() or [""]
        say("\n".join(before))
        raise fail(f"{action} of {agent.name} raised {last}") from None
    except TimeoutError:
        raise fail(
            f"{name} ({agent.state}) has not answered within {timeout:g} s; `academy-hpc agents list {run.id}` "
            "says how it is, --timeout has the call wait longer."
        ) from None
    if as_json:
        show_json({"agent": name, "action": action, "result": result})
    else:
        click.echo(result if isinstance(result, str) else json.dumps(result, ensure_ascii=False))


@agents.command()
@run_argument
@click.argument("name", required=False, shell_complete=complete_names)
@click.option("--follow", "-f", is_flag=True, help="Go on showing what is added, until the run ends, or Ctrl-C.")
@json_option
def logs(run: Run, name: str | None, follow: bool, as_json: bool) -> None:
    """Show the logs of a run's jobs and workers, or of the worker of one agent, which it may share with others.

    \b
    Example:
      academy-hpc agents logs latest sim-1 --follow
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.cli.logs import follow_logs, log_lines
    from academy_hpc.cli.run_agents import find_agent

    rank = None
    if name is not None and (rank := find_agent(run, name).rank) is None:
        raise fail(f"{name} has no worker yet; `academy-hpc agents logs {run.id}` shows what the others write.")
    say_when_interrupted(f"The run goes on; `academy-hpc agents list {run.id}` says how it is.")
    for label, line in follow_logs(run, rank) if follow else log_lines(run, rank):
        if as_json:
            show_json({"source": label, "line": line})
        else:
            click.echo(line if name else f"{label} | {line}")


@agents.command()
@run_argument
@click.argument("names", nargs=-1, shell_complete=complete_names)
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Seconds that the agents may take to end; then their jobs are cancelled, or their mailboxes closed.",
)
@json_option
def stop(run: Run, names: tuple[str, ...], timeout: float, as_json: bool) -> None:
    """End a run: ask all its agents to end, then cancel its jobs. With NAMES, end these agents alone.

    \b
    Examples:
      academy-hpc agents stop latest
      academy-hpc agents stop latest sim-3 sim-7
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.cli.stopping import stop_agents, stop_run

    say_when_interrupted(f"Some may go on: run `academy-hpc agents stop {run.id}` again.")
    ended = stop_agents(run, names, timeout_s=timeout) if names else stop_run(run, timeout_s=timeout)
    if as_json:
        show_json({"run": run.id, "agents": ended})
    else:
        for agent, how in ended.items():
            click.echo(f"{agent}: {how}")
