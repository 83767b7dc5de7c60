"""What one authenticated connection asks for does not keep the others waiting."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from pathlib import Path

import aiohttp
import msgspec
import pytest

from academy_hpc.exchange.http.wire import STREAM_PROTOCOL, Call, Hello, encode_operations
from academy_hpc.identifiers import AgentId
from tests.security.stranger import Spawned, spawned_exchange

__all__: list[str] = []

logger = logging.getLogger(__name__)

AGENTS = 10_000
DISCOVERIES = 200


class _Answer(msgspec.Struct, array_like=True, tag=5):
    """A `Reply`, of which the result is not read: reading takes longer than it took to make."""

    call: int


_decoder = msgspec.msgpack.Decoder(list[Hello | _Answer])


def _stream(exchange: Spawned, session: aiohttp.ClientSession) -> aiohttp.client._WSRequestContextManager:
    headers = {"Authorization": f"Bearer {exchange.token}"}
    url = f"http://127.0.0.1:{exchange.port}/stream"
    return session.ws_connect(url, headers=headers, protocols=(STREAM_PROTOCOL,), max_msg_size=0)


async def _create_agents(socket: aiohttp.ClientWebSocketResponse) -> None:
    for start in range(0, AGENTS, 1_000):
        calls = [Call(start + n, "create", [AgentId(uuid.uuid4(), "worker"), ["m.Worker"]]) for n in range(1_000)]
        await socket.send_bytes(encode_operations(calls))
        await _answers(socket, start + 999)


async def _answers(socket: aiohttp.ClientWebSocketResponse, last: int) -> list[int]:
    """The numbers of the calls that were answered, in the order of the answers, until `last`."""
    numbers: list[int] = []
    while not numbers or numbers[-1] != last:
        frame = await socket.receive_bytes()
        numbers += [operation.call for operation in _decoder.decode(frame) if isinstance(operation, _Answer)]
    return numbers


async def _discover(socket: aiohttp.ClientWebSocketResponse, first: int, *, in_one_frame: bool) -> None:
    many = [Call(first + number, "discover", ["m.Worker", True]) for number in range(DISCOVERIES)]
    for calls in [many] if in_one_frame else [[call] for call in many]:
        await socket.send_bytes(encode_operations(calls))


async def _waits(exchange: Spawned, session: aiohttp.ClientSession, *, in_one_frame: bool) -> tuple[float, float]:
    """How long the other one waited at the most, and how long all took."""
    async with _stream(exchange, session) as greedy, _stream(exchange, session) as other:
        await _create_agents(greedy)
        begin = time.monotonic()
        await _discover(greedy, 0, in_one_frame=in_one_frame)
        answered = asyncio.create_task(_answers(greedy, DISCOVERIES - 1))
        longest_s, number = 0.0, 0
        while not answered.done():
            number, start = number + 1, time.monotonic()
            await other.send_bytes(encode_operations([Call(number, "discover", ["m.Other", True])]))
            await _answers(other, number)
            longest_s = max(longest_s, time.monotonic() - start)
            await asyncio.sleep(0.005)
        assert await answered == list(range(DISCOVERIES))
        return longest_s, time.monotonic() - begin


async def _measure(exchange: Spawned, *, in_one_frame: bool) -> tuple[float, float]:
    async with aiohttp.ClientSession() as session:
        return await _waits(exchange, session, in_one_frame=in_one_frame)


@pytest.mark.parametrize("in_one_frame", [True, False])
def test_many_discoveries_delay_nobody_else(tmp_path: Path, in_one_frame: bool) -> None:
    """And its answers keep their order, though others are served in between."""
    with spawned_exchange(tmp_path) as exchange:
        longest_s, total_s = asyncio.run(_measure(exchange, in_one_frame=in_one_frame))
        logger.info("longest wait: %.3f s of %.3f s", longest_s, total_s)
        assert longest_s < max(0.3, total_s / 4)  # a busy machine is slow in all


@pytest.mark.parametrize("in_one_frame", [True, False])
def test_answers_that_nobody_reads_are_not_made(tmp_path: Path, in_one_frame: bool) -> None:
    """Who asks and does not read takes the exchange's memory for a few answers, not for all."""
    with spawned_exchange(tmp_path) as exchange:
        assert asyncio.run(_growth_unread(exchange, in_one_frame=in_one_frame)) < 20 << 20


async def _growth_unread(exchange: Spawned, *, in_one_frame: bool) -> int:
    async with aiohttp.ClientSession() as session, _stream(exchange, session) as greedy:
        await _create_agents(greedy)
        before = exchange.resident()
        assert greedy._conn is not None
        transport = greedy._conn.transport
        assert isinstance(transport, asyncio.Transport)
        transport.pause_reading()
        for start in range(0, 2_000, DISCOVERIES):
            await _discover(greedy, start, in_one_frame=in_one_frame)
        await asyncio.sleep(1.5)
        transport.abort()
        return exchange.resident() - before
