"""Agent processes are killed and stopped in mid-action; their callers notice the delay and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from academy_hpc.errors import ActionInterruptedError
from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.http import server
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.spawn import spawn_http_exchange
from academy_hpc.exchange.transport import MailboxStatus
from academy_hpc.handle import Handle
from tests.exchange_server import RunningExchange, running_exchange
from tests.faults.recorder import SUPERSEDED, Assignment, Recorder

__all__: list[str] = []

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0


@pytest.fixture
def factory() -> Iterator[HttpExchangeFactory]:
    with spawn_http_exchange("127.0.0.1", 0) as factory:
        yield factory


class Bench:
    """A user, a registered agent, and what its processes wrote down."""

    def __init__(self, user: UserExchangeClient, registration: Any, folder: Path) -> None:
        self.user = user
        self.registration = registration
        self.handle: Handle[Recorder] = Handle(registration.agent_id, exchange=user)
        self._record = folder / "record"
        self._gate = folder / "gate"
        self._record.touch()

    @contextlib.asynccontextmanager
    async def agent_process(self) -> AsyncIterator[asyncio.subprocess.Process]:
        """An agent process that has started; it does not outlive the block."""
        connection = self.user.factory().connection_info.to_json()
        assignment = Assignment(connection, self.registration.to_json(), str(self._record), str(self._gate))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-W", "error", "-m", "tests.faults.recorder"),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            assert process.stdin is not None
            process.stdin.write(msgspec.json.encode(assignment))
            process.stdin.close()
            await self.wait_for(f"{process.pid} up")
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    @property
    def lines(self) -> list[str]:
        return self._record.read_text().splitlines()

    def runs(self, pid: int | None = None) -> list[int]:
        """Numbers of the requests whose execution was started, by one process or by any, in order."""
        started = [line.split() for line in self.lines if " run " in line]
        return [int(number) for process, _, number in started if pid is None or int(process) == pid]

    async def wait_for(self, *lines: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not set(lines) <= set(self.lines):  # noqa: ASYNC110 - a file that another process writes
                await asyncio.sleep(0.005)

    def open_gate(self) -> None:
        self._gate.touch()

    def call(self, name: str, *args: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(self.handle.action(name, *args))


@contextlib.asynccontextmanager
async def bench_at(factory: HttpExchangeFactory, folder: Path) -> AsyncIterator[Bench]:
    async with await factory.create_user_client() as user:
        yield Bench(user, await user.register_agent(Recorder), folder)


async def ended(process: asyncio.subprocess.Process) -> int:
    async with asyncio.timeout(PATIENCE_S):
        return await process.wait()


async def test_after_a_kill_every_caller_gets_its_answer_and_only_the_interrupted_action_runs_twice(
    factory: HttpExchangeFactory, tmp_path: Path
) -> None:
    async with bench_at(factory, tmp_path) as bench:
        async with bench.agent_process() as first:
            bench.open_gate()
            assert (await bench.handle.in_turn(0))[1] == first.pid
            (tmp_path / "gate").unlink()
            calls = [bench.call("in_turn", number) for number in range(1, 21)]
            await bench.wait_for(f"{first.pid} run 1", *(f"{first.pid} got {number}" for number in range(1, 21)))
            first.kill()
            assert await ended(first) == -signal.SIGKILL
        meanwhile = [bench.call("in_turn", number) for number in range(21, 31)]
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in (*calls, *meanwhile))
        async with bench.agent_process() as second:
            bench.open_gate()
            async with asyncio.timeout(PATIENCE_S):
                answers = await asyncio.gather(*calls, *meanwhile)
            assert answers == [(number, second.pid) for number in range(1, 31)]
            assert bench.runs(first.pid) == [0, 1]
            assert bench.runs(second.pid) == list(range(1, 31))
            counters = await bench.handle.agent_stats()
            assert (counters.completed, counters.in_progress, counters.queued) == (31, 0, 0)


async def test_an_answer_that_was_given_before_the_kill_is_not_given_again(
    factory: HttpExchangeFactory, tmp_path: Path
) -> None:
    """Killed at any moment, right after answers were given: none of their requests comes again."""
    async with bench_at(factory, tmp_path) as bench:
        bench.open_gate()
        numbers = iter(range(1_000_000))
        for _ in range(3):
            async with bench.agent_process() as process:
                answers = await asyncio.gather(*(bench.handle.in_turn(next(numbers)) for _ in range(50)))
                process.kill()
                assert {pid for _, pid in answers} == {process.pid}
        assert bench.runs() == list(range(150))


async def test_actions_that_must_not_run_twice_are_told_as_interrupted(
    factory: HttpExchangeFactory, tmp_path: Path
) -> None:
    async with bench_at(factory, tmp_path) as bench:
        async with bench.agent_process() as first:
            calls = [bench.call("once", number) for number in range(5)]
            await bench.wait_for(*(f"{first.pid} run {number}" for number in range(5)))
            first.kill()
            assert await ended(first) == -signal.SIGKILL
        later = bench.call("once", 5)
        bench.open_gate()
        async with bench.agent_process() as second:
            for outcome in await asyncio.gather(*calls, return_exceptions=True):
                assert isinstance(outcome, ActionInterruptedError)
            assert await later == (5, second.pid)
        assert bench.runs() == list(range(6))


async def test_a_stopped_process_that_was_taken_over_ends_when_it_wakes_and_runs_nothing_more(
    factory: HttpExchangeFactory, tmp_path: Path
) -> None:
    async with bench_at(factory, tmp_path) as bench, bench.agent_process() as older:
        calls = [bench.call("in_turn", number) for number in range(10)]
        await bench.wait_for(f"{older.pid} run 0", *(f"{older.pid} got {number}" for number in range(10)))
        older.send_signal(signal.SIGSTOP)
        async with bench.agent_process() as newer:
            await bench.wait_for(f"{newer.pid} run 0")
            older.send_signal(signal.SIGCONT)
            assert await ended(older) == SUPERSEDED
            bench.open_gate()
            async with asyncio.timeout(PATIENCE_S):
                answers = await asyncio.gather(*calls)
            assert answers == [(number, newer.pid) for number in range(10)]
            assert bench.runs(older.pid) == [0]
            assert bench.runs(newer.pid) == list(range(10))
            assert await bench.handle.agent_status() is MailboxStatus.ACTIVE


async def test_a_late_answer_of_a_process_that_was_taken_over_does_no_harm(
    factory: HttpExchangeFactory, tmp_path: Path
) -> None:
    """The stopped process wakes when its action is over due: it may answer before it hears that it was replaced."""
    async with bench_at(factory, tmp_path) as bench, bench.agent_process() as older:
        napping = [bench.call("nap", 0.3) for _ in range(10)]
        await bench.wait_for(f"{older.pid} napping")
        older.send_signal(signal.SIGSTOP)
        async with bench.agent_process() as newer:
            await bench.wait_for(f"{newer.pid} napping")
            older.send_signal(signal.SIGCONT)
            async with asyncio.timeout(PATIENCE_S):
                assert set(await asyncio.gather(*napping)) <= {older.pid, newer.pid}
            assert await ended(older) == SUPERSEDED
            bench.open_gate()
            assert await asyncio.gather(*(bench.handle.in_turn(number) for number in range(10))) == [
                (number, newer.pid) for number in range(10)
            ]
            counters = await bench.handle.agent_stats()
            assert (counters.completed, counters.in_progress, counters.queued) == (20, 0, 0)


PINGS_S = 0.4
"""Instead of 15 s: the exchange gives up a silent connection after half of this more."""


@pytest.fixture
async def impatient(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[RunningExchange]:
    """An exchange whose pings are close together, in this process."""
    monkeypatch.setattr(server, "HEARTBEAT_S", PINGS_S)
    async with running_exchange() as exchange:
        yield exchange


async def stopped_until_given_up(bench: Bench, process: asyncio.subprocess.Process) -> None:
    process.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(PATIENCE_S):
        while await bench.user.heartbeat_status(bench.registration.agent_id) == 0.0:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_process_that_is_stopped_for_longer_than_the_pings_goes_on_where_it_was(
    impatient: RunningExchange, tmp_path: Path
) -> None:
    """Its connection is given up, not its session: what it had is not given to it again."""
    async with bench_at(impatient.factory, tmp_path) as bench, bench.agent_process() as process:
        calls = [bench.call("in_turn", number) for number in range(10)]
        await bench.wait_for(f"{process.pid} run 0", *(f"{process.pid} got {number}" for number in range(10)))
        await stopped_until_given_up(bench, process)
        calls += [bench.call("in_turn", number) for number in range(10, 20)]
        bench.open_gate()
        process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(PATIENCE_S):
            assert await asyncio.gather(*calls) == [(number, process.pid) for number in range(20)]
        assert bench.runs() == list(range(20))


async def test_what_a_stopped_process_acknowledges_late_is_still_done_by_its_successor(
    impatient: RunningExchange, tmp_path: Path
) -> None:
    async with bench_at(impatient.factory, tmp_path) as bench, bench.agent_process() as older:
        calls = [bench.call("in_turn", number) for number in range(10)]
        await bench.wait_for(f"{older.pid} run 0", *(f"{older.pid} got {number}" for number in range(10)))
        await stopped_until_given_up(bench, older)
        async with bench.agent_process() as newer:
            await bench.wait_for(f"{newer.pid} run 0", *(f"{newer.pid} got {number}" for number in range(10)))
            older.send_signal(signal.SIGCONT)
            assert await ended(older) == SUPERSEDED
            bench.open_gate()
            async with asyncio.timeout(PATIENCE_S):
                assert await asyncio.gather(*calls) == [(number, newer.pid) for number in range(10)]
            assert bench.runs(newer.pid) == list(range(10))
