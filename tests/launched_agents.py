"""Agents that the tests of launching run in other processes."""

from __future__ import annotations

import asyncio
import os
import sys
import time

from academy_hpc import Agent, Handle, action, loop

__all__ = ["Caller", "Counter", "Fragile", "Insider", "Keeper", "LateFailure", "Stubborn", "Tired", "Unlucky"]


class Counter(Agent):
    def __init__(self, total: int = 0) -> None:
        super().__init__()
        self.total = total

    @action
    async def add(self, amount: int) -> int:
        self.total += amount
        return self.total

    @action
    async def add_slowly(self, amount: int) -> int:
        await asyncio.sleep(0.5)
        return await self.add(amount)

    @action
    async def process(self) -> int:
        return os.getpid()

    @action
    async def leave(self) -> None:
        sys.exit(3)

    @action
    async def hang_in_a_thread(self) -> None:
        await self.agent_run_sync(time.sleep, 30)

    @action
    async def divide(self, by: int) -> float:
        return self.total / by

    @action
    async def hang(self) -> None:
        await asyncio.sleep(1000)


class Keeper(Counter):
    """Keeps its total over its lives."""

    def agent_get_state(self) -> int:
        return self.total

    def agent_set_state(self, state: int) -> None:
        self.total = state


class Caller(Agent):
    @action
    async def add_for_me(self, counter: Handle[Counter], amount: int) -> int:
        return int(await counter.add(amount))


class Insider(Agent):
    """Tells what it can do besides being itself."""

    @action
    async def shown_to_the_exchange(self) -> dict[str, str]:
        return dict(self.agent_exchange_client.factory().connection_info.headers)


class Fragile(Agent):
    def __init__(self, reason: str) -> None:
        super().__init__()
        raise ValueError(reason)


class LateFailure(Agent):
    async def agent_on_startup(self) -> None:
        raise OSError("no such instrument")


class Unlucky(Agent):
    """Takes its process with it."""

    async def agent_on_startup(self) -> None:
        os._exit(7)


class Tired(Agent):
    """Fails when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.told = asyncio.Event()

    @action
    async def fail(self) -> None:
        self.told.set()

    @loop
    async def work(self, shutdown: asyncio.Event) -> None:
        await self.told.wait()
        raise RuntimeError("too tired")


class Stubborn(Agent):
    """Does not end when it is asked to."""

    @action
    async def process(self) -> int:
        return os.getpid()

    async def agent_on_shutdown(self) -> None:
        await asyncio.sleep(1000)
