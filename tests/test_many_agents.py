"""What many agents cost: it grows with their number, and not with its square."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from academy_hpc import HttpExchangeFactory, Manager, spawn_http_exchange
from academy_hpc.launch.progress import LaunchProgress
from tests.launched_agents import Counter

__all__: list[str] = []

COUNT = 100
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def factory() -> Iterator[HttpExchangeFactory]:
    with spawn_http_exchange("127.0.0.1", 0) as made:
        yield made


async def launch(factory: HttpExchangeFactory, progress: list[LaunchProgress] | None) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, ThreadPoolExecutor(1)) as manager:
            show = False if progress is None else progress.append
            await manager.launch_many([Counter] * COUNT, agents_per_worker=COUNT, progress=show)


async def test_progress_is_told_once_for_all_that_was_heard_together(factory: HttpExchangeFactory) -> None:
    told: list[LaunchProgress] = []
    await launch(factory, told)
    assert len(told[-1].ready) == COUNT
    assert len(told) < COUNT  # twice as many reports were heard


async def test_progress_that_nobody_sees_is_not_made(
    factory: HttpExchangeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    monkeypatch.setattr("academy_hpc.launch.supervisor.Supervisor.progress", lambda *_: made.append(_))
    await launch(factory, None)
    assert made == []
