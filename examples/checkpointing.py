"""An agent that outlives its jobs: ``python -m examples.checkpointing``.

A job lasts eight seconds here, on this machine. Shortly before its end the agent is told, its state is saved, and the
job submits the next one, in which the agent goes on where it was. Calls meanwhile wait in its mailbox.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from academy_hpc import (
    Agent,
    BatchLauncher,
    HttpExchangeFactory,
    Manager,
    RuntimeConfig,
    action,
    loop,
    spawn_http_exchange,
)

WALLTIME_S, GRACE_S = 8, 4
LIVES = 3


class Estimator(Agent):
    """Estimates pi by chance, for as long as jobs follow one another."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.life = 1
        self.samples = self.inside = 0
        self.random = random.Random(seed)  # noqa: S311 - samples, not secrets

    def agent_get_state(self) -> dict[str, Any]:
        """All that another life needs. Called when this one ends, and every two seconds in case it is cut short."""
        numbers = self.random.getstate()
        return {"life": self.life, "samples": self.samples, "inside": self.inside, "random": numbers}

    def agent_set_state(self, state: dict[str, Any]) -> None:
        """The same, in the next life."""
        self.life = state["life"] + 1
        self.samples, self.inside = state["samples"], state["inside"]
        self.random.setstate(state["random"])

    @loop
    async def sample(self, shutdown: asyncio.Event) -> None:
        while not shutdown.is_set():
            for _ in range(1000):
                self.inside += self.random.random() ** 2 + self.random.random() ** 2 < 1
            self.samples += 1000
            await asyncio.sleep(0.01)

    @action
    async def estimate(self) -> tuple[int, int, float]:
        """Which life this is, how many samples there are, and what pi is by them."""
        return self.life, self.samples, 4 * self.inside / max(self.samples, 1)


async def main(factory: HttpExchangeFactory, launcher: BatchLauncher) -> None:
    async with await Manager.from_exchange_factory(factory, launcher) as manager:
        config = RuntimeConfig(checkpoint_s=2)
        estimator = await manager.launch(Estimator, args=(1,), name="estimator", config=config)
        life = 0
        while life < LIVES:
            await asyncio.sleep(0.5)
            now, samples, pi = await estimator.estimate()
            if now > life:
                life = now
                print(f"life {life}: {samples:,} samples, pi is about {pi:.3f}", flush=True)
        for end in manager.ends(estimator):
            print(f"life {end.attempt} ended: {end.cause}")


if __name__ == "__main__":
    # On a cluster: BatchLauncher("perlmutter", account="m1234", walltime="2:00:00")
    with spawn_http_exchange(port=0) as exchange:
        asyncio.run(main(exchange, BatchLauncher("local", walltime=WALLTIME_S, grace_s=GRACE_S)))
