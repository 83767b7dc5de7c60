"""Jobs asked for with the words of Torque, which Slurm has a front for: qsub, qstat and qdel, over two nodes."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from academy_hpc import AgentTerminatedError, HttpExchangeFactory
from tests.rigs.fleet import launched
from tests.rigs.hosts import LOGIN

__all__: list[str] = []

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]

# There is no MPI here.
TWO_NODES = {"nodes": 2, "starter": "srun"}


async def test_agents_on_two_nodes_call_one_another(factory: HttpExchangeFactory, tmp_path: Path) -> None:
    async with launched(factory, "torque", tmp_path, agents_per_worker=3, **TWO_NODES) as fleet:
        assert sorted(Counter((await fleet.hosts()).values()).values()) == [3, 3]
        await fleet.call_one_another(1)
        await fleet.check()
    states = {event.get("state") for event in await asyncio.to_thread(fleet.run.events)}
    assert states & {"pending", "running"}
    assert "unknown" not in states
    assert await fleet.state() == "ended"


async def test_callers_hear_that_a_job_was_deleted(factory: HttpExchangeFactory, tmp_path: Path) -> None:
    async with launched(factory, "torque", tmp_path, agents_per_worker=3, **TWO_NODES) as fleet:
        clerk = fleet.clerks["clerk-1"]
        call = asyncio.create_task(clerk.work("user", 1, 1000.0, b""))
        await clerk.home()
        LOGIN.run("qdel", (await fleet.job_ids())[-1])
        with pytest.raises(AgentTerminatedError):
            await asyncio.wait_for(call, 60)
        await fleet.manager.wait(fleet.clerks.values(), timeout=60)
        assert len(await fleet.job_ids()) == 1
