"""Agents that the tests on several hosts run there."""

from __future__ import annotations

import asyncio
import socket
import uuid
from typing import Any

from academy_hpc import Handle, action
from tests.faults.history import Event, Journal
from tests.faults.participants import Worker, record_call

__all__ = ["Clerk"]


class Clerk(Worker):
    """Writes what it is asked to do, and what it asks of others, into a file that all hosts share.

    Its state is how often it has worked, and the number of its latest call.
    """

    def __init__(self, name: str, journal: str) -> None:
        super().__init__(name, Journal(journal))
        self._life = uuid.uuid4().hex
        self._worked = 0
        self._number = 0

    @action
    async def work(self, sender: str, number: int, pause_s: float, ballast: bytes) -> tuple[str, int]:
        self._worked += 1
        return await super().work(sender, number, pause_s, ballast)

    @action
    async def worked(self) -> int:
        return self._worked

    @action
    async def home(self) -> tuple[str, str]:
        """Its host, and which life this is."""
        return socket.gethostname(), self._life

    @action
    async def call(self, peers: dict[str, Handle[Clerk]], count: int) -> None:
        """Have each of the others work `count` times."""
        calls = []
        for name, peer in peers.items():
            for _ in range(count):
                self._number += 1
                event = Event("invoke", self._name, name, self._number)
                self._journal.write(event)
                calls.append(record_call(self._journal, peer, event))
        await asyncio.gather(*calls)

    async def agent_get_state(self) -> dict[str, Any]:
        return {"worked": self._worked, "number": self._number}

    async def agent_set_state(self, state: dict[str, Any]) -> None:
        self._worked, self._number = state["worked"], state["number"]
