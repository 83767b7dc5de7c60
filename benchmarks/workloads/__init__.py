"""The workloads by name: each measures one running exchange, save `lifecycle`, which starts its own."""

import asyncio
from collections.abc import Awaitable, Callable

from benchmarks.bench import Bench, Exchange
from benchmarks.workloads import fleet, idle, launch, lifecycle, oneway, registry, roundtrip, slurm

__all__ = ["WORKLOADS"]


def _with_exchange(
    measure: Callable[[Bench, Exchange], Awaitable[None]], *, host: str = "127.0.0.1"
) -> Callable[[Bench], None]:
    """Give the workload a fresh exchange and the event loop of this process."""

    async def run(bench: Bench, exchange: Exchange) -> None:
        await measure(bench, exchange)

    def start(bench: Bench) -> None:
        with bench.exchange(host) as exchange:
            asyncio.run(run(bench, exchange))

    return start


WORKLOADS: dict[str, Callable[[Bench], None]] = {
    "roundtrip": _with_exchange(roundtrip.measure),
    "fleet": _with_exchange(fleet.measure),
    "oneway": _with_exchange(oneway.measure),
    "registry": _with_exchange(registry.measure),
    "idle": _with_exchange(idle.measure),
    "lifecycle": lifecycle.measure,
    "launch": _with_exchange(launch.measure),
    "slurm": _with_exchange(slurm.measure, host="0.0.0.0"),  # noqa: S104 - a token guards it
}
