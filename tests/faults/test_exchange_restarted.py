"""A durable exchange whose process dies is started again by the program that has it, which does nothing for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from academy_hpc.agent import Agent, action
from academy_hpc.errors import ExchangeUnavailableError, StoreError
from academy_hpc.exchange.http import process, restarts
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.exchange.http.probe import WhoAmI, ask_first
from academy_hpc.exchange.http.restarts import Patience
from academy_hpc.exchange.http.spawn import spawn_http_exchange
from academy_hpc.handle import Handle
from academy_hpc.runtime import Runtime

pytestmark = pytest.mark.faults

ROOT = Path(process.__file__).parents[3]
RECOVERY_LIMIT_S = 5.0


def who(factory: HttpExchangeFactory) -> WhoAmI:
    """What the exchange says of itself; after a kill, that of the next process, which is waited for."""
    return ask_first(factory.connection_info, timeout_s=20)[1]


def kill(factory: HttpExchangeFactory, number: int = signal.SIGKILL) -> int:
    """A signal to the exchange process that serves now; wait until it is gone."""
    pid = who(factory).pid
    os.kill(pid, number)
    assert within(10, lambda: gone(pid))
    return pid


def gone(pid: int) -> bool:
    """Whether there is no such process, or only its remains. Not by waiting for it, which would take them away."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether `condition` comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def endpoint(factory: HttpExchangeFactory) -> tuple[str, int]:
    parts = urlsplit(factory.connection_info.urls[-1])
    assert parts.hostname is not None and parts.port is not None
    return parts.hostname, parts.port


