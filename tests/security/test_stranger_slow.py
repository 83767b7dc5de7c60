"""Strangers who are slow, or many: what they take of the exchange is bounded, and nobody else is kept waiting."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from academy_hpc.exchange.http import door
from academy_hpc.exchange.http.certificate import make_certificate
from academy_hpc.exchange.http.server import ServerConfig
from tests.exchange_server import TOKEN, RunningExchange, running_exchange
from tests.security.stranger import UPGRADE, Spawned, connect, request, spawned_exchange, until

__all__: list[str] = []

logger = logging.getLogger(__name__)

MIB = 1 << 20
CERTIFICATE = make_certificate()
TLS_HELLO = bytes.fromhex("1603010200010001fc0303") + bytes(range(256)) * 2


# Slowness


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "AUTHENTICATE_S", 0.5)


SLOW: dict[str, tuple[bytes, bytes]] = {
    "says nothing": (b"", b""),
    "half a head": (b"GET /whoami HT", b""),
    "a head, byte by byte": (b"GET /whoami HTTP/1.1\r\nX: ", b"x"),
    "headers, one by one": (b"GET /whoami HTTP/1.1\r\n", b"X: x\r\n"),
    "a body that does not come": (b"PUT /message HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n", b""),
    "a body, byte by byte": (b"PUT /message HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n", b"x"),
    "chunks, one by one": (b"PUT /message HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "requests again and again": (b"", request("GET", "/whoami", Authorization="Bearer wrong")),
    "a refused upgrade, then bytes": (request("GET", "/stream", **UPGRADE), b"x"),
    "a TLS hello, byte by byte": (b"\x16\x03\x01", b"\x02"),
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.usefixtures("hasty")
async def test_a_stranger_who_is_slow_is_cut_off(name: str) -> None:
    """Also one who sends something all the time, and one who was answered already."""
    first, again = SLOW[name]
    async with running_exchange() as exchange:
        reader, writer = await asyncio.open_connection("127.0.0.1", exchange.port)
        start = time.monotonic()
        writer.write(first)
        drop = asyncio.create_task(_drip(writer, again))
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        assert time.monotonic() - start < 1.5
        drop.cancel()
        writer.close()
        await _strangers(exchange, 0)


async def _drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    while data:
        writer.write(data)
        await asyncio.sleep(0.03)


async def _strangers(exchange: RunningExchange, number: int) -> None:
    async with asyncio.timeout(3):
        while exchange.server.door.strangers != number:  # noqa: ASYNC110 - what is waited for tells nobody
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("hasty")
async def test_who_has_authenticated_is_not_cut_off() -> None:
    """Neither a stream, nor a REST connection that is kept for the next request, nor a long poll."""
    async with running_exchange() as exchange:
        await exchange.factory.create_user_client()
        reader, writer = await asyncio.open_connection("127.0.0.1", exchange.port)
        for _ in range(3):
            writer.write(request("GET", "/whoami", Authorization=f"Bearer {TOKEN}"))
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.4)
        assert exchange.server.door.strangers == 0
        writer.close()


async def test_too_many_strangers_displace_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those who have authenticated, nor those who will."""
    monkeypatch.setattr(door, "STRANGERS", 20)
    async with running_exchange() as exchange, await exchange.factory.create_user_client() as client:
        others = [await asyncio.open_connection("127.0.0.1", exchange.port) for _ in range(100)]
        await _strangers(exchange, 20)
        assert (await client.status(client.client_id)).name == "ACTIVE"
        async with await exchange.factory.create_user_client() as newcomer:
            assert (await newcomer.status(newcomer.client_id)).name == "ACTIVE"
        closed = [reader.at_eof() for reader, _ in others]
        assert all(closed[:80])
        assert sum(closed) <= 82
        for _, writer in others:
            writer.close()
        await _strangers(exchange, 0)


SLOW_TLS: dict[str, tuple[bytes, bytes, bool]] = {
    "says nothing": (b"", b"", False),
    "half a hello": (TLS_HELLO[:100], b"", False),
    "a hello, byte by byte": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00", False),
    "no TLS at all": (b"", request("GET", "/whoami"), False),
    "nothing after the handshake": (b"", b"", True),
    "half a head": (b"GET /whoami HT", b"", True),
    "a head, byte by byte": (b"GET /whoami HTTP/1.1\r\nX: ", b"x", True),
    "a body, byte by byte": (SLOW["a body, byte by byte"][0], b"x", True),
}


@pytest.mark.parametrize("name", SLOW_TLS)
@pytest.mark.usefixtures("hasty")
async def test_a_handshake_is_part_of_the_time(name: str) -> None:
    first, again, handshake = SLOW_TLS[name]
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    async with running_exchange(ServerConfig(token=TOKEN, certificate=CERTIFICATE)) as exchange:
        start = time.monotonic()
        tls = trusting if handshake else None
        reader, writer = await asyncio.open_connection("127.0.0.1", exchange.port, ssl=tls)
        writer.write(first)
        drop = asyncio.create_task(_drip(writer, again))
        async with asyncio.timeout(5):
            with contextlib.suppress(OSError):
                await reader.read()
        assert time.monotonic() - start < 1.5
        drop.cancel()
        writer.transport.abort()
        await _strangers(exchange, 0)


