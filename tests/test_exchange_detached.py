"""``academy-hpc exchange start`` and ``stop``: an exchange that goes on without the terminal it was started from."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from academy_hpc import AgentAbsentError, ConnectionInfo, HttpExchangeFactory, spawn_http_exchange
from academy_hpc.agent import Agent
from academy_hpc.cli.exchange_detached import start as start_command
from academy_hpc.cli.exchange_options import arguments_of
from academy_hpc.exchange.http import detached
from academy_hpc.handle import Handle

__all__: list[str] = []

COMMAND = str(Path(sys.executable).with_name("academy-hpc"))
PATIENCE_S = 30.0

PROGRAM = """
import sys
from academy_hpc import spawn_http_exchange
with spawn_http_exchange("127.0.0.1", 0, connection_file=sys.argv[1]):
    print("serves", flush=True)
    sys.stdin.read()
"""

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def command(home: Path) -> Iterator[Command]:
    """Runs ``academy-hpc exchange`` for a user with a home directory of its own; what goes on is killed at the end."""
    environment = {**os.environ, "HOME": str(home)}
    environment.pop("ACADEMY_HPC_CONNECTION", None)

    def run(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, "exchange", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
            env=environment,
            **options,
        )

    yield run
    for path in home.glob(".academy_hpc/exchange/*/connection.json"):
        server = ConnectionInfo.from_json(path.read_text()).server
        if server is not None and server.runs_here:
            os.kill(server.pid, signal.SIGKILL)


def start(command: Command, state: Path, *words: str, host: str = "127.0.0.1") -> dict[str, Any]:
    done = command("start", "--json", "--host", host, "--state-dir", state, *words)
    assert (done.returncode, done.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def rewrite_server(path: Path, **fields: Any) -> None:
    info = ConnectionInfo.from_json(path.read_text())
    assert info.server is not None
    server = msgspec.structs.replace(info.server, **fields)
    path.write_text(msgspec.structs.replace(info, server=server).to_json())


# Start


def test_it_serves_when_start_returns_and_goes_on_without_its_terminal(command: Command, tmp_path: Path) -> None:
    """In a session of its own, deaf to the end of a terminal, and with nothing of the caller's open."""
    said = start(command, tmp_path / "state")
    assert said["already"] is False
    assert os.getsid(said["pid"]) == said["pid"]
    os.kill(said["pid"], signal.SIGHUP)
    status = json.loads(command("status", "--json").stdout)
    assert (status["url"], status["connection_file"]) == (said["urls"][0], said["connection_file"])
    process = psutil.Process(said["pid"])
    assert (process.cwd(), process.terminal()) == ("/", None)
    assert [file.path for file in process.open_files() if not file.path.startswith(str(tmp_path / "state"))] == []


def test_its_connection_file_has_the_name_of_the_host_in_the_home_directory(
    command: Command, tmp_path: Path, home: Path
) -> None:
    path = home / ".academy_hpc" / "exchange" / socket.gethostname() / "connection.json"
    assert start(command, tmp_path / "state")["connection_file"] == str(path)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    token = ConnectionInfo.read(path).headers["Authorization"].split()[1]
    words = [psutil.Process(start(command, tmp_path / "state")["pid"]).cmdline(), (tmp_path / "state").rglob("*.log")]
    assert token not in str([*words[0], *(file.read_text() for file in words[1] if isinstance(file, Path))])


def test_a_second_start_tells_of_the_one_that_runs(command: Command, tmp_path: Path) -> None:
    first = start(command, tmp_path / "state")
    second = start(command, tmp_path / "state")
    assert second["already"] is True
    assert {key: first[key] for key in ("urls", "connection_file", "pid", "host")} == {
        key: second[key] for key in ("urls", "connection_file", "pid", "host")
    }
    text = command("start", "--state-dir", tmp_path / "state").stdout
    assert f"An exchange runs already, as process {first['pid']} on {socket.gethostname()}" in text


def test_of_two_that_start_at_once_there_is_one(command: Command, tmp_path: Path, home: Path) -> None:
    words = [COMMAND, "exchange", "start", "--json", "--host", "127.0.0.1", "--state-dir", str(tmp_path / "state")]
    environment = {**os.environ, "HOME": str(home)}
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = [json.loads(one.communicate(timeout=PATIENCE_S)[0]) for one in both]
    assert sorted(answer["already"] for answer in said) == [False, True]
    assert said[0]["pid"] == said[1]["pid"]


def test_after_kill_9_it_is_the_same_exchange(command: Command, tmp_path: Path) -> None:
    first = start(command, tmp_path / "state")
    before = ConnectionInfo.read(first["connection_file"])
    os.kill(first["pid"], signal.SIGKILL)
    second = start(command, tmp_path / "state")
    after = ConnectionInfo.read(second["connection_file"])
    assert second["already"] is False
    assert (after.urls, after.headers) == (before.urls, before.headers)


def test_what_keeps_it_from_starting_is_told_with_the_end_of_its_log(command: Command, tmp_path: Path) -> None:
    done = command("start", "--state-dir", tmp_path / "state", "--interface", "hsn77")
    assert (done.returncode, done.stdout) == (1, "")
    assert "did not start (exit code 1)" in done.stderr and str(tmp_path / "state" / "exchange.log") in done.stderr
    assert "hsn77" in done.stderr
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "open").chmod(0o755)
    done = command("start", "--state-dir", tmp_path / "open")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "chmod 700" in done.stderr
    assert command("start", "--certificate", "none.pem").returncode == 2


