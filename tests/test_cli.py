"""The command academy-hpc, as a user runs it: in a process of its own, by its signals, output and exit code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import psutil
import pytest

import academy_hpc
from academy_hpc.agent import Agent
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.message import ActionRequest, Message

__all__: list[str] = []

COMMAND = str(Path(sys.executable).with_name("academy-hpc"))
LOCAL = ("--host", "127.0.0.1", "--port", "0")


def academy_hpc_command(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=30, **options)


@contextlib.contextmanager
def serving(*arguments: str | Path, **options: Any) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """`academy-hpc exchange run` in a session of its own, and what it said when it served."""
    command = [COMMAND, "exchange", "run", *LOCAL, "--json", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    ) as running:
        try:
            assert running.stdout is not None and running.stderr is not None
            line = running.stdout.readline()
            assert line, running.stderr.read()
            yield running, json.loads(line)
        finally:
            running.kill()


def status(path: Path) -> dict[str, Any]:
    done = academy_hpc_command("exchange", "status", "--connection-file", path, "--json", "--timeout", "20")
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def stop(running: subprocess.Popen[str], number: int = signal.SIGINT) -> tuple[int, str, str]:
    running.send_signal(number)
    output, errors = running.communicate(timeout=20)
    return running.returncode, output, errors


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


# Help


@pytest.mark.parametrize("command", [[COMMAND], [sys.executable, "-m", "academy_hpc"]], ids=["script", "module"])
def test_it_says_its_version(command: list[str]) -> None:
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert academy_hpc.__version__ in done.stdout


def test_help_is_there_at_once() -> None:
    """What the commands need is loaded when they run."""
    code = "import sys; from academy_hpc.cli.command import main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & {"aiohttp", "asyncio", "msgspec", "psutil", "cryptography", "ssl"} == set()


def test_every_option_has_help_and_the_command_an_example() -> None:
    from academy_hpc.cli.exchange import exchange

    for command in exchange.commands.values():  # type: ignore[attr-defined]
        options = [option for option in command.params if isinstance(option, click.Option)]
        assert [option.name for option in options if not option.help] == []
    assert (
        "  academy-hpc exchange run --port 0 --interface hsn0 --state-dir"
        in academy_hpc_command("exchange", "run", "--help").stdout
    )


# Run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_serves_until_it_is_told_to_stop(tmp_path: Path, number: int) -> None:
    state = tmp_path / "state"
    with serving("--state-dir", state) as (running, said):
        assert said["connection_file"] == str(state / "connection.json")
        assert said["pid"] == running.pid
        info = ConnectionInfo.read(said["connection_file"])
        assert list(info.urls) == said["urls"]
        exchange = psutil.Process(status(state / "connection.json")["pid"])
        assert stop(running, number) == (0, "", "")
        assert not exchange.is_running()
    assert not (state / "connection.json").exists()


def test_ctrl_c_in_its_terminal_ends_both_processes(tmp_path: Path) -> None:
    with serving("--connection-file", tmp_path / "exchange.json") as (running, _):
        (exchange,) = psutil.Process(running.pid).children()
        os.killpg(running.pid, signal.SIGINT)
        output, errors = running.communicate(timeout=20)
        assert (running.returncode, output, errors) == (0, "", "")
        assert not exchange.is_running()


def test_for_people_it_says_where_the_connection_file_is_and_never_the_token(tmp_path: Path) -> None:
    path = tmp_path / "exchange.json"
    command = [COMMAND, "exchange", "run", *LOCAL, "--connection-file", path, "--log-level", "debug"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        lines = [running.stdout.readline() for _ in range(3)]
        token = ConnectionInfo.read(path).headers["Authorization"].split()[1]
        status(path)
        code, output, errors = stop(running)
    assert code == 0
    assert lines[1] == f"Connection file: {path}\n"
    assert token not in "".join([*lines, output, errors])
    assert "DEBUG" in errors


def test_the_exchange_is_started_again_when_it_is_killed(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with serving("--state-dir", state, "--log-file", tmp_path / "log", "--log-level", "INFO") as (running, _):
        before = status(state / "connection.json")
        os.kill(before["pid"], signal.SIGKILL)
        killed = time.monotonic()
        after = status(state / "connection.json")
        assert time.monotonic() - killed < 5
        assert after["pid"] != before["pid"]
        assert after["url"] == before["url"]
        code, _, errors = stop(running)
    assert code == 0
    assert "killed by SIGKILL" in errors
    assert (tmp_path / "log").read_text().count("serves in process") == 2


def test_after_kill_9_of_all_the_same_command_has_the_same_exchange(tmp_path: Path) -> None:
    """Address, token, certificate, mailboxes and messages."""
    state = tmp_path / "state"

    async def send(factory: HttpExchangeFactory) -> object:
        async with await factory.create_transport(name="sender") as sender:
            agent_id = (await sender.register_agent(Agent, name="kept")).agent_id
            await sender.send(Message.create(sender.mailbox_id, agent_id, ActionRequest("remembered", "", "")))
        await asyncio.sleep(0.1)  # a connection with TLS is closed a moment after its session
        return agent_id

    async def receive(factory: HttpExchangeFactory, agent_id: Any) -> str:
        async with await factory.create_transport(agent_id) as agent:
            message = await anext(aiter(agent.listen(10)))
        await asyncio.sleep(0.1)
        return str(message.decoded().action)

    with serving("--state-dir", state, "--host", "0.0.0.0") as (running, _):  # noqa: S104 - with a certificate
        first = ConnectionInfo.read(state / "connection.json")
        agent_id = asyncio.run(send(HttpExchangeFactory.from_connection_info(first)))
        before = status(state / "connection.json")
        assert before["mailboxes"] == 2
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        stale = academy_hpc_command("exchange", "status", "--connection-file", state / "connection.json")
        assert stale.returncode == 1
    with serving("--state-dir", state, "--host", "0.0.0.0") as (running, _):  # noqa: S104 - with a certificate
        second = ConnectionInfo.read(state / "connection.json")
        assert (second.urls, second.headers, second.fingerprint) == (first.urls, first.headers, first.fingerprint)
        assert second.fingerprint is not None
        assert status(state / "connection.json")["mailboxes"] == 2
        assert asyncio.run(receive(HttpExchangeFactory.from_connection_info(first), agent_id)) == "remembered"
        assert stop(running)[0] == 0


def test_a_second_server_on_the_same_state_is_refused_in_one_line(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with serving("--state-dir", state) as (running, _):
        started = time.monotonic()
        # On another port, or the port would be what is told.
        second = academy_hpc_command("exchange", "run", "--host", "127.0.0.1", "--port", "1", "--state-dir", state)
        assert time.monotonic() - started < 10  # it does not wait for the other one
        assert second.returncode == 1
        assert second.stdout == ""
        assert second.stderr.count("\n") == 1
        assert f"{state} is in use by process {running.pid} " in second.stderr
        assert status(state / "connection.json")["mailboxes"] == 0  # the first has its file and its port


def test_an_exchange_that_ends_for_good_ends_the_command(tmp_path: Path) -> None:
    with serving("--connection-file", tmp_path / "exchange.json") as (running, _):
        (exchange,) = psutil.Process(running.pid).children()
        exchange.kill()
        errors = running.communicate(timeout=20)[1]
        assert running.returncode == 1
    assert errors.splitlines()[-1] == (
        "Error: The exchange has ended and is not started again: it has no state directory."
    )
    assert not (tmp_path / "exchange.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ([], 2, "--connection-file, or --state-dir"),
        (["--connection-file", "c.json", "--port", "70000"], 2, "70000"),
        (["--connection-file", "c.json", "--port", "0", "--interface", "hsn77"], 1, "hsn77"),
        (["--connection-file", "c.json", "--port", "0", "--host", "198.51.100.7"], 1, "no address of this machine"),
        (["--connection-file", "open/c.json", "--port", "0"], 1, "chmod 700"),
        (["--connection-file", "c.json", "--certificate", "none.pem"], 2, "--private-key"),
        (["--connection-file", "c.json", "--certificate", "none.pem", "--private-key", "none.key"], 1, "none."),
        (["--state-dir", "open", "--port", "0"], 1, "chmod 700"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_keeps_it_from_starting_is_told_in_one_line(
    tmp_path: Path, arguments: list[str], code: int, expected: str
) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    done = academy_hpc_command("exchange", "run", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, "")
    assert expected in done.stderr.splitlines()[-1]
    assert len(done.stderr.splitlines()) == 1 or code == 2


# Status


def test_status_is_for_people_and_for_programs(tmp_path: Path) -> None:
    path = tmp_path / "exchange.json"
    with serving("--connection-file", path) as (running, said):
        answer = status(path)
        environment = {**os.environ, "ACADEMY_HPC_CONNECTION": str(path)}
        text = academy_hpc_command("exchange", "status", env=environment).stdout
        assert stop(running)[0] == 0
    assert answer["url"] == said["urls"][0]
    assert answer["version"] == academy_hpc.__version__
    assert answer["host"] == os.uname().nodename
    assert answer["mailboxes"] == 0
    assert 0 <= answer["uptime_s"] < 60
    assert f"pid             {answer['pid']}\n" in text


def test_status_says_why_an_exchange_can_not_be_reached(tmp_path: Path) -> None:
    missing = academy_hpc_command("exchange", "status", "--connection-file", tmp_path / "none.json")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "none.json" in missing.stderr
    path = tmp_path / "exchange.json"
    ConnectionInfo(("http://127.0.0.1:9",), {"Authorization": "Bearer " + "x" * 43}, proof=True).write(path)
    down = academy_hpc_command("exchange", "status", "--connection-file", path)
    assert (down.returncode, down.stderr.count("\n")) == (1, 1)
    assert "http://127.0.0.1:9: [Errno 111] Connection refused" in down.stderr