async def test_a_handshake_that_fails_is_forgotten_at_once() -> None:
    async with running_exchange(ServerConfig(token=TOKEN, certificate=CERTIFICATE)) as exchange:
        opened = [await asyncio.open_connection("127.0.0.1", exchange.port) for _ in range(3)]
        await _strangers(exchange, 3)
        for _, writer in opened:
            writer.write(request("GET", "/whoami"))
        await _strangers(exchange, 0)
        for _, writer in opened:
            writer.close()


# Numbers


def _open(port: int, number: int, *, tls: bool = False) -> list[socket.socket]:
    """Half of them idle, half with half a head, or in the middle of a TLS handshake."""
    part = TLS_HELLO[:100] if tls else b"GET /whoami HTTP/1.1\r\nAuthorization: Bea"
    opened = []
    for count in range(number):
        connection = connect(port)
        if count % 2:
            with contextlib.suppress(ConnectionError):
                connection.sendall(part)
        opened.append(connection)
    return opened


class _Customer(threading.Thread):
    """The owner at work: calls on a stream, and each time a request on a new connection."""

    def __init__(self, exchange: Spawned) -> None:
        super().__init__()
        self._exchange = exchange
        self._stop_it = threading.Event()
        self.longest_s: dict[str, float] = {"stream": 0.0, "new connection": 0.0}
        self.calls = 0

    def run(self) -> None:
        asyncio.run(self._work())

    async def _work(self) -> None:
        async with await self._exchange.factory.create_user_client() as client:
            while not self._stop_it.is_set():
                start = time.monotonic()
                await client.status(client.client_id)
                self._note("stream", time.monotonic() - start)
                start = time.monotonic()
                await asyncio.to_thread(self._ask)
                self._note("new connection", time.monotonic() - start)
                self.calls += 1
                await asyncio.sleep(0.01)

    def _ask(self) -> None:
        """As our clients do: a connection that strangers displaced before it could speak is tried again."""
        for _ in range(2):
            with contextlib.suppress(OSError):
                assert self._exchange.whoami().status == 200
                return
        assert self._exchange.whoami().status == 200

    def _note(self, kind: str, taken_s: float) -> None:
        self.longest_s[kind] = max(self.longest_s[kind], taken_s)

    def __enter__(self) -> _Customer:
        self.start()
        until(lambda: self.calls)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_it.set()
        self.join()


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 11_000:
        pytest.skip("needs 11,000 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (11_000 if soft < 11_000 else soft, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.usefixtures("many_descriptors")
def test_ten_thousand_strangers_hinder_nobody_and_leave_nothing(tmp_path: Path, tls: bool) -> None:
    with spawned_exchange(tmp_path, tls=tls) as exchange:
        start, descriptors = exchange.resident(), exchange.descriptors()
        after = []
        with _Customer(exchange) as customer:
            for _ in range(2):
                opened = _open(exchange.port, 10_000, tls=tls)
                assert exchange.descriptors() <= descriptors + door.STRANGERS + 500
                for connection in opened:
                    connection.close()
                until(lambda: exchange.descriptors() <= descriptors + 20)
                after.append(exchange.resident())
        until(lambda: exchange.descriptors() <= descriptors + 3)
        figures = {"calls": customer.calls, **customer.longest_s, "bytes": [size - start for size in after]}
        logger.info("%s", figures)
        assert customer.longest_s["stream"] < 1.0, figures
        # When the queue of the kernel is full, it tries again after one second, then after two more.
        assert customer.longest_s["new connection"] < 4.0, figures
        # uvloop takes 256 KiB for each TLS connection, of which it uses a part, each time another one.
        assert after[0] - start < (200 if tls else 50) * MIB, figures
        assert after[1] - after[0] < (100 if tls else 2) * MIB, figures


def test_an_exchange_without_descriptors_waits_and_serves_on(tmp_path: Path) -> None:
    """It neither ends nor spins, and who is in stays in."""
    with spawned_exchange(tmp_path) as exchange:
        few = exchange.descriptors() + 30
        exchange.process.rlimit(resource.RLIMIT_NOFILE, (few, few))
        with _Customer(exchange) as customer:
            opened = _open(exchange.port, 300)
            work, calls = sum(exchange.process.cpu_times()[:2]), customer.calls
            time.sleep(2)
            assert sum(exchange.process.cpu_times()[:2]) - work < 1.0
            assert customer.calls > calls
            for connection in opened:
                connection.close()
        assert exchange.whoami().after_s < 1
        assert len(exchange.log.read_text().splitlines()) < 40
