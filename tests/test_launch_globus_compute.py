"""Agents on Globus Compute: what the launcher asks of the SDK, and how it reads what the SDK says.

The engine and the SDK are real, the service between them is not; for that see tests/globus_compute.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from globus_compute_sdk import Executor
from globus_compute_sdk.errors import TaskExecutionFailed
from globus_compute_sdk.serialize import ComputeSerializer

from academy_hpc import (
    AgentLaunch,
    GlobusComputeLauncher,
    HttpExchangeFactory,
    LaunchError,
    Manager,
    TooFewSlotsError,
    spawn_http_exchange,
)
from academy_hpc.launch import globus_compute
from academy_hpc.launch.globus_compute_errors import explain_call, explain_task
from academy_hpc.launch.launcher import Launcher, WorkerEndedError, run_worker
from academy_hpc.worker import run
from tests.globus_compute_engine import EngineEndpoint, api_error, in_process_results, running_engine, two_workers
from tests.lasting_agents import Diary
from tests.launched_agents import Counter

__all__: list[str] = []

PATIENCE_S = 40.0


@pytest.fixture(scope="module")
def factory() -> Iterator[HttpExchangeFactory]:
    with spawn_http_exchange("127.0.0.1", 0) as made:
        yield made


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineEndpoint]:
    """Real workers."""
    with running_engine(two_workers(), tmp_path_factory.mktemp("engine")) as endpoint:
        yield endpoint


@pytest.fixture
def queue() -> Iterator[EngineEndpoint]:
    """An endpoint whose tasks wait for ever."""
    with in_process_results():
        yield EngineEndpoint(None)


@pytest.fixture
def launcher(queue: EngineEndpoint) -> Iterator[GlobusComputeLauncher]:
    made = queue.launcher()
    yield made
    made.close(timeout=1)


def failed(future: Future[str]) -> WorkerEndedError:
    error = future.exception(timeout=5)
    assert isinstance(error, WorkerEndedError)
    return error


def wait_until(condition: Callable[[], bool]) -> None:
    until_s = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.01)


def sending_threads() -> int:
    return [thread.name for thread in threading.enumerate()].count("TaskSubmitter")


# Agents


async def test_agents_run_on_an_endpoint(factory: HttpExchangeFactory, engine: EngineEndpoint) -> None:
    """Also more of them than there are workers, in several of one process."""
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, engine.launcher(slots=2)) as manager:
            agents = [AgentLaunch(Counter, args=(number,), name=f"c{number}") for number in range(4)]
            with pytest.raises(TooFewSlotsError, match="Globus Compute: 4 workers asked for, 2 slots"):
                await manager.launch_many(agents)
            counters = await manager.launch_many(agents, agents_per_worker=2)
            assert [await counter.add(1) for counter in counters] == [1, 2, 3, 4]
    assert engine.requests == [2]


async def test_agents_in_tasks_that_the_program_submits(factory: HttpExchangeFactory, engine: EngineEndpoint) -> None:
    """The worker's function is the same. The executor's end, which waits for all tasks, does not hang."""
    async with asyncio.timeout(PATIENCE_S):
        executor = Executor(engine.endpoint_id, engine.client())
        async with await Manager.from_exchange_factory(factory, engine.launcher()) as manager:
            spec = await manager.make_spec([AgentLaunch(Counter, args=(40,), name="by hand")])
            [counter] = await manager.adopt(spec, executor.submit(run, spec.to_json()))
            assert await counter.add(2) == 42
        await asyncio.to_thread(executor.shutdown)


async def test_a_task_that_the_program_submits_and_gives_up_is_not_cancelled(
    factory: HttpExchangeFactory, queue: EngineEndpoint
) -> None:
    """A future of the SDK that was cancelled would have its executor wait for ever."""
    async with await Manager.from_exchange_factory(factory, queue.launcher()) as manager:
        spec = await manager.make_spec([Counter])
        future: Future[str] = Future()
        with pytest.raises(LaunchError, match="Not all agents are ready in time"):
            await manager.adopt(spec, future, timeout=0.2)
        assert not future.cancelled()


async def test_an_agent_knows_in_its_next_life_what_it_knew(
    factory: HttpExchangeFactory, engine: EngineEndpoint, tmp_path: Path
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        launcher = engine.launcher(state_dir=str(tmp_path / "states"))
        async with await Manager.from_exchange_factory(factory, launcher) as manager:
            diary, counter = await manager.launch_many([AgentLaunch(Diary), AgentLaunch(Counter)], agents_per_worker=2)
            assert await diary.write("one") == 1
            os.kill(await counter.process(), signal.SIGTERM)
            assert await diary.write("two") == 2


# Submission


def test_it_is_a_launcher(launcher: GlobusComputeLauncher) -> None:
    assert isinstance(launcher, Launcher)
    assert (launcher.restarts, launcher.slots(), launcher.waiting(), launcher.failure()) == (False, None, None, None)


def test_all_workers_of_a_launch_are_one_request(queue: EngineEndpoint, launcher: GlobusComputeLauncher) -> None:
    """Globus Compute takes 20 requests in 10 s; and the SDK delays the fifth small one in 16 s."""
    senders = sending_threads()
    launcher.start(["first"])
    wait_until(lambda: queue.requests == [1])
    futures = launcher.start(["another"] * 40)
    wait_until(lambda: sum(queue.requests) == 41)
    assert queue.requests in ([1, 40], [1, 1, 39])  # the SDK may send the first while it is given the second
    assert queue.registered == 1
    assert sending_threads() == senders + 1  # which knows how often it may ask
    assert not any(future.done() for future in futures)


def test_large_workers_are_spread_over_requests(queue: EngineEndpoint, launcher: GlobusComputeLauncher) -> None:
    """A request takes 10 MB, and texts grow by a third on the way."""
    launcher.start(["x" * 1_500_000] * 9)
    wait_until(lambda: sum(queue.requests) == 9)
    assert queue.requests == [4, 4, 1]


def test_a_worker_that_is_too_large_is_told_before_anything_is_asked(
    queue: EngineEndpoint, launcher: GlobusComputeLauncher
) -> None:
    with pytest.raises(
        LaunchError, match=r"Globus Compute: the agents of one worker take 10\.\d MB, and .* takes 10 MB"
    ):
        launcher.start(["small", "x" * 7_600_000])
    assert (queue.requests, queue.registered) == ([], 0)


def test_the_function_goes_by_reference() -> None:
    """By value it would break where the Python of the workers is another."""
    serializer = ComputeSerializer()
    code = serializer.serialize(run_worker)
    assert len(code) < 200
    assert serializer.deserialize(code) is run_worker


def test_states_are_kept_where_the_workers_are() -> None:
    with pytest.raises(ValueError, match="give an absolute path on the endpoint's machine"):
        GlobusComputeLauncher(uuid.uuid4(), state_dir="~/states")


def test_a_future_cannot_be_cancelled(launcher: GlobusComputeLauncher) -> None:
    """The SDK would say that it is, and the task would run on."""
    [future] = launcher.start(["spec"])
    assert not future.cancel()
    assert not future.done()


# Trouble


def test_a_call_that_fails_is_told_and_the_next_one_may_succeed(
    queue: EngineEndpoint, launcher: GlobusComputeLauncher
) -> None:
    """The SDK's executor is of no more use then; what it has submitted before is still followed."""
    [before] = launcher.start(["spec"])
    wait_until(lambda: queue.requests == [1])
    queue.refusal = (500, "INTERNAL_ERROR")
    first, second = launcher.start(["spec", "spec"])
    for future in (first, second):
        assert str(failed(future)) == "Globus Compute answered 500: reason of INTERNAL_ERROR"
        assert failed(future).cause == "lost"
    queue.refusal = None
    [after] = launcher.start(["spec"])
    wait_until(lambda: queue.requests == [1, 1])
    assert queue.registered == 1
    assert not before.done()
    assert not after.done()


