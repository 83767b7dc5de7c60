"""Processes of users and of agents who write down what they do: each call, each answer, each execution.

``python -m tests.faults.participants`` takes its part, one JSON object, from the first line of standard input. Agents
run until they are killed; users call them until standard input ends, and then wait for what is not answered.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import sys
from typing import Any

import msgspec

from academy_hpc.agent import Agent, action
from academy_hpc.errors import ListenerSupersededError
from academy_hpc.exchange.http import dial
from academy_hpc.exchange.http.client import HttpAgentRegistration, HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.handle import Handle
from academy_hpc.identifiers import AgentId
from academy_hpc.runtime import Runtime
from tests.faults.history import Event, Journal, Kind, Notes

__all__ = ["SUPERSEDED", "AgentPart", "UserPart", "Worker", "record_call"]

SUPERSEDED = 3
"""Exit code of a process whose agents were taken over by a newer copy."""

PATIENCE_S = 120.0


class AgentPart(msgspec.Struct, tag="agents"):
    """A process with these agents."""

    connection: str
    registrations: dict[str, str]
    journal: str
    heartbeat_s: float | None = None
    files: int | None = None


class UserPart(msgspec.Struct, tag="users"):
    """A process with these users, each of whom calls all agents, ``at_once`` calls at a time."""

    connection: str
    names: list[str]
    agents: dict[str, AgentId[Any]]
    journal: str
    seed: int
    heartbeat_s: float | None = None
    at_once: int = 16
    large: bool = True


class Worker(Agent):
    """Writes down each execution."""

    def __init__(self, name: str, journal: Journal | Notes) -> None:
        self._name = name
        self._journal = journal
        self._life = str(os.getpid())

    @action
    async def work(self, sender: str, number: int, pause_s: float, ballast: bytes) -> tuple[str, int]:
        """Life of this agent, and the size of the ballast."""
        self._journal.write(Event("start", sender, self._name, number, self._life))
        await asyncio.sleep(pause_s)
        self._journal.write(Event("end", sender, self._name, number, self._life))
        return self._life, len(ballast)

    @action(idempotent=False)
    async def work_once(self, sender: str, number: int, pause_s: float, ballast: bytes) -> tuple[str, int]:
        return await self.work(sender, number, pause_s, ballast)


class Caller:
    """One user at work."""

    def __init__(self, name: str, part: UserPart, journal: Journal, seed: int) -> None:
        self._name = name
        self._part = part
        self._journal = journal
        self._rng = random.Random(seed)
        self._numbers = dict.fromkeys(part.agents, 0)
        self._room = asyncio.Semaphore(part.at_once)
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self, factory: HttpExchangeFactory, ended: asyncio.Event) -> None:
        async with await factory.create_user_client(name=self._name) as client:
            say_started()
            handles = {name: Handle(agent, exchange=client) for name, agent in self._part.agents.items()}
            while not ended.is_set():
                await self._room.acquire()
                self._start(*self._rng.choice(list(handles.items())))
                await asyncio.sleep(self._rng.uniform(0.0, 0.01))
            await asyncio.wait(self._calls, timeout=PATIENCE_S)

    def _start(self, receiver: str, handle: Handle[Worker]) -> None:
        self._numbers[receiver] += 1
        once = self._rng.random() < 0.2
        size = self._rng.choice((0, 0, 0, 0, 100, 1_000, 20_000, 150_000)) if self._part.large else 0
        call = Event("invoke", self._name, receiver, self._numbers[receiver], once=once)
        self._journal.write(call)
        # Tasks start in the order in which they are made: that is the order of the calls.
        task = asyncio.create_task(self._call(handle, call, self._rng.uniform(0.0, 0.03), size))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _call(self, handle: Handle[Worker], call: Event, pause_s: float, size: int) -> None:
        try:
            await record_call(self._journal, handle, call, pause_s=pause_s, size=size)
        finally:
            self._room.release()


async def record_call(
    journal: Journal | Notes, handle: Handle[Worker], call: Event, *, pause_s: float = 0.0, size: int = 0
) -> None:
    """Make the call, and write down what came of it."""
    kind: Kind
    try:
        name = "work_once" if call.once else "work"
        life, got = await handle.action(name, call.sender, call.number, pause_s, bytes(size))
        kind, error = ("ok", "") if got == size else ("fail", "WrongSize")
    except Exception as caught:  # noqa: BLE001 - whatever it is, the history has to know
        kind, life, error = "fail", "", type(caught).__name__
    journal.write(Event(kind, call.sender, call.receiver, call.number, life, error, call.once))


async def run_agents(part: AgentPart, factory: HttpExchangeFactory) -> None:
    journal = Journal(part.journal)
    runtimes = [
        Runtime(
            Worker(name, journal), exchange_factory=factory, registration=HttpAgentRegistration.from_json(registration)
        )
        for name, registration in part.registrations.items()
    ]
    try:
        await asyncio.gather(_say_started(runtimes), *(runtime.run_until_complete() for runtime in runtimes))
    except ListenerSupersededError:
        os._exit(SUPERSEDED)  # whatever the other agents of this process are at: it was replaced as a whole


async def _say_started(runtimes: list[Runtime[Worker]]) -> None:
    if all([await runtime.wait_started() for runtime in runtimes]):
        say_started()


def say_started() -> None:
    sys.stdout.write("started\n")
    sys.stdout.flush()


async def run_users(part: UserPart, factory: HttpExchangeFactory) -> None:
    journal, ended = Journal(part.journal), asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
    callers = [Caller(name, part, journal, part.seed + number) for number, name in enumerate(part.names)]
    await asyncio.gather(*(caller.run(factory, ended) for caller in callers))


def main() -> None:
    part = msgspec.json.decode(sys.stdin.readline(), type=AgentPart | UserPart)
    if part.heartbeat_s is not None:
        dial.HEARTBEAT_S = part.heartbeat_s
    if isinstance(part, AgentPart) and part.files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (part.files, part.files))
    factory = HttpExchangeFactory.from_connection_info(ConnectionInfo.from_json(part.connection))
    asyncio.run(run_agents(part, factory) if isinstance(part, AgentPart) else run_users(part, factory))


if __name__ == "__main__":
    main()
