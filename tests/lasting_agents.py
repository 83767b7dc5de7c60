"""Agents that go on in another life."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from academy_hpc import Agent, action, loop

__all__ = ["Blocking", "Diary", "Forgetful", "Odd", "Slow", "Stuck"]


class Diary(Agent):
    """Keeps what it was told, from one life to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[str] = []
        self.events: list[str] = []
        self.begun = asyncio.Event()

    def agent_get_state(self) -> Any:
        return self.entries, self.events

    def agent_set_state(self, state: Any) -> None:
        self.entries, self.events = state

    async def agent_on_startup(self) -> None:
        self.events.append(f"starts with {len(self.entries)}")

    async def agent_on_shutdown(self) -> None:
        self.events.append("ends")

    @action
    async def write(self, entry: str, seconds: float = 0.0) -> int:
        self.events.append(f"begins {entry}")
        self.begun.set()
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.events.append(f"leaves {entry}")
            raise
        self.entries.append(entry)
        return len(self.entries)

    @action(idempotent=False)
    async def write_once(self, entry: str) -> int:
        return await self.write(entry)

    @action
    async def read(self) -> tuple[list[str], list[str]]:
        return self.entries, self.events


class Slow(Diary):
    """Takes its time to end, and to start."""

    def __init__(self, *, start_s: float = 0.0, end_s: float = 0.0) -> None:
        super().__init__()
        self.start_s = start_s
        self.end_s = end_s

    async def agent_on_startup(self) -> None:
        await super().agent_on_startup()
        await asyncio.sleep(self.start_s)

    async def agent_on_shutdown(self) -> None:
        await asyncio.sleep(self.end_s)
        await super().agent_on_shutdown()


class Stuck(Slow):
    """Does not let go of anything."""

    @loop
    async def never_returns(self, shutdown: asyncio.Event) -> None:
        await asyncio.sleep(1000)


class Odd(Diary):
    """Has a state that can't be pickled."""

    def agent_get_state(self) -> Any:
        return threading.Lock()


class Blocking(Diary):
    """Has code that nobody can interrupt."""

    @action
    async def block(self, how: str, seconds: float) -> None:
        self.begun.set()
        if how == "thread of the agent":
            await self.agent_run_sync(time.sleep, seconds)
        elif how == "thread":
            await asyncio.to_thread(time.sleep, seconds)
        else:
            time.sleep(seconds)  # noqa: ASYNC251 - what users do, too

    @action
    async def is_blocked(self) -> bool:
        return self.begun.is_set()


class Forgetful(Agent):
    """Can save, and not restore."""

    def agent_get_state(self) -> Any:
        return None