def refuses_connections(factory: HttpExchangeFactory) -> bool:
    try:
        socket.create_connection(endpoint(factory), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


class Counter(Agent):
    """Remembers what it did, and works on a few at a time, so that there is always something under way."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self._places = asyncio.Semaphore(8)

    @action
    async def work(self, number: int) -> int:
        async with self._places:
            self.runs.append(number)
            await asyncio.sleep(0.03)
            return number + 1


async def call_through(factory: HttpExchangeFactory, kills: int) -> tuple[list[int], list[int], list[float]]:
    """1,000 calls; answers, executions, and for each kill the seconds until the next call was answered."""
    async with await factory.create_user_client() as user:
        registration = await user.register_agent(Counter)
        agent, recoveries = Counter(), []
        runtime = asyncio.create_task(
            Runtime(agent, exchange_factory=factory, registration=registration).run_until_complete()
        )
        handle: Handle[Counter] = Handle(registration.agent_id)
        await handle.ping()
        calls = asyncio.gather(*(handle.work(number) for number in range(1000)))
        for _ in range(kills):
            await asyncio.sleep(0.1)
            assert not calls.done()
            await asyncio.to_thread(kill, factory)
            killed = time.monotonic()
            await handle.ping()
            recoveries.append(time.monotonic() - killed)
        answers = await calls
        await handle.shutdown()
        await runtime
        return list(answers), agent.runs, recoveries


def test_calls_while_the_exchange_is_killed_again_and_again_are_each_executed_once(tmp_path: Path) -> None:
    with spawn_http_exchange("127.0.0.1", 0, state_dir=tmp_path / "state") as factory:
        before = (who(factory).exchange, endpoint(factory), factory.connection_info)
        answers, runs, recoveries = asyncio.run(call_through(factory, kills=3))
        assert (who(factory).exchange, endpoint(factory), factory.connection_info) == before
    print("recovered after", [f"{seconds:.2f} s" for seconds in recoveries])  # noqa: T201 - a measurement
    assert answers == [number + 1 for number in range(1000)]
    assert sorted(runs) == list(range(1000))
    assert max(recoveries) < RECOVERY_LIMIT_S


def test_each_restart_is_told_with_its_reason_and_the_last_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with spawn_http_exchange("127.0.0.1", 0, level="INFO", state_dir=tmp_path / "state") as factory:
        kill(factory, signal.SIGSEGV)
        who(factory)
    (death,) = [record.getMessage() for record in caplog.records if "started again" in record.getMessage()]
    assert "killed by SIGSEGV" in death
    assert "serves in process" in death  # from its log
    assert "Segmentation fault" in death


def test_nobody_can_have_the_port_while_the_process_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever connects then waits, and is served by the next process."""
    monkeypatch.setattr(restarts, "FIRST_PAUSE_S", 0.5)
    with spawn_http_exchange("127.0.0.1", 0, state_dir=tmp_path / "state") as factory:
        before = kill(factory)
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            with socket.socket() as stranger:
                stranger.setsockopt(socket.SOL_SOCKET, option, 1)
                with pytest.raises(OSError, match="in use"):
                    stranger.bind(endpoint(factory))
                    stranger.listen()
        assert not refuses_connections(factory)
        assert who(factory).pid != before


def test_nobody_can_have_the_state_directory_while_the_process_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE_S", 0.5)
    state = tmp_path / "state"
    with spawn_http_exchange("127.0.0.1", 0, state_dir=state) as factory:
        kill(factory)
        with (
            pytest.raises(StoreError, match=rf"in use by process {os.getpid()} on "),
            spawn_http_exchange("127.0.0.1", 0, state_dir=state),
        ):
            pytest.fail("started")
        assert who(factory)


DIES_AFTER_THE_FIRST = """
    import os, sys
    from pathlib import Path
    from academy_hpc.exchange.http import serve
    been = Path({been!r})
    if been.exists():
        sys.exit("what a pity")
    been.touch()
    serve.main()
"""


@pytest.fixture
def dies_after_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second on, an exchange process ends as soon as it was started."""
    code = "\n".join(line[4:] for line in DIES_AFTER_THE_FIRST.format(been=str(tmp_path / "been")).splitlines())
    (tmp_path / "stand_in.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(process, "MODULE", "stand_in")
    monkeypatch.setattr(restarts, "LONGEST_PAUSE_S", 0.1)


@pytest.mark.usefixtures("dies_after_the_first")
def test_one_that_dies_again_and_again_is_given_up_and_pending_calls_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ends: list[str] = []

    async def call_in_vain(factory: HttpExchangeFactory) -> None:
        impatient = HttpExchangeFactory.from_connection_info(
            factory.connection_info, options=ClientOptions(reconnect_s=5.0)
        )
        async with await impatient.create_user_client() as user:
            agent_id = (await user.register_agent(Agent)).agent_id
            pending = asyncio.create_task(Handle(agent_id).ping())
            await asyncio.sleep(0.1)
            await asyncio.to_thread(kill, factory)
            with pytest.raises(ExchangeUnavailableError, match="Is it still running"):
                async with asyncio.timeout(20):
                    await pending

    with spawn_http_exchange("127.0.0.1", 0, state_dir=tmp_path / "state", on_end=ends.append) as factory:
        asyncio.run(call_in_vain(factory))
        assert refuses_connections(factory)
    (error,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert ends == [error]
    assert "\n" not in error
    assert "died 6 times in a row" in error
    assert caplog.text.count("what a pity") == 5


def test_one_that_can_not_use_its_state_is_not_started_again_and_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, ends = tmp_path / "state", threading.Event()
    with spawn_http_exchange("127.0.0.1", 0, state_dir=state, on_end=lambda _: ends.set()) as factory:
        kill(factory)
        for path in state.glob("exchange.sqlite*"):
            path.write_bytes(b"no database " * 1000)
        assert ends.wait(10)
        assert refuses_connections(factory)
    (error,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert "not started again: " in error
    assert str(state) in error
    assert "\n" not in error
    assert caplog.text.count("It is started again") == 1


def test_a_state_directory_that_can_not_be_used_is_a_store_error_in_one_line(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    with sqlite3.connect(state / "exchange.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    with (
        pytest.raises(StoreError, match=r"another version .*\(schema 99") as caught,
        spawn_http_exchange("127.0.0.1", 0, state_dir=state),
    ):
        pytest.fail("started")
    assert "\n" not in str(caught.value)


def test_one_that_is_told_to_end_stays_away(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ends = threading.Event()
    with spawn_http_exchange("127.0.0.1", 0, state_dir=tmp_path / "state", on_end=lambda _: ends.set()) as factory:
        kill(factory, signal.SIGTERM)
        assert ends.wait(10)
        assert refuses_connections(factory)
    assert "not started again: it was told to end by a signal" in caplog.text


def test_a_program_that_ignores_its_children_has_it_started_again(tmp_path: Path) -> None:
    """The kernel then tells nobody how they ended."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with spawn_http_exchange("127.0.0.1", 0, state_dir=tmp_path / "state") as factory:
            pid = kill(factory)
            assert who(factory).pid != pid
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_one_in_memory_is_not_started_again_and_its_end_is_told(caplog: pytest.LogCaptureFixture) -> None:
    ends = threading.Event()
    with spawn_http_exchange("127.0.0.1", 0, on_end=lambda _: ends.set()) as factory:
        kill(factory)
        assert ends.wait(10)
        assert refuses_connections(factory)
    assert "ended by itself (killed by SIGKILL)" in caplog.text
    assert caplog.text.count("ended by itself") == 1
    assert "not started again: it has no state directory" in caplog.text


@pytest.mark.parametrize("away_s", [0.0, 0.05, 0.15, 0.3, 0.45, 0.6])
def test_the_end_of_the_block_is_the_end_also_while_it_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, away_s: float
) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE_S", 0.1)
    before = (psutil.Process().num_fds(), threading.active_count(), psutil.Process().children())
    with spawn_http_exchange("127.0.0.1", 0, state_dir=tmp_path / "state") as factory:
        kill(factory)
        time.sleep(away_s)
        started = time.monotonic()
    assert time.monotonic() - started < 2
    assert refuses_connections(factory)
    assert (psutil.Process().num_fds(), threading.active_count(), psutil.Process().children()) == before


