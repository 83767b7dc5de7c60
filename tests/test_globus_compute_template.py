"""The endpoint template of ``launchers/globus_compute``, rendered and read by the code of a real endpoint."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from globus_compute_endpoint.endpoint.config import CoreEndpointConfig, UserEndpointConfig
from globus_compute_endpoint.endpoint.config.utils import (
    load_config_yaml,
    load_user_config_schema,
    render_config_user_template,
)
from globus_compute_endpoint.endpoint.identity_mapper import MappedPosixIdentity
from parsl.launchers import MpiExecLauncher, SimpleLauncher, SrunLauncher
from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider

from academy_hpc.launch.data import read_data

__all__: list[str] = []

# Parsl leaves the socket with which it asks for the addresses of an interface to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

FOLDER = Path(__file__).parents[1] / "launchers" / "globus_compute"
HOSTILE = "a b 'c' \"d\" $HOME `id` \\ {{ 7 * 7 }} # e: f"


def render(template: str | None = None, **options: Any) -> str:
    """What a user endpoint reads, for these values of a user."""
    return str(
        render_config_user_template(
            CoreEndpointConfig(),
            template or read_data("globus_compute/user_config_template.yaml.j2"),
            FOLDER / "user_config_template.yaml.j2",
            MappedPosixIdentity(pwd.getpwuid(os.getuid()), uuid.UUID(int=0), []),
            load_user_config_schema(FOLDER / "user_config_schema.json"),
            options,
            {},
        )
    )


def configured(**options: Any) -> UserEndpointConfig:
    config = load_config_yaml(render(**options))
    assert isinstance(config, UserEndpointConfig)
    return config


def provider(**options: Any) -> Any:
    return configured(**options).engine.executor.provider


def test_a_user_endpoint_does_not_end_by_itself_and_repeats_nothing() -> None:
    """After two days without a task it would else end, with the agents on it."""
    config = configured()
    assert config.idle_heartbeats_soft == 0
    assert config.engine.max_retries_on_system_failure == 0


def test_jobs_that_all_fail_are_told_to_who_launches() -> None:
    """And are not submitted for ever."""
    assert configured().engine.executor.block_error_handler.__name__ == "simple_error_handler"


def test_without_values_workers_run_on_the_endpoints_own_host() -> None:
    config = configured()
    executor = config.engine.executor
    assert isinstance(executor.provider, LocalProvider)
    assert (executor.address, executor.max_workers_per_node, executor.drain_period) == ("127.0.0.1", 1, None)
    many = configured(workers_per_node=200).engine.executor
    assert many.max_workers_per_node == 200
    assert many.cores_per_worker * 200 <= 1  # a worker has no core for itself


def test_jobs_of_slurm() -> None:
    options = {"provider": "slurm", "account": "m1234", "partition": "debug", "qos": "premium", "constraint": "cpu&a"}
    made = provider(
        **options, walltime="100:00:30", cores_per_node=128, scheduler_options="#SBATCH -G 4\n#SBATCH -x n1"
    )
    assert isinstance(made, SlurmProvider)
    assert (made.account, made.partition, made.qos, made.constraint) == ("m1234", "debug", "premium", "cpu&a")
    assert (made.walltime, made.cores_per_node, made.nodes_per_block) == ("100:00:30", 128, 1)
    assert {"#SBATCH -G 4", "#SBATCH -x n1", "#SBATCH --account=m1234"} <= set(made.scheduler_options.splitlines())
    assert isinstance(made.launcher, SimpleLauncher)
    assert isinstance(provider(provider="slurm", nodes_per_block=2).launcher, SrunLauncher)


def test_jobs_of_pbs() -> None:
    options = {"provider": "pbs", "account": "m1234", "queue": "debug", "select_options": "ngpus=4"}
    made = provider(**options, nodes_per_block=2, init_blocks=0, max_blocks=3)
    assert isinstance(made, PBSProProvider)
    assert (made.account, made.queue, made.select_options) == ("m1234", "debug", "ngpus=4")
    assert (made.nodes_per_block, made.init_blocks, made.max_blocks) == (2, 0, 3)
    assert isinstance(made.launcher, MpiExecLauncher)
    assert isinstance(provider(provider="pbs").launcher, SimpleLauncher)


@pytest.mark.parametrize(("walltime", "job_s", "drain_s"), [("02:00:00", 7200, 7080), ("0:02:00", 120, 60)])
def test_agents_know_when_their_job_ends_and_do_not_come_back_into_it(walltime: str, job_s: int, drain_s: int) -> None:
    config = configured(provider="slurm", walltime=walltime)
    words = config.engine.executor.provider.worker_init
    shell = subprocess.run(
        ["/bin/bash", "-euc", f"{words}\necho $(($ACADEMY_HPC_DEADLINE - $(date +%s)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(shell.stdout) in (job_s, job_s - 1)
    assert config.engine.executor.drain_period == drain_s


@pytest.mark.parametrize("name", ["local", "slurm", "pbs"])
def test_shell_commands_of_a_user_arrive_as_they_are(name: str) -> None:
    commands = f"module load a\n# {HOSTILE}\nexport WORD='{HOSTILE.replace(chr(39), '')}'"
    assert provider(provider=name, worker_init=commands).worker_init.strip().endswith(commands)


def test_the_owner_of_an_endpoint_sets_what_holds_where_users_say_nothing() -> None:
    template = read_data("globus_compute/user_config_template.yaml.j2")
    for old, new in {
        '"provider": "local"': '"provider": "pbs"',
        '"account": none': '"account": "m1234"',
        '"interface": none': '"interface": "lo"',
        '# source "$HOME/agents/bin/activate"': f"source /opt/agents\n# {HOSTILE.replace('{{ 7 * 7 }}', '')}",
    }.items():
        assert old in template
        template = template.replace(old, new)
    config = load_config_yaml(render(template))
    made = config.engine.executor.provider
    assert isinstance(made, PBSProProvider)
    assert made.account == "m1234"
    assert "\nsource /opt/agents\n# a b 'c' \"d\" $HOME" in made.worker_init
    assert config.engine.executor.address == "127.0.0.1"
    other = load_config_yaml(render(template, account="m5678")).engine.executor.provider
    assert other.account == "m5678"


@pytest.mark.parametrize(
    "wrong",
    [
        {"wall_time": "1:00:00"},
        {"walltime": "1h"},
        {"walltime": 60},
        {"provider": "lsf"},
        {"account": "a b"},
        {"account": "a\n#SBATCH -x"},
        {"constraint": "a\nb"},
        {"workers_per_node": 0},
    ],
)
def test_values_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError, match=re.escape(next(iter(wrong)))):
        render(**wrong)


def test_what_the_page_says_works(tmp_path: Path) -> None:
    """``configure`` takes the files, and ``render-user-config`` shows what comes of them."""
    commands = Path(sys.executable).parent / "globus-compute-endpoint"
    environment = {**os.environ, "GLOBUS_COMPUTE_USER_DIR": str(tmp_path), "HOME": str(tmp_path)}
    files = {"core": "config.yaml", "template": "user_config_template.yaml.j2", "schema": "user_config_schema.json"}
    configure = [commands, "configure", "agents", "--multi-user", "false"]
    configure += [word for name, file in files.items() for word in (f"--{name}-config", file)]
    page = read_data("globus_compute/README.md")
    assert all(f"--{name}-config {file}" in page for name, file in files.items())
    subprocess.run(configure, env=environment, cwd=FOLDER, check=True, capture_output=True)
    show = [commands, "render-user-config", "-e", "agents", "-o", "-"]
    assert "globus-compute-endpoint render-user-config -e agents -o -" in page
    shown = subprocess.run(
        show, env=environment, input='{"provider": "slurm"}', text=True, check=True, capture_output=True
    ).stdout
    assert "type: SlurmProvider" in shown
