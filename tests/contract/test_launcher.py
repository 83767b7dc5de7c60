"""What every launcher promises, shown through a manager. A new launcher is one kind in `KINDS`, and no test."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from academy_hpc import (
    Agent,
    AgentLaunch,
    AgentTerminatedError,
    ConnectionInfo,
    HttpExchangeFactory,
    LaunchError,
    Manager,
    RestartPolicy,
    TooFewSlotsError,
    action,
)
from academy_hpc.launch.launcher import Launcher, RunKeeper
from tests.launched_agents import Caller, Counter, Fragile, LateFailure, Tired
from tests.launcher_kinds import KINDS, SLOTS, Kind

__all__: list[str] = []

PATIENCE_S = 40.0
# Within which callers hear that a worker was killed.
NOTICE_S = 10.0


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: type(kind).__name__)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def shared(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with kind.open(tmp_path_factory.mktemp("launcher")) as opened:
        yield opened


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpExchangeFactory]:
    """Of an exchange that belongs to no program, so that one may let go of agents."""
    folder = tmp_path_factory.mktemp("exchange")
    folder.chmod(0o700)
    words = [sys.executable, "-m", "academy_hpc", "exchange", "run", "--host", "127.0.0.1", "--port", "0", "--json"]
    command = [*words, "--connection-file", str(folder / "connection.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            yield HttpExchangeFactory.from_connection_info(ConnectionInfo.read(folder / "connection.json"))
        finally:
            process.terminate()


@pytest.fixture
def launcher(kind: Kind, shared: Any) -> Launcher:
    return kind.launcher(shared)


@pytest.fixture
async def manager(launcher: Launcher, factory: HttpExchangeFactory) -> AsyncIterator[Manager]:
    own = HttpExchangeFactory.from_connection_info(factory.connection_info)
    async with asyncio.timeout(PATIENCE_S), await Manager.from_exchange_factory(own, launcher) as made:
        yield made


async def test_an_agent_is_called_once_it_was_launched(manager: Manager) -> None:
    counter = await manager.launch(Counter, args=(40,), name="counter")
    assert await counter.add(2) == 42
    assert counter.agent_id.name == "counter"
    assert manager.running() == {counter.agent_id}


async def test_the_state_of_an_instance_travels(manager: Manager) -> None:
    original = Counter(40)
    counter = await manager.launch(original)
    assert await counter.add(2) == 42
    assert original.total == 40


async def test_a_class_that_can_not_be_imported_travels_by_value(manager: Manager) -> None:
    class Local(Agent):
        def __init__(self, word: str) -> None:
            super().__init__()
            self.word = word

        @action
        async def say(self) -> str:
            return self.word

    by_class, by_instance = await manager.launch(Local, args=("class",)), await manager.launch(Local("instance"))
    assert [await by_class.say(), await by_instance.say()] == ["class", "instance"]


async def test_what_an_action_raises_reaches_its_caller(manager: Manager) -> None:
    counter = await manager.launch(Counter)
    with pytest.raises(ZeroDivisionError):
        await counter.divide(0)
    assert await counter.add(1) == 1


async def test_several_agents_share_a_worker(kind: Kind, manager: Manager) -> None:
    items = [AgentLaunch(Counter, args=(number,), name=f"c{number}") for number in range(5)]
    counters = await manager.launch_many(items, agents_per_worker=3)
    assert await asyncio.gather(*(counter.add(1) for counter in counters)) == [1, 2, 3, 4, 5]
    processes = [await counter.process() for counter in counters]
    assert (len(set(processes)) == SLOTS) is kind.own_processes
    assert max(processes.count(process) for process in processes) == (3 if kind.own_processes else 5)


async def test_agents_of_one_worker_call_each_other(manager: Manager) -> None:
    counter, caller = await manager.launch_many([Counter, Caller], agents_per_worker=2)
    assert await caller.add_for_me(counter, 3) == 3


async def test_an_agent_calls_an_agent_in_another_worker(manager: Manager) -> None:
    counter, caller = await manager.launch(Counter), await manager.launch(Caller)
    assert await caller.add_for_me(counter, 3) == 3
    assert await counter.add(1) == 4


async def test_an_agent_that_is_shut_down_has_ended_and_left_its_slot(manager: Manager) -> None:
    for _ in range(SLOTS + 1):
        counter = await manager.launch(Counter)
        await manager.shutdown(counter)
        assert manager.running() == set()
        report = manager.report(counter)
        assert report is not None and report.state == "finished"
        with pytest.raises(AgentTerminatedError):
            await counter.add(1)


async def test_too_few_slots_are_told_at_once_with_both_numbers(manager: Manager) -> None:
    with pytest.raises(TooFewSlotsError, match=r"3 workers asked for, 2 slots") as caught:
        await manager.launch_many([Counter] * 3)
    assert (caught.value.wanted, caught.value.slots) == (3, SLOTS)
    assert manager.running() == set()


async def test_workers_that_run_count_as_taken_slots(manager: Manager) -> None:
    await manager.launch(Counter)
    with pytest.raises(TooFewSlotsError, match=r"1 workers run already.*3 workers asked for, 2 slots"):
        await manager.launch_many([Counter] * 2)
    assert len(await manager.launch_many([Counter] * 2, agents_per_worker=2)) == 2


async def test_a_constructor_that_raises_is_told_with_its_traceback(manager: Manager) -> None:
    with pytest.raises(LaunchError, match=r"broken: .*Fragile raised ValueError: no data at all") as caught:
        await manager.launch(Fragile, args=("no data at all",), name="broken")
    notes = "\n".join(caught.value.__notes__)
    assert "launched_agents.py" in notes and "host " in notes
    assert manager.running() == set()


async def test_a_start_that_fails_is_told(manager: Manager) -> None:
    with pytest.raises(LaunchError, match="agent_on_startup raised OSError: no such instrument"):
        await manager.launch(LateFailure)


async def test_one_bad_agent_takes_back_the_whole_launch(manager: Manager) -> None:
    items = [AgentLaunch(Counter, name="good"), AgentLaunch(Fragile, args=("no data",), name="bad")]
    with pytest.raises(LaunchError, match=r"1 of 2 agents could not be started. bad: .*no data") as caught:
        await manager.launch_many(items, agents_per_worker=2)
    assert "good" not in str(caught.value)
    assert manager.running() == set()
    assert len(await manager.launch_many([Counter] * 2)) == 2


async def test_an_exchange_that_workers_cannot_reach_is_told_with_every_address(manager: Manager) -> None:
    dead = ("http://127.0.0.1:9", "http://localhost:9")
    info = manager.exchange_factory.connection_info
    manager.exchange_factory.connection_info = ConnectionInfo(dead, info.headers)
    with pytest.raises(LaunchError, match="No URL of the exchange can be used from here") as caught:
        await manager.launch(Counter, name="far")
    assert all(url in str(caught.value) for url in dead)
    assert "far: " in str(caught.value)
    assert info.headers["Authorization"] not in f"{caught.value} {caught.value.__notes__}"


async def test_an_agent_that_fails_later_tells_why(manager: Manager) -> None:
    tired = await manager.launch(Tired)
    await tired.fail()
    with pytest.raises(AgentTerminatedError, match="'work' of the agent failed: RuntimeError: too tired"):
        await manager.wait([tired], raise_error=True)
    with pytest.raises(AgentTerminatedError, match="too tired"):
        await tired.fail()


async def test_an_agent_whose_worker_was_killed_comes_back(kind: Kind, manager: Manager) -> None:
    """Under the same registration, with the calls that wait for it; others notice nothing."""
    if not (kind.own_processes and kind.outlives_workers):
        pytest.skip("its workers live and die together")
    victim, other = await manager.launch_many([Counter, Counter], restarts=RestartPolicy(backoff_s=0.1))
    first = await victim.process()
    os.kill(first, signal.SIGKILL)
    assert await victim.process() != first
    assert await other.add(1) == 1
    assert manager.running() == {victim.agent_id, other.agent_id}


async def test_who_calls_an_agent_hears_soon_that_its_worker_was_killed(
    kind: Kind, shared: Any, factory: HttpExchangeFactory
) -> None:
    """Where it does not come back."""
    if not kind.own_processes:
        pytest.skip("its workers are this process")
    launcher = await asyncio.to_thread(kind.launcher_without_restarts, shared)
    never = RestartPolicy(max_restarts=0)
    async with (
        asyncio.timeout(PATIENCE_S),
        await Manager.from_exchange_factory(factory, launcher, restarts=never) as manager,
    ):
        counter = await manager.launch(Counter, name="victim")
        call = asyncio.create_task(counter.hang())
        os.kill(await counter.process(), signal.SIGKILL)
        async with asyncio.timeout(NOTICE_S):
            with pytest.raises(AgentTerminatedError, match=r"agent victim .* has ended: "):
                await call
            await manager.wait([counter])
        assert manager.running() == set()


async def test_a_run_goes_on_when_its_program_lets_go_and_another_one_attaches(
    launcher: Launcher, factory: HttpExchangeFactory
) -> None:
    if not isinstance(launcher, RunKeeper):
        pytest.skip("its workers end with the program")
    async with asyncio.timeout(PATIENCE_S):
        first = await Manager.from_exchange_factory(factory, launcher)
        counter = await first.launch(Counter, name="counter")
        assert await counter.add(1) == 1
        await first.detach()
        async with await Manager.attach(launcher.runs[-1]) as second:
            assert await second.handles()["counter"].add(1) == 2


async def test_agents_that_would_end_with_the_program_are_not_let_go(launcher: Launcher, manager: Manager) -> None:
    if isinstance(launcher, RunKeeper):
        pytest.skip("its workers outlive the program")
    counter = await manager.launch(Counter, name="counter")
    with pytest.raises(LaunchError, match="would end with this program: counter"):
        await manager.detach()
    assert await counter.add(1) == 1


async def test_the_rest_is_ended_with_the_manager(launcher: Launcher, factory: HttpExchangeFactory) -> None:
    async with await Manager.from_exchange_factory(factory, launcher) as made:
        counter = await made.launch(Counter)
        assert await counter.add(1) == 1
    async with await factory.create_user_client() as user:
        assert (await user.status(counter.agent_id)).value == "TERMINATED"
    report = made.report(counter)
    assert report is not None and report.state == "finished"