PROGRAM = """
import os, sys, time
from academy_hpc.exchange.http.spawn import spawn_http_exchange
with spawn_http_exchange("127.0.0.1", 0, state_dir={state!r}) as factory:
    {before}
    print(factory.connection_info.to_json(), flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def program(state: Path, *, before: str = "") -> Iterator[tuple[subprocess.Popen[str], ConnectionInfo]]:
    """A program with a durable exchange; killed at the latest when the block ends."""
    code = PROGRAM.format(state=str(state), before=before)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as running:
        try:
            assert running.stdout is not None
            yield running, ConnectionInfo.from_json(running.stdout.readline())
        finally:
            running.kill()


def test_one_that_was_started_again_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    with program(tmp_path / "state") as (running, info):
        factory = HttpExchangeFactory.from_connection_info(info)
        kill(factory)
        exchange = psutil.Process(who(factory).pid)
        running.kill()
        running.wait()
        assert psutil.wait_procs([exchange], 3)[1] == []
    assert refuses_connections(factory)


def test_a_forked_copy_of_the_parent_keeps_neither_port_nor_state(tmp_path: Path) -> None:
    """Workers of a pool, for example, may live longer; nor may they start the exchange again."""
    state = tmp_path / "state"
    with program(state, before="os.fork() or (time.sleep(30), os._exit(0))") as (running, info):
        (copy,) = [child for child in psutil.Process(running.pid).children() if "-m" not in child.cmdline()]
        running.kill()
        running.wait()
        try:
            with spawn_http_exchange("127.0.0.1", 0, state_dir=state) as factory:
                assert factory.connection_info.urls == info.urls
                assert factory.connection_info.headers == info.headers
            assert copy.is_running()
        finally:
            copy.kill()


def test_a_program_that_is_killed_with_a_busy_exchange_is_followed_at_once(tmp_path: Path) -> None:
    """The next one waits for the remains, which put things in order, instead of finding the port in use."""
    state = tmp_path / "state"
    with program(state) as (running, info):
        exchange = psutil.Process(ask_first(info, timeout_s=10)[1].pid)
        exchange.suspend()
        running.kill()
        running.wait()
        threading.Timer(0.5, exchange.resume).start()
        with spawn_http_exchange("127.0.0.1", 0, state_dir=state) as factory:
            assert factory.connection_info.urls == info.urls


# When to start again


def test_pauses_grow_and_have_a_longest() -> None:
    patience = Patience()
    pauses = [patience.after(10.0) for _ in range(9)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]


def test_after_a_minute_of_service_a_death_is_the_first_again() -> None:
    patience = Patience()
    for _ in range(5):
        patience.after(1.0)
    assert patience.after(60.0) == 0.1
    assert [patience.after(1.0) for _ in range(5)] == [0.2, 0.4, 0.8, 1.6, 3.2]
    assert patience.after(1.0) is None


def test_early_deaths_in_a_row_are_too_many_and_later_ones_are_not() -> None:
    patience = Patience()
    assert [patience.after(4.9) is None for _ in range(6)] == [False] * 5 + [True]
    patience = Patience()
    assert [patience.after(4.9 if number % 5 else 5.0) is None for number in range(50)] == [False] * 50
