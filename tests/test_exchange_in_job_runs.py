"""Runs whose exchange is inside the job, with the scripts that are used everywhere, on this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from academy_hpc import (
    AgentLaunch,
    BatchLauncher,
    ConnectionInfo,
    ExchangeChangedError,
    LaunchError,
    Manager,
    Run,
    submit_run,
)
from academy_hpc.exchange.http.identity import Identity
from academy_hpc.launch.enrol import enrol
from academy_hpc.launch.request import sources_of
from tests.launched_agents import Caller, Counter, Insider

__all__: list[str] = []

PATIENCE_S = 60.0


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the exchange has its state while it serves."""
    (tmp_path / "node").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "node"))
    return tmp_path / "node"


@pytest.fixture
def launched(tmp_path: Path, node: Path) -> Iterator[list[BatchLauncher]]:
    """Launchers, whose runs end with the test."""
    launchers: list[BatchLauncher] = []
    yield launchers
    for launcher in launchers:
        for run in launcher.runs:
            launcher.cancel(run)


def submitted(launched: list[BatchLauncher], tmp_path: Path, *agents: Any, **options: Any) -> Run:
    launched.append(BatchLauncher("local", runs=tmp_path / "runs", exchange="job", **options))
    items = agents or [AgentLaunch(Counter, args=(number,), name=f"c{number}") for number in range(3)]
    return submit_run(launched[-1], items, agents_per_worker=2)


def processes_of(run: Run) -> list[psutil.Process]:
    """All of the session of its latest job."""
    leader = int(run.jobs()[-1].job_id.partition(":")[0])
    return [process for process in psutil.process_iter() if _session(process.pid) == leader]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def told(processes: list[psutil.Process]) -> list[str]:
    """What others may see of them: of programs of the same user, more than of programs of others."""
    return [command_of(process) + str(process.environ()) for process in processes]


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


async def jobs(run: Run) -> int:
    return len(await asyncio.to_thread(run.jobs))


