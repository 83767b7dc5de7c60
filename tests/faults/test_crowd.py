"""Very many agents, very many connections, and programs that may not open many files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from academy_hpc.agent import Agent
from academy_hpc.errors import ExchangeUnreachableError
from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.http import dial
from academy_hpc.exchange.http.client import HttpExchangeFactory, HttpExchangeTransport
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.handle import Handle
from academy_hpc.identifiers import AgentId
from tests.faults.durable import ROOT, DurableExchange
from tests.faults.participants import AgentPart, Worker
from tests.faults.scene import apart

__all__: list[str] = []

pytestmark = pytest.mark.faults

FILES = 1024
AGENTS, PROCESSES = 1_000, 4
RECOVERY_S = 10.0


async def start_agents(
    info: ConnectionInfo, user: UserExchangeClient, folder: Path, names: list[str]
) -> tuple[asyncio.subprocess.Process, list[AgentId[Worker]]]:
    """A process with agents of these names; it has started when its standard output says so."""
    registrations = await user.register_agents([(Worker, name) for name in names])
    texts = {name: item.to_json() for name, item in zip(names, registrations, strict=True)}  # type: ignore[attr-defined]
    part = AgentPart(info.to_json(), texts, str(folder / f"{names[0]}.jsonl"), files=FILES)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.faults.participants"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(part) + b"\n")
    return process, [item.agent_id for item in registrations]


async def ping_all(user: UserExchangeClient, agents: list[AgentId[Worker]]) -> None:
    await asyncio.gather(*(Handle(agent, exchange=user).ping() for agent in agents))


async def test_a_thousand_agents_are_back_within_ten_seconds_of_the_death_of_their_exchange(
    tmp_path: Path, record_property: pytest.RecordProperty
) -> None:
    exchange = DurableExchange(tmp_path, files=FILES)
    info = await exchange.start()
    processes: list[asyncio.subprocess.Process] = []
    agents: list[AgentId[Worker]] = []
    try:
        async with await HttpExchangeFactory.from_connection_info(info).create_user_client() as user:
            for number in range(PROCESSES):
                names = [f"agent-{number}-{item}" for item in range(AGENTS // PROCESSES)]
                process, ids = await start_agents(info, user, tmp_path, names)
                processes.append(process)
                agents += ids
            await asyncio.wait_for(ping_all(user, agents), 30)
            assert (await exchange.process()).num_fds() < FILES / 2
            await exchange.kill()
            started = time.monotonic()
            await exchange.start()
            serving_s = time.monotonic() - started
            async with asyncio.timeout(RECOVERY_S - serving_s):
                await ping_all(user, agents)
            record_property("serves_again_s", serving_s)
            record_property("all_back_s", time.monotonic() - started)
            sys.stdout.write(
                f"serves again after {serving_s:.2f} s, all back after {time.monotonic() - started:.2f} s\n"
            )
    finally:
        for process in processes:
            process.kill()
            await process.wait()
        await exchange.stop()


@pytest.fixture
def many_files() -> Iterator[None]:
    """This process may open as many files as it is allowed to ask for; the exchange may not."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] < 2 * FILES:
        pytest.skip(f"this machine lets nobody open {2 * FILES} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 8 * FILES), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("many_files")
async def test_more_connections_than_files_are_refused_in_time_and_disturb_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that have a place keep it; the others are told, and get one as soon as one is free."""
    monkeypatch.setattr(dial, "DIAL_S", 3.0)
    exchange = DurableExchange(tmp_path, files=FILES)
    factory = HttpExchangeFactory.from_connection_info(await exchange.start())
    opened: list[HttpExchangeTransport] = []
    refused: list[BaseException] = []

    async def connect(number: int) -> None:
        try:
            opened.append(await apart(factory, number).create_transport(name="one of many"))
        except ExchangeUnreachableError as error:
            refused.append(error)

    try:
        async with await factory.create_user_client() as user:
            for batch in range(0, FILES + 100, 100):
                await asyncio.gather(*(connect(number) for number in range(batch + 1, batch + 101)))
            assert len(opened) > FILES - 100
            assert len(refused) >= 100
            async with asyncio.timeout(5):
                assert await user.discover(Agent) == ()
                await asyncio.gather(*(transport.status(transport.mailbox_id) for transport in opened[:200]))
            await asyncio.gather(*(transport.close() for transport in opened[:200]))
            del opened[:200]
            refused.clear()
            await asyncio.gather(*(connect(number) for number in range(10_000, 10_100)))
            assert not refused
    finally:
        for batch in range(0, len(opened), 100):
            await asyncio.gather(*(transport.close() for transport in opened[batch : batch + 100]))
        with contextlib.suppress(TimeoutError):
            await exchange.stop()
