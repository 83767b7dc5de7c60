"""A scheduler of stand-ins for each test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from academy_hpc.launch import follow, watch
from academy_hpc.launch.batch import BatchLauncher
from tests.batch_runs import stand_in_python
from tests.schedulers import stand_in
from tests.schedulers.stand_in import COMMANDS, Jobs

__all__: list[str] = []


@pytest.fixture(params=sorted(COMMANDS))
def scheduler(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often than is kind to a login node."""
    monkeypatch.setattr(follow, "SETTLE_S", 0.5)
    for name in ("FIRST_PAUSE_S", "LAST_PAUSE_S", "FILES_PAUSE_S"):
        monkeypatch.setattr(watch, name, 0.3)


@pytest.fixture
def jobs(scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """The jobs of the scheduler, whose commands are on PATH."""
    programs, folder = tmp_path / "bin", tmp_path / "scheduler"
    programs.mkdir()
    folder.mkdir()
    for name in COMMANDS[scheduler]:
        (programs / name).write_text(f'#!/bin/bash\nexec {sys.executable} -IS {stand_in.__file__} {name} "$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("STAND_IN", str(folder))
    for name in ("FLUX_URI", "LSB_JOBID", "PBS_JOBID"):
        monkeypatch.delenv(name, raising=False)
    return Jobs(folder)


MakeLauncher = Callable[..., BatchLauncher]


@pytest.fixture
def launchers(scheduler: str, jobs: Jobs, tmp_path: Path) -> Iterator[MakeLauncher]:
    """Makes launchers for the scheduler, whose workers are made of the given lines of shell."""
    made: list[BatchLauncher] = []

    def make(worker: str, **options: Any) -> BatchLauncher:
        python = str(stand_in_python(tmp_path, worker))
        options = {"walltime": "30m", "account": "m1", "queue": "normal"} | options
        made.append(BatchLauncher(scheduler, runs=tmp_path / "a place for runs", python=python, **options))
        return made[-1]

    yield make
    for launcher in made:
        launcher.close(timeout=2)
