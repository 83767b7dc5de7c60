"""The examples for clusters, and the measurement of a launch, run as they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

__all__: list[str] = []

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]


def output_of(*words: str) -> str:
    """Of a module of the checkout, which ends well."""
    command = [sys.executable, "-m", *words]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_agents_on_the_nodes_of_a_job() -> None:
    assert "a letter was carried by 24 agents, on cn1 (8), cn2 (8), cn3 (8)" in output_of("examples.slurm_run", "slurm")


def test_a_job_script_by_hand() -> None:
    assert "a letter was carried by 24 agents" in output_of("examples.by_hand")


def test_a_pipeline_with_the_parsl_configuration_for_slurm() -> None:
    assert output_of("examples.parsl_cluster", "slurm").count("looked at") == 8


def test_a_launch_is_measured() -> None:
    output = output_of("benchmarks", "--only", "slurm", "--scale", "tiny")
    assert "launch 20 agents on 3 nodes of Slurm until all answer" in output
