"""An agent whose actions wait until the test lets them go on."""

from __future__ import annotations

import asyncio
from typing import Any

from academy_hpc.agent import Agent, RuntimeConfig, action
from academy_hpc.handle import Handle

__all__ = ["STAY", "WaitingAgent", "call"]

STAY = RuntimeConfig(terminate_on_success=False, terminate_on_error=False)


class WaitingAgent(Agent):
    """Its runs are counted by number, its actions wait until released."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.ended: list[str] = []
        self.release = asyncio.Event()
        self.shut_down = False

    @action
    async def run(self, number: int = 0) -> int:
        self.started.append(number)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("finished")
        return number

    @action(idempotent=False)
    async def run_once(self, number: int) -> int:
        return await self.run(number)

    @action
    async def tidy_up(self) -> str:
        self.started.append(-1)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            self.ended.append("tidied up")
            raise
        return "not cancelled"

    @action
    async def finish_through_itself(self) -> Any:
        self.started.append(-2)
        await self.release.wait()
        return await Handle(self.agent_id).quick()

    @action
    async def quick(self) -> str:
        return "quick"

    async def agent_on_shutdown(self) -> None:
        self.shut_down = True


def call(handle: Handle[Any], name: str, *args: Any) -> asyncio.Task[Any]:
    return asyncio.create_task(handle.action(name, *args))
