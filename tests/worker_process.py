"""Workers as a job script starts them: ``academy-hpc worker --spec -``, in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping

from academy_hpc import LaunchSpec
from academy_hpc.launch.spec import WorkerReport

__all__ = ["clean_environment", "report_of", "worker_process"]

COMMAND = [sys.executable, "-m", "academy_hpc", "worker", "--spec", "-", "--json"]
_STARTERS = ("SLURM_", "PMI", "PALS_", "OMPI_", "FLUX_", "JSM_", "ACADEMY_HPC_")


def clean_environment(**variables: str) -> dict[str, str]:
    """The variables of this process without those of a starter that it may itself run under; and `variables`."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_STARTERS)} | variables


@contextlib.contextmanager
def worker_process(
    spec: LaunchSpec, *options: str, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A worker; it is killed at the end of the block, if it still runs."""
    with subprocess.Popen(
        [*COMMAND, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment(**(environment or {})),
    ) as process:
        assert process.stdin is not None
        process.stdin.write(spec.to_json())
        process.stdin.close()
        process.stdin = None
        try:
            yield process
        finally:
            process.kill()


async def report_of(process: subprocess.Popen[str]) -> WorkerReport:
    """What the worker says at its end."""
    output, _ = await asyncio.to_thread(process.communicate)
    return WorkerReport.from_json(output)
