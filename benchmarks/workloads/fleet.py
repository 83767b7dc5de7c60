"""Many agents: 32 of them with 4 calls outstanding each, in one and in four agent processes."""

import functools
from typing import Any

import psutil

from benchmarks.agents import agent_processes
from benchmarks.bench import Bench, Exchange
from benchmarks.load import gather_limited, throughput
from benchmarks.process import CpuMeter

__all__ = ["PROCESSES", "measure"]

PROCESSES = (1, 4)
OUTSTANDING_PER_AGENT = 4
PAYLOAD_BYTES = 100
LIMIT_S = 60.0


async def measure(bench: Bench, exchange: Exchange) -> None:
    """Measure the fleet once for each number of agent processes."""
    async with await exchange.factory.create_user_client() as client:
        for processes in PROCESSES:
            async with bench.results.attempt_within(f"fleet_{processes}", LIMIT_S):
                await _measure(bench, exchange, client, processes)


async def _measure(bench: Bench, exchange: Exchange, client: Any, processes: int) -> None:
    echo = bench.side.Echo
    registrations = [await client.register_agent(echo) for _ in range(bench.scale.fleet_agents)]
    async with agent_processes(bench, exchange, registrations=registrations, processes=processes) as workers:
        handles = [bench.side.Handle(r.agent_id, exchange=client) for r in registrations]
        await gather_limited([handle.ping for handle in handles], limit=8)
        calls = [functools.partial(h.echo, bytes(PAYLOAD_BYTES)) for h in handles] * OUTSTANDING_PER_AGENT
        meter = CpuMeter({"exchange": [exchange.process], "user": [psutil.Process()], "agent": workers})
        scale = bench.scale
        rate, cpu = await throughput(calls, meter=meter, warm_up_s=scale.warm_up_s, window_s=scale.fleet_window_s)
    bench.results.record(f"rate_{processes}", rate)
    for name, seconds in cpu.items():
        bench.results.record(f"{name}_cpu_ms_{processes}", seconds * 1e3)
