"""Idle listeners: what they cost the exchange in memory and in CPU time."""

import asyncio
from contextlib import AsyncExitStack

from benchmarks.bench import Bench, Exchange
from benchmarks.process import CpuMeter, private_bytes

__all__ = ["measure"]

WARM_UP_LISTENERS = 50
SETTLE_S = 1.0
LIMIT_S = 60.0


async def measure(bench: Bench, exchange: Exchange) -> None:
    """Open many listening clients in one process, then let them be."""
    async with AsyncExitStack() as stack, bench.results.attempt_within("idle", LIMIT_S):

        async def listen(number: int) -> None:
            for _ in range(number):
                client = await exchange.factory.create_user_client()
                stack.push_async_callback(client.close)

        await listen(WARM_UP_LISTENERS)
        await asyncio.sleep(SETTLE_S)
        before = private_bytes(exchange.process)
        await listen(bench.scale.listeners)
        await asyncio.sleep(SETTLE_S)
        grown = private_bytes(exchange.process) - before
        bench.results.record("listener_bytes", grown / bench.scale.listeners)
        meter = CpuMeter({"exchange": [exchange.process]})
        meter.start()
        await asyncio.sleep(bench.scale.idle_window_s)
        elapsed, cpu = meter.stop()
        bench.results.record("idle_cpu_percent", cpu["exchange"] / elapsed * 100)
