"""An exchange that outlives the terminal it was started from: where it is kept, how it is found again, and stopped.

It is the process of ``academy-hpc exchange run`` in a session of its own. Its state is on a local disk, which SQLite
needs; its connection file is in the home directory, under the name of the host, for on which login node one is next
time is chance.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from academy_hpc.errors import (
    ConnectionInfoError,
    ExchangeError,
    ExchangeStartError,
    ExchangeUnreachableError,
)
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.origin import ServerOrigin
from academy_hpc.exchange.http.private_file import read_private
from academy_hpc.exchange.http.probe import ask_first
from academy_hpc.exchange.http.process import child_environment

__all__ = [
    "connection_files",
    "default_connection_file",
    "default_state_dir",
    "running_exchange",
    "start_detached",
    "stop_detached",
]

TAIL_BYTES = 4096
TAIL_LINES = 12
POLL_S = 0.05


def default_state_dir() -> Path:
    """On a local disk, and not removed at logout or when the machine starts, as other such places are."""
    return Path(f"/var/tmp/academy_hpc-{os.getuid()}")  # noqa: S108 - whoever else has made it is refused


def default_connection_file() -> Path:
    """That of the exchange that was started on this host."""
    return _folder() / socket.gethostname() / "connection.json"


def connection_files() -> list[Path]:
    """Those of all exchanges that were started so, that of this host first."""
    here = default_connection_file()
    others = sorted(path for path in _folder().glob("*/connection.json") if path != here)
    return [*([here] if here.exists() else []), *others]


def running_exchange(connection_file: Path, *, timeout_s: float = 5.0) -> ConnectionInfo | None:
    """The exchange of this file, if it runs: here by its process, elsewhere if it answers."""
    try:
        info = ConnectionInfo.read(connection_file)
    except ConnectionInfoError:
        return None
    if info.server is not None and info.server.runs_here:
        return info
    try:
        ask_first(info, timeout_s=timeout_s)
    except ExchangeUnreachableError:
        return None
    return info


def start_detached(arguments: Sequence[str], *, log_file: Path) -> str:
    """Start ``academy-hpc exchange run`` with `arguments` in a session of its own; return its first line of output.

    Args:
        arguments: With absolute paths; the process is at home in the root directory.
        log_file: To which all appends that it has to say.

    Raises:
        ExchangeStartError: It did not come to serve, with the end of its log.
    """
    # Passed on to the new process: a terminal that goes away must not end it.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(log_file, "rb", opener=lambda path, _: os.open(path, flags, 0o600)) as log:
        before = os.fstat(log.fileno()).st_size
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-P", "-m", "academy_hpc", "exchange", "run", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log.fileno(),
            env=child_environment(),
            cwd="/",
            start_new_session=True,
        )
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        if line:
            return line
        code = process.wait()
        tail = _tail(log.fileno(), before)
    raise ExchangeStartError(f"The exchange did not start (exit code {code}); from {log_file}:\n{tail}")


def stop_detached(connection_file: Path, *, timeout_s: float) -> ServerOrigin | None:
    """Stop the exchange of this file in order; return who it was, None: it has ended already.

    Args:
        connection_file: What ``academy-hpc exchange start`` or ``run`` wrote; it is removed where it is left over.
        timeout_s: How long it may take.

    Raises:
        ConnectionInfoError: The file is not there, is no connection file, or does not say where the exchange runs.
        ExchangeError: The exchange runs on another host, belongs to a program, or does not end.
    """
    try:
        info = ConnectionInfo.from_json(read_private(connection_file))
    except (OSError, ValueError) as error:
        raise ConnectionInfoError(f"Can't read the connection file {connection_file}: {error}.") from None
    server = info.server
    if server is None:
        raise ConnectionInfoError(f"{connection_file} does not say where its exchange runs, so it can't be stopped.")
    if server.ended() is not None:
        connection_file.unlink(missing_ok=True)
        return None
    if not server.runs_here:
        raise ExchangeError(
            f"This exchange runs on {server.host}, as process {server.pid}; this is {socket.gethostname()}. Stop it "
            f"there: ssh {server.host} academy-hpc exchange stop --connection-file {connection_file}"
        )
    _terminate(server, timeout_s)
    return server


def _folder() -> Path:
    return Path("~/.academy_hpc/exchange").expanduser()


def _tail(fd: int, start: int) -> str:
    size = os.fstat(fd).st_size
    text = os.pread(fd, TAIL_BYTES, max(start, size - TAIL_BYTES)).decode(errors="replace")
    return "\n".join(text.strip().splitlines()[-TAIL_LINES:])


def _terminate(server: ServerOrigin, timeout_s: float) -> None:
    words = Path(f"/proc/{server.pid}/cmdline").read_bytes().split(b"\0")
    if (b"exchange", b"run") not in itertools.pairwise(words):
        raise ExchangeError(
            f"This exchange belongs to process {server.pid}, which is a program that has one: end that program."
        )
    os.kill(server.pid, signal.SIGTERM)
    until = time.monotonic() + timeout_s
    while server.runs_here:
        if time.monotonic() > until:
            raise ExchangeError(f"Process {server.pid} has not ended within {timeout_s:g} s: `kill -9 {server.pid}`.")
        time.sleep(POLL_S)
