"""Running the measuring processes, side after side in turn, and leaving none behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.sides import VARIANTS

__all__ = ["Outcome", "measure_interleaved"]

#: What is measured with the variants, too.
VARIED = ("roundtrip",)
#: What academy-py has nothing for.
OURS = ("slurm",)

#: Longer than any workload needs; a side that hangs costs this once and no more.
LIMIT_S = 150.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one measuring process found."""

    side: str
    workload: str
    repeat: int
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def measure_interleaved(
    workloads: Sequence[str], *, sides: Sequence[str], repeats: int, scale: str
) -> Iterator[Outcome]:
    """Yield one outcome for each repetition, workload and side, the sides taking turns.

    Slow drifts of the machine (heat, neighbours) reach both sides alike, so ratios are steadier than figures.
    """
    for repeat in range(repeats):
        for workload in workloads:
            for side in sides:
                if (side in VARIANTS and workload not in VARIED) or (side == "academy" and workload in OURS):
                    continue
                yield _measure(side, workload, repeat, scale)


def _measure(side: str, workload: str, repeat: int, scale: str) -> Outcome:
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="academy-bench-") as folder:
        result, log = Path(folder, "result.json"), Path(folder, "log.txt")
        command = [sys.executable, "-m", "benchmarks.side", "--side", side, "--workload", workload]
        status = _run([*command, "--scale", scale, "--json", str(result)], log)
        seconds = time.monotonic() - started
        if result.exists():
            return Outcome(side, workload, repeat, seconds, **json.loads(result.read_text()))
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        return Outcome(side, workload, repeat, seconds, errors={"process": f"{status}: {' | '.join(lines[-3:])}"})


def _run(command: list[str], log: Path) -> str:
    """Run a command in its own session, its output in `log`; return how it ended, with all its descendants gone."""
    # Compiled modules are kept: academy-py has been compiled by its installer, a checkout has not.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=environment
        )
        try:
            return f"exit status {process.wait(LIMIT_S)}"
        except subprocess.TimeoutExpired:
            return f"killed after {LIMIT_S:.0f} s"
        finally:
            _kill_session(process)


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill the process, its descendants, and what else is left of its process group."""
    try:
        descendants = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        descendants = []
    with contextlib.suppress(ProcessLookupError):  # nothing is left: the usual case
        os.killpg(process.pid, signal.SIGKILL)
    for descendant in descendants:
        if descendant.is_running():
            descendant.kill()
    process.wait()
