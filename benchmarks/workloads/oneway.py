"""One way: a user fills a mailbox with 32 sends outstanding, then a fresh process drains it."""

from typing import Any

from benchmarks.bench import Bench, Exchange
from benchmarks.drain import drain_in_fresh_process
from benchmarks.load import gather_limited

__all__ = ["measure"]

OUTSTANDING = 32
WARM_UP_MESSAGES = 200
LIMIT_S = 60.0


async def measure(bench: Bench, exchange: Exchange) -> None:
    """Measure messages per second in, then out."""
    count = bench.scale.messages
    async with await exchange.factory.create_user_client(start_listener=False) as client:
        target, scrap = [await client.register_agent(bench.side.Echo) for _ in range(2)]
        async with bench.results.attempt_within("send", LIMIT_S):
            await _send(bench, client, scrap, WARM_UP_MESSAGES)
            bench.results.record("send_rate", count / await _send(bench, client, target, count))
        async with bench.results.attempt_within("drain", LIMIT_S):
            bench.results.record("drain_rate", await drain_in_fresh_process(bench, exchange, target, count=count))


async def _send(bench: Bench, client: Any, target: Any, count: int) -> float:
    """Return the seconds it takes to make and send `count` ping requests."""
    side = bench.side

    async def send() -> None:
        await client.send(side.Message.create(client.client_id, target.agent_id, side.PingRequest()))

    return await gather_limited([send] * count, limit=OUTSTANDING)
