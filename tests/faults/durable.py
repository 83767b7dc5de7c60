"""A program with a durable exchange, which a test starts, kills and starts again.

``python -m tests.faults.durable`` is that program: it takes its `Orders` from standard input, writes the connection
info to standard output, and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import psutil

from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.exchange.http.spawn import spawn_http_exchange
from academy_hpc.registry import Limits
from tests.exchange_server import TOKEN, running_exchange

__all__ = ["ROOT", "DurableExchange", "Orders", "through"]

ROOT = Path(__file__).parents[2]
START_S = 30.0


class Orders(msgspec.Struct):
    """How the program is to serve.

    ``files``: how many it may have open. ``limits``, ``full_wait_s``: those of the exchange, which the program then
    serves itself instead of spawning it.
    """

    state_dir: str | None
    log: str
    files: int | None = None
    tls: bool = False
    limits: dict[str, int] | None = None
    full_wait_s: float = 30.0


class DurableExchange:
    """The program, from its first start to its end; without `state_dir` it is not durable."""

    def __init__(self, folder: Path, *, durable: bool = True, **orders: Any) -> None:
        self._orders = Orders(str(folder / "state") if durable else None, str(folder / "exchange.log"), **orders)
        self._program: asyncio.subprocess.Process | None = None

    async def start(self) -> ConnectionInfo:
        """Start it; a second time it is to come back as it was."""
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.faults.durable"),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # what matters is in the log
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._program = program
        assert program.stdin is not None and program.stdout is not None
        program.stdin.write(msgspec.json.encode(self._orders) + b"\n")
        async with asyncio.timeout(START_S):
            line = await program.stdout.readline()
        assert line, f"the exchange did not start: see {self._orders.log}"
        return ConnectionInfo.from_json(line)

    async def process(self) -> psutil.Process:
        """The exchange process of now."""
        assert self._program is not None
        program = psutil.Process(self._program.pid)
        if self._orders.limits is not None:
            return program
        async with asyncio.timeout(START_S):
            while not (children := program.children()):  # noqa: ASYNC110 - one has died, and the next is not there
                await asyncio.sleep(0.01)
        return children[0]

    async def crash(self) -> None:
        """SIGKILL to the exchange process alone; the program that holds it starts another."""
        process = await self.process()
        process.kill()
        await _gone(process)

    @contextlib.asynccontextmanager
    async def stopped(self) -> AsyncIterator[None]:
        """Inside the block, the exchange process does nothing: its machine is too busy, or it hangs."""
        process = await self.process()
        process.suspend()
        try:
            yield
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    async def kill(self) -> None:
        """SIGKILL to the exchange and to the program that holds it, in the same moment as they see it."""
        assert self._program is not None
        process = await self.process()
        # Stopped first, it can't do anything about the death of its exchange.
        self._program.send_signal(signal.SIGSTOP)
        process.kill()
        self._program.kill()
        await self._ended(process)

    async def stop(self) -> None:
        """An end in order."""
        if self._program is not None:
            assert self._program.stdin is not None
            process = await self.process()
            self._program.stdin.close()
            await self._ended(process)

    async def _ended(self, exchange: psutil.Process) -> None:
        assert self._program is not None
        async with asyncio.timeout(START_S):
            await self._program.wait()
            await _gone(exchange)
        self._program = None


async def _gone(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def through(info: ConnectionInfo, port: int) -> ConnectionInfo:
    """The same exchange by way of another port of loopback."""
    scheme = info.urls[0].partition(":")[0]
    # The proof is of the port on which the exchange listens, and a proxy in between has another.
    return msgspec.structs.replace(info, urls=(f"{scheme}://127.0.0.1:{port}",), proof=False)


async def serve(orders: Orders, limits: Limits) -> None:
    config = ServerConfig(token=TOKEN, state_dir=orders.state_dir, limits=limits, full_wait_s=orders.full_wait_s)
    async with running_exchange(config) as exchange:
        sys.stdout.write(exchange.factory.connection_info.to_json() + "\n")
        sys.stdout.flush()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), ended.set)
        await ended.wait()


def main() -> None:
    orders = msgspec.json.decode(sys.stdin.readline(), type=Orders)
    if orders.files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (orders.files, orders.files))
    if orders.limits is not None:
        asyncio.run(serve(orders, Limits(**orders.limits)))
        return
    with spawn_http_exchange(
        "127.0.0.1", 0, state_dir=orders.state_dir, log_path=orders.log, tls=orders.tls
    ) as factory:
        sys.stdout.write(factory.connection_info.to_json() + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
