"""The manager: slots, readiness, ends."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from academy_hpc import (
    AcademyError,
    Agent,
    AgentLaunch,
    AgentTerminatedError,
    ExchangeFullError,
    ExchangeUnavailableError,
    ExecutorLauncher,
    Handle,
    HttpExchangeFactory,
    LaunchError,
    MailboxStatus,
    Manager,
    RuntimeConfig,
    TooFewSlotsError,
    action,
    spawn_http_exchange,
)
from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.launch.launcher import Launcher
from academy_hpc.launch.progress import LaunchProgress
from academy_hpc.registry import Limits
from academy_hpc.worker import run
from tests.exchange_server import TOKEN, running_exchange
from tests.launched_agents import Caller, Counter, Fragile, Stubborn, Tired
from tests.running_agent import until

__all__: list[str] = []

ROOT = Path(__file__).parent.parent
PATIENCE_S = 30.0


@pytest.fixture(scope="module")
def factory() -> Iterator[HttpExchangeFactory]:
    with spawn_http_exchange("127.0.0.1", 0) as made:
        yield made


@pytest.fixture
async def manager(factory: HttpExchangeFactory) -> AsyncIterator[Manager]:
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, ThreadPoolExecutor(4)) as made:
            yield made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every agent counts as silent."""
    monkeypatch.setattr("academy_hpc.exchange.http.client.STALE_S", 0.0)
    monkeypatch.setattr("academy_hpc.launch.supervisor.LAUNCHER_CHECK_S", 0.05)
    monkeypatch.setattr("academy_hpc.launch.supervisor.MAILBOX_CHECK_S", 0.05)


