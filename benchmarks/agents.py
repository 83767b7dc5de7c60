"""Agent processes: started by a workload, each runs one or more echo agents until its stdin closes.

`python -m benchmarks.agents` reads one pickle (side name, factory, registrations) from stdin and answers
"ready" on stdout once every agent has started up.
"""

import asyncio
import pickle
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psutil

from benchmarks.bench import Bench, Exchange
from benchmarks.sides import Side, load

__all__ = ["agent_processes"]

START_LIMIT_S = 30.0
STOP_LIMIT_S = 10.0


@asynccontextmanager
async def agent_processes(
    bench: Bench, exchange: Exchange, *, registrations: Sequence[Any], processes: int
) -> AsyncIterator[list[psutil.Process]]:
    """Run the registered echo agents, spread over `processes` fresh processes, for the time of the block."""
    shares = [registrations[index::processes] for index in range(processes)]
    async with AsyncExitStack() as stack:
        children = await asyncio.gather(*(_start(stack, bench, exchange, share) for share in shares))
        yield [psutil.Process(child.pid) for child in children]


async def _start(stack: AsyncExitStack, bench: Bench, exchange: Exchange, share: Sequence[Any]) -> Process:
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.agents", stdin=PIPE, stdout=PIPE)
    stack.push_async_callback(_stop, child)
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write(pickle.dumps((bench.side.name, exchange.factory, list(share))))
    await child.stdin.drain()
    async with asyncio.timeout(START_LIMIT_S):
        if await child.stdout.readline() != b"ready\n":
            raise RuntimeError("an agent process ended before it was ready (see its error above)")
    return child


async def _stop(child: Process) -> None:
    """Close stdin, which asks the agents to stop; kill the process where that does not help."""
    assert child.stdin is not None
    child.stdin.close()
    try:
        async with asyncio.timeout(STOP_LIMIT_S):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


async def _serve(side: Side, factory: Any, registrations: Sequence[Any]) -> None:
    started = asyncio.Semaphore(0)

    class Worker(side.Echo):  # type: ignore[misc,name-defined]
        async def agent_on_startup(self) -> None:
            started.release()

    runtimes = [side.Runtime(Worker(), exchange_factory=factory, registration=r) for r in registrations]
    tasks = [asyncio.create_task(runtime.run_until_complete()) for runtime in runtimes]
    for _ in runtimes:
        await started.acquire()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.buffer.read)
    for runtime in runtimes:
        runtime.signal_shutdown()
    await asyncio.gather(*tasks)


def main() -> None:
    """Run the agents that stdin names."""
    side_name, factory, registrations = pickle.load(sys.stdin.buffer)
    side = load(side_name)
    side.run_agents(_serve(side, factory, registrations))


if __name__ == "__main__":
    main()
