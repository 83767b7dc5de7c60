"""What runs on the node: `run(spec)` reports what goes wrong and raises nothing."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import msgspec
import pytest

from academy_hpc import (
    AcademyRemoteError,
    AgentLaunch,
    AgentTerminatedError,
    BadEntityIdError,
    ConnectionInfo,
    HttpExchangeFactory,
    LaunchError,
    Manager,
    RuntimeConfig,
    spawn_http_exchange,
)
from academy_hpc.exchange.http.tokens import agent_token
from academy_hpc.launch.executor import ExecutorLauncher
from academy_hpc.launch.spec import WorkerReport
from academy_hpc.worker import run
from tests.launched_agents import Counter, Fragile
from tests.worker_process import report_of, worker_process

__all__: list[str] = []

PATIENCE_S = 30.0
SURVIVES = RuntimeConfig(terminate_on_error=False)


@pytest.fixture(scope="module")
def factory() -> Iterator[HttpExchangeFactory]:
    with spawn_http_exchange("127.0.0.1", 0) as made:
        yield made


@pytest.fixture
async def manager(factory: HttpExchangeFactory) -> AsyncIterator[Manager]:
    """A manager; the tests start workers themselves."""
    threads = ThreadPoolExecutor(2)
    async with asyncio.timeout(PATIENCE_S), await Manager.from_exchange_factory(factory, threads) as made:
        yield made


async def test_a_worker_runs_until_its_agents_have_ended_and_reports_on_each(manager: Manager) -> None:
    spec = await manager.make_spec([AgentLaunch(Counter, args=(1,), name="a"), AgentLaunch(Counter, name="b")])
    with worker_process(spec) as process:
        handles = await manager.adopt(spec)
        assert [await handle.process() for handle in handles] == [process.pid] * 2
        for handle in handles:
            await manager.shutdown(handle)
        report = await report_of(process)
    assert [(agent.agent_id.name, agent.state) for agent in report.agents] == [("a", "finished"), ("b", "finished")]
    assert report.origin.pid == process.pid


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
async def test_a_signal_ends_the_agents_and_leaves_them_to_another_life(
    manager: Manager, number: signal.Signals
) -> None:
    spec = await manager.make_spec([AgentLaunch(Counter, config=SURVIVES)])
    with worker_process(spec) as process:
        [counter] = await manager.adopt(spec)
        assert await counter.add(1) == 1
        process.send_signal(number)
        report = await report_of(process)
    assert process.returncode == 75
    assert [(agent.state, agent.again, agent.cause, agent.reason) for agent in report.agents] == [
        ("stopped", True, "preempted", f"its worker was told to end by {number.name}")
    ]
    call = asyncio.create_task(counter.add(5))  # waits for the next worker
    with worker_process(msgspec.structs.replace(spec, attempt=2)) as process:
        assert await call == 5
        await manager.shutdown(counter)
        assert (await report_of(process)).agents[0].state == "finished"
    assert process.returncode == 0


async def test_the_newer_of_two_copies_lives_on(manager: Manager) -> None:
    """Where a launcher starts a worker again too early, the older one goes, and that is not the agent's end."""
    spec = await manager.make_spec([Counter])
    with worker_process(spec) as old:
        [counter] = await manager.adopt(spec)
        assert await counter.process() == old.pid
        with worker_process(spec) as new:
            report = await report_of(old)
            assert [agent.state for agent in report.agents] == ["superseded"]
            assert await counter.process() == new.pid
            assert manager.running() == {counter.agent_id}
            await manager.shutdown(counter)
            assert (await report_of(new)).agents[0].state == "finished"


async def test_an_agent_that_is_adopted_without_a_future_is_watched(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = await manager.make_spec([Counter])
    with worker_process(spec) as process:
        [counter] = await manager.adopt(spec)
        process.kill()
        for name in ("launch.supervisor.LAUNCHER_CHECK_S", "launch.supervisor.MAILBOX_CHECK_S"):
            monkeypatch.setattr(f"academy_hpc.{name}", 0.05)
        monkeypatch.setattr("academy_hpc.exchange.http.client.STALE_S", 0.5)
        with pytest.raises(AgentTerminatedError, match=r"nothing was heard of it .* agent_run_sync"):
            await counter.add(1)


async def test_an_action_that_exits_ends_its_agent_and_leaves_the_others_alone(manager: Manager) -> None:
    spec = await manager.make_spec([AgentLaunch(Counter, name="gone"), AgentLaunch(Counter, name="stays")])
    with worker_process(spec) as process:
        gone, stays = await manager.adopt(spec)
        with pytest.raises(AcademyRemoteError, match="SystemExit: 3"):
            await gone.leave()
        with pytest.raises(AgentTerminatedError, match="SystemExit: 3"):
            await manager.wait([gone], raise_error=True)
        assert await stays.add(1) == 1
        await manager.shutdown(stays)
        report = await report_of(process)
    assert [(agent.agent_id.name, agent.state) for agent in report.agents] == [
        ("gone", "failed"),
        ("stays", "finished"),
    ]


def test_a_text_that_is_no_spec_is_reported() -> None:
    report = WorkerReport.from_json(run("no spec"))
    assert "no launch spec" in report.error
    assert report.agents == ()


async def test_an_exchange_that_is_not_there_is_reported_for_each_agent(manager: Manager) -> None:
    spec = await manager.make_spec([Counter, Counter])
    spec = msgspec.structs.replace(spec, connection=ConnectionInfo(("http://127.0.0.1:9",)))
    report = WorkerReport.from_json(await asyncio.to_thread(run, spec.to_json()))
    assert [agent.state for agent in report.agents] == ["failed"] * 2
    assert "http://127.0.0.1:9" in report.agents[0].reason


async def test_a_wrong_token_is_reported(manager: Manager) -> None:
    spec = await manager.make_spec([Counter])
    [agent] = spec.agents
    registration = msgspec.structs.replace(agent.registration, token=agent_token("another secret", agent.agent_id.uid))
    spec = msgspec.structs.replace(spec, agents=(msgspec.structs.replace(agent, registration=registration),))
    report = WorkerReport.from_json(await asyncio.to_thread(run, spec.to_json()))
    assert "it does not know" in report.agents[0].reason


async def test_an_agent_whose_mailbox_is_gone_is_reported(manager: Manager) -> None:
    spec = await manager.make_spec([Counter])
    await manager.exchange_client.terminate(spec.agents[0].agent_id)
    report = WorkerReport.from_json(await asyncio.to_thread(run, spec.to_json()))
    assert report.agents[0].state == "failed"
    assert str(BadEntityIdError(spec.agents[0].agent_id)) in report.agents[0].reason


async def test_agents_run_on_when_their_manager_is_gone(factory: HttpExchangeFactory) -> None:
    async with await factory.create_user_client() as user:
        manager = Manager(await factory.create_user_client(), ThreadPoolExecutor(1))
        spec = await manager.make_spec([Counter])
        await manager.exchange_client.close()
        with worker_process(spec) as process:
            counter = Manager(user, ThreadPoolExecutor(1)).get_handle(spec.agents[0].agent_id)
            assert await counter.add(1) == 1
            await counter.shutdown()
            assert (await report_of(process)).agents[0].state == "finished"


async def test_a_code_by_value_for_another_python_is_refused_by_the_worker(manager: Manager) -> None:
    class Local(Counter):
        pass

    spec = await manager.make_spec([AgentLaunch(Local, name="old")])
    text = spec.to_json().replace(f'"python":"{sys.version_info[0]}.{sys.version_info[1]}"', '"python":"3.9"')
    future = asyncio.get_running_loop().run_in_executor(None, run, text)
    with pytest.raises(LaunchError, match=r"old: .* as code of Python 3\.9, and the worker has Python 3\."):
        await manager.adopt(spec)
    assert "3.9" in WorkerReport.from_json(await future).agents[0].reason


async def test_run_needs_a_thread_without_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="call it in another thread"):
        run("{}")


async def test_one_agent_that_can_not_be_built_leaves_the_others_alone(manager: Manager) -> None:
    spec = await manager.make_spec([AgentLaunch(Fragile, args=("no data",), name="bad"), Counter])
    with ThreadPoolExecutor(1) as pool:
        future: Future[str] = pool.submit(run, spec.to_json())
        with pytest.raises(LaunchError, match=r"bad: .*no data"):
            await manager.adopt(spec, future)
        report = WorkerReport.from_json(await asyncio.wrap_future(future))
    assert [agent.state for agent in report.agents] == ["failed", "finished"]


async def test_a_constructor_that_exits_leaves_the_other_agents_alone(manager: Manager) -> None:
    class Leaving(Counter):
        def __init__(self) -> None:
            super().__init__()
            sys.exit("no licence")

    spec = await manager.make_spec([AgentLaunch(Leaving, name="bad"), Counter])
    future = asyncio.get_running_loop().run_in_executor(None, run, spec.to_json())
    with pytest.raises(LaunchError, match=r"bad: The constructor of .*Leaving raised SystemExit: no licence"):
        await manager.adopt(spec)
    assert [agent.state for agent in WorkerReport.from_json(await future).agents] == ["failed", "finished"]


def test_the_worker_is_what_launchers_start() -> None:
    """A launcher takes the function by name, so that its process never loads the runtime."""
    code = "import sys, academy_hpc.launch.manager; print('academy_hpc.runtime' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
    assert ExecutorLauncher(ThreadPoolExecutor(1)).slots() == 1
