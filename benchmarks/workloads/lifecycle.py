"""Import, spawn and stop: the waiting that every start of a program pays."""

import asyncio
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.bench import Bench
from benchmarks.process import free_port
from benchmarks.sides import MODULES

__all__ = ["measure"]


def measure(bench: Bench) -> None:
    """Measure imports in fresh processes, then one exchange from call to ready and from exit to gone."""
    with bench.results.attempt("import"):
        bench.results.record("import_s", _import_seconds(bench))
    with bench.results.attempt("spawn"):
        asyncio.run(_spawn_and_stop(bench))


def _import_seconds(bench: Bench) -> float:
    """Return the median time a fresh interpreter takes to import the names that a program with agents needs."""
    lines = [f"from {module} import {name}" for name, module in MODULES[bench.side.name].items()]
    program = "\n".join(["import time; start = time.perf_counter()", *lines, "print(time.perf_counter() - start)"])
    command = [sys.executable, "-c", program]
    taken = [float(subprocess.check_output(command)) for _ in range(bench.scale.imports + 1)]
    return statistics.median(taken[1:])


async def _spawn_and_stop(bench: Bench) -> None:
    """Ready means: the first client has its mailbox. The client still listens when the exchange is stopped."""
    start = time.perf_counter()
    manager = bench.side.spawn_http_exchange("127.0.0.1", free_port())
    factory = manager.__enter__()
    try:
        client: Any = await factory.create_user_client()
        bench.results.record("spawn_s", time.perf_counter() - start)
        await asyncio.sleep(0.2)
    finally:
        start = time.perf_counter()
        await asyncio.to_thread(manager.__exit__, None, None, None)
    bench.results.record("stop_s", time.perf_counter() - start)
    with bench.results.attempt("close"):
        await client.close()
    bench.results.errors.pop("close", None)  # the exchange is gone: how a client notices is not measured here
