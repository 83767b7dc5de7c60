"""Every example runs as its page says, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

__all__: list[str] = []

ROOT = Path(__file__).parent.parent
# On a machine of its own the demo takes a third of this.
LIMIT_S = 50
# What a process that was told to end may take.
GONE_S = 5


def output_of(example: str, folder: Path, *arguments: str, **environ: str) -> tuple[str, str]:
    """What it prints, in an activated environment; checks that it ended well, and with all its processes."""
    marker = f"ACADEMY_HPC_EXAMPLE={folder}"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-m", f"examples.{example}", *arguments],
        cwd=ROOT,
        env={**os.environ, **environ, "PATH": path, "TMPDIR": str(folder), "ACADEMY_HPC_EXAMPLE": str(folder)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
    # Parsl kills its pools of workers, so that multiprocessing can't remove what it has made for them.
    assert [path for path in folder.iterdir() if not path.name.startswith("pymp-")] == []
    left = [process for process in psutil.process_iter() if marker in environment(process)]
    _, alive = psutil.wait_procs(left, timeout=GONE_S)
    assert alive == []
    return run.stdout, run.stderr


def environment(process: psutil.Process) -> set[str]:
    try:
        return {f"{name}={value}" for name, value in process.environ().items()}
    except psutil.Error:
        return set()


@pytest.fixture
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where run directories are, which stay."""
    return tmp_path_factory.mktemp("runs")


def test_the_quickstart(tmp_path: Path) -> None:
    output, _ = output_of("quickstart", tmp_path)
    assert output.splitlines() == ["counter is ready", "40 + 2 = 42"]


def test_the_pipeline_finds_what_it_looks_for(tmp_path: Path) -> None:
    output, progress = output_of("pipeline", tmp_path)
    places = [float(place) for place in re.findall(r"looked at ([\d.-]+)", output)]
    assert len(places) == 8
    assert abs(places[-1] - 0.7) < 0.01
    assert "4/4 ready" in progress


@pytest.mark.parsl
def test_agents_in_a_python_app(tmp_path: Path) -> None:
    output, _ = output_of("python_app", tmp_path)
    assert output.splitlines()[:2] == ["Hello, Ada!", "Moin, Konrad!"]
    assert "The task has ended" in output


@pytest.mark.parsl
def test_the_demo(tmp_path: Path) -> None:
    output, progress = output_of("demo", tmp_path)
    assert "the agents called each other 5,600 times" in output
    assert "the same numbers as from a calculation in one piece" in output
    assert len(re.findall(r"process \d+: piece-\d", output)) == 2
    assert "8/8 ready" in progress


def test_an_agent_goes_on_in_the_next_job(tmp_path: Path, runs: Path) -> None:
    output, _ = output_of("checkpointing", tmp_path, ACADEMY_HPC_RUNS=str(runs))
    lives = re.findall(r"life (\d): ([\d,]+) samples, pi is about 3\.\d+", output)
    assert [life for life, _ in lives] == ["1", "2", "3"]
    counts = [int(samples.replace(",", "")) for _, samples in lives]
    assert counts == sorted(counts)
    assert output.splitlines()[3:] == ["life 1 ended: walltime", "life 2 ended: walltime"]


def test_agents_of_a_batch_job_on_this_machine(tmp_path: Path, runs: Path) -> None:
    output, progress = output_of("slurm_run", tmp_path, "local", "--nodes", "1", ACADEMY_HPC_RUNS=str(runs))
    assert "a letter was carried by 8 agents, on " in output
    assert "8/8 ready" in progress


@pytest.mark.parsl
def test_the_pipeline_with_the_parsl_configuration_of_a_site(tmp_path: Path) -> None:
    output, _ = output_of("parsl_cluster", tmp_path, "local")
    assert output.count("looked at") == 8
