"""Generating load: closed loops of calls, with the warm-up left out of the figures."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from benchmarks.process import CpuMeter

__all__ = ["Call", "gather_limited", "latencies", "percentile", "throughput"]

Call = Callable[[], Awaitable[object]]


async def latencies(call: Call, *, warm_up_s: float, window_s: float) -> list[float]:
    """Return the seconds each call took, one after another, for `window_s` seconds."""
    await _repeat_until(call, time.perf_counter() + warm_up_s)
    return await _repeat_until(call, time.perf_counter() + window_s)


async def _repeat_until(call: Call, deadline: float) -> list[float]:
    taken: list[float] = []
    start = time.perf_counter()
    while start < deadline or not taken:
        await call()
        end = time.perf_counter()
        taken.append(end - start)
        start = end
    return taken


async def throughput(
    calls: Sequence[Call], *, meter: CpuMeter, warm_up_s: float, window_s: float
) -> tuple[float, dict[str, float]]:
    """Keep one call of each entry outstanding; return calls per second and CPU seconds per call of each group.

    The warm-up lasts until every entry has returned once, and `warm_up_s` at least.
    """
    done = 0
    running = True
    warm = asyncio.Semaphore(0)

    async def repeat(call: Call) -> None:
        nonlocal done
        await call()
        warm.release()
        while running:
            await call()
            done += 1

    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(repeat(call))
        for _ in calls:
            await warm.acquire()
        await asyncio.sleep(warm_up_s)
        before = done
        meter.start()
        await asyncio.sleep(window_s)
        elapsed, cpu = meter.stop()
        count = done - before
        running = False
    return count / elapsed, {name: seconds / max(count, 1) for name, seconds in cpu.items()}


async def gather_limited(calls: Sequence[Call], *, limit: int) -> float:
    """Make every call once with `limit` outstanding; return the seconds it took."""
    pending = iter(calls)

    async def work() -> None:
        for call in pending:
            await call()

    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(limit):
            group.create_task(work())
    return time.perf_counter() - start


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which `percent` percent of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
