"""The agents of a run, as its directory and its exchange know them, for the commands that show and reach them."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import msgspec

from academy_hpc.errors import ConnectionInfoError, ExchangeError, LaunchError
from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.handle import Handle
from academy_hpc.identifiers import AgentId
from academy_hpc.launch.chain import AGAIN
from academy_hpc.launch.run import Run, WorkerStatus
from academy_hpc.launch.spec import AgentReport, LaunchSpec

__all__ = [
    "ENDED",
    "RunAgent",
    "agents_of",
    "call_agent",
    "exchange_of",
    "find_agent",
    "last_seen",
    "seconds_since_seen",
]

ENDED = ("finished", "failed", "stopped", "lost")
# A command's user waits at the terminal: an exchange that has gone is told soon.
OPTIONS = ClientOptions(reconnect_s=10.0, request_timeout_s=20.0)


class RunAgent(msgspec.Struct, frozen=True):
    """One agent of a run.

    Attributes:
        name: What it is called.
        agent_id: Which entity.
        state: ``queued``, ``starting``, ``ready``, or how it ended.
        rank: Of its worker; None: not known yet.
        attempt: Which life this is; 0: it has had none.
        host: Where its worker runs, or ran last.
        reason: Why it is so, where that is known.
        time_s: Unix time at which its worker wrote this.
    """

    name: str
    agent_id: AgentId[Any]
    state: str = "queued"
    rank: int | None = None
    attempt: int = 0
    host: str = ""
    reason: str = ""
    time_s: float | None = None

    @property
    def ended(self) -> bool:
        """Whether it has no life before it."""
        return self.state in ENDED


def agents_of(run: Run) -> list[RunAgent]:
    """All agents of a run, in the order of their launch. Raises LaunchError."""
    spec, status = run.spec(), run.status()
    ranks = _ranks(spec)
    told = {report.agent_id: (worker, report) for worker in _workers(run) for report in worker.agents}
    agents = [
        _agent(agent.agent_id, ranks.get(agent.agent_id), *told.get(agent.agent_id, (None, None)))
        for agent in spec.agents
    ]
    gone = {rank: f"its worker ended with exit status {code}" for rank, code in _final_codes(run, agents)}
    over = (status.reason or "its run has ended") if status.state in ("ended", "failed") else None
    return [agent if agent.ended else _without_worker(agent, gone.get(agent.rank, over)) for agent in agents]


def find_agent(run: Run, name: str) -> RunAgent:
    """The agent with this name, or with a uid that begins so. Raises LaunchError: there is none, or several."""
    agents = agents_of(run)
    found = [agent for agent in agents if agent.name == name] or [
        agent for agent in agents if name and str(agent.agent_id.uid).startswith(name)
    ]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} agents are called" if found else "There is no agent"
    raise LaunchError(f"{what} {name!r} in the run {run.id}; `academy-hpc agents list {run.id}` lists them.")


def failure_of(run: Run) -> LaunchError | None:
    """One error for all agents that have ended badly; None: none has. Raises LaunchError: the run can't be read."""
    agents = agents_of(run)
    bad = [f"{agent.name}: {agent.reason or agent.state}" for agent in agents if agent.state in ("failed", "lost")]
    if not bad:
        return None
    return LaunchError(f"{len(bad)} of {len(agents)} agents have ended badly. " + "\n".join(bad))


def exchange_of(run: Run) -> HttpExchangeFactory:
    """Makes clients of the run's exchange, for users of their own: whoever launched the run goes on hearing of it.

    Raises:
        LaunchError: The run has no exchange yet, or no more.
    """
    try:
        info = ConnectionInfo.read(run.connection_path)
    except ConnectionInfoError as error:
        raise LaunchError(f"The exchange of {run.id} can't be reached: {error}") from None
    return HttpExchangeFactory.from_connection_info(info, options=OPTIONS)


def seconds_since_seen(run: Run, agents: list[RunAgent]) -> list[float | None]:
    """How long ago each gave a sign of life; None: it never did, or has ended. Raises LaunchError, ExchangeError."""
    if all(agent.ended for agent in agents):
        return [None] * len(agents)
    return asyncio.run(_seconds_since_seen(exchange_of(run), agents))


async def _seconds_since_seen(factory: HttpExchangeFactory, agents: list[RunAgent]) -> list[float | None]:
    async with await factory.create_user_client() as client:
        return await last_seen(client, agents)


async def last_seen(client: UserExchangeClient, agents: list[RunAgent]) -> list[float | None]:
    """The same by a client that there is."""

    async def seen(agent: RunAgent) -> float | None:
        with contextlib.suppress(ExchangeError):
            return await client.heartbeat_status(agent.agent_id)
        return None

    return await asyncio.gather(*map(seen, agents))


def call_agent(
    run: Run,
    agent: RunAgent,
    action: str,
    arguments: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    timeout_s: float,
) -> Any:
    """The result of an action, as JSON.

    Raises:
        AcademyRemoteError: The action raised, with its traceback as text.
        TimeoutError: It has not answered in time, and was cancelled.
        LaunchError, AcademyError: It could not be called.
    """
    return asyncio.run(_call(exchange_of(run), agent, action, arguments, kwargs, timeout_s=timeout_s))


async def _call(
    factory: HttpExchangeFactory,
    agent: RunAgent,
    action: str,
    arguments: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    timeout_s: float,
) -> Any:
    async with await factory.create_user_client() as client:
        # Read as JSON alone: this program has not loaded the agent's modules.
        handle = Handle[Any](agent.agent_id, exchange=client, allowed_deserializers={"json"}, timeout=timeout_s)
        return await handle.action(action, *arguments, **kwargs)


def _ranks(spec: LaunchSpec) -> dict[AgentId[Any], int]:
    """Which worker has which agent; empty where that depends on how many are started."""
    if spec.ranks is None:
        return {}
    return {agent.agent_id: rank for rank in range(spec.ranks) for agent in spec.share(rank, spec.ranks).agents}


def _final_codes(run: Run, agents: list[RunAgent]) -> list[tuple[int | None, int]]:
    """Of the workers that have ended for good."""
    ranks = {agent.rank for agent in agents if agent.rank is not None and not agent.ended}
    codes = [(rank, run.exit_code(rank)) for rank in ranks]
    return [(rank, code) for rank, code in codes if code is not None and code != AGAIN]


def _without_worker(agent: RunAgent, reason: str | None) -> RunAgent:
    """It can't have a life without a worker, whatever was said before; `reason`: why it has none, None: it may."""
    return agent if reason is None else msgspec.structs.replace(agent, state="lost", reason=reason)


def _workers(run: Run) -> list[WorkerStatus]:
    ranks = [int(path.stem) for path in Path(run.path / "workers").glob("*.json") if path.stem.isdigit()]
    return [status for rank in ranks if (status := run.worker(rank)) is not None]


def _agent(
    agent_id: AgentId[Any], rank: int | None, worker: WorkerStatus | None, report: AgentReport | None
) -> RunAgent:
    name = agent_id.name or str(agent_id.uid)[:8]
    if worker is None or report is None:
        return RunAgent(name, agent_id, rank=rank)
    state = "queued" if report.again else {"arrived": "starting"}.get(report.state, report.state)
    return RunAgent(
        name, agent_id, state, worker.rank, report.attempt, worker.origin.host, report.reason, worker.time_s
    )
