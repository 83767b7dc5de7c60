"""Runs of a batch launcher for tests, with agents that never start or with a stand-in for the worker."""

from __future__ import annotations

import stat
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from academy_hpc.agent import RuntimeConfig
from academy_hpc.exchange.http.client import HttpAgentRegistration
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.identifiers import AgentId, UserId
from academy_hpc.launch.source import source_of
from academy_hpc.launch.spec import AgentSpec, LaunchSpec
from tests.launched_agents import Counter

__all__ = ["SECRET", "some_spec", "stand_in_python", "until"]

SECRET = "9f8e7d6c5b4a-the-token-of-an-agent"  # noqa: S105 - nobody takes it


def some_spec(*, agents: int = 1, ranks: int = 1) -> LaunchSpec:
    """A spec whose exchange nobody needs."""
    ids: list[AgentId[Any]] = [AgentId.new(f"counter-{number}") for number in range(agents)]
    specs = tuple(
        AgentSpec(HttpAgentRegistration(one, token=SECRET), source_of(Counter, (), {}), RuntimeConfig(), uuid.uuid4())
        for one in ids
    )
    connection = ConnectionInfo(("http://127.0.0.1:9",), {"Authorization": f"Bearer {SECRET}"})
    return LaunchSpec(connection, ClientOptions(), specs, UserId.new("tester"), ranks=ranks)


def stand_in_python(folder: Path, worker: str) -> Path:
    """A program to be used in place of Python: it notes how it was called, and a worker is made of shell.

    Args:
        folder: ``calls`` in it gets a line for each call.
        worker: Lines of shell; ``$rank`` and ``$attempt`` are those of the worker, and it is in the run directory.
    """
    path = folder / "python"
    path.write_text(
        f"""#!/bin/bash
echo "$*" >>{folder}/calls
rank=$ACADEMY_HPC_RANK attempt=$ACADEMY_HPC_ATTEMPT
case "$*" in
    *--give-up*) exit 0 ;;
    "-m academy_hpc worker "*)
    cd "$ACADEMY_HPC_RUN"
    {worker}
    ;;
    *) exec {sys.executable} "$@" ;;
esac
"""
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def until(condition: Callable[[], Any], *, timeout_s: float = 15.0) -> Any:
    """What `condition` says as soon as that is true."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found