def test_an_endpoint_that_is_offline_is_told_before_anything_is_submitted(
    queue: EngineEndpoint, launcher: GlobusComputeLauncher
) -> None:
    """Its tasks would wait for it without a word."""
    queue.status = "offline"
    with pytest.raises(
        LaunchError, match=f"endpoint {queue.endpoint_id} is offline. Start it .*: globus-compute-endpoint"
    ):
        launcher.start(["spec"])
    queue.status = "online"
    assert len(launcher.start(["spec"])) == 1


def test_an_endpoint_that_does_not_exist_is_told(queue: EngineEndpoint) -> None:
    stranger = uuid.uuid4()
    launcher = GlobusComputeLauncher(stranger, client=queue.client(), label="cluster")
    with pytest.raises(LaunchError, match=f"cluster: Globus Compute answered 404: there is no endpoint {stranger}, or"):
        launcher.start(["spec"])


def test_an_endpoint_that_has_gone_offline_is_a_failure(
    queue: EngineEndpoint, launcher: GlobusComputeLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The futures of its tasks stay pending for ever. One that was out of reach for a moment has lost nothing."""
    monkeypatch.setattr(globus_compute, "STATUS_PERIOD_S", 0.02)
    monkeypatch.setattr(globus_compute, "OFFLINE_S", 0.3)
    [future] = launcher.start(["spec"])
    assert launcher.waiting() == f"Globus Compute endpoint {queue.endpoint_id}, which is online"
    queue.status = "offline"
    wait_until(lambda: "offline" in (launcher.waiting() or ""))
    assert launcher.failure() is None
    wait_until(lambda: launcher.failure() is not None)
    assert launcher.failure() == f"the Globus Compute endpoint {queue.endpoint_id} has been offline for 0 s"
    queue.status = "online"
    wait_until(lambda: launcher.failure() is None)
    queue.status = "offline"
    wait_until(lambda: "offline" in (launcher.waiting() or ""))
    assert launcher.failure() is None
    assert not future.done()


def test_a_closed_launcher_starts_nothing(launcher: GlobusComputeLauncher) -> None:
    launcher.start(["spec"])
    launcher.close(timeout=1)
    launcher.close(timeout=1)
    with pytest.raises(LaunchError, match="Globus Compute is closed"):
        launcher.start(["spec"])


def test_executors_of_the_program_are_left_alone(queue: EngineEndpoint, launcher: GlobusComputeLauncher) -> None:
    """The SDK has one task group for all executors of a program, and one thread for their results."""
    own = Executor(queue.endpoint_id, queue.client())
    task = own.submit(run, "spec")
    wait_until(lambda: queue.requests == [1])
    launcher.start(["spec"])
    wait_until(lambda: queue.requests == [1, 1])
    assert len(queue.groups) == 2
    assert Executor._default_task_group_id == own.task_group_id
    launcher.close(timeout=1)
    assert not task.done()
    own.shutdown(wait=False, cancel_futures=True)


RULER = "-" * 68


@pytest.mark.parametrize(
    ("text", "told", "cause"),
    [
        (
            f"+++\nTraceback\nparsl.x.errors.WorkerLost: Task failure due to loss of worker 0 on host n7\n{RULER}",
            "its worker process died on host n7: killed, out of memory, or crashed. Where .* here it is Python 3",
            "lost",
        ),
        (
            "parsl.x.errors.ManagerLost: Task failure due to loss of manager b'1f' on host n7",
            "the node or the batch job of its worker is gone on host n7: walltime, preemption",
            "lost",
        ),
        (
            "Traceback\nModuleNotFoundError: No module named 'academy_hpc'\n",
            "has no academy_hpc that fits: there has to be the same as here, Python .* No module named 'academy_hpc'",
            "agent_error",
        ),
        (
            "AttributeError: module 'academy_hpc.launch.launcher' has no attribute 'run_worker'",
            "has no academy_hpc that fits",
            "agent_error",
        ),
        (
            "parsl.x.errors.BadStateException: Executor failed: Error 1:\n\tsbatch: x\nsbatch: Invalid account\n",
            r"all batch jobs of the endpoint have failed \(sbatch: Invalid account\); where",
            "lost",
        ),
        ("parsl.app.errors.AppTimeout\n", "after the time that its GC_TASK_TIMEOUT allows", "walltime"),
        ("MaxResultSizeExceeded(9, 8)", "its report was too large for Globus Compute", "lost"),
        (
            "Traceback\n  ...\nOSError: no scratch\n",
            "its task failed on the endpoint: OSError: no scratch",
            "agent_error",
        ),
        ("", "its task failed on the endpoint: it gave no reason", "agent_error"),
    ],
)
def test_why_a_task_failed_is_one_line(text: str, told: str, cause: str) -> None:
    reason, found = explain_task(TaskExecutionFailed(text))
    assert found == cause
    assert "\n" not in reason
    assert re.search(told, reason), reason


def test_a_lost_connection_of_the_sdk_says_nothing_about_the_task() -> None:
    assert explain_task(RuntimeError("SDK thread quit unexpectedly.")) == (
        "the connection on which Globus Compute tells results was lost (RuntimeError: SDK thread quit unexpectedly.)",
        "lost",
    )


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (401, "UNAUTHORIZED", "it does not accept your login. Log in again: globus-compute-endpoint login --force"),
        (403, "FUNCTION_NOT_PERMITTED", "has to be among its allowed_functions (reason of FUNCTION_NOT_PERMITTED)"),
        (403, "FORBIDDEN", "you may not use endpoint 00000000-0000-0000-0000-000000000007 (reason of FORBIDDEN)"),
        (413, "TASK_PAYLOAD_TOO_LARGE", "the agents of one worker are too large for it"),
        (429, "TOO_MANY", "too many requests from you: launch agents together, with launch_many"),
        (503, "DOWN", "Globus Compute answered 503: reason of DOWN"),
    ],
)
def test_why_a_call_failed_is_one_line(status: int, code: str, told: str) -> None:
    assert told in explain_call(api_error(status, code), uuid.UUID(int=7))


def test_a_service_that_is_out_of_reach_is_told() -> None:
    reason = explain_call(ConnectionError("no route\nto host"), uuid.UUID(int=7))
    assert reason == "Globus Compute can't be used from here: ConnectionError: no route to host"


def test_who_is_not_logged_in_is_told_how_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The SDK would ask on the terminal, which a program in the background does not have."""
    monkeypatch.setenv("GLOBUS_COMPUTE_USER_DIR", str(tmp_path))
    for name in ("GLOBUS_COMPUTE_CLIENT_ID", "GLOBUS_COMPUTE_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with pytest.raises(LaunchError, match="you are not logged in to Globus Compute"):
        GlobusComputeLauncher(uuid.uuid4()).start(["spec"])
