"""Registration, discovery, and what a mailbox costs the exchange in memory, open and closed."""

import functools
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.bench import Bench, Exchange
from benchmarks.load import gather_limited
from benchmarks.process import private_bytes

__all__ = ["measure"]

CONCURRENCY = 32
WARM_UP_REGISTRATIONS = 100
RARE_AGENTS = 10
DISCOVERIES = 5
LIMIT_S = 60.0


async def measure(bench: Bench, exchange: Exchange) -> None:
    """Open and close mailboxes, register many, search them; memory is read between the steps."""
    async with await exchange.factory.create_user_client(start_listener=False) as client:
        # First, since what discovery leaves free in the exchange would hide what closed mailboxes need.
        async with bench.results.attempt_within("closed", LIMIT_S):
            await _measure_closed(bench, exchange, client)
        async with bench.results.attempt_within("register", LIMIT_S):
            await _measure_registration(bench, exchange, client)
        async with bench.results.attempt_within("discover", LIMIT_S):
            await _measure_discovery(bench, client)


async def _measure_registration(bench: Bench, exchange: Exchange, client: Any) -> None:
    register = functools.partial(client.register_agent, bench.side.Echo)
    await gather_limited([register] * WARM_UP_REGISTRATIONS, limit=CONCURRENCY)
    count = bench.scale.registrations
    taken = await gather_limited([register] * count, limit=CONCURRENCY)
    bench.results.record("register_rate", count / taken)
    more = bench.scale.mailboxes - count - WARM_UP_REGISTRATIONS - RARE_AGENTS
    before = private_bytes(exchange.process)
    await gather_limited([register] * more, limit=CONCURRENCY)
    bench.results.record("idle_mailbox_bytes", (private_bytes(exchange.process) - before) / more)
    rare = functools.partial(client.register_agent, bench.side.Rare)
    await gather_limited([rare] * RARE_AGENTS, limit=CONCURRENCY)


async def _measure_discovery(bench: Bench, client: Any) -> None:
    discover_all = functools.partial(client.discover, bench.side.Echo)
    discover_few = functools.partial(client.discover, bench.side.Rare)
    bench.results.record("discover_all_ms", await _median_ms(discover_all, bench.scale.mailboxes - RARE_AGENTS))
    bench.results.record("discover_few_ms", await _median_ms(discover_few, RARE_AGENTS))


async def _median_ms(discover: Callable[[], Awaitable[Any]], expected: int) -> float:
    taken = []
    for _ in range(DISCOVERIES + 1):
        start = time.perf_counter()
        found = len(await discover())
        taken.append(time.perf_counter() - start)
        if found != expected:
            raise RuntimeError(f"discovery found {found} agents, expected {expected}")
    return statistics.median(taken[1:]) * 1e3


async def _measure_closed(bench: Bench, exchange: Exchange, client: Any) -> None:
    """Open and close mailboxes one by one: what grows is what the exchange keeps of closed ones."""

    async def open_and_close() -> None:
        registration = await client.register_agent(bench.side.Rare)
        await client.terminate(registration.agent_id)

    count = bench.scale.closed_mailboxes
    await gather_limited([open_and_close] * (count // 4), limit=CONCURRENCY)
    before = private_bytes(exchange.process)
    await gather_limited([open_and_close] * count, limit=CONCURRENCY)
    bench.results.record("closed_mailbox_bytes", (private_bytes(exchange.process) - before) / count)
