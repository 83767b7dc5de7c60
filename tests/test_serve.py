"""The exchange process from its inside: what it loads, logs, and does when it is alone."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from academy_hpc.exchange.http import serve
from academy_hpc.exchange.http.handover import Handover

__all__: list[str] = []

SECRET = "zebra-crossing-zebra-crossing-zebra"  # noqa: S105 not one, but looked for


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(serve.__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, *arguments], input="", capture_output=True, text=True, check=False, env=environment
    )


def test_by_hand_it_says_how_it_is_started() -> None:
    finished = run("-m", "academy_hpc.exchange.http.serve")
    assert finished.returncode == 1
    assert "spawn_http_exchange" in finished.stderr
    assert "Traceback" not in finished.stderr


def test_it_loads_the_server_and_nothing_of_clients_and_launchers() -> None:
    """Its import is most of the start."""
    finished = run(
        "-c",
        "import sys, academy_hpc.exchange.http.serve, academy_hpc.exchange.http.server\nprint(*sys.modules, sep='\\n')",
    )
    loaded = set(finished.stdout.split())
    assert "academy_hpc.exchange.http.server" in loaded, finished.stderr
    ours = {name.removeprefix("academy_hpc.") for name in loaded if name.startswith("academy_hpc.")}
    unwanted = {"agent", "handle", "runtime", "worker", "launch", "exchange.client", "exchange.http.client"}
    assert ours & (unwanted | {"exchange.http.spawn", "exchange.http.stream", "exchange.http.addresses"}) == set()
    assert {name.partition(".")[0] for name in loaded} & {"psutil", "parsl", "globus_sdk", "cloudpickle"} == set()


def test_the_handover_hides_the_token() -> None:
    handover = Handover(
        socket_fd=3, parent_pid=1, nonce="n", log_level=10, log_limit_bytes=None, server={"token": SECRET}
    )
    assert SECRET not in f"{handover!r} {handover} {handover.__rich_repr__()}"


def written(path: Path, *, limit_bytes: int | None, messages: list[str]) -> str:
    with path.open("w+") as file:
        handler = serve.LogHandler(file.fileno(), secrets=[SECRET], limit_bytes=limit_bytes)
        for message in messages:
            handler.handle(logging.LogRecord("name", logging.INFO, "file", 1, "%s", (message,), None))
    return path.read_text()


def test_a_log_with_a_limit_holds_the_last_records(tmp_path: Path) -> None:
    text = written(tmp_path / "log", limit_bytes=1000, messages=[f"message {number}" for number in range(1000)])
    assert len(text) < 1200
    assert text.endswith("message 999\n")
    assert "\0" not in text


def test_a_log_without_a_limit_holds_all(tmp_path: Path) -> None:
    text = written(tmp_path / "log", limit_bytes=None, messages=[f"message {number}" for number in range(1000)])
    assert text.count("\n") == 1000


def test_the_secret_is_replaced_even_in_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w+") as file:
        handler = serve.LogHandler(file.fileno(), secrets=[SECRET], limit_bytes=None)
        try:
            raise KeyError(SECRET)
        except KeyError:
            handler.handle(logging.LogRecord("name", logging.INFO, "file", 1, "a %s", (f"<{SECRET}>",), sys.exc_info()))
    assert SECRET not in path.read_text()
    assert "a <[token]>" in path.read_text()
    assert "KeyError" in path.read_text()


@pytest.mark.parametrize("kernel", ["new", "old"])
async def test_a_parent_that_is_another_process_has_ended(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is not the process given: it ended before we looked. Old kernels can't tell, and are asked."""
    if kernel == "old":
        monkeypatch.delattr(os, "pidfd_open")
    ended = asyncio.Event()
    reading, writing = os.pipe()
    with os.fdopen(reading) as standard_input, os.fdopen(writing, "w"):
        monkeypatch.setattr(sys, "stdin", standard_input)
        serve.watch_parent(asyncio.get_running_loop(), os.getpid(), ended.set)
        await asyncio.wait_for(ended.wait(), 2)
        asyncio.get_running_loop().remove_reader(reading)


async def test_an_old_kernel_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.setattr(serve, "PARENT_POLL_S", 0.05)
    ended = asyncio.Event()
    reading, writing = os.pipe()
    with os.fdopen(reading) as standard_input, os.fdopen(writing, "w"):
        monkeypatch.setattr(sys, "stdin", standard_input)
        serve.watch_parent(asyncio.get_running_loop(), os.getppid(), ended.set)
        await asyncio.sleep(0.2)
        assert not ended.is_set()
        monkeypatch.setattr(os, "getppid", lambda: 1)
        await asyncio.wait_for(ended.wait(), 2)
        asyncio.get_running_loop().remove_reader(reading)
