"""Agents on the nodes of a batch job: ``python -m examples.slurm_run perlmutter --account m1234 --nodes 3``.

Run it on a login node. A letter goes round all agents; each adds the name of its node and hands it to the next one.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections import Counter
from typing import Any

from academy_hpc import (
    Agent,
    AgentLaunch,
    BatchLauncher,
    Handle,
    HttpExchangeFactory,
    Manager,
    action,
    spawn_http_exchange,
)

AGENTS_PER_NODE = 8


class Postman(Agent):
    """Knows the next one, and nobody else."""

    def __init__(self) -> None:
        super().__init__()
        self.next: Handle[Postman] | None = None

    @action
    async def meet(self, postman: Handle[Postman] | None) -> None:
        self.next = postman

    @action
    async def carry(self, letter: list[str]) -> list[str]:
        """The letter, when it has come to the end of the line."""
        letter = [*letter, socket.gethostname()]
        return letter if self.next is None else await self.next.carry(letter)


async def main(factory: HttpExchangeFactory, launcher: BatchLauncher, count: int) -> None:
    async with await Manager.from_exchange_factory(factory, launcher) as manager:
        items = [AgentLaunch(Postman, name=f"postman-{number}") for number in range(1, count + 1)]
        postmen = await manager.launch_many(items, agents_per_worker=AGENTS_PER_NODE, progress=True)
        print(f"{count} agents run; their logs are in {launcher.runs[-1].path}", flush=True)
        await asyncio.gather(*(one.meet(other) for one, other in zip(postmen, [*postmen[1:], None], strict=True)))
        letter = await postmen[0].carry([])
        nodes = ", ".join(f"{node} ({count})" for node, count in Counter(letter).items())
        print(f"a letter was carried by {len(letter)} agents, on {nodes}")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.slurm_run", description=__doc__)
    parser.add_argument("site", help="a machine or scheduler: `academy-hpc site list` shows them")
    parser.add_argument("--account", help="who pays")
    parser.add_argument("--queue", help="the queue or partition, where the site needs one")
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--walltime", default="10m")
    return parser.parse_args()


if __name__ == "__main__":
    given = vars(options())
    job: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    # It ends with this program, and so do the agents. For those that are to go on: `academy-hpc exchange start`.
    with spawn_http_exchange(port=0) as exchange:
        asyncio.run(main(exchange, BatchLauncher(job.pop("site"), **job), count=given["nodes"] * AGENTS_PER_NODE))
