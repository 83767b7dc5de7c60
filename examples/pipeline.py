"""A pipeline of agents that call each other: ``python -m examples.pipeline``.

Two simulators make samples, an analyst averages what comes, and a steerer tells the simulators where to look next. The
program only starts them and asks for the result: the rest is between the agents.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any

from academy_hpc import Agent, AgentLaunch, Handle, HttpExchangeFactory, Manager, action, loop, spawn_http_exchange
from academy_hpc.launch.launcher import Launcher

BEST = 0.7  # what the pipeline looks for, and no agent but the simulators knows
ROUNDS = 8


class Simulator(Agent):
    """Makes samples around a place until it is told to end."""

    def __init__(self, analyst: Handle[Analyst], seed: int) -> None:
        super().__init__()
        self.analyst = analyst
        self.random = random.Random(seed)  # noqa: S311 - samples, not secrets
        self.place, self.width = 0.0, 1.0

    @action
    async def look(self, place: float, width: float) -> None:
        self.place, self.width = place, width

    @loop
    async def sample(self, shutdown: asyncio.Event) -> None:
        while not shutdown.is_set():
            samples = [self.random.gauss(self.place, self.width) for _ in range(100)]
            await self.analyst.judge([(x, -((x - BEST) ** 2)) for x in samples])


class Analyst(Agent):
    """Keeps the best of what the simulators send, and passes it on."""

    def __init__(self, steerer: Handle[Steerer]) -> None:
        super().__init__()
        self.steerer = steerer
        self.best: list[tuple[float, float]] = []

    @action
    async def judge(self, samples: list[tuple[float, float]]) -> None:
        self.best = sorted([*self.best, *samples], key=lambda sample: sample[1])[-10:]
        await self.steerer.steer(sum(x for x, _ in self.best) / len(self.best))


class Steerer(Agent):
    """Has the simulators look closer and closer."""

    def __init__(self) -> None:
        super().__init__()
        self.simulators: list[Handle[Simulator]] = []
        self.places: list[float] = []
        self.finished = asyncio.Event()

    @action
    async def connect(self, simulators: list[Handle[Simulator]]) -> None:
        self.simulators = simulators

    @action
    async def steer(self, place: float) -> None:
        if not self.simulators or self.finished.is_set():
            return
        self.places.append(place)
        width = 0.5 ** len(self.places)
        await asyncio.gather(*(simulator.look(place, width) for simulator in self.simulators))
        if len(self.places) >= ROUNDS:
            self.finished.set()

    @action
    async def result(self) -> list[float]:
        await self.finished.wait()
        return self.places


async def main(factory: HttpExchangeFactory, launcher: Launcher | Executor) -> None:
    async with await Manager.from_exchange_factory(factory, launcher) as manager:
        # Registered first: so that each agent can be given a handle of another that does not run yet.
        analyst, steerer = await manager.register_agents([(Analyst, "analyst"), (Steerer, "steerer")])
        to_analyst, to_steerer = manager.get_handle(analyst), manager.get_handle(steerer)
        items: list[AgentLaunch[Any]] = [
            AgentLaunch(Analyst, args=(to_steerer,), registration=analyst),
            AgentLaunch(Steerer, registration=steerer),
            AgentLaunch(Simulator, args=(to_analyst, 1), name="simulator-1"),
            AgentLaunch(Simulator, args=(to_analyst, 2), name="simulator-2"),
        ]
        _, _, *simulators = await manager.launch_many(items, agents_per_worker=2, progress=True)
        await to_steerer.connect(simulators)
        for number, place in enumerate(await to_steerer.result(), 1):
            print(f"round {number}: looked at {place:.4f}")
        # The source first: what it has sent is still worked on.
        for simulator in simulators:
            await manager.shutdown(simulator)


if __name__ == "__main__":
    pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
    with spawn_http_exchange(port=0) as factory:
        asyncio.run(main(factory, pool))
