"""A login host and compute nodes on one machine, each in namespaces of its own, joined by a switch.

The switch is the network namespace of process 1 of the rig; that process is the first of a PID namespace, so whatever
way it ends, the kernel ends every process of every host and takes the namespaces away. Nothing of it is seen outside.
A host has its own network with its own loopback, host name and ``/etc/hosts``; a node has also its own PIDs, ``/tmp``
and ``/dev/shm``. Files elsewhere are shared, as on a parallel file system.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["HOSTS", "LOGIN", "NODES", "Host", "folder", "only_inside", "start", "start_daemon", "wait_until"]

CHECKOUT = Path(__file__).parents[2]
START_S = 30.0

HOLDER = Path(__file__).with_name("holder.sh")


def folder() -> Path:
    """Where the rig that this process runs in keeps its files; all hosts see it."""
    return Path(os.environ["ACADEMY_HPC_RIG_FOLDER"])


def only_inside(kind: str) -> None:
    """Raises pytest.UsageError: this process is not in a rig of that kind."""
    if os.environ.get("ACADEMY_HPC_RIG") != kind:
        raise pytest.UsageError(f"These tests need a scheduler: `make test-{kind}` brings it up, and runs them there.")


@dataclass(frozen=True)
class Host:
    """One host. All of this may be called by the rig's first process and on the login host."""

    name: str
    address: str

    @property
    def pid(self) -> int:
        """The process that keeps the host alive, as the rig and the login host see it."""
        return int((folder() / f"{self.name}.pid").read_text())

    def command(self, *words: str) -> list[str]:
        """What runs `words` on this host, in the current folder."""
        namespaces = ["--net", "--uts", "--mount"] + ([] if self == LOGIN else ["--pid"])
        return ["nsenter", f"--target={self.pid}", *namespaces, f"--wd={Path.cwd()}", *words]

    def run(self, *words: str, timeout: float = 30.0) -> str:
        """The output of `words` on this host. Raises CalledProcessError, with what it wrote to standard error."""
        return _output(self.command(*words), timeout=timeout)

    def boot(self) -> None:
        """Make its namespaces, and plug it in."""
        (folder() / f"{self.name}.pid").unlink(missing_ok=True)
        namespaces = ["--net", "--uts", "--mount"]
        if self != LOGIN:
            namespaces += ["--pid", "--fork", "--kill-child"]
        shared = [str(CHECKOUT), sys.prefix, str(folder())]
        words = ["setsid", "--fork", "unshare", *namespaces, "bash", str(HOLDER), str(folder()), self.name, *shared]
        start_daemon(words)
        wait_until((folder() / f"{self.name}.pid").exists)
        # The port of a host that has crashed is gone, or on its way.
        subprocess.run(_on_switch("ip", "link", "del", self._port), capture_output=True, check=False)
        _output(_on_switch(*f"ip link add {self._port} type veth peer name eth0 netns {self.pid}".split()))
        _output(_on_switch("ip", "link", "set", self._port, "master", "switch", "up"))
        self.run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.run("ip", "link", "set", "eth0", "up")

    def crash(self) -> None:
        """A power failure: every process on it is gone at once, and so is its network."""
        os.kill(self.pid, 9)

    def unplug(self) -> None:
        """Its network is gone; its processes live on."""
        _output(_on_switch("ip", "link", "set", self._port, "down"))

    def plug(self) -> None:
        """Its network is back."""
        _output(_on_switch("ip", "link", "set", self._port, "up"))

    @property
    def _port(self) -> str:
        return f"port-{self.name}"


LOGIN = Host("login", "10.77.0.1")
NODES = tuple(Host(f"cn{number}", f"10.77.0.{10 + number}") for number in (1, 2, 3))
HOSTS = (LOGIN, *NODES)


def start() -> None:
    """The switch and all hosts. Only the rig's first process calls this."""
    lines = ["127.0.0.1 localhost", *(f"{host.address} {host.name}" for host in HOSTS)]
    (folder() / "etc-hosts").write_text("\n".join(lines) + "\n")
    _output(["ip", "link", "add", "switch", "type", "bridge"])
    _output(["ip", "link", "set", "switch", "up"])
    for host in HOSTS:
        host.boot()


def start_daemon(command: list[str], cwd: Path | None = None) -> None:
    """Run it until it has put itself into the background. Raises CalledProcessError; its output is in a file.

    Not in a pipe: a daemon may keep open what it was given.
    """
    with (folder() / "daemons.log").open("ab") as log:
        subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=True, timeout=START_S)


def wait_until(condition: Callable[[], bool], *, timeout: float = START_S) -> None:
    """Wait until it holds. Raises TimeoutError."""
    until = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{timeout} s are over; see the logs in {folder()}.")
        time.sleep(0.05)


def _on_switch(*words: str) -> list[str]:
    return ["nsenter", "--target=1", "--net", *words]


def _output(command: list[str], *, timeout: float = 30.0) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout).stdout
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise
