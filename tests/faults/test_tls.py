"""What breaks connections does no more harm when they are encrypted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from academy_hpc.errors import ExchangeUnreachableError
from academy_hpc.exchange.http import dial
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo
from tests.faults.durable import DurableExchange, through
from tests.faults.proxy import Direction, Proxy, running_proxy
from tests.faults.scene import acting, eventually

__all__: list[str] = []

pytestmark = pytest.mark.faults


class Stage:
    """A durable exchange with TLS, and a proxy in front of it."""

    def __init__(self, exchange: DurableExchange, proxy: Proxy, info: ConnectionInfo) -> None:
        self.exchange = exchange
        self.proxy = proxy
        self.info = info
        self.factory = HttpExchangeFactory.from_connection_info(through(info, proxy.port))


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    exchange = DurableExchange(tmp_path, tls=True)
    info = await exchange.start()
    assert info.fingerprint is not None
    async with running_proxy(int(info.urls[0].rsplit(":", 1)[1])) as proxy:
        yield Stage(exchange, proxy, info)
    await exchange.stop()


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_a_connection_may_be_reset_after_any_byte(direction: Direction, stage: Stage) -> None:
    """In the handshake, in the head, in a record."""
    async with acting(stage.factory, stage.factory) as scene:
        await scene.calls(3)
        for size in (1, 200, 1_000, 5_000, 100_000):
            connections = stage.proxy.connections
            stage.proxy.cut()
            stage.proxy.cut_after(direction, size)
            await scene.calls(3, size=100_000)
            await eventually(lambda before=connections: stage.proxy.connections > before + 2)


async def test_a_killed_exchange_comes_back_with_its_certificate(stage: Stage) -> None:
    async with acting(stage.factory, stage.factory) as scene:
        calls = [scene.call(pause_s=0.1) for _ in range(100)]
        await asyncio.sleep(0.05)
        await stage.exchange.kill()
        calls += [scene.call() for _ in range(100)]
        info = await stage.exchange.start()
        assert (info.urls, info.fingerprint) == (stage.info.urls, stage.info.fingerprint)
        async with asyncio.timeout(20):
            await asyncio.gather(*calls)


async def test_a_dead_connection_is_noticed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "HEARTBEAT_S", 0.4)
    async with acting(stage.factory, stage.factory) as scene:
        connections = stage.proxy.connections
        with stage.proxy.black_hole("down"):
            calls = [scene.call() for _ in range(10)]
            await eventually(lambda: stage.proxy.connections > connections)
        await asyncio.gather(*calls)


async def test_another_exchange_in_its_place_is_not_spoken_to(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = DurableExchange(tmp_path / "other", tls=True)
    stage.proxy.target_port = int((await other.start()).urls[0].rsplit(":", 1)[1])
    try:
        with pytest.raises(ExchangeUnreachableError, match="certificate"):
            await stage.factory.create_user_client()
    finally:
        await other.stop()
