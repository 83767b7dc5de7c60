"""Factories of both packages for one exchange of ours, and an exchange of theirs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import academy.exchange.cloud.client
import academy.handle
import academy.runtime
import pytest

import academy_hpc
from tests.exchange_server import TOKEN, RunningExchange

__all__: list[str] = []

TheirFactory = academy.exchange.cloud.client.HttpExchangeFactory
START_S = 30.0


# academy-py leaves sessions and connections for the garbage collector to close.
LEAKS = "ignore:Unclosed (connection|client session|connector):ResourceWarning"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder are marked."""
    for item in items:
        if "interop" in item.path.parts:
            item.add_marker(pytest.mark.interop)
            item.add_marker(pytest.mark.filterwarnings(LEAKS))


@pytest.fixture(autouse=True)
def _collect_leaks() -> Iterator[None]:
    """What academy-py leaves behind is collected while it is excused, and not in another test."""
    yield
    gc.collect()


def their_factory_for(exchange: RunningExchange, **options: Any) -> TheirFactory:
    """A factory of academy-py for an exchange of ours: URL and token is all it knows."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    return TheirFactory(f"http://127.0.0.1:{exchange.port}", additional_headers=headers, **options)


@pytest.fixture
def theirs(exchange: RunningExchange) -> TheirFactory:
    """academy-py's factory for the `exchange` of ours."""
    return their_factory_for(exchange)


@pytest.fixture
async def they(theirs: TheirFactory) -> AsyncIterator[Any]:
    """A user on academy-py, at the `exchange` of ours."""
    async with await theirs.create_user_client(name="they") as client:
        yield client


@pytest.fixture
async def we(exchange: RunningExchange) -> AsyncIterator[academy_hpc.UserExchangeClient]:
    """A user on academy_hpc, at the `exchange` of ours."""
    async with await exchange.factory.create_user_client(name="we") as client:
        yield client


@pytest.fixture(scope="session")
def their_exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an exchange of academy-py, which runs without authentication in a process of its own."""
    folder = tmp_path_factory.mktemp("their-exchange")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    config = folder / "exchange.toml"
    config.write_text(f'host = "127.0.0.1"\nport = {port}\n')
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "academy.exchange.cloud", "--config", str(config)]
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        _wait_for(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert server.poll() is None, "academy-py's exchange ended at its start"
        assert time.monotonic() < until, "academy-py's exchange did not start"
        time.sleep(0.05)


@contextlib.asynccontextmanager
async def _running(runtime: Any) -> AsyncIterator[Any]:
    task = asyncio.create_task(runtime.run_until_complete())
    try:
        yield task
    finally:
        if not task.done():
            runtime.signal_shutdown()
        async with asyncio.timeout(10):
            await asyncio.gather(task, return_exceptions=True)


Running = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def run_theirs() -> Running:
    """Runs an agent of academy-py in this event loop while the block lasts; yields the task of its Runtime."""

    def run(agent: Any, factory: Any, registration: Any) -> AbstractAsyncContextManager[Any]:
        return _running(academy.runtime.Runtime(agent, exchange_factory=factory, registration=registration))

    return run


@pytest.fixture
def run_ours() -> Running:
    """The same for an agent of ours."""

    def run(agent: Any, factory: Any, registration: Any) -> AbstractAsyncContextManager[Any]:
        return _running(academy_hpc.Runtime(agent, exchange_factory=factory, registration=registration))

    return run


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> None:
    """Lets the processes that a test starts import the tests, and find the programs of this environment."""
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytestconfig.rootpath), os.environ.get("PYTHONPATH", "")]))
