"""The end of a life: nothing is begun any more, nothing is lost, and the next life goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from academy_hpc import (
    Agent,
    AgentLaunch,
    HttpExchangeFactory,
    LaunchSpec,
    MailboxStatus,
    MailboxTerminatedError,
    Manager,
    RuntimeConfig,
    UserId,
    action,
    loop,
    spawn_http_exchange,
)
from academy_hpc.checkpoint import CheckpointFiles
from academy_hpc.handle import Handle
from academy_hpc.launch.run import Run, WorkerStatus
from tests.lasting_agents import Diary, Odd, Slow, Stuck
from tests.launched_agents import LateFailure
from tests.running_agent import eventually, running, running_user, until
from tests.worker_process import report_of, worker_process

__all__: list[str] = []

LONG_S = 30.0


@pytest.fixture
def files(tmp_path: Path) -> CheckpointFiles:
    return CheckpointFiles(tmp_path / "state")


async def test_requests_that_were_not_begun_wait_and_count_no_attempt(files: CheckpointFiles) -> None:
    """So also one that must not run twice runs in the next life."""
    async with running_user() as user:
        first = Diary()
        async with running(first, user, state=files) as agent:
            running_call = asyncio.create_task(agent.handle.write("at work", 0.3))
            await first.begun.wait()
            agent.runtime.drain(grace_s=LONG_S)
            calls = [asyncio.create_task(agent.handle.write_once(f"late {n}")) for n in range(3)]
            assert await running_call == 1
            await agent.ended()
        assert agent.runtime.drained
        assert first.entries == ["at work"]
        async with running(Diary(), user, registration=agent.registration, state=files):
            assert await asyncio.gather(*calls) == [2, 3, 4]
            assert (await agent.handle.read())[0] == ["at work", "late 0", "late 1", "late 2"]


@contextlib.asynccontextmanager
async def durable_exchange(folder: Path) -> AsyncIterator[HttpExchangeFactory]:
    with contextlib.ExitStack() as stack:
        spawned = spawn_http_exchange("127.0.0.1", 0, state_dir=folder / "exchange")
        yield await asyncio.to_thread(stack.enter_context, spawned)
        await asyncio.to_thread(stack.close)


async def test_so_it_is_where_the_exchange_has_been_restarted_meanwhile(tmp_path: Path) -> None:
    """One inside the jobs of a run is, from one job to the next."""
    async with durable_exchange(tmp_path) as factory:
        user = await factory.create_user_client()
        async with running(Slow(end_s=0.5), user) as agent:
            agent.runtime.drain(grace_s=LONG_S)
            call = asyncio.create_task(agent.handle.write_once("late"))
            await agent.ended()
    async with durable_exchange(tmp_path), asyncio.timeout(LONG_S):
        async with running(Diary(), user, registration=agent.registration):
            assert await call == 1
        await user.close()


async def test_an_action_that_takes_too_long_is_interrupted_and_runs_again(files: CheckpointFiles) -> None:
    async with running_user() as user:
        first = Diary()
        async with running(first, user, state=files) as agent:
            call = asyncio.create_task(agent.handle.write("long", 0.6))
            await first.begun.wait()
            agent.runtime.drain(grace_s=0.4)
            await agent.ended()
        assert first.events == ["starts with 0", "begins long", "leaves long", "ends"]
        async with running(Diary(), user, registration=agent.registration, state=files):
            assert await call == 1
            events = (await agent.handle.read())[1]
        assert events[4:] == ["starts with 0", "begins long"]


async def test_an_action_may_call_others_while_its_agent_drains() -> None:
    class Asker(Agent):
        def __init__(self) -> None:
            super().__init__()
            self.asked, self.go = asyncio.Event(), asyncio.Event()

        @action
        async def ask(self, diary: Handle[Diary]) -> int:
            self.asked.set()
            await self.go.wait()
            return int(await diary.write("asked")) + int(await self.own())

        @action
        async def own(self) -> int:
            own: Handle[Asker] = Handle(self.agent_id)
            return int(await own.number())

        @action
        async def number(self) -> int:
            return 10

    async with running_user() as user, running(Diary(), user) as diary:
        asker = Asker()
        async with running(asker, user) as agent:
            call = asyncio.create_task(agent.handle.ask(diary.handle))
            await asker.asked.wait()
            agent.runtime.drain(grace_s=LONG_S)
            asker.go.set()
            assert await call == 11


async def test_the_state_is_saved_though_the_agent_does_not_let_go(files: CheckpointFiles) -> None:
    """Neither a loop that does not return, nor an action or a shutdown that hangs, takes the time from the state."""
    async with running_user() as user:
        slow = Stuck(end_s=1000)
        async with running(slow, user, state=files) as agent:
            call = asyncio.create_task(agent.handle.write("long", 1000))
            await slow.begun.wait()
            slow.entries.append("seen")
            start = time.monotonic()
            agent.runtime.drain(grace_s=1.0)
            await agent.ended()
            assert time.monotonic() - start < 1.5
            call.cancel()
    data = await asyncio.to_thread(files.load)
    assert data is not None
    assert b"seen" in data


async def test_the_state_is_saved_though_a_loop_or_the_shutdown_fails(files: CheckpointFiles) -> None:
    class Clumsy(Diary):
        @loop
        async def work(self, shutdown: asyncio.Event) -> None:
            await shutdown.wait()
            raise ValueError("dropped")

        async def agent_on_shutdown(self) -> None:
            raise OSError("no such instrument")

    async with running_user() as user, running(Clumsy(), user, state=files) as agent:
        await agent.handle.write("seen")
        agent.runtime.drain(grace_s=LONG_S)
        with pytest.raises(ExceptionGroup, match="2 errors"):
            await agent.ended()
        assert await user.status(agent.registration.agent_id) is not MailboxStatus.TERMINATED
    assert b"seen" in (await asyncio.to_thread(files.load) or b"")


async def test_who_is_in_a_hurry_shortens_the_time() -> None:
    async with running_user() as user:
        diary = Diary()
        async with running(diary, user) as agent:
            call = asyncio.create_task(agent.handle.write("long", 1000))
            await diary.begun.wait()
            agent.runtime.drain(grace_s=1000)
            await asyncio.sleep(0.05)
            agent.runtime.drain(grace_s=0.1)
            agent.runtime.drain(grace_s=2000)
            await agent.ended()
            call.cancel()
    assert "leaves long" in diary.events


async def test_a_start_that_takes_too_long_is_broken_off_and_loses_no_state(files: CheckpointFiles) -> None:
    await asyncio.to_thread(files.save, b"what is there")
    files_of_none = CheckpointFiles(Path(files.place) / "none")
    async with running_user() as user:
        async with running(Slow(start_s=1000), user, state=files_of_none, wait=False) as agent:
            call = asyncio.create_task(agent.handle.write_once("waits"))
            await until(lambda: agent.runtime.agent.events)
            agent.runtime.drain(grace_s=0.1)
            assert not await agent.runtime.wait_started()
            await agent.ended()
        assert await asyncio.to_thread(files_of_none.load) is None
        async with running(Diary(), user, registration=agent.registration):
            assert await call == 1


async def test_an_agent_that_ends_for_good_is_not_brought_back_by_a_drain() -> None:
    async with running_user() as user, running(Slow(end_s=0.2), user) as agent:
        await agent.handle.shutdown()
        await until(lambda: agent.runtime.ending)
        agent.runtime.drain(grace_s=LONG_S)
        await agent.ended()
        assert not agent.runtime.drained
        with pytest.raises(MailboxTerminatedError):
            await agent.handle.write("too late")


async def test_requests_wait_also_where_an_agent_ends_without_a_drain() -> None:
    config = RuntimeConfig(terminate_on_success=False)
    async with running_user() as user:
        async with running(Slow(end_s=0.3), user, config=config) as agent:
            agent.runtime.signal_shutdown()
            await asyncio.sleep(0)
            call = asyncio.create_task(agent.handle.write_once("late"))
            await agent.ended()
        async with running(Diary(), user, registration=agent.registration):
            assert await call == 1


# Whole workers


@pytest.fixture(scope="module")
def factory() -> Iterator[HttpExchangeFactory]:
    with spawn_http_exchange("127.0.0.1", 0) as made:
        yield made


@pytest.fixture
async def manager(factory: HttpExchangeFactory) -> AsyncIterator[Manager]:
    """A manager; the tests start workers themselves."""
    async with asyncio.timeout(LONG_S), await Manager.from_exchange_factory(factory, ThreadPoolExecutor(2)) as made:
        yield made


async def begun(diary: Handle[Diary]) -> bool:
    """Whether an action has."""
    return len((await diary.read())[1]) > 1


def next_life(spec: LaunchSpec) -> LaunchSpec:
    return msgspec.structs.replace(spec, attempt=spec.attempt + 1, deadline_s=None)


async def test_an_agent_goes_on_behind_its_walltime_with_its_state(manager: Manager, tmp_path: Path) -> None:
    """Drained at its deadline, started again under the same registration: what waited is done once."""
    spec = await manager.make_spec([AgentLaunch(Diary, name="diary")])
    spec = msgspec.structs.replace(spec, state_dir=str(tmp_path / "state"), deadline_s=time.time() + 4.0, grace_s=2.0)
    with worker_process(spec) as process:
        [diary] = await manager.adopt(spec)
        assert await diary.write("first") == 1
        report = await report_of(process)
    assert process.returncode == 75
    assert time.time() < spec.deadline_s  # type: ignore[operator]
    [agent] = report.agents
    assert (agent.state, agent.again, agent.cause, agent.reason) == (
        "stopped",
        True,
        "walltime",
        "its job is near its walltime",
    )
    call = asyncio.create_task(diary.write_once("second"))
    with worker_process(next_life(spec)) as process:
        assert await call == 2
        assert await diary.read() == (
            ["first", "second"],
            ["starts with 0", "begins first", "ends", "starts with 1", "begins second"],
        )
        await manager.shutdown(diary)
        assert (await report_of(process)).agents[0].attempt == 2
    assert process.returncode == 0


async def test_a_deadline_in_the_environment_is_the_one_that_counts(manager: Manager) -> None:
    spec = await manager.make_spec([Diary])
    spec = msgspec.structs.replace(spec, deadline_s=time.time() + 3600)
    environment = {"ACADEMY_HPC_DEADLINE": str(time.time() + 1), "ACADEMY_HPC_ATTEMPT": "7"}
    with worker_process(spec, environment=environment) as process:
        [agent] = (await report_of(process)).agents
    assert (agent.cause, agent.attempt) == ("walltime", 7)


async def test_a_signal_near_the_deadline_means_the_walltime(manager: Manager) -> None:
    """Slurm sends its warning up to a minute early."""
    spec = await manager.make_spec([Diary])
    spec = msgspec.structs.replace(spec, deadline_s=time.time() + 100, grace_s=45)
    with worker_process(spec) as process:
        await manager.adopt(spec)
        process.send_signal(signal.SIGUSR1)
        [agent] = (await report_of(process)).agents
    assert (agent.cause, agent.again) == ("walltime", True)


async def test_who_tells_again_is_in_a_hurry(manager: Manager) -> None:
    """A warning leaves time for what runs, and a SIGTERM does not."""
    spec = await manager.make_spec([Diary])
    with worker_process(spec) as process:
        [diary] = await manager.adopt(spec)
        call = asyncio.create_task(diary.write("long", 1000))
        await eventually(lambda: begun(diary))
        process.send_signal(signal.SIGUSR1)
        await asyncio.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        [agent] = (await report_of(process)).agents
        assert agent.reason == "its worker was told to end by SIGUSR1"
        call.cancel()


async def test_one_signal_that_comes_twice_does_not_hurry(manager: Manager) -> None:
    """The scheduler sends it to every process, and the script around the worker passes it on."""
    spec = await manager.make_spec([Diary])
    with worker_process(spec) as process:
        [diary] = await manager.adopt(spec)
        call = asyncio.create_task(diary.write("long", 1.2))
        await eventually(lambda: begun(diary))
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert await call == 1
        await report_of(process)


class LongConstructor(Agent):
    def __init__(self, path: str) -> None:
        super().__init__()
        Path(path).touch()
        time.sleep(1000)


async def test_a_signal_also_ends_a_constructor(manager: Manager, tmp_path: Path) -> None:
    path = tmp_path / "constructing"
    spec = await manager.make_spec([AgentLaunch(LongConstructor, args=(str(path),)), Diary])
    with worker_process(spec) as process:
        await eventually(lambda: asyncio.to_thread(path.exists))
        process.send_signal(signal.SIGTERM)
        report = await report_of(process)
    assert process.returncode == 75
    assert [(agent.state, agent.again) for agent in report.agents] == [("stopped", True)] * 2


class Unstoppable(Agent):
    def __init__(self) -> None:
        super().__init__()
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1000)


async def test_a_constructor_that_does_not_end_is_the_last_one(manager: Manager, tmp_path: Path) -> None:
    path = tmp_path / "constructing"
    spec = await manager.make_spec([Unstoppable, AgentLaunch(LongConstructor, args=(str(path),))])
    with worker_process(spec) as process:
        report = await report_of(process)
    assert process.returncode == 75
    assert [agent.again for agent in report.agents] == [True, True]
    assert not await asyncio.to_thread(path.exists)


async def test_an_agent_that_has_ended_is_not_run_in_the_next_life(manager: Manager) -> None:
    """One spec serves all lives; the mailbox of such an agent is closed, and its token with it."""
    spec = await manager.make_spec([AgentLaunch(Diary, name="done"), AgentLaunch(Diary, name="on")])
    with worker_process(spec) as process:
        done, on = await manager.adopt(spec)
        await manager.shutdown(done)
        await manager.wait([done])
        process.send_signal(signal.SIGTERM)
        report = await report_of(process)
        assert [agent.again for agent in report.agents] == [False, True]
    with worker_process(next_life(spec)) as process:
        assert await on.write("again") == 1
        await manager.shutdown(on)
        report = await report_of(process)
    assert process.returncode == 0
    ends = {agent.agent_id.name: (agent.state, agent.reason) for agent in report.agents}
    assert ends == {"done": ("finished", "its mailbox was closed since its last life"), "on": ("finished", "")}


async def test_a_state_that_can_not_be_saved_at_the_end_is_told(manager: Manager, tmp_path: Path) -> None:
    spec = msgspec.structs.replace(await manager.make_spec([Odd]), state_dir=str(tmp_path / "state"))
    with worker_process(spec) as process:
        await manager.adopt(spec)
        process.send_signal(signal.SIGTERM)
        [agent] = (await report_of(process)).agents
    assert agent.again
    assert "what agent_get_state returned can't be pickled" in agent.reason


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create("test", runs=tmp_path / "runs")


async def states(run: Run, wanted: list[str]) -> WorkerStatus | None:
    """What the worker says of itself, if its agents are so."""
    status = await asyncio.to_thread(run.worker, 0)
    return status if status is not None and [agent.state for agent in status.agents] == wanted else None


async def test_a_worker_says_in_the_directory_of_its_run_how_it_is(manager: Manager, run: Run) -> None:
    spec = await manager.make_spec([AgentLaunch(Diary, name="diary")])
    environment = {"ACADEMY_HPC_RUN": str(run.path)}
    with worker_process(spec, environment=environment) as process:
        await manager.adopt(spec)
        status = await eventually(lambda: states(run, ["ready"]))
        assert (status.attempt, status.origin.pid, status.again) == (1, process.pid, False)
        assert "exchange: reached at http" in status.checks
        process.send_signal(signal.SIGTERM)
        await report_of(process)
    status = await asyncio.to_thread(run.worker, 0)
    assert status is not None
    assert (status.again, status.agents[0].cause) == (True, "preempted")
    events = await asyncio.to_thread(run.events)
    assert [event["event"] for event in events] == ["worker_started", "worker_ends"]
    assert events[1]["reason"] == "its worker was told to end by SIGTERM"


async def test_where_the_user_wants_the_run_to_end_no_agent_comes_back(manager: Manager, run: Run) -> None:
    spec = await manager.make_spec([Diary])
    with worker_process(spec, environment={"ACADEMY_HPC_RUN": str(run.path)}) as process:
        [diary] = await manager.adopt(spec)
        await asyncio.to_thread(run.ask_to_stop)
        process.send_signal(signal.SIGTERM)
        [agent] = (await report_of(process)).agents
    assert process.returncode == 0
    assert (agent.state, agent.again, agent.cause) == ("stopped", False, "stopped")
    with pytest.raises(MailboxTerminatedError):
        await diary.write("too late")


async def test_mailboxes_are_closed_also_where_no_manager_listens(manager: Manager, run: Run) -> None:
    nobody = UserId.new()
    ended, given_up = [msgspec.structs.replace(await manager.make_spec([Diary]), manager=nobody) for _ in range(2)]
    environment = {"ACADEMY_HPC_RUN": str(run.path)}
    with worker_process(ended, environment=environment) as process:
        await eventually(lambda: states(run, ["ready"]))
        await asyncio.to_thread(run.ask_to_stop)
        process.send_signal(signal.SIGTERM)
        await report_of(process)
    with worker_process(given_up, "--give-up", "no node is left", environment=environment) as process:
        await report_of(process)
    for spec in (ended, given_up):
        status = await manager.exchange_client.status(spec.agents[0].agent_id)
        assert status is MailboxStatus.TERMINATED


async def test_an_agent_that_has_failed_is_not_run_in_the_next_life(manager: Manager, run: Run) -> None:
    """Also where its mailbox stays open: its error would come again."""
    config = RuntimeConfig(terminate_on_error=False)
    spec = await manager.make_spec([AgentLaunch(LateFailure, name="bad", config=config), Diary])
    environment = {"ACADEMY_HPC_RUN": str(run.path)}
    with worker_process(spec, environment=environment) as process:
        await eventually(lambda: asyncio.to_thread(run.events))
        await eventually(lambda: states(run, ["failed", "ready"]))
        process.send_signal(signal.SIGTERM)
        assert [agent.again for agent in (await report_of(process)).agents] == [False, True]
    with worker_process(next_life(spec), environment=environment) as process:
        await eventually(lambda: states(run, ["failed", "ready"]))
        process.send_signal(signal.SIGTERM)
        bad, diary = (await report_of(process)).agents
    assert (bad.attempt, diary.attempt) == (1, 2)
    assert process.returncode == 75


async def test_agents_that_are_given_up_leave_nobody_waiting(manager: Manager, run: Run) -> None:
    spec = await manager.make_spec([AgentLaunch(Diary, name="diary")])
    with worker_process(spec, environment={"ACADEMY_HPC_RUN": str(run.path)}) as process:
        [diary] = await manager.adopt(spec)
        process.kill()
    await asyncio.to_thread((run.path / "workers" / "0.attempt").write_text, "3\n")
    call = asyncio.create_task(diary.write("never"))
    options = ("--give-up", "it was killed by SIGKILL, 4 times in one job")
    with worker_process(spec, *options, environment={"ACADEMY_HPC_RUN": str(run.path)}) as process:
        [agent] = (await report_of(process)).agents
    assert (agent.state, agent.cause, agent.attempt) == ("lost", "lost", 3)
    assert process.returncode == 0
    with pytest.raises(MailboxTerminatedError, match="it was killed by SIGKILL, 4 times in one job"):
        await call


def test_the_exit_code_that_means_again_is_that_of_a_temporary_failure() -> None:
    from academy_hpc.worker.running import AGAIN

    assert os.EX_TEMPFAIL == AGAIN
