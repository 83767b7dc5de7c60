"""``academy-hpc worker``: what every job script runs in the end, once for each rank."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

import click

from academy_hpc.cli.console import Command, fail, json_option, say

__all__ = ["worker"]

# A spec may hold agents with their data.
SPEC_BYTES = 1 << 30


@click.command(cls=Command)
@click.option(
    "--spec",
    required=True,
    metavar="FILE",
    help="The launch spec, in a file closed to others (600) in a directory closed to others (700). -: standard input.",
)
@click.option("--give-up", metavar="REASON", help="Run nothing: tell all who wait for the agents that they are lost.")
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    show_default=True,
    help="Least level of the log, on standard error.",
)
@json_option
def worker(*, spec: str, give_up: str | None, log_level: str, as_json: bool) -> None:
    """Run the agents of a launch spec, or this rank's share of them, until they have ended.

    SIGTERM, SIGINT, SIGUSR1, SIGUSR2 and the deadline in ACADEMY_HPC_DEADLINE (Unix time in seconds) end them in order:
    their requests and their state wait for the next worker with the same spec.

    \b
    Example, in a job script:
      export ACADEMY_HPC_DEADLINE=$(($(date +%s) + 7200))
      srun academy-hpc worker --spec ~/run/spec.json

    Exit code 0: all its agents have ended, or the rank has none; 1: one failed or could not start; 75: told to end, and
    they want to go on; 2: wrong usage.
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.worker.running import AGAIN, exit_code, run_spec

    logging.basicConfig(level=log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    text = _read(spec)
    if give_up is not None:
        from academy_hpc.worker.giving_up import give_up as give_up_agents

        report = give_up_agents(text, give_up)
    else:
        report = run_spec(text, os.environ, overdue=lambda: _leave(AGAIN))
    if as_json:
        click.echo(report.to_json())
    elif report.error:
        raise fail(report.error)
    for agent in report.agents:
        say(f"{agent.agent_id} {agent.state}{f': {agent.reason}' if agent.reason else ''}")
        if agent.checks:
            say(agent.checks)
    _leave(exit_code(report))


def _leave(code: int) -> NoReturn:
    """Python would wait for threads that agents have left, however long they run, and the job script with it."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _read(spec: str) -> str:
    """Raises OSError: there is no such file, or others can read or write it."""
    from academy_hpc.exchange.http.private_file import read_private

    return sys.stdin.read() if spec == "-" else read_private(spec, limit_bytes=SPEC_BYTES)
