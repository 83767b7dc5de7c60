"""The exchange in the job itself: on its first node, with a disk that no other node sees."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from academy_hpc import AgentLaunch, BatchLauncher, ConnectionInfo, ExchangeChangedError, Manager, Run, submit_run
from tests.rigs.agents import Clerk
from tests.rigs.fleet import BatchFleet
from tests.rigs.hosts import NODES, wait_until
from tests.rigs.slurm import boot, job_ids

__all__: list[str] = []

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

READY_S = 60.0


@contextlib.asynccontextmanager
async def submitted(folder: Path, *, count: int = 6, **options: Any) -> AsyncIterator[BatchFleet]:
    """So many clerks and their exchange; when the block ends, so do they and their job."""
    launcher = await asyncio.to_thread(BatchLauncher, "slurm", exchange="job", **options)
    names = [f"clerk-{number}" for number in range(1, count + 1)]
    items = [AgentLaunch(Clerk, args=(name, str(folder / "journal")), name=name) for name in names]
    run = await asyncio.to_thread(submit_run, launcher, items, agents_per_worker=3)
    launcher.release()
    async with await Manager.attach(run, timeout=READY_S) as manager:
        yield await fleet_of(manager, run, folder)


async def fleet_of(manager: Manager, run: Run, folder: Path) -> BatchFleet:
    fleet = BatchFleet(manager, await manager.wait_ready(timeout=READY_S), folder / "journal")
    fleet.run = run
    return fleet


async def place(run: Run) -> str:
    """The host of the exchange."""
    info = await asyncio.to_thread(ConnectionInfo.read, run.connection_path)
    assert info.server is not None
    return info.server.host


async def test_agents_and_their_exchange_go_on_in_the_next_job_when_the_walltime_of_one_is_near(tmp_path: Path) -> None:
    """Each call is executed once and answered, whichever job it meets."""
    async with submitted(tmp_path, nodes=2, walltime="0:01:00", grace_s=45.0) as fleet:
        assert await place(fleet.run) in {node.name for node in NODES}
        await fleet.call_one_another(2)
        lives = await fleet.lives()
        async with fleet.called():
            await fleet.until_reborn(lives, timeout=90)
        await fleet.check()
        assert {fleet.manager.ends(clerk)[0].cause for clerk in fleet.clerks.values()} == {"walltime"}
        assert len(await fleet.job_ids()) > 1


async def test_agents_come_back_without_the_exchange_whose_node_crashed(tmp_path: Path) -> None:
    """Whoever calls hears so, and attaches again; an agent that waits for an answer of another one hears so, too."""
    async with submitted(tmp_path, nodes=2) as fleet:
        host = await place(fleet.run)
        [node] = [node for node in NODES if node.name == host]
        lives = await fleet.lives()
        call = asyncio.create_task(fleet.clerks["clerk-1"].ping())
        node.crash()
        try:
            await asyncio.to_thread(wait_until, lambda: not job_ids("RUNNING"), timeout=60)
        finally:
            boot(node)
        with contextlib.suppress(ExchangeChangedError):
            await call
        await fleet.manager.detach()
        async with await Manager.attach(fleet.run, timeout=READY_S) as manager:
            again = await fleet_of(manager, fleet.run, tmp_path)
            await again.until_reborn(lives, timeout=60)
            await again.call_one_another(1)
