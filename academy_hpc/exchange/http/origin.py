"""Where an exchange runs, and whether it still does: what its connection file says, compared with this machine."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Self

import msgspec

__all__ = ["ServerOrigin"]


class ServerOrigin(msgspec.Struct, frozen=True):
    """The process with which an exchange ends, and its machine. No secrets.

    Attributes:
        host: Name of the machine.
        boot_id: What Linux calls this run of the machine; None: not known.
        pid: Number of the process: the program that spawned the exchange, or the exchange itself where it stands alone.
        started_s: When that process started, in seconds after the machine did, by which no clock can be set;
            None: not known.
        pid_namespace: Where the number counts: a container may have its own. None: not known.
    """

    host: str
    boot_id: str | None
    pid: int
    started_s: float | None
    pid_namespace: str | None = None

    @classmethod
    def here(cls) -> Self:
        """This process, on this machine."""
        pid = os.getpid()
        return cls(socket.gethostname(), boot_id(), pid, _started_s(pid), _pid_namespace())

    @property
    def may_be_here(self) -> bool:
        """Whether it may be this machine. Loopback addresses lead to the exchange there alone."""
        return self.boot_id is None or self.boot_id == boot_id()

    @property
    def runs_here(self) -> bool:
        """Whether the process surely runs on this machine, so that its number means it and no other."""
        place = (self.host, self.boot_id, self.pid_namespace)
        here = (socket.gethostname(), boot_id(), _pid_namespace())
        known = self.boot_id is not None and self.started_s is not None
        return known and place == here and self.started_s == _started_s(self.pid)

    def ended(self) -> str | None:
        """Why the process is surely gone, to follow on "and"; None: it runs, or can't be known from here."""
        here = boot_id()
        if self.host != socket.gethostname() or self.boot_id is None or here is None:
            return None
        if self.boot_id != here:
            return f"{self.host} was restarted since then"
        if self.pid_namespace != _pid_namespace() or self.started_s == _started_s(self.pid):
            return None
        return f"its process {self.pid} is gone"


def boot_id() -> str | None:
    """What Linux calls this run of this machine; None where it has no name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _started_s(pid: int) -> float | None:
    """By proc(5), which numbers fields from 1; the second is a name in brackets, in which anything may stand."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    state, started = fields[0], fields[19]
    return None if state in "ZX" else int(started) / os.sysconf("SC_CLK_TCK")


def _pid_namespace() -> str | None:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return None
