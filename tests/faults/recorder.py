"""An agent in a process of its own, to be killed: every execution of an action leaves a line in a file."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from academy_hpc.agent import Agent, action
from academy_hpc.errors import ListenerSupersededError
from academy_hpc.exchange.http.client import HttpAgentRegistration, HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.runtime import Runtime

__all__ = ["SUPERSEDED", "Assignment", "Recorder"]

SUPERSEDED = 3
"""Exit code of a process whose agent was taken over by a newer copy."""


class Assignment(msgspec.Struct):
    """What the process is to run: it stands in standard input, as one JSON object."""

    connection: str
    registration: str
    record: str
    gate: str


class Recorder(Agent):
    """Works on one request at a time, and goes on only while the file `gate` exists."""

    def __init__(self, record: str, gate: str) -> None:
        self._record = record
        self._gate = Path(gate)
        self._turn = asyncio.Lock()

    async def agent_on_startup(self) -> None:
        self._write("up")

    @action
    async def in_turn(self, number: int) -> tuple[int, int]:
        """The number and the process that did it."""
        self._write(f"got {number}")
        async with self._turn:
            return await self._work(number)

    @action(idempotent=False)
    async def once(self, number: int) -> tuple[int, int]:
        return await self._work(number)

    @action
    async def nap(self, seconds: float) -> int:
        self._write("napping")
        await asyncio.sleep(seconds)
        self._write("awake")
        return os.getpid()

    async def _work(self, number: int) -> tuple[int, int]:
        self._write(f"run {number}")
        while not self._gate.exists():  # noqa: ASYNC110 - opened by another process
            await asyncio.sleep(0.002)
        self._write(f"end {number}")
        return number, os.getpid()

    def _write(self, text: str) -> None:
        descriptor = os.open(self._record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(descriptor, f"{os.getpid()} {text}\n".encode())
        os.close(descriptor)


async def main() -> None:
    assignment = msgspec.json.decode(sys.stdin.read(), type=Assignment)
    runtime = Runtime(
        Recorder(assignment.record, assignment.gate),
        exchange_factory=HttpExchangeFactory.from_connection_info(ConnectionInfo.from_json(assignment.connection)),
        registration=HttpAgentRegistration.from_json(assignment.registration),
    )
    try:
        await runtime.run_until_complete()
    except ListenerSupersededError:
        sys.exit(SUPERSEDED)


if __name__ == "__main__":
    asyncio.run(main())
