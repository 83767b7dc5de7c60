"""Configurations of Parsl for sites: each is made by the real package, and the local one runs agents."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.jobs.error_handlers import noop_error_handler
from parsl.providers import LSFProvider, PBSProProvider, SlurmProvider, TorqueProvider

from academy_hpc import HttpExchangeFactory, Manager, ParslLauncher, spawn_http_exchange
from academy_hpc.agent import Agent, action
from academy_hpc.errors import LaunchError
from academy_hpc.launch.data import data_names
from academy_hpc.launch.parsl import parsl_config

__all__: list[str] = []

PROJECT = Path(__file__).parent.parent
PYTHON_FOLDER = Path(sys.executable).parent
# Grid Engine's provider looks for its command when it is made.
MACHINES = sorted(set(data_names("parsl", ".py")) - {"gridengine", "torque"})


@pytest.fixture(autouse=True)
def no_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


class Witness(Agent):
    """Sees the environment of its worker."""

    @action
    async def variable(self, name: str) -> str | None:
        return os.environ.get(name)


def executor(config: Config) -> HighThroughputExecutor:
    [one] = config.executors
    assert isinstance(one, HighThroughputExecutor)
    return one


@pytest.mark.parametrize("site", MACHINES)
def test_a_configuration_suits_agents(site: str) -> None:
    """They run for hours, may not be run twice, and are supervised by a manager."""
    config = parsl_config(site, account="m1", nodes=1, walltime="30m", workers_per_node=3, blocks=2)
    workers = executor(config)
    assert (config.retries, config.usage_tracking) == (0, 0)
    assert (workers.prefetch_capacity, workers.max_workers_per_node) == (0, 3)
    assert workers.block_error_handler is noop_error_handler
    assert workers.address
    assert workers.provider.max_blocks == workers.provider.init_blocks == 2
    if site != "local":  # where the cores of this machine count, too
        assert ParslLauncher(config).slots() == 6
        assert workers.provider.walltime in ("00:30:00", "00:30")
        assert workers.drain_period == 30 * 60 - 150  # agents that have to end come back in another block
    assert workers.provider.worker_init.splitlines()[0].endswith(":$PATH")


def test_every_machine_has_one() -> None:
    assert {"polaris", "aurora", "perlmutter", "frontier", "anvil", "stampede3", "delta", "expanse", "local"} < set(
        MACHINES
    )


def test_what_a_site_demands_is_in_the_job() -> None:
    polaris = executor(parsl_config("polaris", account="m1", queue="prod", nodes=10)).provider
    assert isinstance(polaris, PBSProProvider)
    assert (polaris.account, polaris.queue, polaris.select_options) == ("m1", "prod", "ngpus=4:system=polaris")
    assert "#PBS -l filesystems=home:eagle" in polaris.scheduler_options
    aurora = executor(parsl_config("aurora", account="m1")).provider
    assert "#PBS -l filesystems=home:flare\n#PBS -l place=scatter\n#PBS -k doe" in aurora.scheduler_options
    perlmutter = executor(parsl_config("perlmutter", account="m1", constraint="gpu", workers_per_node=4))
    assert isinstance(perlmutter.provider, SlurmProvider)
    for line in ("--account=m1", "--qos=debug", "--constraint=gpu", "--gpus-per-node=4"):
        assert f"#SBATCH {line}\n" in perlmutter.provider.scheduler_options
    assert len(perlmutter.available_accelerators) == 4
    lsf = executor(parsl_config("lsf", walltime="26h")).provider
    assert isinstance(lsf, LSFProvider)
    assert lsf.walltime == "26:00"


def test_a_site_without_a_file_has_that_of_its_scheduler(tmp_path: Path) -> None:
    folder = tmp_path / "config/academy_hpc/sites"
    folder.mkdir(parents=True)
    (folder / "gauss.toml").write_text('extends = "slurm"\nqueue = "batch"\nprelude = ["module load python"]\n')
    workers = executor(parsl_config("gauss"))
    assert workers.label == "gauss"
    assert "#SBATCH --partition=batch\n" in workers.provider.scheduler_options
    assert "\nmodule load python" in workers.provider.worker_init
    (folder / "torque.toml").write_text('scheduler = "torque"\naccount = "m1"\n')
    torque = executor(parsl_config("torque")).provider
    assert isinstance(torque, TorqueProvider)
    with pytest.raises(LaunchError, match="blocks have one node"):
        parsl_config("torque", nodes=2)


def test_grid_engine_has_blocks_of_one_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for command in ("qsub", "qstat", "qdel"):
        (tmp_path / command).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    provider = executor(parsl_config("gridengine", parallel_environment="smp", workers_per_node=2)).provider
    assert "#$ -pe smp 2" in provider.scheduler_options
    with pytest.raises(LaunchError, match="blocks have one node"):
        parsl_config("gridengine", nodes=2)


@pytest.mark.parametrize(
    ("site", "options", "problem"),
    [
        ("perlmutter", {}, "takes no job without account"),
        ("perlmutter", {"acount": "m1"}, "acount: the profile of a site has no such value"),
        ("perlmutter", {"account": "m1", "nodes": 0}, "given: nodes = 0"),
        ("flux", {}, "no configuration of Parsl for flux"),
    ],
)
def test_a_mistake_is_told(site: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(LaunchError, match=problem):
        parsl_config(site, **options)


def test_more_than_a_queue_takes_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    parsl_config("frontier", account="m1", nodes=2, walltime="3h")
    assert "batch takes jobs of 2 nodes for up to 02:00:00" in caplog.text


def test_a_job_tells_its_workers_when_it_ends() -> None:
    prelude = executor(parsl_config("slurm", walltime="2h")).provider.worker_init
    shell = f'{prelude}\necho "$ACADEMY_HPC_DEADLINE $(command -v python)"'
    said = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout.split()  # noqa: S607
    assert float(said[0]) == pytest.approx(time.time() + 7200, abs=30)


def test_nothing_ends_what_runs_on_this_machine() -> None:
    workers = executor(parsl_config("local", walltime="2h"))
    assert (workers.drain_period, "DEADLINE" in workers.provider.worker_init) == (None, False)


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    return parsl_config("local", workers_per_node=2, run_dir=str(tmp_path), walltime="90m")


@pytest.fixture
def factory() -> Iterator[HttpExchangeFactory]:
    with spawn_http_exchange("127.0.0.1", 0) as made:
        yield made


@pytest.mark.parsl
async def test_the_local_one_runs_agents(factory: HttpExchangeFactory, local: Config) -> None:
    async with asyncio.timeout(50):
        async with await Manager.from_exchange_factory(factory, ParslLauncher(local)) as manager:
            for witness in await manager.launch_many([Witness] * 2):
                assert str(PYTHON_FOLDER) in str(await witness.variable("PATH"))
