"""The same agent twice: on academy-py and on academy_hpc. Importable wherever a test starts one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

import academy.agent

import academy_hpc

__all__ = ["ACTIONS", "OurAgent", "OurOtherAgent", "OutOfTuneError", "StillbornAgent", "TheirAgent", "TheirOtherAgent"]


def action(method: Callable[..., Any]) -> Any:
    """An action for both packages."""
    return academy.agent.action(academy_hpc.action(method))


class OutOfTuneError(Exception):
    """An exception of the user's own, with more than a text."""

    def __init__(self, note: str, cents: int) -> None:
        super().__init__(note, cents)
        self.note = note
        self.cents = cents


class Actions:
    """What both agents do; a base class that both have in common."""

    def __init__(self, total: int = 0) -> None:
        super().__init__()
        self.total = total
        self.cancelled = 0

    @action
    async def add(self, number: int, *, times: int = 1) -> int:
        self.total += number * times
        return self.total

    @action
    async def echo(self, value: Any) -> Any:
        return value

    @action
    async def repeat(self, text: str, times: int) -> str:
        return text * times

    @action
    async def fail(self, note: str) -> None:
        raise OutOfTuneError(note, 7)

    @action
    async def sleep(self, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return "slept"

    @action
    async def count_cancelled(self) -> int:
        return self.cancelled

    @action
    async def process(self) -> int:
        return os.getpid()

    @action
    async def ask(self, other: Any, number: int) -> Any:
        """Call another agent, whose handle came as an argument."""
        return await other.add(number)

    @action
    async def find(self, name: str) -> list[str]:
        """Discover from inside an agent."""
        return [str(found.uid) for found in await self.agent_exchange_client.discover(name)]  # type: ignore[attr-defined]


ACTIONS = f"{Actions.__module__}.{Actions.__qualname__}"


class TheirAgent(Actions, academy.agent.Agent):
    """On academy-py."""


class TheirOtherAgent(TheirAgent):
    """Derived, on academy-py."""


class StillbornAgent(academy.agent.Agent):
    """Fails to start, and takes a moment to do so."""

    async def agent_on_startup(self) -> None:
        await asyncio.sleep(0.2)
        raise OutOfTuneError("never started", 0)


class OurAgent(Actions, academy_hpc.Agent):
    """On academy_hpc."""

    @academy_hpc.action
    async def fail_as_framework(self) -> None:
        """Raise an error of ours that theirs does not have."""
        raise academy_hpc.ActionInterruptedError("sinter")

    @academy_hpc.action
    async def unanswerable(self) -> Any:
        """Return what can't travel."""
        return (number for number in range(3))

    @academy_hpc.action
    async def fail_unpicklably(self) -> None:
        """Raise what can't travel."""
        raise RuntimeError("unpicklable", (number for number in range(3)))

    @academy_hpc.action
    async def divide(self, number: int) -> float:
        """Fail with a built-in exception if `number` is 0."""
        return 1 / number


class OurOtherAgent(OurAgent):
    """Derived, on academy_hpc."""