def holders(run: Run, text: str) -> list[str]:
    files = [path for path in run.path.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
    return sorted(str(path.relative_to(run.path)) for path in files)


async def ready(run: Run) -> tuple[Manager, dict[str, Any]]:
    manager = await Manager.attach(run, timeout=PATIENCE_S)
    return manager, await manager.wait_ready(timeout=PATIENCE_S)


async def test_agents_are_called_from_outside_and_call_each_other(
    launched: list[BatchLauncher], tmp_path: Path, node: Path
) -> None:
    agents = [AgentLaunch(Counter, args=(40,), name="counter"), AgentLaunch(Caller, name="caller"), Counter]
    run = await asyncio.to_thread(submitted, launched, tmp_path, *agents)
    async with asyncio.timeout(PATIENCE_S):
        manager, handles = await ready(run)
        async with manager:
            assert await handles["counter"].add(2) == 42
            assert await handles["caller"].add_for_me(handles["counter"], 1) == 43
            assert await asyncio.to_thread(modes, node) == {f"academy_hpc-{run.id}": 0o700}
    assert [manager.report(handle).state for handle in handles.values()] == ["finished"] * 3  # type: ignore[union-attr]


async def test_no_process_of_the_job_is_told_the_owners_token_where_others_see_it(
    launched: list[BatchLauncher], tmp_path: Path
) -> None:
    """Nor do agents act with it."""
    insider = AgentLaunch(Insider, name="insider")
    run = await asyncio.to_thread(submitted, launched, tmp_path, Counter, Counter, insider)
    identity = await asyncio.to_thread(Identity.read, run.exchange_dir)
    assert identity is not None
    async with asyncio.timeout(PATIENCE_S):
        manager, handles = await ready(run)
        async with manager:
            assert await handles["insider"].shown_to_the_exchange() == {}
            processes = await asyncio.to_thread(processes_of, run)
            words = await asyncio.to_thread(told, processes)
    assert sum("academy_hpc worker" in word for word in words) == 2
    assert [word for word in words if identity.token in word] == []
    # The second once the state of the exchange is saved, which follows its end.
    known = {"exchange/identity.json", "exchange/saved-1/identity.json"}
    assert set(await asyncio.to_thread(holders, run, identity.token)) <= known


async def test_a_program_that_stays_goes_with_the_exchange_from_job_to_job(
    launched: list[BatchLauncher], tmp_path: Path
) -> None:
    """Calls made around the end of a walltime are late, and none fails."""
    run = await asyncio.to_thread(submitted, launched, tmp_path, Counter, walltime=14, grace_s=7)
    async with asyncio.timeout(PATIENCE_S):
        manager, handles = await ready(run)
        [counter] = handles.values()
        first = await counter.process()
        before = manager.exchange_factory.connection_info
        while await counter.process() == first:
            await counter.add_slowly(1)
        after = await asyncio.to_thread(ConnectionInfo.read, run.connection_path)
        assert after.headers == before.headers and after.fingerprint == before.fingerprint
        assert after.urls != before.urls
        assert await jobs(run) == 2
        [end] = manager.ends(counter)
        assert end.cause == "walltime"
        await manager.close()


async def test_a_job_that_is_killed_goes_on_in_the_next_one(launched: list[BatchLauncher], tmp_path: Path) -> None:
    run = await asyncio.to_thread(submitted, launched, tmp_path, Counter)
    async with asyncio.timeout(PATIENCE_S):
        manager, handles = await ready(run)
        [counter] = handles.values()
        first = await counter.process()
        for process in await asyncio.to_thread(processes_of, run):
            process.kill()
        assert await counter.process() != first
        assert await jobs(run) == 2
        await manager.close()


async def test_a_job_whose_node_is_lost_goes_on_without_what_its_exchange_held(
    launched: list[BatchLauncher], tmp_path: Path, node: Path
) -> None:
    """Who calls is told, and attaches again: the agents are there under their old ids."""
    run = await asyncio.to_thread(submitted, launched, tmp_path, Counter)
    async with asyncio.timeout(PATIENCE_S):
        manager, handles = await ready(run)
        [counter] = handles.values()
        call = asyncio.create_task(counter.hang())
        first = await counter.process()
        for process in await asyncio.to_thread(processes_of, run):
            process.kill()
        await asyncio.to_thread(shutil.rmtree, node / f"academy_hpc-{run.id}")
        with pytest.raises(ExchangeChangedError):
            await call
        await manager.detach()
        manager, handles = await ready(run)
        [again] = handles.values()
        assert again.agent_id == counter.agent_id
        assert await again.process() != first
        await manager.close()


async def test_an_exchange_that_is_killed_goes_on_and_no_agent_notices(
    launched: list[BatchLauncher], tmp_path: Path
) -> None:
    run = await asyncio.to_thread(submitted, launched, tmp_path, Counter)
    async with asyncio.timeout(PATIENCE_S):
        manager, handles = await ready(run)
        [counter] = handles.values()
        first = await counter.process()
        processes = await asyncio.to_thread(processes_of, run)
        [host] = [process for process in processes if "exchange host" in command_of(process)]
        for process in [host, *host.children()]:
            process.send_signal(signal.SIGKILL)
        assert await counter.process() == first
        assert manager.ends(counter) == () and await jobs(run) == 1
        await manager.close()


async def test_a_launcher_and_agents_that_do_not_fit_are_told_before_anything_is_submitted(
    launched: list[BatchLauncher], tmp_path: Path
) -> None:
    elsewhere = await asyncio.to_thread(BatchLauncher, "local", runs=tmp_path / "runs")
    with pytest.raises(LaunchError, match="make the launcher with exchange='job'"):
        await asyncio.to_thread(submit_run, elsewhere, [Counter])
    run = await asyncio.to_thread(submitted, launched, tmp_path, Counter)
    async with asyncio.timeout(PATIENCE_S):
        manager, _ = await ready(run)
        async with manager:
            inside = await asyncio.to_thread(BatchLauncher, "local", runs=tmp_path / "runs", exchange="job")
            async with await Manager.from_exchange_factory(manager.exchange_factory, inside) as other:
                with pytest.raises(LaunchError, match="with submit_run"):
                    await other.launch(Counter)


async def test_an_exchange_that_can_not_start_says_why_in_the_log_of_its_job(
    launched: list[BatchLauncher], tmp_path: Path, node: Path
) -> None:
    run = await asyncio.to_thread(submitted_to_a_bad_node, launched, tmp_path, node)
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(LaunchError, match=r"has not said where it is within 8 s.*/job\.\*\.log says why"):
            await Manager.attach(run, timeout=8)
    log = await asyncio.to_thread(run.job_log, (await asyncio.to_thread(run.jobs))[-1].job_id)
    text = await asyncio.to_thread(log.read_text)
    assert f"chmod 700 {node}/academy_hpc-{run.id}" in text and "the exchange has ended with 1" in text


def submitted_to_a_bad_node(launched: list[BatchLauncher], tmp_path: Path, node: Path) -> Run:
    launched.append(BatchLauncher("local", runs=tmp_path / "runs", exchange="job"))
    run = launched[-1].new_run()
    (node / f"academy_hpc-{run.id}").mkdir(mode=0o755)
    (node / f"academy_hpc-{run.id}").chmod(0o755)
    items = [AgentLaunch(Counter)]
    return launched[-1].submit(enrol(run, items, sources=sources_of(items), workers=1), run=run)


async def test_a_run_that_is_over_is_not_waited_for(launched: list[BatchLauncher], tmp_path: Path) -> None:
    run = await asyncio.to_thread(submitted, launched, tmp_path, Counter)
    await asyncio.to_thread(launched[0].cancel, run)
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(LaunchError, match=f"Run {run.id} is over, and its exchange with it"):
            await Manager.attach(run, timeout=None)
