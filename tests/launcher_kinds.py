"""All launchers, each with two slots, as the contract of launchers sees them: how one is made, and what is special."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import pytest

from academy_hpc import BatchLauncher, ExecutorLauncher, ParslLauncher
from academy_hpc.launch.launcher import Launcher
from tests.globus_compute_engine import running_engine, two_workers
from tests.parsl_workers import loaded_kernel, parsl_config

__all__ = ["KINDS", "SLOTS", "Kind"]

SLOTS = 2

# Starts as many processes as `srun` would tasks, each with its rank, and passes warnings on.
SRUN = """#!/bin/bash
while :; do
    case $1 in
        --ntasks=*) tasks=${1#*=} ;;
        --*) ;;
        *) break ;;
    esac
    shift
done
pids=()
for name in USR1 USR2 TERM INT; do trap "kill -$name \\"\\${pids[@]}\\" 2>/dev/null" $name; done
for ((task = 0; task < tasks; task++)); do
    SLURM_PROCID=$task SLURM_NTASKS=$tasks "$@" &
    pids+=($!)
done
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
done
"""

# Where the controller of Slurm is out of reach.
SQUEUE = """#!/bin/bash
echo "squeue: error: no controller" >&2
exit 1
"""


class Kind(Protocol):
    """How a launcher is made, for as long as a test or several."""

    own_processes: bool
    """Workers are processes of their own."""
    outlives_workers: bool
    """A worker that is killed takes no other with it, and another can be started."""

    def open(self, folder: Path) -> contextlib.AbstractContextManager[Any]: ...

    def launcher(self, shared: Any) -> Launcher: ...

    def launcher_without_restarts(self, shared: Any) -> Launcher:
        """One that brings nothing back by itself."""
        ...


class ProcessPool:
    """A pool of the standard library, whose processes are spawned."""

    own_processes = True
    outlives_workers = False

    def open(self, folder: Path) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def launcher(self, shared: Any) -> Launcher:
        return ExecutorLauncher(ProcessPoolExecutor(SLOTS, mp_context=multiprocessing.get_context("spawn")))

    launcher_without_restarts = launcher


class ThreadPool:
    """Agents in threads of this process."""

    own_processes = False
    outlives_workers = True

    def open(self, folder: Path) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def launcher(self, shared: Any) -> Launcher:
        return ExecutorLauncher(ThreadPoolExecutor(SLOTS))

    launcher_without_restarts = launcher


class Parsl:
    """Real workers of a HighThroughputExecutor on this machine, started once for all tests."""

    own_processes = True
    outlives_workers = True

    def open(self, folder: Path) -> contextlib.AbstractContextManager[Any]:
        return loaded_kernel(parsl_config(folder, slots=SLOTS))

    def launcher(self, shared: Any) -> Launcher:
        return ParslLauncher(shared)

    launcher_without_restarts = launcher


class GlobusCompute:
    """The real engine in this process, started once for all tests."""

    own_processes = True
    outlives_workers = True

    def open(self, folder: Path) -> contextlib.AbstractContextManager[Any]:
        return running_engine(two_workers(), folder)

    def launcher(self, shared: Any) -> Launcher:
        launcher: Launcher = shared.launcher(slots=SLOTS)
        return launcher

    launcher_without_restarts = launcher


class Batch:
    """Runs of a batch launcher on this machine, with the scripts that are used everywhere."""

    own_processes = True
    outlives_workers = True

    @contextlib.contextmanager
    def open(self, folder: Path) -> Iterator[Path]:
        yield folder / "runs"

    def launcher(self, shared: Any, **options: Any) -> Launcher:
        return BatchLauncher("local", runs=shared, nodes=1, workers_per_node=SLOTS, **options)

    def launcher_without_restarts(self, shared: Any) -> Launcher:
        return self.launcher(shared, max_restarts=0, max_jobs=1)


class Allocation(Batch):
    """In an allocation of Slurm, or what looks like one: a command `srun` that starts processes with ranks."""

    @contextlib.contextmanager
    def open(self, folder: Path) -> Iterator[Path]:
        (folder / "bin").mkdir()
        for name, script in {"srun": SRUN, "squeue": SQUEUE}.items():
            (folder / "bin" / name).write_text(script)
            (folder / "bin" / name).chmod(0o700)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
            patch.setenv("SLURM_JOB_ID", "4711")
            patch.setenv("SLURM_JOB_NUM_NODES", "1")
            patch.setenv("SLURM_PROCID", "0")  # of the job script, in which the program runs
            yield folder / "runs"

    def launcher(self, shared: Any, **options: Any) -> Launcher:
        return BatchLauncher("slurm", inside=True, runs=shared, nodes=1, workers_per_node=SLOTS, **options)


KINDS = [
    ProcessPool(),
    ThreadPool(),
    pytest.param(Parsl(), marks=pytest.mark.parsl),
    GlobusCompute(),
    Batch(),
    Allocation(),
]