def process_pool(size: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(size, mp_context=multiprocessing.get_context("spawn"))


class Silent:
    """A launcher whose workers never come: what a full queue, or a dead interchange, looks like."""

    label = "silence"
    restarts = False

    def __init__(self) -> None:
        self.futures: list[Future[str]] = []
        self.broken: str | None = None
        self.closed = 0

    def slots(self) -> int | None:
        return None

    def start(self, specs: Sequence[str]) -> list[Future[str]]:
        self.futures = [Future() for _ in specs]
        return self.futures

    def waiting(self) -> str | None:
        return None

    def failure(self) -> str | None:
        return self.broken

    def close(self, *, timeout: float) -> None:
        self.closed += 1


class Refusing(Silent):
    def start(self, specs: Sequence[str]) -> list[Future[str]]:
        raise LaunchError("the queue is closed today")


def test_the_launchers_of_the_package_are_launchers() -> None:
    assert isinstance(ExecutorLauncher(ThreadPoolExecutor(1)), Launcher)
    assert isinstance(Silent(), Launcher)


# Launchers


async def test_a_launcher_is_chosen_by_name(factory: HttpExchangeFactory) -> None:
    launchers: dict[str, Executor | Launcher] = {"threads": ThreadPoolExecutor(1), "silence": Silent()}
    async with await Manager.from_exchange_factory(factory, launchers) as manager:
        await manager.launch(Counter)
        with pytest.raises(TooFewSlotsError, match="ThreadPoolExecutor"):
            await manager.launch(Counter, launcher="threads")
        with pytest.raises(LaunchError, match="Not all agents are ready in time"):
            await manager.launch(Counter, executor="silence", timeout=0.1)
        with pytest.raises(ValueError, match="no launcher 'gpu'; there are: 'threads', 'silence'"):
            await manager.launch(Counter, launcher="gpu")


async def test_a_manager_without_a_launcher_adopts_what_the_program_starts(factory: HttpExchangeFactory) -> None:
    with ThreadPoolExecutor(1) as pool:
        async with await Manager.from_exchange_factory(factory) as manager:
            spec = await manager.make_spec([Counter(40)])
            [counter] = await manager.adopt(spec, pool.submit(run, spec.to_json()))
            assert await counter.add(2) == 42
            with pytest.raises(ValueError, match="has no launcher"):
                await manager.launch(Counter)


async def test_a_manager_needs_a_launcher_that_is_there(factory: HttpExchangeFactory) -> None:
    with pytest.raises(ValueError, match="at least one launcher"):
        await Manager.from_exchange_factory(factory, {})
    with pytest.raises(ValueError, match="no launcher 'b'"):
        await Manager.from_exchange_factory(factory, {"a": Silent()}, default_launcher="b")


async def test_an_executor_of_which_nothing_is_known_is_taken_at_its_word(factory: HttpExchangeFactory) -> None:
    class Wrapped(Executor):
        def __init__(self) -> None:
            self.pool = ThreadPoolExecutor(1)

        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            return self.pool.submit(function, *args, **kwargs)

    assert ExecutorLauncher(Wrapped()).slots() is None
    launcher = ExecutorLauncher(Wrapped(), slots=1, label="my cluster")
    async with await Manager.from_exchange_factory(factory, launcher) as manager:
        assert await (await manager.launch(Counter)).add(1) == 1
        with pytest.raises(TooFewSlotsError, match=r"my cluster \(where 1 workers run already\)"):
            await manager.launch(Counter)


async def test_an_executor_may_stay_open(factory: HttpExchangeFactory) -> None:
    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            launcher = ExecutorLauncher(pool, shutdown=False)
            async with await Manager.from_exchange_factory(factory, launcher) as manager:
                await manager.launch(Counter)
        assert pool.submit(int).result() == 0


async def test_an_executor_that_was_shut_down_is_told(factory: HttpExchangeFactory) -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    async with await Manager.from_exchange_factory(factory, pool) as manager:
        with pytest.raises(LaunchError, match="ThreadPoolExecutor takes no more workers: cannot schedule"):
            await manager.launch(Counter)
        assert manager.running() == set()


# Launching


async def test_handles_find_their_exchange_inside_the_block(manager: Manager) -> None:
    counter = await manager.launch(Counter)
    assert await Handle(counter.agent_id).add(1) == 1
    copy = pickle.loads(pickle.dumps(counter))  # noqa: S301 - our own bytes
    assert type(copy) is Handle
    assert await copy.add(1) == 2


async def test_an_agent_can_be_called_before_it_runs(manager: Manager) -> None:
    registration = await manager.register_agent(Counter, name="early")
    call = asyncio.create_task(manager.get_handle(registration).add(2))
    counter = await manager.launch(Counter, args=(40,), registration=registration)
    assert await call == 42
    assert counter.agent_id == registration.agent_id
    assert counter.agent_id.name == "early"


async def test_agents_can_be_launched_without_waiting_for_them(manager: Manager) -> None:
    first, second = await manager.submit_many([AgentLaunch(Counter, name="a"), AgentLaunch(Counter, name="b")])
    assert {first.agent_id, second.agent_id} == manager.running()
    assert (await manager.wait_ready(timeout=30)).keys() == {"a", "b"}
    assert await second.add(1) == 1
    (fragile,) = await manager.submit_many([AgentLaunch(Fragile, args=("too thin",))])
    with pytest.raises(LaunchError, match="too thin"):
        await manager.wait_ready(timeout=30)
    report = manager.report(fragile)
    assert report is not None and report.state == "failed"


async def test_many_agents_are_spread_evenly(manager: Manager) -> None:
    seen: list[LaunchProgress] = []
    items = [AgentLaunch(Counter, args=(number,), name=f"c{number}") for number in range(10)]
    counters = await manager.launch_many(items, agents_per_worker=3, progress=seen.append)
    assert await asyncio.gather(*(counter.add(0) for counter in counters)) == list(range(10))
    assert (len(seen[0].queued), seen[0].total) == (10, 10)
    assert (len(seen[-1].ready), seen[-1].total) == (10, 10)
    with pytest.raises(ValueError, match="agents_per_worker=0"):
        await manager.launch_many([Counter], agents_per_worker=0)
    assert await manager.launch_many([]) == []


async def test_progress_is_shown_on_standard_error(manager: Manager, capsys: pytest.CaptureFixture[str]) -> None:
    await manager.launch_many([AgentLaunch(Counter, name="c1")], progress=True)
    captured = capsys.readouterr()
    assert "waiting for a worker: c1" in captured.err
    assert captured.err.endswith("1/1 ready\n")
    assert captured.out == ""


async def test_a_launch_that_takes_too_long_names_who_is_missing(factory: HttpExchangeFactory) -> None:
    silent = Silent()
    async with await Manager.from_exchange_factory(factory, silent) as manager:
        items = [AgentLaunch(Counter, name="sim-1"), AgentLaunch(Counter, name="sim-2")]
        with pytest.raises(LaunchError, match="in time: 0/2 ready, waiting for a worker: sim-1, sim-2"):
            await manager.launch_many(items, timeout=0.2)
        assert all(future.cancelled() for future in silent.futures)
        assert manager.running() == set()
    assert silent.closed == 1


async def test_a_launch_that_is_cancelled_leaves_nothing(factory: HttpExchangeFactory) -> None:
    async with await Manager.from_exchange_factory(factory, Silent()) as manager:
        launch = asyncio.create_task(manager.launch(Counter, name="c"))
        await asyncio.sleep(0.2)
        [agent_id] = manager.running()
        launch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await launch
        assert manager.running() == set()
    async with await factory.create_user_client() as user:
        assert await user.status(agent_id) is MailboxStatus.TERMINATED


async def test_a_launcher_that_fails_is_noticed_by_those_who_wait(factory: HttpExchangeFactory) -> None:
    silent = Silent()
    async with await Manager.from_exchange_factory(factory, silent) as manager:
        launch = asyncio.create_task(manager.launch(Counter, name="c"))
        await asyncio.sleep(0.1)
        silent.broken = "the cluster is on fire"
        with pytest.raises(LaunchError, match="c: the cluster is on fire"):
            await launch


async def test_a_launcher_that_refuses_takes_no_slots(factory: HttpExchangeFactory) -> None:
    async with await Manager.from_exchange_factory(factory, Refusing()) as manager:
        registration = await manager.register_agent(Counter)
        with pytest.raises(LaunchError, match="the queue is closed today"):
            await manager.launch(Counter, registration=registration)
        assert manager.running() == set()
        assert await manager.exchange_client.status(registration.agent_id) is not MailboxStatus.TERMINATED


async def test_the_mailbox_of_an_agent_that_did_not_start_is_closed_unless_it_is_the_users(manager: Manager) -> None:
    registration = await manager.register_agent(Fragile)
    config = RuntimeConfig(terminate_on_error=False)
    with pytest.raises(LaunchError, match="no data"):
        await manager.launch(Fragile, args=("no data",), registration=registration, config=config)
    assert await manager.exchange_client.status(registration.agent_id) is MailboxStatus.INACTIVE
    with pytest.raises(LaunchError, match="no data"):
        await manager.launch(Fragile, args=("no data",), name="own", config=config)
    [*_, own] = await manager.exchange_client.discover(Fragile)
    assert own == registration.agent_id


async def test_a_wrong_call_of_the_constructor_is_told_before_anything_is_registered(manager: Manager) -> None:
    before = await manager.exchange_client.discover(Counter)
    with pytest.raises(TypeError, match="'speed'"):
        await manager.launch(Counter, kwargs={"speed": 3})
    assert await manager.exchange_client.discover(Counter) == before


async def test_a_closed_manager_launches_nothing(factory: HttpExchangeFactory) -> None:
    manager = await Manager.from_exchange_factory(factory, Silent())
    await manager.close()
    await manager.close()
    with pytest.raises(LaunchError, match="The manager is closed"):
        await manager.launch(Counter)


async def test_a_launch_for_which_there_is_no_room_leaves_no_mailboxes() -> None:
    config = ServerConfig(token=TOKEN, limits=Limits(mailboxes=4))
    async with asyncio.timeout(PATIENCE_S), running_exchange(config) as exchange:
        async with await Manager.from_exchange_factory(exchange.factory, ThreadPoolExecutor(8)) as manager:
            given = await manager.register_agent(Counter)
            with pytest.raises(ExchangeFullError):
                await manager.launch_many(
                    [AgentLaunch(Counter, registration=given), *[Counter] * 6], agents_per_worker=4
                )
            while await manager.exchange_client.discover(Counter) != (given.agent_id,):  # noqa: ASYNC110 - the exchange tells nobody
                await asyncio.sleep(0.01)
            await manager.launch_many([AgentLaunch(Counter, registration=given), Counter])


# Ends


async def test_an_agent_of_which_nothing_is_heard_is_left_alone_while_its_worker_runs(
    manager: Manager, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    """It may block its event loop: a slow action is not a dead agent."""
    counter = await manager.launch(Counter)
    await until(lambda: "agent_run_sync" in caplog.text)
    await asyncio.sleep(0.3)
    assert caplog.text.count("agent_run_sync") == 1
    assert await counter.add(1) == 1
    assert manager.report(counter) is None


async def test_the_process_of_an_agent_that_left_a_thread_is_killed_in_time(factory: HttpExchangeFactory) -> None:
    manager = await Manager.from_exchange_factory(factory, process_pool(1))
    counter = await manager.launch(Counter)
    process = psutil.Process(await counter.process())
    call = asyncio.create_task(counter.hang_in_a_thread())
    await asyncio.sleep(0.2)
    start = time.monotonic()
    await manager.close(timeout=0.5)
    assert time.monotonic() - start < 10
    assert not process.is_running()
    with pytest.raises(AcademyError):
        await call


async def test_waiting_for_agents(manager: Manager) -> None:
    first, second = await manager.launch_many([Counter] * 2)
    with pytest.raises(TimeoutError, match="2 of 2 agents"):
        await manager.wait([first, second], timeout=0.1)
    await manager.shutdown(first, blocking=False)
    await manager.wait([first.agent_id, second], return_when=asyncio.FIRST_COMPLETED)
    assert manager.running() == {second.agent_id}
    await manager.shutdown(second)
    await manager.wait([first, second], raise_error=True)
    await manager.shutdown(second)
    await manager.wait([])


async def test_shutdown_may_keep_the_mailbox_for_a_later_launch(manager: Manager) -> None:
    counter = await manager.launch(Counter)
    await manager.shutdown(counter, terminate=False)
    again = await manager.launch(Counter, args=(5,), registration=Registration(counter))
    assert await again.add(1) == 6


class Registration:
    def __init__(self, handle: Handle[Any]) -> None:
        self.agent_id = handle.agent_id

    def to_json(self) -> str:
        uid, name = self.agent_id.uid, self.agent_id.name
        return f'{{"agent_id": {{"uid": "{uid}", "name": "{name or ""}", "role": "agent"}}}}'


@pytest.mark.faults
async def test_an_agent_whose_worker_was_killed_comes_back_to_its_callers(factory: HttpExchangeFactory) -> None:
    """With `terminate_on_error=False` its mailbox stays, and what waits there is done by the next worker."""
    pools = {"first": process_pool(1), "second": process_pool(1)}
    config = RuntimeConfig(terminate_on_error=False)
    async with asyncio.timeout(PATIENCE_S), await Manager.from_exchange_factory(factory, pools) as manager:
        registration = await manager.register_agent(Counter, name="phoenix")
        counter = await manager.launch(Counter, registration=registration, config=config)
        calls = [asyncio.create_task(counter.add_slowly(1)) for _ in range(5)]
        await asyncio.sleep(0.1)
        os.kill(await counter.process(), 9)
        await manager.wait([counter])
        report = manager.report(counter)
        assert report is not None
        assert report.state == "lost"
        again = await manager.launch(Counter, registration=registration, config=config, launcher="second")
        assert sorted(await asyncio.gather(*calls)) == [1, 2, 3, 4, 5]
        assert await again.add(0) == 5


async def test_the_end_of_an_agent_that_failed_can_be_raised_or_not(manager: Manager) -> None:
    tired = await manager.launch(Tired)
    await tired.fail()
    await manager.wait([tired])
    await manager.shutdown(tired, raise_error=False)
    with pytest.raises(AgentTerminatedError, match="too tired") as caught:
        await manager.shutdown(tired)
    assert "launched_agents.py" in "".join(caught.value.__notes__)


async def test_agents_of_others_are_not_ended_here(manager: Manager) -> None:
    registration = await manager.register_agent(Counter)
    with pytest.raises(LaunchError, match="was not launched by this manager"):
        await manager.shutdown(registration.agent_id)


async def test_an_agent_that_does_not_end_is_left_behind_in_the_end(
    factory: HttpExchangeFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """Its process is killed: Python would wait for it for ever."""
    manager = await Manager.from_exchange_factory(factory, process_pool(1))
    stubborn = await manager.launch(Stubborn, name="mule")
    process = psutil.Process(await stubborn.process())
    with pytest.raises(TimeoutError):
        await manager.shutdown(stubborn, timeout=0.2)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        await manager.close(timeout=0.5)
    assert time.monotonic() - start < 10
    assert "mule" in caplog.text
    assert not process.is_running()


async def test_the_end_of_the_block_is_reached_when_the_exchange_has_gone_before() -> None:
    exchange = spawn_http_exchange("127.0.0.1", 0)
    factory = await asyncio.to_thread(exchange.__enter__)
    try:
        manager = await Manager.from_exchange_factory(factory, process_pool(1))
        counter = await manager.launch(Counter)
        call = asyncio.create_task(counter.hang())
        await asyncio.sleep(0.1)
    finally:
        await asyncio.to_thread(exchange.__exit__, None, None, None)
    with pytest.raises(ExchangeUnavailableError):
        await call
    await manager.wait([counter])
    async with asyncio.timeout(20):
        await manager.close()


async def test_a_manager_can_not_be_pickled(manager: Manager) -> None:
    with pytest.raises(TypeError, match="can't be pickled"):
        pickle.dumps(manager)
    assert "token" not in repr(manager).lower()


async def test_an_agent_by_value_calls_one_by_reference(manager: Manager) -> None:
    class Middle(Agent):
        def __init__(self, counter: Handle[Counter]) -> None:
            super().__init__()
            self.counter = counter

        @action
        async def add_twice(self, amount: int) -> int:
            await self.counter.add(amount)
            return int(await self.counter.add(amount))

    counter = await manager.launch(Counter)
    middle = await manager.launch(Middle, args=(counter,))
    assert await middle.add_twice(4) == 8


async def test_an_agent_that_is_called_by_another_may_end_first(manager: Manager) -> None:
    counter, caller = await manager.launch_many([Counter, Caller])
    await manager.shutdown(counter)
    with pytest.raises(AgentTerminatedError):
        await caller.add_for_me(counter, 1)


def test_a_program_with_its_agents_in_the_main_module(tmp_path: Path) -> None:
    """Run as a script: its class can't be imported by anybody else, and its modules lie beside it."""
    (tmp_path / "beside_it.py").write_text("WORD = 'neighbour'\n")
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            """
            import asyncio
            import multiprocessing
            from concurrent.futures import ProcessPoolExecutor
            from academy_hpc import Agent, Manager, action, spawn_http_exchange

            class Echo(Agent):
                def __init__(self, word):
                    super().__init__()
                    self.word = word

                @action
                async def say(self):
                    from beside_it import WORD
                    return f"{self.word} {WORD}"

            async def main(factory):
                pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
                async with await Manager.from_exchange_factory(factory, pool) as manager:
                    by_class = await manager.launch(Echo, args=("class",))
                    by_instance = await manager.launch(Echo("instance"))
                    print(await by_class.say(), await by_instance.say())

            if __name__ == "__main__":
                with spawn_http_exchange("127.0.0.1", 0) as factory:
                    asyncio.run(main(factory))
            """
        )
    )
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=ROOT.parent
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["class", "neighbour", "instance", "neighbour"]


def test_ctrl_c_ends_the_agents_and_the_program(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            """
            import asyncio
            import multiprocessing
            from concurrent.futures import ProcessPoolExecutor
            from academy_hpc import Manager, spawn_http_exchange
            from tests.launched_agents import Counter

            async def main(factory):
                pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
                async with await Manager.from_exchange_factory(factory, pool) as manager:
                    counter = await manager.launch(Counter)
                    print(await counter.process(), flush=True)
                    await asyncio.sleep(1000)

            if __name__ == "__main__":
                with spawn_http_exchange("127.0.0.1", 0) as factory:
                    asyncio.run(main(factory))
            """
        )
    )
    with subprocess.Popen(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        timer = threading.Timer(PATIENCE_S, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            worker = psutil.Process(int(process.stdout.readline()))
            os.killpg(process.pid, 2)  # as a terminal does: to all processes of the program
            _, errors = process.communicate()
        finally:
            timer.cancel()
    assert "KeyboardInterrupt" in errors
    assert not worker.is_running()


@pytest.mark.faults
def test_a_program_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    """The exchange ends with the program, the agents with the exchange, the pool's processes with the agents."""
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            """
            import asyncio
            import multiprocessing
            import os
            from concurrent.futures import ProcessPoolExecutor
            from academy_hpc import Manager, spawn_http_exchange
            from tests.launched_agents import Counter

            async def main(factory):
                pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
                async with await Manager.from_exchange_factory(factory, pool) as manager:
                    await manager.launch(Counter)
                    os.kill(os.getpid(), 9)

            if __name__ == "__main__":
                with spawn_http_exchange("127.0.0.1", 0) as factory:
                    asyncio.run(main(factory))
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ACADEMY_HPC_TEST": str(tmp_path)}
    subprocess.run(
        [sys.executable, script], env=environment, stderr=subprocess.DEVNULL, timeout=PATIENCE_S, check=False
    )
    left = [process for process in psutil.process_iter() if process_environment(process) == str(tmp_path)]
    _, alive = psutil.wait_procs(left, timeout=10)
    assert alive == []


def process_environment(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("ACADEMY_HPC_TEST")
    except psutil.Error:
        return None
