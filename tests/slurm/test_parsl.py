"""Agents in Parsl's workers, in blocks of one and of two nodes of a real Slurm."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.launchers import SrunLauncher
from parsl.providers import SlurmProvider

from academy_hpc import HttpExchangeFactory, Manager, ParslLauncher
from tests.rigs.fleet import Fleet
from tests.rigs.hosts import LOGIN, NODES
from tests.rigs.slurm import boot

__all__: list[str] = []

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]

WORKERS_PER_NODE = 4


def config(folder: Path, *, nodes_per_block: int, blocks: int) -> Config:
    provider = SlurmProvider(
        partition="debug",
        nodes_per_block=nodes_per_block,
        init_blocks=blocks,
        max_blocks=blocks,
        walltime="00:10:00",
        exclusive=True,
        launcher=SrunLauncher(),
    )
    executor = HighThroughputExecutor(
        label="nodes",
        address=LOGIN.address,
        max_workers_per_node=WORKERS_PER_NODE,
        cores_per_worker=0.1,
        heartbeat_period=1,
        heartbeat_threshold=5,
        provider=provider,
    )
    return Config(executors=[executor], run_dir=str(folder), initialize_logging=False)


@contextlib.asynccontextmanager
async def in_parsl(factory: HttpExchangeFactory, folder: Path, **blocks: int) -> AsyncIterator[Fleet]:
    """Clerks on two nodes or more."""
    launcher = ParslLauncher(config(folder, **blocks))
    async with await Manager.from_exchange_factory(factory, launcher) as manager:
        fleet = await Fleet.launch(manager, folder / "journal", count=WORKERS_PER_NODE + 1)
        assert len(set((await fleet.hosts()).values())) > 1
        yield fleet


async def test_agents_in_a_block_of_two_nodes_call_one_another(factory: HttpExchangeFactory, tmp_path: Path) -> None:
    async with in_parsl(factory, tmp_path, nodes_per_block=2, blocks=1) as fleet:
        await fleet.call_one_another(5)
        await fleet.check()


async def test_agents_whose_node_crashes_come_back_in_another_block(
    factory: HttpExchangeFactory, tmp_path: Path
) -> None:
    async with in_parsl(factory, tmp_path, nodes_per_block=1, blocks=3) as fleet:
        await fleet.call_one_another(5)
        hosts, lives = await fleet.hosts(), await fleet.lives()
        name = hosts["clerk-1"]
        node = next(node for node in NODES if node.name == name)
        lost = {clerk: life for clerk, life in lives.items() if hosts[clerk] == name}
        try:
            async with fleet.called():
                node.crash()
                await fleet.until_reborn(lost, timeout=60)
            assert name not in (await fleet.hosts()).values()
            assert await fleet.lives() | lost == lives
        finally:
            boot(node)
        await fleet.check(killed=lost.values())
