"""The end of agents that no worker is going to run again: whoever waits for them is told."""

from __future__ import annotations

import asyncio
import os

import msgspec

from academy_hpc.errors import LaunchError
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.launch.run import Run
from academy_hpc.launch.spec import AgentSpec, LaunchSpec, Origin, WorkerReport
from academy_hpc.worker.deadline import with_environment
from academy_hpc.worker.ranks import rank_here, share_here
from academy_hpc.worker.record import run_here
from academy_hpc.worker.reports import Reports
from academy_hpc.worker.running import event_runner

__all__ = ["give_up"]


def give_up(text: str, reason: str) -> WorkerReport:
    """Report that the agents of this rank are lost, and close their mailboxes, by their own rights.

    Those that have ended before are left as they are; so are the mailboxes of those with ``terminate_on_error=False``.
    Where no rank is told, all agents of the spec are meant.

    Args:
        text: Of a `LaunchSpec`.
        reason: Why they won't come back, for people.

    Raises:
        LaunchError: The text is no launch spec.
        ExchangeError: The exchange can't be used from here.
    """
    spec, rank = with_environment(LaunchSpec.from_json(text), os.environ), 0
    if rank_here(os.environ) is not None:
        spec, rank = share_here(spec, os.environ)
    run = run_here(os.environ)
    spec = msgspec.structs.replace(spec, attempt=max(spec.attempt, _last_attempt(run, rank)))
    reports = Reports(spec, Origin.here(), rank=rank, run=run)
    reports.recall(run)
    left = [agent for agent in spec.agents if not reports.ended(agent)]
    with reports.record, event_runner() as runner:
        if left:
            runner.run(_give_up(spec, left, reports, reason))
    return reports.worker_report()


def _last_attempt(run: Run | None, rank: int) -> int:
    """Which life of the worker was the last, as the script around it has counted."""
    if run is None:
        return 1
    try:
        return int((run.path / "workers" / f"{rank}.attempt").read_text())
    except FileNotFoundError:
        return 1
    except (OSError, ValueError) as error:
        raise LaunchError(f"The number of the last life of worker {rank} can't be read: {error}.") from None


async def _give_up(spec: LaunchSpec, agents: list[AgentSpec], reports: Reports, reason: str) -> None:
    info = spec.connection
    if isinstance(info, str):
        info = await asyncio.to_thread(ConnectionInfo.read, info)
    reports.factory = HttpExchangeFactory.from_connection_info(info, options=spec.options)
    for agent in agents:
        reports.end(agent, "lost", "lost", reason=reason)
    first = agents[0]
    async with await reports.factory.create_transport(first.agent_id, registration=first.registration):  # shared by all
        await asyncio.gather(*(_give_up_one(agent, reports) for agent in agents))


async def _give_up_one(agent: AgentSpec, reports: Reports) -> None:
    await reports.tell_end(agent)
    if agent.config.terminate_on_error:
        await reports.terminate(agent)
