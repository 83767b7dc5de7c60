"""Agents in jobs of a real Slurm on three nodes, and what users see of it when parts of the machine fail.

A user calls all agents all the time. Whatever happens, each call is executed once and answered, and the agents know
what they knew.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from academy_hpc import AgentTerminatedError, HttpExchangeFactory
from tests.rigs.exchange import ExchangeProgram
from tests.rigs.fleet import attached_after_kill, launched
from tests.rigs.hosts import LOGIN, NODES, wait_until
from tests.rigs.slurm import boot, job_ids

__all__: list[str] = []

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]


async def test_24_agents_on_three_nodes_call_one_another(factory: HttpExchangeFactory, tmp_path: Path) -> None:
    """They start, and are watched, on a machine that keeps no accounts of jobs."""
    with pytest.raises(subprocess.CalledProcessError):
        LOGIN.run("sacct")
    async with launched(factory, "slurm", tmp_path, count=24, agents_per_worker=8, nodes=3) as fleet:
        assert Counter((await fleet.hosts()).values()) == {node.name: 8 for node in NODES}
        await fleet.call_one_another(2)
        await fleet.check()
    assert fleet.history().count("ok") == 24 * 24 * 2
    assert await fleet.state() == "ended"


async def test_agents_go_on_in_the_next_job_when_the_walltime_of_one_is_near(
    factory: HttpExchangeFactory, tmp_path: Path
) -> None:
    options = {"nodes": 2, "walltime": "0:01:00", "grace_s": 45.0}
    async with launched(factory, "slurm", tmp_path, agents_per_worker=3, **options) as fleet:
        lives = await fleet.lives()
        async with fleet.called():
            await fleet.until_reborn(lives, timeout=60)
        await fleet.check()
        assert {fleet.manager.ends(clerk)[0].cause for clerk in fleet.clerks.values()} == {"walltime"}
        assert len(await fleet.job_ids()) > 1


async def test_a_job_that_is_requeued_brings_its_agents_back(factory: HttpExchangeFactory, tmp_path: Path) -> None:
    async with launched(factory, "slurm", tmp_path, agents_per_worker=3, nodes=2) as fleet:
        lives = await fleet.lives()
        async with fleet.called():
            await asyncio.sleep(1)
            LOGIN.run("scontrol", "requeue", (await fleet.job_ids())[-1])
            await fleet.until_reborn(lives, timeout=60)
        await fleet.check()
        assert {fleet.manager.ends(clerk)[0].cause for clerk in fleet.clerks.values()} == {"preempted"}


async def test_the_agents_of_a_node_that_crashes_come_back(factory: HttpExchangeFactory, tmp_path: Path) -> None:
    async with launched(factory, "slurm", tmp_path, agents_per_worker=2, nodes=3) as fleet:
        lives, hosts = await fleet.lives(), await fleet.hosts()
        async with fleet.called():
            NODES[-1].crash()
            try:
                await asyncio.to_thread(wait_until, lambda: not job_ids("RUNNING"), timeout=60)
            finally:
                boot(NODES[-1])
            await fleet.until_reborn(lives, timeout=60)
        await fleet.check(killed=lives.values())
        lost = {
            fleet.manager.ends(clerk)[0].cause for name, clerk in fleet.clerks.items() if hosts[name] == NODES[-1].name
        }
        assert lost <= {"lost", "node_failure"}


async def test_a_node_that_is_unplugged_for_a_while_loses_nothing(factory: HttpExchangeFactory, tmp_path: Path) -> None:
    async with launched(factory, "slurm", tmp_path, nodes=3) as fleet:
        lives = await fleet.lives()
        async with fleet.called():
            NODES[1].unplug()
            await asyncio.sleep(8)
            NODES[1].plug()
        assert await fleet.lives() == lives
        await fleet.check()


async def test_an_exchange_that_is_killed_and_started_again_loses_nothing(
    program: ExchangeProgram, factory: HttpExchangeFactory, tmp_path: Path
) -> None:
    async with launched(factory, "slurm", tmp_path, nodes=3) as fleet:
        lives = await fleet.lives()
        async with fleet.called():
            await asyncio.sleep(1)
            program.kill()
            await asyncio.sleep(2)
            await asyncio.to_thread(program.start)
        await fleet.call_one_another(1)
        assert await fleet.lives() == lives
        await fleet.check()


async def test_callers_hear_that_a_job_was_cancelled(factory: HttpExchangeFactory, tmp_path: Path) -> None:
    async with launched(factory, "slurm", tmp_path, nodes=3) as fleet:
        clerk = fleet.clerks["clerk-1"]
        call = asyncio.create_task(clerk.work("user", 1, 1000.0, b""))
        await clerk.home()
        LOGIN.run("scancel", (await fleet.job_ids())[-1])
        with pytest.raises(AgentTerminatedError, match="cancel"):
            await asyncio.wait_for(call, 60)
        await fleet.manager.wait(fleet.clerks.values(), timeout=60)
        assert len(await fleet.job_ids()) == 1


async def test_agents_outlive_the_program_that_launched_them(
    program: ExchangeProgram, factory: HttpExchangeFactory, tmp_path: Path
) -> None:
    async with attached_after_kill(program, "slurm", tmp_path, nodes=3) as fleet:
        assert len(fleet.clerks) == 6
        lives = await fleet.lives()
        async with fleet.called():
            await fleet.call_one_another(1)
        assert await fleet.lives() == lives
        await fleet.check()
        assert job_ids() == await fleet.job_ids()
