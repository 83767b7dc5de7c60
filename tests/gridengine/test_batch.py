"""Agents in jobs of a real Grid Engine, over two hosts."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from academy_hpc import AgentTerminatedError, HttpExchangeFactory
from tests.rigs.exchange import ExchangeProgram
from tests.rigs.fleet import attached_after_kill, launched
from tests.rigs.gridengine import PROGRAMS, job_ids
from tests.rigs.hosts import LOGIN

__all__: list[str] = []

pytestmark = [pytest.mark.gridengine, pytest.mark.timeout(120)]

TWO_HOSTS = {"nodes": 2, "parallel_environment": "mpi", "prelude": [f'PATH={PROGRAMS}:"$PATH"']}


async def test_agents_on_two_hosts_call_one_another(factory: HttpExchangeFactory, tmp_path: Path) -> None:
    async with launched(factory, "gridengine", tmp_path, agents_per_worker=3, **TWO_HOSTS) as fleet:
        assert sorted(Counter((await fleet.hosts()).values()).values()) == [3, 3]
        await fleet.call_one_another(2)
        await fleet.check()
    assert await fleet.state() == "ended"


async def test_agents_go_on_in_the_next_job_when_the_walltime_of_one_is_near(
    factory: HttpExchangeFactory, tmp_path: Path
) -> None:
    options = TWO_HOSTS | {"walltime": "0:00:40", "grace_s": 25.0}
    async with launched(factory, "gridengine", tmp_path, agents_per_worker=3, **options) as fleet:
        lives = await fleet.lives()
        async with fleet.called():
            await fleet.until_reborn(lives, timeout=60)
        await fleet.check()
        assert {fleet.manager.ends(clerk)[0].cause for clerk in fleet.clerks.values()} == {"walltime"}


async def test_callers_hear_that_a_job_was_deleted(factory: HttpExchangeFactory, tmp_path: Path) -> None:
    """Also where agents are at something that takes long."""
    options = TWO_HOSTS | {"grace_s": 5.0}
    async with launched(factory, "gridengine", tmp_path, agents_per_worker=3, **options) as fleet:
        clerk = fleet.clerks["clerk-1"]
        call = asyncio.create_task(clerk.work("user", 1, 1000.0, b""))
        await clerk.home()
        LOGIN.run("qdel", (await fleet.job_ids())[-1])
        with pytest.raises(AgentTerminatedError, match="SIGUSR2 has ended job"):
            await asyncio.wait_for(call, 60)
        await fleet.manager.wait(fleet.clerks.values(), timeout=60)
        assert len(await fleet.job_ids()) == 1


async def test_agents_outlive_the_program_that_launched_them(
    program: ExchangeProgram, factory: HttpExchangeFactory, tmp_path: Path
) -> None:
    async with attached_after_kill(program, "gridengine", tmp_path, agents_per_worker=3, **TWO_HOSTS) as fleet:
        lives = await fleet.lives()
        async with fleet.called():
            await fleet.call_one_another(1)
        assert await fleet.lives() == lives
        await fleet.check()
        assert job_ids() == await fleet.job_ids()
