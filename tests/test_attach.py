"""A program launches, lets go or dies, and another one takes its place: the agents notice nothing of it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from academy_hpc import (
    AgentLaunch,
    AgentTerminatedError,
    BatchLauncher,
    ConnectionInfo,
    Handle,
    HttpExchangeFactory,
    LaunchError,
    ListenerSupersededError,
    MailboxTerminatedError,
    Manager,
    Run,
    spawn_http_exchange,
)
from tests.launched_agents import Counter

__all__: list[str] = []

PATIENCE_S = 45.0

# An exchange that belongs to no program of these tests, as after `academy-hpc exchange start`.
EXCHANGE = [sys.executable, "-m", "academy_hpc", "exchange", "run", "--host", "127.0.0.1", "--port", "0", "--json"]

# Launches three agents, says so, and goes on until it is killed.
LAUNCHING = """
import asyncio, sys
from academy_hpc import AgentLaunch, BatchLauncher, ConnectionInfo, HttpExchangeFactory, Manager
from tests.launched_agents import Counter

async def main():
    factory = HttpExchangeFactory.from_connection_info(ConnectionInfo.read(sys.argv[1]))
    launcher = BatchLauncher("local", name="orphan")
    manager = await Manager.from_exchange_factory(factory, launcher)
    items = [AgentLaunch(Counter, args=(n,), name=f"c{n}") for n in range(3)]
    await manager.launch_many(items, agents_per_worker=2)
    print(launcher.runs[-1].id, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ACADEMY_HPC_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def connection_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("exchange") / "connection.json"
    path.parent.chmod(0o700)
    with subprocess.Popen([*EXCHANGE, "--connection-file", str(path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            yield path
        finally:
            process.terminate()


@pytest.fixture
def factory(connection_file: Path) -> HttpExchangeFactory:
    return HttpExchangeFactory.from_connection_info(ConnectionInfo.read(connection_file))


@pytest.fixture
def own_factory() -> Iterator[HttpExchangeFactory]:
    with spawn_http_exchange("127.0.0.1", 0) as made:
        yield made


async def launched(factory: HttpExchangeFactory, count: int = 2) -> tuple[Manager, Run]:
    launcher = await asyncio.to_thread(BatchLauncher, "local", name="test")
    manager = await Manager.from_exchange_factory(factory, launcher)
    await manager.launch_many([AgentLaunch(Counter, args=(n,), name=f"c{n}") for n in range(count)])
    return manager, launcher.runs[-1]


async def test_agents_that_were_let_go_are_found_again_as_they_are(factory: HttpExchangeFactory) -> None:
    async with asyncio.timeout(PATIENCE_S):
        first, run = await launched(factory)
        await first.handles()["c1"].add(10)
        pids = [await counter.process() for counter in first.handles().values()]
        await first.detach()
        async with await Manager.attach(run.id) as second:
            counters = await second.wait_ready()
            assert await counters["c1"].add(1) == 12
            assert [await counter.process() for counter in counters.values()] == pids
        assert (await asyncio.to_thread(run.status)).state == "ended"
        assert not await asyncio.to_thread(lambda: any(map(_lives, pids)))


async def test_a_run_whose_program_was_killed_is_attached_to_and_no_second_copies_start(
    connection_file: Path,
) -> None:
    command = [sys.executable, "-c", LAUNCHING, str(connection_file)]
    program = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert program.stdout is not None
    run = (await program.stdout.readline()).decode()
    program.kill()
    await program.wait()
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.attach(run.strip()) as manager:
            counters = await manager.wait_ready()
            assert sorted(counters) == ["c0", "c1", "c2"]
            assert [await counters[f"c{n}"].add(1) for n in range(3)] == [1, 2, 3]
            assert all(not manager.ends(counter) for counter in counters.values())


async def test_a_worker_that_dies_between_two_programs_is_known_to_the_second(factory: HttpExchangeFactory) -> None:
    async with asyncio.timeout(PATIENCE_S):
        first, run = await launched(factory)
        pid = await first.handles()["c0"].process()
        await first.detach()
        os.kill(pid, signal.SIGKILL)
        async with await Manager.attach(run) as second:
            counters = await second.wait_ready()
            assert await counters["c0"].add(1) == 1
            assert await counters["c0"].process() != pid


async def test_an_agent_that_ended_between_two_programs_has_ended_for_the_second(
    factory: HttpExchangeFactory,
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        first, run = await launched(factory)
        gone = first.handles()["c0"]
        await first.detach()
        async with await factory.create_user_client() as user:
            await Handle(gone.agent_id, exchange=user).shutdown()
            while (await user.status(gone.agent_id)).value != "TERMINATED":  # noqa: ASYNC110 - it tells nobody else
                await asyncio.sleep(0.05)
        async with await Manager.attach(run) as second:
            assert list(await second.wait_ready()) == ["c1"]
            with pytest.raises(AgentTerminatedError):
                await second.get_handle(gone.agent_id).add(1)


async def test_a_second_program_takes_the_run_over_from_one_that_still_watches(factory: HttpExchangeFactory) -> None:
    async with asyncio.timeout(PATIENCE_S):
        first, run = await launched(factory)
        first_client = first.exchange_client
        watched = Handle(first.handles()["c0"].agent_id, exchange=first_client, ignore_context=True)
        async with await Manager.attach(run) as second:
            assert await second.handles()["c0"].add(5) == 5
            with pytest.raises(ListenerSupersededError):
                await watched.add(1)
        await first.detach()


async def test_a_program_that_has_lost_its_run_to_another_one_closes_and_leaves_it(
    factory: HttpExchangeFactory,
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        first, run = await launched(factory, 1)
        async with await Manager.attach(run) as second:
            counters = await second.wait_ready()
            await first.exchange_client.wait_ended()
            await first.close()
            assert await counters["c0"].add(5) == 5
            assert not await asyncio.to_thread(lambda: run.asked_to_stop)


async def test_a_run_that_was_closed_is_not_attached_to(factory: HttpExchangeFactory) -> None:
    async with asyncio.timeout(PATIENCE_S):
        manager, run = await launched(factory)
        await manager.close()
        with pytest.raises(MailboxTerminatedError):
            await Manager.attach(run)


async def test_agents_that_would_end_with_the_program_are_not_let_go(factory: HttpExchangeFactory) -> None:
    from concurrent.futures import ThreadPoolExecutor

    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, ThreadPoolExecutor(1)) as manager:
            await manager.launch(Counter, name="bound")
            with pytest.raises(LaunchError, match="would end with this program: bound"):
                await manager.detach()
            assert await manager.handles()["bound"].add(1) == 1


async def test_an_exchange_that_ends_with_the_program_is_told(own_factory: HttpExchangeFactory) -> None:
    async with asyncio.timeout(PATIENCE_S):
        manager, _ = await launched(own_factory, 1)
        async with manager:
            with pytest.raises(LaunchError, match="academy-hpc exchange start"):
                await manager.detach()


async def test_a_run_that_is_not_there_is_one_line() -> None:
    with pytest.raises(LaunchError, match="There is no run 'nowhere'"):
        await Manager.attach("nowhere")


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
