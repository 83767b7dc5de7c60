"""``academy-hpc exchange host``: what a job script runs on its first node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from academy_hpc.cli.console import Command
from academy_hpc.cli.exchange_options import LEVELS
from academy_hpc.cli.parameters import run_argument

if TYPE_CHECKING:
    from academy_hpc.launch.run import Run

__all__ = ["host"]


@click.command(cls=Command)
@run_argument
@click.option("--interface", help="Bind and advertise this network interface only, such as hsn0.")
@click.option("--log-level", type=LEVELS, default="WARNING", show_default=True, help="Least level of the log.")
def host(run: Run, interface: str | None, log_level: str) -> None:
    """Serve the exchange of a run, on the first node of its job, until SIGTERM or SIGINT.

    Job scripts of runs with an exchange of their own do this. Its state is on the node while it serves, and moves to
    the run directory at the end, where the next job of the run finds it.

    \b
    Example, in a job script written by hand:
      academy-hpc exchange host sim-20260805-101500-4f1a &

    Exit code 0: stopped as it was told, and the state is saved; 1: not, with the reason.
    """  # noqa: D301 - click takes the character for "don't wrap what follows"
    from academy_hpc.launch.hosting import host_exchange

    host_exchange(run, interface=interface, log_level=log_level)
