"""Action round trip: user process, exchange process, one agent process."""

import functools
from typing import Any

import psutil

from benchmarks.agents import agent_processes
from benchmarks.bench import Bench, Exchange
from benchmarks.load import latencies, percentile, throughput
from benchmarks.process import CpuMeter

__all__ = ["OUTSTANDING", "measure"]

OUTSTANDING = 64
LIMIT_S = 20.0


async def measure(bench: Bench, exchange: Exchange) -> None:
    """Measure each size with 1 and with 64 calls outstanding."""
    sizes = bench.scale.sizes_bytes
    if bench.side.name == "academy_hpc":
        sizes += bench.scale.large_sizes_bytes
    async with await exchange.factory.create_user_client() as client:
        registration = await client.register_agent(bench.side.Echo)
        async with agent_processes(bench, exchange, registrations=[registration], processes=1) as workers:
            handle = bench.side.Handle(registration.agent_id, exchange=client)
            groups = {"exchange": [exchange.process], "user": [psutil.Process()], "agent": workers}
            for size in sizes:
                await _measure_latency(bench, handle, size)
                await _measure_rate(bench, handle, size, CpuMeter(groups))


async def _measure_latency(bench: Bench, handle: Any, size: int) -> None:
    scale = bench.scale
    async with bench.results.attempt_within(f"latency_{size}", LIMIT_S):
        call = functools.partial(handle.echo, bytes(size))
        taken = await latencies(call, warm_up_s=scale.warm_up_s, window_s=scale.window_s)
        bench.results.record(f"p50_ms_{size}", percentile(taken, 50) * 1e3)
        bench.results.record(f"p99_ms_{size}", percentile(taken, 99) * 1e3)


async def _measure_rate(bench: Bench, handle: Any, size: int, meter: CpuMeter) -> None:
    scale = bench.scale
    # 64 outstanding calls of 16 MB would need 1 GB in each of the three processes.
    outstanding = OUTSTANDING if size <= 1_000_000 else 8
    async with bench.results.attempt_within(f"rate_{size}", LIMIT_S):
        calls = [functools.partial(handle.echo, bytes(size))] * outstanding
        rate, cpu = await throughput(calls, meter=meter, warm_up_s=scale.warm_up_s, window_s=scale.window_s)
        bench.results.record(f"rate_{size}", rate)
        for name, seconds in cpu.items():
            bench.results.record(f"{name}_cpu_ms_{size}", seconds * 1e3)