def test_all_options_of_an_exchange_are_handed_on(command: Command, tmp_path: Path) -> None:
    """From whichever directory it was started, also where files are named by their place in it."""
    said = command("start", "--json", "--no-tls", "--state-dir", "state", "--log-file", "its.log", cwd=tmp_path)
    answer = json.loads(said.stdout)
    assert answer["urls"][0].startswith("http://") and answer["log_file"] == str(tmp_path / "its.log")
    assert (tmp_path / "its.log").exists() and (tmp_path / "state" / "identity.json").exists()
    words = psutil.Process(answer["pid"]).cmdline()
    assert words[words.index("--absent-days") + 1] == "7.0" and "--no-tls" in words
    given = {"certificate": Path("c.pem"), "tls": True, "globus": False, "interface": None, "port": 7}
    assert arguments_of(start_command, given) == [
        "--port",
        "7",
        "--tls",
        "--certificate",
        str(Path("c.pem").absolute()),
    ]


def test_its_state_is_where_neither_logout_nor_reboot_removes_it() -> None:
    assert detached.default_state_dir() == Path("/var/tmp", f"academy_hpc-{os.getuid()}")  # noqa: S108


# Stop


def test_stop_ends_it_in_order_and_once(command: Command, tmp_path: Path) -> None:
    said = start(command, tmp_path / "state")
    server = ConnectionInfo.read(said["connection_file"]).server
    exchange = psutil.Process(json.loads(command("status", "--json").stdout)["pid"])
    done = command("stop")
    assert done.returncode == 0 and f"process {said['pid']} on {socket.gethostname()}" in done.stdout
    assert server is not None and server.ended() == f"its process {said['pid']} is gone" and not exchange.is_running()
    assert not Path(said["connection_file"]).exists()
    again = command("stop", "--json")
    assert (again.returncode, json.loads(again.stdout)["stopped"]) == (0, False)
    assert command("status").returncode == 1


def test_an_exchange_on_another_login_node_is_left_alone_and_named(command: Command, tmp_path: Path) -> None:
    said = start(command, tmp_path / "state")
    rewrite_server(Path(said["connection_file"]), host="login07")
    done = command("stop")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"runs on login07, as process {said['pid']}" in done.stderr
    assert "ssh login07 academy-hpc exchange stop" in done.stderr
    os.kill(said["pid"], signal.SIGKILL)


@pytest.mark.parametrize("fields", [{"boot_id": "another"}, {"started_s": 1.0}], ids=["reboot", "number used again"])
def test_a_process_that_only_has_its_number_is_not_killed(
    command: Command, tmp_path: Path, fields: dict[str, Any]
) -> None:
    said = start(command, tmp_path / "state")
    path = Path(said["connection_file"])
    rewrite_server(path, **fields)
    done = command("stop", "--json")
    assert (done.returncode, json.loads(done.stdout)["stopped"]) == (0, False)
    assert not path.exists()
    assert psutil.Process(said["pid"]).is_running()
    os.kill(said["pid"], signal.SIGKILL)


def test_a_program_that_has_an_exchange_is_not_killed_for_it(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "exchange.json"
    tmp_path.chmod(0o700)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdout is not None and program.stdin is not None and program.stdout.readline()
        done = command("stop", "--connection-file", path)
        program.stdin.close()
        assert program.wait(timeout=PATIENCE_S) == 0
    assert done.returncode == 1
    assert f"belongs to process {program.pid}, which is a program that has one" in done.stderr


def test_stop_waits_no_longer_than_it_may(command: Command, tmp_path: Path) -> None:
    said = start(command, tmp_path / "state")
    os.kill(said["pid"], signal.SIGSTOP)
    started = time.monotonic()
    done = command("stop", "--timeout", "0.5")
    assert done.returncode == 1 and "has not ended within 0.5 s" in done.stderr
    assert time.monotonic() - started < 10
    os.kill(said["pid"], signal.SIGCONT)
    assert command("stop").returncode == 0


def test_a_file_that_is_not_there_is_told(command: Command, tmp_path: Path) -> None:
    done = command("stop", "--connection-file", tmp_path / "none.json")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "none.json" in done.stderr


# Which one


def test_that_of_this_host_is_meant_before_all_others(
    command: Command, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(home))
    assert detached.connection_files() == []
    elsewhere = home / ".academy_hpc" / "exchange" / "a-login-node" / "connection.json"
    ConnectionInfo(("http://127.0.0.1:9",), {"Authorization": "Bearer " + "x" * 43}).write(elsewhere)
    done = command("status", "--timeout", "1")
    assert "http://127.0.0.1:9" in done.stderr
    said = start(command, tmp_path / "state")
    assert detached.connection_files() == [Path(said["connection_file"]), elsewhere]
    assert json.loads(command("status", "--json").stdout)["url"] == said["urls"][0]


# Options of both


def test_the_log_starts_again_at_its_limit(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with spawn_http_exchange("127.0.0.1", 0, level="DEBUG", log_path=log, log_limit_bytes=100):
        pass
    text = log.read_text()
    assert "stopping" in text and "serves in process" not in text


def test_whoever_calls_an_agent_that_nobody_runs_hears_so_after_the_time_that_was_given(tmp_path: Path) -> None:
    async def call(factory: HttpExchangeFactory) -> None:
        async with await factory.create_user_client() as user, asyncio.timeout(PATIENCE_S):
            registration = await user.register_agent(Agent)
            await Handle(registration.agent_id, exchange=user).ping()

    with spawn_http_exchange("127.0.0.1", 0, absent_s=0.5) as factory, pytest.raises(AgentAbsentError):
        asyncio.run(call(factory))
