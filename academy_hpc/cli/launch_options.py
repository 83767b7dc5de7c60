"""What `launch`, `job render` and `job submit` ask for: which agents, and in what kind of job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from academy_hpc.cli.parameters import JsonType, NamedJsonType
from academy_hpc.cli.site import complete_sites

__all__ = ["SECONDS", "job_options", "launch_options"]

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
COUNT = click.IntRange(1)
SECONDS = click.FloatRange(0, min_open=True)

AGENTS = (
    click.argument("agent", metavar="MODULE:CLASS|FILE.py:CLASS"),
    click.option(
        "--count", type=COUNT, metavar="N", default=1, show_default=True, help="How many agents of this class."
    ),
    click.option("--name", help="Name of the agent; of several, NAME-1 and so on. Default: the class in lower case."),
    click.option(
        "--arg",
        "args",
        type=JsonType(),
        multiple=True,
        help="An argument of the constructor, as JSON; a word that is none is a text. Repeat for more.",
    ),
    click.option("--kwarg", "kwargs", type=NamedJsonType(), multiple=True, help="The same by name: NAME=VALUE."),
    click.option(
        "--agents-per-worker",
        type=COUNT,
        metavar="N",
        default=1,
        show_default=True,
        help="How many share a process, at the most.",
    ),
    click.option(
        "--checkpoint-every",
        type=SECONDS,
        metavar="SECONDS",
        help="Seconds between checkpoints of agents that have a state.",
    ),
)
PLACES = (
    click.option("--site", shell_complete=complete_sites, help="Profile of the machine; see `academy-hpc site list`."),
    click.option("--scheduler", help="Its scheduler alone: slurm, pbs, torque, lsf, flux, gridengine, local."),
    click.option(
        "--exchange",
        help="Where the exchange is. login: that of `academy-hpc exchange start`, which is started if it does not "
        "run; job: on the first node of the job; or a connection file. Default: ACADEMY_HPC_CONNECTION, else as the "
        "site says.",
    ),
)
JOB = (
    click.option("--account", "-A", help="Who pays."),
    click.option("--queue", "--partition", "-q", "-p", help="The queue, or partition."),
    click.option("--qos", help="The quality of service."),
    click.option("--nodes", "-N", type=COUNT, metavar="N", help="How many. Default: as many as the workers need."),
    click.option("--workers-per-node", type=COUNT, metavar="N", help="At the most. Default: spread evenly."),
    click.option("--cpus-per-worker", type=COUNT, metavar="N", help="To be reserved."),
    click.option("--walltime", "-t", help="Of each job: 2:00:00, 1-12:00:00, 90m, 2h."),
    click.option("--constraint", "-C", help="Features of the nodes."),
    click.option("--gres", help="Generic resources of each node, such as gpu:4."),
    click.option("--filesystems", help="Those that must be up, such as home:eagle."),
    click.option("--reservation", help="To be used."),
    click.option(
        "--directive", "directives", multiple=True, help="A line for the scheduler, without #SBATCH or #PBS. Repeat."
    ),
    click.option(
        "--prelude", multiple=True, help="A line of shell before the workers, such as 'module load cuda'. Repeat."
    ),
    click.option(
        "--max-jobs", type=COUNT, metavar="N", help="Most jobs of the run, each following the walltime of the last."
    ),
    click.option(
        "--max-restarts",
        type=click.IntRange(0),
        metavar="N",
        help="How often a worker that was killed comes back in one job.",
    ),
)


def launch_options(function: FunctionT) -> FunctionT:
    """The options of the command, in the order of its help."""
    for option in reversed((*AGENTS, *PLACES, *JOB)):
        function = option(function)
    return function


def job_options(function: FunctionT) -> FunctionT:
    """Those of the job alone."""
    for option in reversed(JOB):
        function = option(function)
    return function
