"""The end of a run, or of some of its agents: they are asked first."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from academy_hpc.cli.console import say
from academy_hpc.cli.run_agents import RunAgent, agents_of, exchange_of, find_agent, last_seen
from academy_hpc.errors import AcademyError
from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.transport import STALE_S
from academy_hpc.handle import Handle
from academy_hpc.launch.batch import BatchLauncher
from academy_hpc.launch.run import Run

__all__ = ["stop_agents", "stop_run"]

POLL_S = 0.2


def stop_run(run: Run, *, timeout_s: float) -> dict[str, str]:
    """End all agents and jobs of a run, of which nothing is started again from now on.

    Returns:
        What became of each agent, by name.

    Raises:
        LaunchError: Its jobs could not be cancelled.
    """
    run.ask_to_stop()
    before, ended = agents_of(run), set[str]()
    try:
        ended = _end(run, before, timeout_s=timeout_s)
    except AcademyError as error:
        say(f"The agents could not be asked to end: {error}")
    BatchLauncher.of_run(run).cancel(run, reason="it was asked to end")
    return {agent.name: _outcome(agent, ended, "cancelled with its job") for agent in before}


def stop_agents(run: Run, names: Iterable[str], *, timeout_s: float) -> dict[str, str]:
    """End some agents for good; the others of the run go on. Raises LaunchError, ExchangeError."""
    before = [find_agent(run, name) for name in names]
    ended = _end(run, before, timeout_s=timeout_s)
    return {agent.name: _outcome(agent, ended, "its mailbox was closed") for agent in before}


def _end(run: Run, agents: list[RunAgent], *, timeout_s: float) -> set[str]:
    """Ask the living to end, close the mailboxes of those that do not; return the names of those that have ended."""
    living = [agent for agent in agents if not agent.ended]
    return asyncio.run(_end_all(run, exchange_of(run), living, timeout_s=timeout_s)) if living else set()


async def _end_all(run: Run, factory: HttpExchangeFactory, agents: list[RunAgent], *, timeout_s: float) -> set[str]:
    ended: set[str] = set()
    async with await factory.create_user_client() as client:
        seen = await last_seen(client, agents)
        here = [agent for agent, seconds in zip(agents, seen, strict=True) if seconds is not None and seconds < STALE_S]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(_ask(client, agent) for agent in here))
                await _until_ended(run, here, ended)
        left = [agent for agent in agents if agent.name not in ended]
        await asyncio.gather(*(client.terminate(agent.agent_id) for agent in left), return_exceptions=True)
    return ended


async def _ask(client: UserExchangeClient, agent: RunAgent) -> None:
    with contextlib.suppress(AcademyError):  # it has ended meanwhile
        await Handle[object](agent.agent_id, exchange=client).shutdown()


async def _until_ended(run: Run, agents: list[RunAgent], ended: set[str]) -> None:
    """Until the workers have written that all have ended; those that have are added to `ended`."""
    names = {agent.name for agent in agents}
    while not names <= ended:
        now = await asyncio.to_thread(agents_of, run)
        ended.update(agent.name for agent in now if agent.ended and agent.name in names)
        await asyncio.sleep(POLL_S)


def _outcome(agent: RunAgent, ended: set[str], otherwise: str) -> str:
    if agent.ended:
        return f"had ended: {agent.state}"
    return "ended" if agent.name in ended else otherwise
