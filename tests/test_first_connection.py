"""An exchange that is down for a moment, or has moved: who waits for it, how long, and who is told at once."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from academy_hpc import (
    AgentLaunch,
    ConnectionInfo,
    ExchangeUnreachableError,
    HttpExchangeFactory,
    MailboxStatus,
    Manager,
    spawn_http_exchange,
)
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.exchange.http.server import ServerConfig
from tests.exchange_server import TOKEN, running_exchange
from tests.launched_agents import Counter
from tests.process_launcher import WORKER, ProcessLauncher

__all__: list[str] = []

PATIENCE_S = 30.0


@pytest.fixture
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def factory_at(port: int, **options: Any) -> HttpExchangeFactory:
    info = ConnectionInfo((f"http://127.0.0.1:{port}",), {"Authorization": f"Bearer {TOKEN}"})
    return HttpExchangeFactory.from_connection_info(info, options=ClientOptions(**options))


async def test_an_exchange_that_is_out_of_reach_is_told_at_once(free_port: int) -> None:
    started = time.monotonic()
    with pytest.raises(ExchangeUnreachableError, match=r"127\.0\.0\.1"):
        await factory_at(free_port).create_transport(name="ada")
    assert time.monotonic() - started < 2


async def test_a_first_connection_is_tried_again_as_long_as_the_options_say(free_port: int) -> None:
    connecting = asyncio.create_task(factory_at(free_port, first_connection_s=PATIENCE_S).create_transport(name="ada"))
    await asyncio.sleep(0.5)
    assert not connecting.done()
    async with running_exchange(port=free_port), await connecting as transport:
        assert await transport.status(transport.mailbox_id) is MailboxStatus.INACTIVE


async def test_a_first_connection_that_fails_in_the_end_says_what_happened(free_port: int) -> None:
    started = time.monotonic()
    with pytest.raises(ExchangeUnreachableError, match=r"127\.0\.0\.1"):
        await factory_at(free_port, first_connection_s=0.5).create_transport(name="ada")
    assert 0.2 < time.monotonic() - started < 5


async def test_a_client_goes_where_the_connection_file_says_that_the_exchange_is_now(tmp_path: Path) -> None:
    """With all that it has not heard the answer of; while the exchange moves, there is no file."""
    config = ServerConfig(token=TOKEN, state_dir=str(tmp_path / "state"))
    path = tmp_path / "place" / "connection.json"
    options = ClientOptions(reconnect_s=PATIENCE_S, follow=str(path))
    async with running_exchange(config) as first:
        info = first.factory.connection_info
        client = await HttpExchangeFactory.from_connection_info(info, options=options).create_transport(name="ada")
    asking = asyncio.create_task(client.status(client.mailbox_id))
    await asyncio.sleep(0.5)
    assert not asking.done()
    async with running_exchange(config) as second, client:
        assert second.port != first.port
        await asyncio.to_thread(second.factory.connection_info.write, path)
        async with asyncio.timeout(PATIENCE_S):
            assert await asking is MailboxStatus.INACTIVE


def test_where_it_is_now_does_not_change_what_opens_it() -> None:
    old = ConnectionInfo(("http://10.0.0.1:1",), {"Authorization": "Bearer mine"}, proof=True)
    new = ConnectionInfo(("https://10.0.0.2:2",), {"Authorization": "Bearer other"}, fingerprint="0" * 64)
    moved = old.at_place_of(new)
    assert (moved.urls, moved.fingerprint, moved.server) == (new.urls, new.fingerprint, new.server)
    assert (moved.headers, moved.proof) == (old.headers, old.proof)


def test_the_connection_info_says_whether_it_comes_back(tmp_path: Path) -> None:
    with spawn_http_exchange("127.0.0.1", 0, state_dir=tmp_path / "state") as durable:
        assert durable.connection_info.durable
    with spawn_http_exchange("127.0.0.1", 0) as in_memory:
        assert not in_memory.connection_info.durable


def test_a_worker_that_starts_while_a_durable_exchange_is_down_waits_for_it(tmp_path: Path) -> None:
    async def make_spec(factory: HttpExchangeFactory) -> tuple[str, Any]:
        launcher = await asyncio.to_thread(ProcessLauncher)
        manager = await Manager.from_exchange_factory(factory, launcher)
        spec = await manager.make_spec([AgentLaunch(Counter, args=(41,), name="counter")])
        await manager.exchange_client.leave()
        return spec.to_json(), spec.agents[0].agent_id

    async def call(factory: HttpExchangeFactory, agent_id: Any) -> int:
        async with await factory.create_user_client() as user, asyncio.timeout(PATIENCE_S):
            from academy_hpc import Handle

            handle: Handle[Counter] = Handle(agent_id, exchange=user)
            total: int = await handle.add(1)
            await handle.shutdown()
            return total

    with spawn_http_exchange("127.0.0.1", 0, state_dir=tmp_path / "state") as factory:
        spec, agent_id = asyncio.run(make_spec(factory))
    with subprocess.Popen([sys.executable, "-c", WORKER], stdin=subprocess.PIPE, text=True) as worker:
        assert worker.stdin is not None
        worker.stdin.write(spec)
        worker.stdin.close()
        time.sleep(2)
        assert worker.poll() is None
        with spawn_http_exchange("127.0.0.1", 0, state_dir=tmp_path / "state") as factory:
            assert asyncio.run(call(factory, agent_id)) == 42
            assert worker.wait(timeout=PATIENCE_S) == 0
