"""Agents on Parsl: what Parsl does by itself, and what it does when its parts die."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import parsl
import psutil
import pytest
from parsl import python_app
from parsl.concurrent import ParslPoolExecutor
from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.executors import HighThroughputExecutor, ThreadPoolExecutor
from parsl.executors.base import ParslExecutor
from parsl.providers import LocalProvider, SlurmProvider

from academy_hpc import (
    AgentLaunch,
    AgentTerminatedError,
    ExecutorLauncher,
    HttpExchangeFactory,
    LaunchError,
    Manager,
    ParslLauncher,
    TooFewSlotsError,
    spawn_http_exchange,
)
from tests.launched_agents import Counter
from tests.parsl_workers import loaded_kernel, parsl_config, workers_executor

__all__: list[str] = []

ROOT = Path(__file__).parent.parent
PATIENCE_S = 45.0


@pytest.fixture(scope="module")
def factory() -> Iterator[HttpExchangeFactory]:
    with spawn_http_exchange("127.0.0.1", 0) as made:
        yield made


def slurm(**options: Any) -> HighThroughputExecutor:
    provider = {"nodes_per_block": 3, "max_blocks": 2, "cores_per_node": options.pop("cores_per_node", None)}
    return HighThroughputExecutor("slurm", address="127.0.0.1", provider=SlurmProvider(**provider), **options)


def local(**options: Any) -> HighThroughputExecutor:
    provider = LocalProvider(max_blocks=options.pop("max_blocks", 1))
    return HighThroughputExecutor("local", address="127.0.0.1", provider=provider, **options)


@pytest.mark.parametrize(
    ("executor", "slots"),
    [
        (ThreadPoolExecutor(max_threads=3), 3),
        (slurm(max_workers_per_node=4), 24),
        (slurm(cores_per_node=8, cores_per_worker=2), 24),
        (slurm(), None),
        (local(max_workers_per_node=1000), os.cpu_count()),
        (local(max_workers_per_node=9, cores_per_worker=0.001, max_blocks=2), 18),
        (local(available_accelerators=4, cores_per_worker=0.001), 4),
    ],
)
def test_slots_are_counted_before_anything_is_started(executor: ParslExecutor, slots: int | None) -> None:
    assert ParslLauncher(Config(executors=[executor])).slots() == slots


def test_only_the_named_executors_count() -> None:
    config = Config(executors=[ThreadPoolExecutor("a", max_threads=3), ThreadPoolExecutor("b", max_threads=4)])
    assert ParslLauncher(config).slots() == 7
    assert ParslLauncher(config, executors=["b"]).slots() == 4
    assert ParslLauncher(config, executors="b", slots=2).slots() == 2
    with pytest.raises(LaunchError, match="no executor c; there are: a, b"):
        ParslLauncher(config, executors=["c"]).slots()


def test_labels_need_a_parsl_that_was_loaded() -> None:
    launcher = ParslLauncher(["workers"])
    assert launcher.slots() is None
    with pytest.raises(LaunchError, match="could not be started: NoDataFlowKernelError"):
        launcher.start(["{}"])


def test_a_launcher_that_was_not_used_has_loaded_nothing(tmp_path: Path) -> None:
    launcher = ParslLauncher(parsl_config(tmp_path))
    launcher.close(timeout=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parsl
async def test_a_configuration_is_loaded_by_the_first_launch_and_cleaned_up(
    factory: HttpExchangeFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its programs are found in an environment that is not activated, and its processes end with the manager."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    launcher = ParslLauncher(parsl_config(tmp_path))
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, launcher) as manager:
            with pytest.raises(TooFewSlotsError, match=r"Parsl: 3 workers asked for, 2 slots"):
                await manager.launch_many([Counter] * 3)
            assert not any(tmp_path.iterdir())  # noqa: ASYNC240 - a look into an empty folder
            counter = await manager.launch(Counter)
            worker = psutil.Process(await counter.process())
            assert await counter.add(1) == 1
        await asyncio.to_thread(worker.wait, 5)
    with pytest.raises(parsl.errors.NoDataFlowKernelError):
        parsl.dfk()


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DataFlowKernel]:
    """Parsl as a program has loaded it, with two executors of one worker each."""
    executors = [workers_executor(1, "one"), workers_executor(1, "two")]
    folder = str(tmp_path_factory.mktemp("parsl"))
    config = Config(executors=executors, run_dir=folder, strategy_period=1, initialize_logging=False)
    with loaded_kernel(config) as loaded:
        yield loaded


@pytest.mark.parsl
async def test_workers_are_spread_over_executors_and_apps_of_the_program_run_beside_them(
    factory: HttpExchangeFactory, kernel: DataFlowKernel
) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, ParslLauncher(kernel)) as manager:
            counters = await manager.launch_many([Counter] * 2)
            assert len({await counter.process() for counter in counters}) == 2
            with pytest.raises(TooFewSlotsError):
                await manager.launch(Counter)
            await manager.shutdown(counters[0])
            await manager.launch(Counter)
        app = python_app(os.getpid, data_flow_kernel=kernel)
        assert await asyncio.wrap_future(app()) != os.getpid()


@pytest.mark.parsl
async def test_agents_in_an_app_of_the_program(factory: HttpExchangeFactory, kernel: DataFlowKernel) -> None:
    """The worker's function is the same; what fails in it is told by `adopt`."""

    # Parsl chooses among executors by chance, and each of these has one worker.
    @python_app(data_flow_kernel=kernel, executors=["one"])
    def run_agents(spec: str) -> str:
        from academy_hpc.worker import run

        return run(spec)

    @python_app(data_flow_kernel=kernel, executors=["two"])
    def break_down(spec: str) -> str:
        raise OSError("no scratch space on this node")

    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, ParslLauncher(kernel)) as manager:
            spec = await manager.make_spec([AgentLaunch(Counter, args=(n,), name=f"c{n}") for n in range(2)])
            future = run_agents(spec.to_json())
            counters = await manager.adopt(spec, future)
            assert [await counter.add(1) for counter in counters] == [1, 2]

            spec = await manager.make_spec([AgentLaunch(Counter, name="unlucky")])
            with pytest.raises(LaunchError, match=r"unlucky: .*OSError: no scratch space on this node"):
                await manager.adopt(spec, break_down(spec.to_json()))
        assert '"finished"' in await asyncio.wrap_future(future)


