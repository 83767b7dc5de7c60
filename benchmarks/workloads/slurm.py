"""Launching by a job of Slurm, on a login node of a cluster with three nodes: academy_hpc alone can do it.

`python -m tests.rigs slurm python -m benchmarks --only slurm` has a Slurm on one machine, whose three nodes share its
cores.
"""

import asyncio
import time
from typing import Any

from benchmarks.bench import Bench, Exchange

__all__ = ["NODES", "measure"]

NODES = 3
LIMIT_S = 120.0


async def measure(bench: Bench, exchange: Exchange) -> None:
    """Launch many agents with one worker on each node; the time in the queue is part of it."""
    async with bench.results.attempt_within("slurm", LIMIT_S):
        await _measure(bench, exchange)


async def _measure(bench: Bench, exchange: Exchange) -> None:
    from academy_hpc.launch.batch import BatchLauncher
    from benchmarks.launchable.academy_hpc import Echo

    count = bench.scale.launched
    launcher: Any = await asyncio.to_thread(BatchLauncher, "slurm", nodes=NODES, walltime="10m")
    async with await bench.side.manager.from_exchange_factory(exchange.factory, launcher) as manager:
        start, start_s = time.perf_counter(), time.time()
        handles = await manager.launch_many([Echo] * count, agents_per_worker=-(-count // NODES))
        await asyncio.gather(*(handle.ping() for handle in handles))
        taken = time.perf_counter() - start
        queued = next(e["time_s"] for e in launcher.runs[-1].events() if e["event"] == "job_started") - start_s
    bench.results.record("slurm_s", taken)
    bench.results.record("slurm_rate", count / taken)
    bench.results.record("slurm_job_s", taken - queued)
