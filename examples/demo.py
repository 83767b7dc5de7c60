"""Eight agents in two Parsl workers compute together, through a private exchange on this machine: ``make demo``."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from itertools import chain

from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

from academy_hpc import AgentLaunch, HttpExchangeFactory, Manager, ParslLauncher, spawn_http_exchange
from examples.rod import COLD, HOT, Piece, flow

PIECES, WORKERS, CELLS, STEPS = 8, 2, 4, 400


def parsl_config(folder: str) -> Config:
    """Two workers on this machine. On a cluster the provider would be a SlurmProvider or a PBSProProvider."""
    executor = HighThroughputExecutor(
        label="workers",
        address="127.0.0.1",
        max_workers_per_node=WORKERS,
        cores_per_worker=0.1,  # so that one core is enough for the demo
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    return Config(executors=[executor], run_dir=folder, strategy_period=1, initialize_logging=False)


def say(topic: str, text: str) -> None:
    print(f"{topic:<10} {text}", flush=True)


async def main(factory: HttpExchangeFactory, launcher: ParslLauncher) -> float:
    async with await Manager.from_exchange_factory(factory, launcher) as manager:
        say("Launch", f"{PIECES} agents in {WORKERS} worker processes of a Parsl HighThroughputExecutor")
        start = time.perf_counter()
        items = [AgentLaunch(Piece, args=(CELLS,), name=f"piece-{number}") for number in range(1, PIECES + 1)]
        pieces = await manager.launch_many(items, agents_per_worker=PIECES // WORKERS, progress=True)
        say("", f"all ready after {time.perf_counter() - start:.1f} s")

        lefts, rights = [None, *pieces[:-1]], [*pieces[1:], None]
        processes = await asyncio.gather(*(p.connect(a, b) for p, a, b in zip(pieces, lefts, rights, strict=True)))
        for process in dict.fromkeys(processes):
            names = [item.name or "" for item, home in zip(items, processes, strict=True) if home == process]
            say("", f"process {process}: {', '.join(names)}")

        start = time.perf_counter()
        cells = list(chain(*await asyncio.gather(*(piece.simulate(STEPS) for piece in pieces))))
        seconds = time.perf_counter() - start
        calls = STEPS * 2 * (PIECES - 1)
        say("Compute", f"{STEPS} steps, in which the agents called each other {calls:,} times, in {seconds:.1f} s")
        show(cells, items)
        stop = time.perf_counter()
    say("Stop", f"agents and workers have ended, {time.perf_counter() - stop:.1f} s")
    return stop


def show(cells: list[float], items: list[AgentLaunch[Piece]]) -> None:
    for number, item in enumerate(items):
        mean = sum(cells[number * CELLS : (number + 1) * CELLS]) / CELLS
        say("", f"  {item.name}  {mean:5.1f} °C  {'#' * round(mean / 2)}")
    whole = [COLD] * len(cells)
    for _ in range(STEPS):
        whole = flow([HOT, *whole, COLD])
    if cells != whole:
        sys.exit("The agents' result is not that of the same calculation in one piece.")
    say("Check", "the same numbers as from a calculation in one piece")


if __name__ == "__main__":
    begin = time.perf_counter()
    print("Heat flows along a rod. Each of its pieces is an agent, and asks its neighbours how warm they are.\n")
    with tempfile.TemporaryDirectory(prefix="academy-hpc-demo-") as folder:
        with spawn_http_exchange(port=0) as factory:
            say("Exchange", f"{factory.connection_info.urls[0]}, closed to all who do not have its token")
            asyncio.run(main(factory, ParslLauncher(parsl_config(folder))))
        say("", "the exchange has ended")
    print(f"\nDone in {time.perf_counter() - begin:.0f} s. The code is in examples/demo.py and examples/rod.py.")
