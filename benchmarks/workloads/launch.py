"""Launching: from the call of the manager until every agent has answered, one worker for all agents and one for each.

academy-py starts one agent in each slot of an executor. Its agents share a process only as threads, so where
academy_hpc has one worker process it has a `ThreadPoolExecutor` with a thread for each agent, and no process to start.
"""

import asyncio
import importlib
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from benchmarks.bench import Bench, Exchange
from benchmarks.process import private_bytes, seconds_since_start

__all__ = ["measure"]

LIMIT_S = 60.0


async def measure(bench: Bench, exchange: Exchange) -> None:
    """Launch many agents in one worker, in threads and in processes; kill a worker and start it again."""
    agent = importlib.import_module(f"benchmarks.launchable.{bench.side.name}").Echo
    count, ours = bench.scale.launched, bench.side.name == "academy_hpc"
    threads = 1 if ours else count
    async with bench.results.attempt_within("worker", LIMIT_S):
        executor = _processes(1) if ours else ThreadPoolExecutor(threads)
        taken = await _measure_launch(bench, exchange, executor, [agent] * count)
        bench.results.record("worker_s", taken)
        bench.results.record("worker_rate", count / taken)
    async with bench.results.attempt_within("threads", LIMIT_S):
        taken = await _measure_launch(bench, exchange, ThreadPoolExecutor(threads), [agent] * count)
        bench.results.record("threads_rate", count / taken)
    async with bench.results.attempt_within("processes", LIMIT_S):
        few = bench.scale.launched_apart
        taken = await _measure_launch(bench, exchange, _processes(few), [agent] * few, agents_per_worker=1)
        bench.results.record("processes_rate", few / taken)
    if ours:
        async with bench.results.attempt_within("relaunch", LIMIT_S):
            await _measure_relaunch(bench, exchange, [agent] * count)


def _processes(count: int) -> Executor:
    """Fresh interpreters: what is forked has copies of the connections of this process."""
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


async def _measure_launch(
    bench: Bench, exchange: Exchange, executor: Executor, agents: Sequence[Any], *, agents_per_worker: int | None = None
) -> float:
    """Return the seconds until all agents have answered."""
    async with await bench.side.manager.from_exchange_factory(exchange.factory, executor) as manager:
        start = time.perf_counter()
        handles = await bench.side.launch(manager, agents, agents_per_worker or len(agents))
        await asyncio.gather(*(handle.ping() for handle in handles))
        return time.perf_counter() - start


async def _measure_relaunch(bench: Bench, exchange: Exchange, agents: Sequence[Any]) -> None:
    """Kill workers of a job on this machine: what a further agent adds to one, and how soon all agents are back."""
    from academy_hpc.launch.batch import BatchLauncher

    used = []
    with tempfile.TemporaryDirectory(prefix="academy-bench-", ignore_cleanup_errors=True) as folder:
        launcher = BatchLauncher("local", runs=Path(folder))
        async with await bench.side.manager.from_exchange_factory(exchange.factory, launcher) as manager:
            for group in (agents[:1], agents):
                handles = await manager.launch_many(group, agents_per_worker=len(group))
                worker = _worker(launcher.runs[-1])
                used.append(private_bytes(worker))
                worker.kill()
                await asyncio.gather(*(handle.ping() for handle in handles))
                taken = seconds_since_start(_worker(launcher.runs[-1]))
                await asyncio.gather(*map(manager.shutdown, handles))
    bench.results.record("relaunch_s", taken)
    bench.results.record("agent_kb", (used[1] - used[0]) / (len(agents) - 1) / 1e3)


def _worker(run: Any) -> psutil.Process:
    """The only worker of a run, in its present life."""
    return psutil.Process(run.worker(0).origin.pid)
