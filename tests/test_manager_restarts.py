"""What is lost comes back under the same registration, as often as it may; nobody waits for ever for what does not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from academy_hpc import (
    AgentLaunch,
    AgentTerminatedError,
    Handle,
    HttpExchangeFactory,
    LaunchError,
    Manager,
    RestartPolicy,
    RuntimeConfig,
    spawn_http_exchange,
)
from academy_hpc.launch import supervisor
from tests.launched_agents import Counter, Keeper, Tired, Unlucky
from tests.process_launcher import ProcessLauncher

__all__: list[str] = []

PATIENCE_S = 30.0
AT_ONCE = RestartPolicy(max_restarts=2, backoff_s=0)


@pytest.fixture(scope="module")
def factory() -> Iterator[HttpExchangeFactory]:
    with spawn_http_exchange("127.0.0.1", 0) as made:
        yield made


@pytest.fixture
def launcher() -> ProcessLauncher:
    return ProcessLauncher()


@pytest.fixture
async def manager(factory: HttpExchangeFactory, launcher: ProcessLauncher) -> AsyncIterator[Manager]:
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, launcher, restarts=AT_ONCE) as made:
            yield made


async def kill(counter: Handle[Counter], number: int = signal.SIGKILL) -> int:
    pid = await counter.process()
    os.kill(pid, number)
    return pid


async def test_an_agent_whose_worker_was_killed_is_called_as_if_nothing_had_happened(manager: Manager) -> None:
    counter = await manager.launch(Counter, args=(40,), name="counter")
    pid = await kill(counter)
    assert await counter.add(2) == 42
    assert await counter.process() != pid
    [end] = manager.ends(counter)
    assert (end.state, end.cause, end.attempt) == ("lost", "lost", 1)
    assert "gave -9" in end.reason
    assert manager.running() == {counter.agent_id}


async def test_a_call_that_was_at_work_is_executed_by_the_next_life(manager: Manager) -> None:
    counter = await manager.launch(Counter)
    pid = await counter.process()
    call = asyncio.create_task(counter.add_slowly(7))
    await asyncio.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    assert await call == 7


async def test_all_agents_of_a_worker_come_back_but_those_that_had_ended(
    manager: Manager, launcher: ProcessLauncher
) -> None:
    one, two, three = await manager.launch_many([Counter] * 3, agents_per_worker=3)
    await manager.shutdown(two)
    await kill(one)
    assert await one.add(1) == 1
    assert await three.process() == await one.process()
    assert manager.running() == {one.agent_id, three.agent_id}
    assert launcher.started == 2


async def test_when_no_restart_is_left_callers_are_told_why(manager: Manager) -> None:
    counter = await manager.launch(Counter)
    for _ in range(2):
        await kill(counter)
        await counter.process()
    pid = await counter.process()
    calls = [asyncio.create_task(counter.hang()) for _ in range(3)]
    await asyncio.sleep(0.2)
    os.kill(pid, signal.SIGKILL)
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, AgentTerminatedError)
        assert "gave -9" in str(outcome) and "started again 2 times" in str(outcome)
    report = manager.report(counter)
    assert report is not None and (report.state, report.cause, report.attempt) == ("lost", "lost", 3)
    assert len(manager.ends(counter)) == 3


async def test_without_restarts_an_agent_is_lost_with_its_worker(manager: Manager) -> None:
    counter = await manager.launch(Counter, restarts=RestartPolicy(max_restarts=0))
    await kill(counter)
    with pytest.raises(AgentTerminatedError, match="gave -9"):
        await counter.hang()


async def test_an_error_of_the_agent_is_not_tried_again_unless_asked_for(
    manager: Manager, launcher: ProcessLauncher
) -> None:
    tired = await manager.launch(Tired)
    await tired.fail()
    with pytest.raises(AgentTerminatedError, match="too tired"):
        await manager.wait([tired], raise_error=True)
    assert launcher.started == 1
    report = manager.report(tired)
    assert report is not None and report.cause == "agent_error"


async def test_an_error_of_the_agent_is_tried_again_where_that_is_asked_for(manager: Manager) -> None:
    policy = RestartPolicy(max_restarts=1, backoff_s=0, on_error=True)
    tired = await manager.launch(Tired, restarts=policy)
    await tired.fail()
    while not manager.ends(tired):  # noqa: ASYNC110 - a life that ends tells nobody
        await asyncio.sleep(0.05)
    await tired.fail()  # reaches the second life
    with pytest.raises(AgentTerminatedError, match="too tired"):
        await manager.wait([tired], raise_error=True)
    assert [end.cause for end in manager.ends(tired)] == ["agent_error", "agent_error"]
    with pytest.raises(AgentTerminatedError, match="too tired"):
        await tired.fail()


async def test_a_worker_that_dies_before_its_agents_were_ever_ready_is_an_error_of_the_launch(
    manager: Manager, launcher: ProcessLauncher
) -> None:
    with pytest.raises(LaunchError, match="gave 7"):
        await manager.launch(Unlucky)
    assert launcher.started == 1


async def test_a_worker_that_had_to_end_is_followed_by_another_one_and_that_counts_as_no_restart(
    manager: Manager, launcher: ProcessLauncher
) -> None:
    counter = await manager.launch(Counter, restarts=RestartPolicy(max_restarts=0))
    for life in (1, 2, 3):
        await kill(counter, signal.SIGTERM)
        assert await counter.add(life) == life
    assert [end.cause for end in manager.ends(counter)] == ["preempted"] * 3
    assert all(end.again for end in manager.ends(counter))


async def test_a_worker_of_which_no_end_is_told_is_followed_by_another_one_when_its_agents_had_to_end(
    factory: HttpExchangeFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where an endpoint of Globus Compute ended with its workers: their futures stay pending for ever."""

    class Forgetful(ProcessLauncher):
        def start(self, specs: Sequence[str]) -> list[Future[str]]:
            super().start(specs)
            return [Future() for _ in specs]

    monkeypatch.setattr(supervisor, "WORKER_OVER_S", 0.2)
    launcher = Forgetful()
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, launcher) as manager:
            one, two = await manager.launch_many([Counter] * 2, agents_per_worker=2)
            pid = await kill(one, signal.SIGTERM)
            assert await one.process() == await two.process() != pid
            assert launcher.started == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_the_state_of_an_agent_is_that_of_its_last_checkpoint(
    number: int, factory: HttpExchangeFactory, launcher: ProcessLauncher, tmp_path: Path
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        manager = await Manager.from_exchange_factory(factory, launcher, restarts=AT_ONCE, state_dir=tmp_path / "state")
        async with manager:
            config = RuntimeConfig(checkpoint_s=0.2)
            keeper = await manager.launch(Keeper, config=config)
            assert await keeper.add(40) == 40
            await asyncio.sleep(0.6)
            await kill(keeper, number)
            assert await keeper.add(2) == 42


async def test_a_slot_is_counted_once_for_all_lives(factory: HttpExchangeFactory) -> None:
    launcher = ProcessLauncher(slots=2)
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, launcher, restarts=AT_ONCE) as manager:
            counter = await manager.launch(Counter)
            await kill(counter)
            await counter.process()
            assert (await manager.launch(Counter)).agent_id != counter.agent_id


