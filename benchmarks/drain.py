"""Draining a mailbox in a fresh process: `python -m benchmarks.drain` with a pickle on stdin."""

import asyncio
import pickle
import sys
import time
from asyncio.subprocess import PIPE
from typing import Any

from benchmarks.bench import Bench, Exchange
from benchmarks.sides import load

__all__ = ["drain_in_fresh_process"]


async def drain_in_fresh_process(bench: Bench, exchange: Exchange, registration: Any, *, count: int) -> float:
    """Return the messages per second, first to last, at which a new transport gets `count` queued messages."""
    task = pickle.dumps((bench.side.name, exchange.factory, registration, count))
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.drain", stdin=PIPE, stdout=PIPE)
    try:
        output, _ = await child.communicate(task)
    finally:
        if child.returncode is None:
            child.kill()
    return float(output)


async def _drain(side_name: str, factory: Any, registration: Any, count: int) -> float:
    side = load(side_name)
    transport = await side.open_transport(factory, registration)
    times: list[float] = []
    async for message in transport.listen():
        side.read_body(message)  # a receiver that does not look at the request could not act on it
        times.append(time.perf_counter())
        if len(times) == count:
            break
    await transport.close()
    return (count - 1) / (times[-1] - times[0])


def main() -> None:
    """Drain what stdin names and print the rate."""
    print(asyncio.run(_drain(*pickle.load(sys.stdin.buffer))))


if __name__ == "__main__":
    main()