@pytest.mark.parsl
async def test_a_pool_executor_of_parsl_is_an_executor_like_others(
    factory: HttpExchangeFactory, kernel: DataFlowKernel
) -> None:
    launcher = ExecutorLauncher(ParslPoolExecutor(dfk=kernel, executors=["two"]), slots=1)
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, launcher) as manager:
            assert await (await manager.launch(Counter)).add(1) == 1
            with pytest.raises(TooFewSlotsError, match="ParslPoolExecutor"):
                await manager.launch(Counter)
    assert not kernel.cleanup_called


@pytest.mark.parsl
@pytest.mark.faults
async def test_a_pool_of_workers_that_is_killed_is_noticed(factory: HttpExchangeFactory, tmp_path: Path) -> None:
    """As when a node is lost. Parsl notices after its heartbeat_threshold, here 5 s."""
    with loaded_kernel(parsl_config(tmp_path)) as kernel:
        async with asyncio.timeout(PATIENCE_S):
            async with await Manager.from_exchange_factory(factory, ParslLauncher(kernel)) as manager:
                counter = await manager.launch(Counter)
                call = asyncio.create_task(counter.hang())
                pool = psutil.Process(await counter.process()).parent()
                assert pool is not None
                for process in [pool, *pool.children(recursive=True)]:
                    process.kill()
                with pytest.raises(AgentTerminatedError, match=r"its worker failed: "):
                    await call


@pytest.mark.parsl
@pytest.mark.faults
def test_an_interchange_that_dies_stops_nobody_for_ever(tmp_path: Path) -> None:
    """Parsl's futures stay pending then, and its cleanup never returns: a program must end all the same."""
    program = textwrap.dedent(
        """
        import asyncio
        import sys
        from pathlib import Path
        from academy_hpc import LaunchError, Manager, ParslLauncher, spawn_http_exchange
        from tests.launched_agents import Counter
        from tests.parsl_workers import parsl_config

        async def main(factory):
            launcher = ParslLauncher(parsl_config(Path(sys.argv[1])))
            async with await Manager.from_exchange_factory(factory, launcher) as manager:
                counter = await manager.launch(Counter, name="first")
                launcher._kernel.executors["workers"].interchange_proc.kill()
                await asyncio.sleep(1)  # for the sockets to notice: then a send waits
                try:
                    await manager.launch(Counter, name="second")
                except LaunchError as error:
                    print(error)
                print(await counter.add(42))
                await manager.wait([counter])
                print(manager.report(counter).state)

        if __name__ == "__main__":
            with spawn_http_exchange("127.0.0.1", 0) as factory:
                asyncio.run(main(factory))
        """
    )
    script = tmp_path / "program.py"
    script.write_text(program)
    run = subprocess.run(
        [sys.executable, script, tmp_path / "runs"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert re.match(r"second: the interchange of Parsl's executor 'workers' has ended \(exit status -9\)", lines[0])
    assert lines[1:] == ["42", "stopped"]
    assert "its blocks are cancelled" in run.stderr
    assert [process for process in psutil.process_iter() if str(tmp_path) in _command(process)] == []


def _command(process: psutil.Process) -> str:
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE else " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_signals_that_end_workers_are_those_of_parsl() -> None:
    """HighThroughputExecutor ends its workers by SIGTERM, a second before it kills them."""
    from academy_hpc.worker.deadline import END_SIGNALS

    assert signal.SIGTERM in END_SIGNALS