async def test_an_agent_that_fails_beside_others_needs_a_slot_of_its_own_for_another_life(
    factory: HttpExchangeFactory,
) -> None:
    """Its worker goes on with the others, and takes the only slot: nobody waits for it for ever."""
    policy = RestartPolicy(backoff_s=0, on_error=True)
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, ProcessLauncher(slots=1), restarts=policy) as manager:
            tired, other = await manager.launch_many([Tired, Tired], agents_per_worker=2)
            await tired.fail()
            with pytest.raises(AgentTerminatedError, match=r"too tired.* could not be started again: .* 1 slots"):
                await manager.wait([tired], raise_error=True)
            assert await other.ping() > 0


async def test_a_manager_closes_at_once_while_an_agent_waits_for_its_next_life(
    factory: HttpExchangeFactory, launcher: ProcessLauncher
) -> None:
    slow = RestartPolicy(backoff_s=60, max_backoff_s=60)
    async with asyncio.timeout(10):
        async with await Manager.from_exchange_factory(factory, launcher, restarts=slow) as manager:
            counter = await manager.launch(Counter)
            await kill(counter)
            while not manager.ends(counter):  # noqa: ASYNC110 - a life that ends tells nobody
                await asyncio.sleep(0.05)
        assert launcher.started == 1


@pytest.mark.parametrize("fields", [{"max_restarts": -1}, {"backoff_s": -1}, {"backoff_s": 70}])
def test_a_policy_that_makes_no_sense_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="RestartPolicy"):
        RestartPolicy(**fields)


def test_pauses_double_up_to_their_limit() -> None:
    policy = RestartPolicy(backoff_s=1, max_backoff_s=5)
    assert [policy.pause_s(number) for number in range(5)] == [1, 2, 4, 5, 5]
    assert policy.pause_s(100_000) == 5


async def test_agents_launched_together_keep_their_own_mailboxes(manager: Manager) -> None:
    items = [AgentLaunch(Counter, args=(number,), name=f"c{number}") for number in range(4)]
    counters = await manager.launch_many(items, agents_per_worker=4)
    await kill(counters[0])
    assert await asyncio.gather(*(counter.add(0) for counter in counters)) == [0, 1, 2, 3]
    assert set(manager.handles()) == {"c0", "c1", "c2", "c3"}
