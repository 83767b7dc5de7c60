"""Code of agents that nobody can interrupt: the worker ends nevertheless, for the job has to go on after it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from academy_hpc import HttpExchangeFactory, Manager, spawn_http_exchange
from tests.lasting_agents import Blocking
from tests.running_agent import eventually
from tests.worker_process import report_of, worker_process

__all__: list[str] = []

LONG_S = 30.0


@pytest.fixture(scope="module")
def factory() -> Iterator[HttpExchangeFactory]:
    with spawn_http_exchange("127.0.0.1", 0) as made:
        yield made


@pytest.fixture
async def manager(factory: HttpExchangeFactory) -> AsyncIterator[Manager]:
    async with asyncio.timeout(LONG_S), await Manager.from_exchange_factory(factory, ThreadPoolExecutor(2)) as made:
        yield made
        await made.close(timeout=0.1)  # nothing ends where an event loop is blocked


@pytest.mark.parametrize("how", ["thread of the agent", "thread"])
async def test_a_thread_that_runs_on_does_not_keep_the_worker(manager: Manager, how: str) -> None:
    """Python would wait for it at its end, and the job script for the worker until its walltime has killed both."""
    spec = await manager.make_spec([Blocking])
    with worker_process(spec) as process:
        [agent] = await manager.adopt(spec)
        call = asyncio.create_task(agent.block(how, 2 * LONG_S))
        await eventually(agent.is_blocked)
        process.send_signal(signal.SIGTERM)
        [report] = (await report_of(process)).agents
        call.cancel()
    assert process.returncode == 75 and report.again


async def test_a_blocked_event_loop_keeps_the_worker_until_shortly_before_its_deadline(manager: Manager) -> None:
    """Nothing can be saved then, but the job is told that its agents want to go on."""
    spec = await manager.make_spec([Blocking])
    spec = msgspec.structs.replace(spec, deadline_s=time.time() + 6.0, grace_s=3.0)
    with worker_process(spec) as process:
        [agent] = await manager.adopt(spec)
        call = asyncio.create_task(agent.block("event loop", 2 * LONG_S))
        assert await asyncio.to_thread(process.wait) == 75
        call.cancel()
    assert spec.deadline_s is not None and time.time() < spec.deadline_s
