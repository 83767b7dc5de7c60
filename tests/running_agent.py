"""Agents that run in this process, beside the test and its exchange."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec

from academy_hpc.agent import Agent, RuntimeConfig
from academy_hpc.checkpoint import CheckpointFiles
from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.handle import Handle
from academy_hpc.registry import Limits
from academy_hpc.runtime import Runtime
from tests.exchange_server import TOKEN, running_exchange

__all__ = ["PATIENCE_S", "RunningAgent", "eventually", "running", "running_user", "until"]

PATIENCE_S = 10.0


class RunningAgent(msgspec.Struct):
    """A Runtime at work, its task, and a handle of its agent."""

    runtime: Runtime[Any]
    task: asyncio.Task[None]
    handle: Handle[Any]
    registration: Any

    async def ended(self) -> None:
        """Wait for the end. Raises what the Runtime raises."""
        async with asyncio.timeout(PATIENCE_S):
            await self.task


@contextlib.asynccontextmanager
async def running_user(*, full_wait_s: float = 30.0, **limits: int) -> AsyncIterator[UserExchangeClient]:
    """A user at an exchange of this process, and the surrounding client of the test."""
    config = ServerConfig(token=TOKEN, limits=Limits(**limits), full_wait_s=full_wait_s)
    async with running_exchange(config) as exchange, await exchange.factory.create_user_client(name="tester") as user:
        yield user


@contextlib.asynccontextmanager
async def running(
    agent: Agent,
    user: UserExchangeClient,
    *,
    config: RuntimeConfig | None = None,
    registration: Any = None,
    state: CheckpointFiles | None = None,
    wait: bool = True,
) -> AsyncIterator[RunningAgent]:
    """Run `agent` until the block ends; a test that ends it earlier also looks at how it ended."""
    registration = registration or await user.register_agent(type(agent))
    runtime = Runtime(agent, exchange_factory=user.factory(), registration=registration, config=config, state=state)
    task = asyncio.create_task(runtime.run_until_complete())
    made = RunningAgent(runtime, task, Handle(registration.agent_id, exchange=user), registration)
    try:
        if wait:
            async with asyncio.timeout(PATIENCE_S):
                assert await runtime.wait_started()
        yield made
    finally:
        if not task.done():
            runtime.signal_shutdown()
            await made.ended()


async def until(condition: Callable[[], Any]) -> Any:
    """Wait until `condition` holds; what it gave then. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE_S):
        while not (value := condition()):  # noqa: ASYNC110 - conditions of agents, which set no event for a test
            await asyncio.sleep(0.001)
    return value


async def eventually(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Ask until what is awaited holds; what it was then. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE_S):
        while not (value := await condition()):  # noqa: ASYNC110 - conditions of other processes
            await asyncio.sleep(0.01)
    return value
