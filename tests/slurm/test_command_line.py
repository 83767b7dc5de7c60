"""A run on a real Slurm, seen to at the command line of the login node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.hosts import LOGIN, NODES
from tests.test_cli_launch import COUNTING

__all__: list[str] = []

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(180)]

COMMAND = str(Path(sys.executable).with_name("academy-hpc"))


class Terminal:
    """A user on the login node, with an agent in a file."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "counting.py").write_text(COUNTING)

    def run(self, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"HOME": str(self.home), "ACADEMY_HPC_SITE": "slurm"}
        done = subprocess.run(
            [COMMAND, *words], cwd=self.home, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == code, done.stderr
        return done

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json").stdout)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """With an exchange on the login node."""
    terminal = Terminal(tmp_path)
    terminal.run("exchange", "start", "--state-dir", "/run/academy_hpc-terminal")
    yield terminal
    terminal.run("exchange", "stop")


def test_a_run_on_three_nodes(terminal: Terminal) -> None:
    words = ("counting.py:Counter", "--count", "6", "--agents-per-worker", "2", "--nodes", "3", "--walltime", "10m")
    launched = terminal.run("launch", *words, "--name", "sim")
    assert " is pending" in launched.stderr
    assert launched.stderr.splitlines()[-1] == "6/6 ready"
    (run,) = terminal.json("runs")
    assert (run["state"], run["job_state"], run["jobs"]) == ("running", "running", 1)
    agents = terminal.json("agents", "list", "latest")
    assert Counter(agent["host"] for agent in agents) == {node.name: 2 for node in NODES}
    assert terminal.json("agents", "call", "latest", "sim-5", "add", "7")["result"] == 7
    assert {job["state"] for job in terminal.json("job", "status", "latest")["jobs"]} == {"running"}
    assert set(terminal.json("agents", "stop", "latest")["agents"].values()) == {"ended"}
    (run,) = terminal.json("runs")
    assert (run["state"], run["reason"]) == ("ended", "it was asked to end")


def test_a_job_that_slurm_refuses_is_told_in_one_line(terminal: Terminal) -> None:
    refused = terminal.run("launch", "counting.py:Counter", "--partition", "nowhere", code=1)
    assert refused.stdout == ""
    assert "invalid partition specified: nowhere" in refused.stderr
    assert refused.stderr.count("\n") == 1
    (run,) = terminal.json("runs")
    assert (run["state"], run["jobs"]) == ("failed", 0)


def test_the_script_that_is_shown_is_one_that_slurm_takes(terminal: Terminal) -> None:
    """The directory of the run in it is none, so its job ends at once."""
    script = terminal.run("job", "render", "counting.py:Counter", "--nodes", "2", "--count", "2").stdout
    path = terminal.home / "job.sh"
    path.write_text(script)
    LOGIN.run("sbatch", "--test-only", str(path))
