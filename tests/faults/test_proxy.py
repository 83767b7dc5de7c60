"""The fault proxy does what it is told, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator

import pytest

from academy_hpc.agent import Agent
from academy_hpc.exchange.http.wire import Call, Hello, Reply, Send, Sent
from academy_hpc.message import ActionRequest, Message
from tests.exchange_server import RunningExchange, running_exchange
from tests.faults.proxy import Proxy, running_proxy

__all__: list[str] = []


class Echo:
    """A server that sends back what it gets."""

    def __init__(self) -> None:
        self.got = bytearray()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                self.got += data
                writer.write(data)
        writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, Proxy]]:
    server = Echo()
    running = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with running_proxy(running.sockets[0].getsockname()[1]) as proxy:
        yield server, proxy
    running.close()


@contextlib.asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_bytes_pass_as_they_come(echo: tuple[Echo, Proxy]) -> None:
    _, proxy = echo
    async with connected(proxy) as (reader, writer):
        data = bytes(range(256)) * 2_000
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        writer.write_eof()
        assert await reader.read() == b""


async def test_a_connection_is_reset_after_exactly_as_many_bytes(echo: tuple[Echo, Proxy]) -> None:
    server, proxy = echo
    async with connected(proxy) as (reader, writer):
        proxy.cut_after("up", 1_000)
        writer.write(b"x" * 600)
        assert await reader.readexactly(600)
        writer.write(b"x" * 600)
        with pytest.raises(ConnectionResetError):
            while await reader.read(600):
                pass
        assert len(server.got) == 1_000


async def test_in_a_black_hole_nothing_passes_not_even_the_end(echo: tuple[Echo, Proxy]) -> None:
    server, proxy = echo
    async with connected(proxy) as (reader, writer):
        with proxy.black_hole("down"):
            writer.write(b"heard")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
            assert server.got == b"heard"
        assert await reader.readexactly(5) == b"heard"
        with proxy.black_hole("up"):
            writer.write(b"not heard")
            writer.write_eof()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(), 0.1)
            assert server.got == b"heard"
        assert await reader.read() == b"not heard"


async def test_a_delay_is_added_in_its_direction_and_does_not_slow_down_what_follows(echo: tuple[Echo, Proxy]) -> None:
    _, proxy = echo
    async with connected(proxy) as (reader, writer):
        now = asyncio.get_running_loop().time
        started = now()
        with proxy.delay(up=0.2, down=0.1):
            for _ in range(10):
                writer.write(b"x")
                await asyncio.sleep(0.005)
            await reader.readexactly(10)
        assert 0.3 <= now() - started < 0.6


async def test_requests_are_answered_by_the_proxy_as_often_as_told(echo: tuple[Echo, Proxy]) -> None:
    server, proxy = echo
    with proxy.answering(503, times=1) as trap:
        for answer in (b"HTTP/1.1 503 ", b"GET / "):
            async with connected(proxy) as (reader, writer):
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await reader.readline()).startswith(answer)
    assert trap.hits == 1
    assert server.got.count(b"GET") == 1


@pytest.fixture
async def through() -> AsyncIterator[tuple[RunningExchange, Proxy]]:
    async with running_exchange() as exchange, running_proxy(exchange.port) as proxy:
        yield exchange, proxy


@pytest.mark.parametrize(("size", "skip"), list(itertools.product([0, 100, 70_000, 1_000_000], [0, 2])))
async def test_frames_of_any_size_are_known_by_their_operations(
    size: int, skip: int, through: tuple[RunningExchange, Proxy]
) -> None:
    exchange, proxy = through
    client = await exchange.factory_at(proxy.port).create_transport(name="client")
    with proxy.trap("pass", "up", lambda unit: Send.__struct_config__.tag in unit.kinds, skip=skip) as trap:
        for number in range(3):
            assert trap.hits == (number > skip)
            body = ActionRequest("x" * size, "", "")
            await client.send(Message.create(client.mailbox_id, client.mailbox_id, body))
        assert trap.hits == 1
    await client.close()


async def test_a_frame_can_be_lost_on_either_way(through: tuple[RunningExchange, Proxy]) -> None:
    exchange, proxy = through
    client = await exchange.factory_at(proxy.port).create_transport(name="client")
    for faults in (proxy.lose_requests(Call), proxy.lose_answers(Reply), proxy.tear("up", Call)):
        connections = proxy.connections
        with faults as trap:
            assert await client.discover(Agent) == ()
        assert trap.hits == 1
        assert proxy.connections == connections + 1
    with proxy.lose_answers(Sent) as never:
        assert await client.discover(Agent) == ()
    assert never.hits == 0
    await client.close()


async def test_a_connection_can_die_in_one_direction_and_stay_open(through: tuple[RunningExchange, Proxy]) -> None:
    exchange, proxy = through
    with proxy.swallow("down", Hello, times=1) as trap:
        dialling = asyncio.create_task(exchange.factory_at(proxy.port).create_transport(name="client"))
        await asyncio.wait_for(trap.hit.wait(), 5)
        done, _ = await asyncio.wait([dialling], timeout=0.1)
        assert not done
        assert proxy.cut() == 1
    await asyncio.gather(dialling, return_exceptions=True)
