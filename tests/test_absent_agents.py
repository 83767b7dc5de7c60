"""Nobody waits for ever: an agent that nobody runs any more has its callers told."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from academy_hpc.agent import Agent, action
from academy_hpc.errors import AgentAbsentError
from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.handle import Handle
from academy_hpc.runtime import Runtime
from tests.exchange_server import TOKEN, running_exchange

__all__: list[str] = []

ABSENT_S = 0.4


class Worker(Agent):
    def __init__(self) -> None:
        self.done = 0

    @action
    async def work(self, seconds: float = 0.0) -> int:
        await asyncio.sleep(seconds)
        self.done += 1
        return self.done


async def test_who_calls_an_agent_that_nobody_runs_gets_an_error_in_the_stated_time() -> None:
    """The request is not carried out later either: the agent starts with what was asked after it came."""
    async with running_exchange(ServerConfig(token=TOKEN, absent_s=ABSENT_S)) as exchange:
        async with await exchange.factory.create_user_client() as user:
            registration = await user.register_agent(Worker)
            handle: Handle[Worker] = Handle(registration.agent_id)
            began = time.monotonic()
            with pytest.raises(AgentAbsentError, match="Start it") as caught:
                await handle.work()
            assert ABSENT_S <= time.monotonic() - began < ABSENT_S + 0.5
            assert caught.value.uid == registration.agent_id
            runtime = Runtime(Worker(), exchange_factory=exchange.factory, registration=registration)
            running = asyncio.create_task(runtime.run_until_complete())
            assert await handle.work() == 1
            await handle.shutdown()
            await running


async def test_an_agent_that_is_there_may_take_as_long_as_it_likes() -> None:
    async with running_exchange(ServerConfig(token=TOKEN, absent_s=ABSENT_S)) as exchange:
        async with await exchange.factory.create_user_client() as user:
            registration = await user.register_agent(Worker)
            handle: Handle[Worker] = Handle(registration.agent_id)
            runtime: Runtime[Any] = Runtime(Worker(), exchange_factory=exchange.factory, registration=registration)
            running = asyncio.create_task(runtime.run_until_complete())
            assert await handle.work(3 * ABSENT_S) == 1
            await handle.shutdown()
            await running


async def test_an_agent_that_comes_back_in_time_does_what_it_was_asked() -> None:
    """The time counts from its last sign of life, not from the call."""
    async with running_exchange(ServerConfig(token=TOKEN, absent_s=ABSENT_S)) as exchange:
        async with await exchange.factory.create_user_client() as user:
            registration = await user.register_agent(Worker)
            call = asyncio.create_task(Handle[Worker](registration.agent_id).work())
            for _ in range(3):
                await asyncio.sleep(0.6 * ABSENT_S)
                async with await exchange.factory.create_transport(registration.agent_id) as agent:
                    await agent.update_heartbeat()
            runtime = Runtime(Worker(), exchange_factory=exchange.factory, registration=registration)
            running = asyncio.create_task(runtime.run_until_complete())
            assert await call == 1
            await Handle[Worker](registration.agent_id).shutdown()
            await running
