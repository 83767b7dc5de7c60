"""An exchange that is slow, unreachable, replaced by strangers or behind proxies in trouble; clocks that jump."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import academy_hpc
from academy_hpc.agent import Agent
from academy_hpc.errors import (
    ExchangeError,
    ExchangeUnavailableError,
    ExchangeUnreachableError,
)
from academy_hpc.exchange.http import client as http_client, dial, rest, server
from academy_hpc.exchange.http.dial import NoStreamError
from academy_hpc.exchange.transport import MailboxStatus
from academy_hpc.handle import Handle
from academy_hpc.message import Message, PingRequest
from tests.exchange_server import RunningExchange, running_exchange
from tests.faults.proxy import Proxy, running_proxy
from tests.faults.scene import PATIENCE_S, acting, apart, eventually

__all__: list[str] = []

pytestmark = pytest.mark.faults

TROUBLE = [408, 429, 500, 502, 503, 504]


@pytest.fixture
async def exchange() -> AsyncIterator[RunningExchange]:
    async with running_exchange() as running:
        yield running


@pytest.fixture
async def proxy(exchange: RunningExchange) -> AsyncIterator[Proxy]:
    async with running_proxy(exchange.port) as running:
        yield running


@pytest.fixture
def by_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients are told that the exchange has no stream."""

    async def refuse(info: Any, *arguments: Any, **options: Any) -> None:
        raise NoStreamError(info.urls[0])

    monkeypatch.setattr(http_client.Stream, "acquire", refuse)
    monkeypatch.setattr(rest, "FIRST_PAUSE_S", 0.01)


# Answers that are not the exchange's


@pytest.mark.parametrize("status", TROUBLE)
async def test_trouble_of_a_proxy_while_connecting_again_is_waited_out(
    status: int, exchange: RunningExchange, proxy: Proxy
) -> None:
    through = exchange.factory_at(proxy.port)
    async with acting(through, through) as scene:
        with proxy.answering(status, times=6) as trap:
            proxy.cut()
            await scene.calls(10)
        assert trap.hits == 6


@pytest.mark.parametrize("status", TROUBLE)
async def test_trouble_of_a_proxy_at_the_first_connection_is_told_in_one_line(
    status: int, exchange: RunningExchange, proxy: Proxy
) -> None:
    with proxy.answering(status):
        with pytest.raises(ExchangeUnreachableError, match=f"answered {status}") as caught:
            await exchange.factory_at(proxy.port).create_user_client()
    assert "\n" not in str(caught.value)
    assert "html" not in str(caught.value)


@pytest.mark.usefixtures("by_rest")
@pytest.mark.parametrize("status", [429, 502, 503])
async def test_a_request_that_surely_was_not_done_is_made_again(
    status: int, exchange: RunningExchange, proxy: Proxy
) -> None:
    async with await exchange.factory_at(proxy.port).create_transport(name="sender") as sender:
        agent_id = (await sender.register_agent(Agent)).agent_id
        with proxy.answering(status, times=3) as trap:
            await sender.send(Message.create(sender.mailbox_id, agent_id, PingRequest()))
        assert trap.hits == 3
        assert (await sender.agent_stats(agent_id)).incoming == 1


@pytest.mark.usefixtures("by_rest")
@pytest.mark.parametrize("status", [408, 500, 504])
async def test_a_send_that_may_have_been_done_is_an_error_and_can_be_repeated(
    status: int, exchange: RunningExchange, proxy: Proxy
) -> None:
    async with await exchange.factory_at(proxy.port).create_transport(name="sender") as sender:
        agent_id = (await sender.register_agent(Agent)).agent_id
        message = Message.create(sender.mailbox_id, agent_id, PingRequest())
        with proxy.answering(status) as trap, pytest.raises(ExchangeUnavailableError, match=f"answered {status}"):
            await sender.send(message)
        assert trap.hits == 1
        for _ in range(2):
            await sender.send(message)
        assert (await sender.agent_stats(agent_id)).incoming == 1


@pytest.mark.usefixtures("by_rest")
@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
async def test_what_may_be_asked_twice_is_asked_again(status: int, exchange: RunningExchange, proxy: Proxy) -> None:
    async with await exchange.factory_at(proxy.port).create_transport(name="someone") as someone:
        with proxy.answering(status, times=3) as trap:
            assert await someone.discover(Agent) == ()
        assert trap.hits == 3


@pytest.mark.usefixtures("by_rest")
@pytest.mark.parametrize("status", TROUBLE)
async def test_a_listener_by_rest_outlives_the_trouble_of_a_proxy(
    status: int, exchange: RunningExchange, proxy: Proxy
) -> None:
    through = exchange.factory_at(proxy.port)
    async with acting(exchange.factory, through) as scene:
        await scene.calls(3)
        with proxy.answering(status) as trap:
            proxy.cut()
            await eventually(lambda: trap.hits >= 3)
        await scene.calls(3)


@pytest.mark.usefixtures("by_rest")
@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_a_send_by_rest_that_is_repeated_is_not_doubled(
    lost: str, exchange: RunningExchange, proxy: Proxy
) -> None:
    """Whether the caller repeats it, or the HTTP library does, unasked."""
    async with await exchange.factory_at(proxy.port).create_transport(name="sender") as sender:
        agent_id = (await sender.register_agent(Agent)).agent_id
        message = Message.create(sender.mailbox_id, agent_id, PingRequest())
        with proxy.lose_requests("PUT") if lost == "request" else proxy.lose_answers("PUT") as trap:
            with contextlib.suppress(ExchangeUnavailableError):
                await sender.send(message)
        assert trap.hits == 1
        for _ in range(2):
            await sender.send(message)
        assert (await sender.agent_stats(agent_id)).incoming == 1


