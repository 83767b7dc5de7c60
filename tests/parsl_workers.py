"""Real Parsl workers on this machine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from parsl.config import Config
from parsl.dataflow.dflow import DataFlowKernel
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider

__all__ = ["loaded_kernel", "parsl_config", "workers_executor"]


def workers_executor(slots: int, label: str = "workers") -> HighThroughputExecutor:
    """Workers that are started at once, and missed soon."""
    return HighThroughputExecutor(
        label=label,
        address="127.0.0.1",
        max_workers_per_node=slots,
        cores_per_worker=0.1,
        heartbeat_period=1,
        heartbeat_threshold=5,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )


def parsl_config(folder: Path, *, slots: int = 2) -> Config:
    """One executor called ``workers``."""
    return Config(executors=[workers_executor(slots)], run_dir=str(folder), strategy_period=1, initialize_logging=False)


@contextlib.contextmanager
def loaded_kernel(config: Config) -> Iterator[DataFlowKernel]:
    """Parsl as a program has loaded it; its programs are on PATH, as in an activated environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        # What Parsl pickles itself by reference must find our modules, before others that are called `tests`.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent.parent))
        kernel = DataFlowKernel(config)
        try:
            yield kernel
        finally:
            kernel.cleanup()
