"""What a command line asks to be launched, as values that the launching modules take."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from academy_hpc.agent import RuntimeConfig
from academy_hpc.cli.agent_class import load_agent_class
from academy_hpc.errors import LaunchError
from academy_hpc.exchange.http.connection import CONNECTION_VARIABLE
from academy_hpc.launch.batch import BatchLauncher
from academy_hpc.launch.request import AgentLaunch
from academy_hpc.launch.site import Site
from academy_hpc.launch.source import source_of

__all__ = ["LaunchPlan", "plan_launch"]


class LaunchPlan(NamedTuple):
    """Agents, and in what kind of job they run.

    Attributes:
        name: What the run is called.
        agents: What is to be launched.
        agents_per_worker: How many share a process.
        launcher: Where.
        exchange: ``"login"``, ``"job"``, or the path of a connection file.
    """

    name: str
    agents: list[AgentLaunch[Any]]
    agents_per_worker: int
    launcher: BatchLauncher
    exchange: str


def plan_launch(
    agent: str,
    *,
    count: int,
    name: str | None,
    args: tuple[Any, ...],
    kwargs: tuple[tuple[str, Any], ...],
    agents_per_worker: int,
    checkpoint_every: float | None,
    site: str | None,
    scheduler: str | None,
    exchange: str | None,
    **job: Any,
) -> LaunchPlan:
    """What the options of a command mean; see `academy_hpc.cli.launch_options`.

    Raises:
        LaunchError: There is no such class or site, or an option is missing or makes no sense.
    """
    if site is not None and scheduler is not None:
        raise LaunchError("--site names a machine with its scheduler, --scheduler a scheduler alone: give one.")
    agent_class = load_agent_class(agent)
    name = name or agent_class.__name__.lower()
    config = None if checkpoint_every is None else RuntimeConfig(checkpoint_s=checkpoint_every)
    try:
        source_of(agent_class, args, dict(kwargs))
    except TypeError as error:
        raise LaunchError(str(error)) from None
    agents = [
        AgentLaunch(agent_class, args=args, kwargs=dict(kwargs), name=one, config=config)
        for one in ([name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)])
    ]
    given: dict[str, Any] = {key: value for key, value in job.items() if value not in (None, ())}
    where = site or scheduler
    place = exchange or os.environ.get(CONNECTION_VARIABLE) or Site.load(where, given=given).exchange
    given |= {"name": name} | ({"exchange": "job"} if place == "job" else {})
    return LaunchPlan(name, agents, agents_per_worker, BatchLauncher(where, **given), place)