# Slowness and silence


async def test_over_a_connection_with_a_latency_of_a_second_calls_take_as_long_and_no_longer(
    exchange: RunningExchange, proxy: Proxy
) -> None:
    now = asyncio.get_running_loop().time
    with proxy.delay(up=0.5, down=0.5):
        async with acting(exchange.factory_at(proxy.port), exchange.factory) as scene:
            started = now()
            await scene.calls(700)  # more than may be sent without a confirmation
            assert 1.0 <= now() - started < 8.0


async def test_pings_keep_an_idle_connection_alive(
    exchange: RunningExchange, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (dial, server):
        monkeypatch.setattr(module, "HEARTBEAT_S", 0.2)
    async with acting(exchange.factory_at(proxy.port), exchange.factory_at(proxy.port)) as scene:
        connections = proxy.connections
        async with proxy.closing_idle(0.6):
            await asyncio.sleep(2.0)
        assert proxy.connections == connections
        await scene.calls(3)


async def test_a_proxy_less_patient_than_the_pings_costs_no_message(exchange: RunningExchange, proxy: Proxy) -> None:
    async with acting(exchange.factory_at(proxy.port), exchange.factory_at(proxy.port)) as scene:
        connections = proxy.connections
        async with proxy.closing_idle(0.2):
            for _ in range(4):
                await asyncio.sleep(0.3)
                await scene.calls(3)
        assert proxy.connections > connections


# Others on the port


async def _page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


async def _missing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


async def _garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(range(256)))


async def _silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


STRANGERS = [_page, _missing, _garbage, _silence]


@contextlib.asynccontextmanager
async def stranger(behaviour: Any) -> AsyncIterator[tuple[int, list[int]]]:
    """Another program that listens: its port, and a list that grows with each visit."""
    visits: list[int] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.append(1)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await behaviour(reader, writer)
            await writer.drain()
        writer.close()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield running.sockets[0].getsockname()[1], visits
    finally:
        running.close()


@pytest.mark.parametrize("behaviour", STRANGERS)
async def test_a_stranger_on_the_port_of_an_exchange_that_comes_back_is_waited_out(
    behaviour: Any, exchange: RunningExchange, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "DIAL_S", 0.2)
    through = exchange.factory_at(proxy.port)
    async with acting(through, through) as scene, stranger(behaviour) as (port, visits):
        proxy.target_port = port
        proxy.cut()
        calls = [scene.call() for _ in range(5)]
        await eventually(lambda: len(visits) >= 4)
        proxy.target_port = exchange.port
        proxy.cut()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*calls)


@pytest.mark.parametrize("behaviour", STRANGERS)
async def test_a_stranger_on_the_port_of_an_exchange_that_is_gone_is_an_error_in_time(
    behaviour: Any, exchange: RunningExchange, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "DIAL_S", 0.2)
    monkeypatch.setattr(rest, "FIRST_PAUSE_S", 0.05)
    factory = exchange.factory_at(proxy.port, reconnect_s=0.5)
    async with stranger(behaviour) as (port, _):
        proxy.target_port = port
        started = asyncio.get_running_loop().time()
        with pytest.raises(ExchangeError):
            async with asyncio.timeout(PATIENCE_S):
                await factory.create_user_client()
        assert asyncio.get_running_loop().time() - started < 3.0


# Clocks


@pytest.mark.parametrize("hours", [-1, 1, 24 * 365])
async def test_a_clock_that_jumps_is_not_noticed(
    hours: int, exchange: RunningExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the wall may be set at any time: what waits, expires or is alive goes by the other one."""
    async with acting(exchange.factory, exchange.factory) as scene:
        calls = [scene.call(pause_s=0.2) for _ in range(5)]
        real, real_ns = time.time, time.time_ns
        monkeypatch.setattr(time, "time", lambda: real() + hours * 3600)
        monkeypatch.setattr(time, "time_ns", lambda: real_ns() + hours * 3600 * 10**9)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*calls)
        await scene.calls(5)
        assert await scene.user.status(scene.handle.agent_id) is MailboxStatus.ACTIVE
        async with await apart(exchange.factory, 5).create_user_client() as late:
            assert await late.discover(Agent) != ()
        silent = (await scene.user.register_agent(Agent)).agent_id
        with pytest.raises(TimeoutError):
            await Handle(silent, exchange=scene.user).ping(timeout=0.05)


def test_only_calendars_ask_the_clock_on_the_wall() -> None:
    """What is dated, valid until then, or told to other hosts; the rest counts seconds."""
    package = Path(academy_hpc.__file__).parent
    askers = {
        path.stem
        for path in package.rglob("*.py")
        if re.search(r"\btime\.time(_ns)?\(|\bdatetime\.now\(|\bfrom time import\b", path.read_text())
    }
    exchange = {"certificate", "dial", "globus_auth", "globus_login", "server_stream", "service"}
    runs = {"chain", "console", "follow", "launching", "login_node", "reports", "run", "submission"}
    assert askers <= exchange | runs
