"""One agent in a process of its own, called through a private exchange: ``python -m examples.quickstart``."""

from __future__ import annotations

import asyncio
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from academy_hpc import Agent, HttpExchangeFactory, Manager, action, spawn_http_exchange


class Counter(Agent):
    """Its state lives where it runs; others change it by its actions."""

    def __init__(self, start: int) -> None:
        super().__init__()
        self.total = start

    @action
    async def add(self, amount: int) -> int:
        self.total += amount
        return self.total


async def main(factory: HttpExchangeFactory) -> None:
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
    async with await Manager.from_exchange_factory(factory, pool) as manager:
        counter = await manager.launch(Counter, args=(40,), name="counter")
        print(f"{counter.agent_id.name} is ready")
        print(f"40 + 2 = {await counter.add(2)}")


if __name__ == "__main__":
    with spawn_http_exchange(port=0) as factory:
        asyncio.run(main(factory))
