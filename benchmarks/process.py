"""Observing processes: CPU time, memory, and which child is the exchange."""

import os
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

__all__ = [
    "CpuMeter",
    "cpu_seconds",
    "disk_folder",
    "find_listener",
    "free_port",
    "private_bytes",
    "seconds_since_start",
]

#: What is written there costs nothing, and is lost with the machine's power.
IN_MEMORY = frozenset(["tmpfs", "ramfs"])


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago (academy-py cannot be given port 0)."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def disk_folder() -> Path:
    """Return a folder for temporary files that is on a disk, not in memory. Raises LookupError."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    for folder in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()):  # noqa: S108 - made private inside
        place = folder.resolve()
        kind = next(mounts[parent] for parent in (place, *place.parents) if parent in mounts)
        if kind not in IN_MEMORY:
            return folder
    raise LookupError("no folder on a disk was found for the durable exchange: set TMPDIR")


def find_listener(port: int) -> psutil.Process:
    """Return the child of this process that listens on `port`. Raises LookupError."""
    for child in psutil.Process().children(recursive=True):
        try:
            connections = child.net_connections(kind="tcp")
        except psutil.Error:  # a helper that ended meanwhile
            continue
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
            return child
    raise LookupError(f"no child process listens on port {port}")


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Return the user and system CPU time that the processes have used so far."""
    times = [process.cpu_times() for process in processes]
    return float(sum(t.user + t.system for t in times))


def private_bytes(process: psutil.Process) -> int:
    """Return the memory that would be freed if the process ended (USS)."""
    return int(process.memory_full_info().uss)


def seconds_since_start(process: psutil.Process) -> float:
    """Return how old a process is, to a hundredth of a second; the clock on the wall knows it to a second only."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return float(Path("/proc/uptime").read_text().split()[0]) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class CpuMeter:
    """CPU time of named groups of processes between `start` and `stop`."""

    groups: dict[str, list[psutil.Process]]
    _before: dict[str, float] = field(default_factory=dict)
    _started: float = 0.0

    def start(self) -> None:
        """Begin to count."""
        self._before = {name: cpu_seconds(group) for name, group in self.groups.items()}
        self._started = time.perf_counter()

    def stop(self) -> tuple[float, dict[str, float]]:
        """Return the elapsed seconds and each group's CPU seconds."""
        elapsed = time.perf_counter() - self._started
        return elapsed, {name: cpu_seconds(group) - self._before[name] for name, group in self.groups.items()}
