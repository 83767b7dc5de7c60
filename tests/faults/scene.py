"""A user who calls an agent, both in this process, with connections of their own, and all they do written down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.handle import Handle
from academy_hpc.runtime import Runtime
from tests.faults.history import Event, History, Notes
from tests.faults.participants import Worker, record_call

__all__ = ["PATIENCE_S", "Scene", "acting", "apart", "eventually"]

PATIENCE_S = 20.0


def apart(factory: HttpExchangeFactory, number: int = 1) -> HttpExchangeFactory:
    """The same exchange by a connection of its own: a process shares one among clients with the same options."""
    options = msgspec.structs.replace(factory.options, reconnect_s=factory.options.reconnect_s + number)
    return HttpExchangeFactory.from_connection_info(factory.connection_info, options=options)


async def eventually(condition: Callable[[], Any], within_s: float = PATIENCE_S) -> None:
    """Wait until `condition` holds. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - nothing tells when
            await asyncio.sleep(0.002)


class Scene:
    """The user, the agent, and the history of their calls."""

    def __init__(self, user: UserExchangeClient, handle: Handle[Worker]) -> None:
        self.user = user
        self.handle = handle
        self.notes = Notes()
        self._numbers = 0

    def call(self, *, pause_s: float = 0.0, size: int = 0, once: bool = False) -> asyncio.Task[None]:
        """Make the next call."""
        self._numbers += 1
        event = Event("invoke", "user", "agent", self._numbers, once=once)
        self.notes.write(event)
        return asyncio.create_task(record_call(self.notes, self.handle, event, pause_s=pause_s, size=size))

    async def calls(self, count: int, *, pause_s: float = 0.0, size: int = 0) -> None:
        """Make that many at once, and wait for the answers."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(self.call(pause_s=pause_s, size=size) for _ in range(count)))

    def history(self) -> History:
        """Of all calls until now."""
        return History(self.notes.events)


@contextlib.asynccontextmanager
async def acting(users: HttpExchangeFactory, agents: HttpExchangeFactory) -> AsyncIterator[Scene]:
    """A user who reaches the exchange by `users`, an agent that does by `agents`; in the end the history is checked."""
    async with await apart(users).create_user_client(name="user") as user:
        registration = await user.register_agent(Worker)
        scene = Scene(user, Handle(registration.agent_id, exchange=user))
        runtime = Runtime(Worker("agent", scene.notes), exchange_factory=apart(agents, 2), registration=registration)
        running = asyncio.create_task(runtime.run_until_complete())
        try:
            assert await runtime.wait_started()
            yield scene
            async with asyncio.timeout(PATIENCE_S):
                await scene.handle.shutdown()
                await running
            scene.history().check()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
