"""The exchange process as its parent sees it: start, first words, last log lines, stop.

A new interpreter, not a fork: a fork of a program with threads, event loops or an accelerator's runtime inherits
their locks, and the exchange would carry the memory of the whole program.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import msgspec

from academy_hpc.errors import ExchangeStartError
from academy_hpc.exchange.http.handover import Handover, Ready

__all__ = ["ExchangeProcess"]

log = logging.getLogger(__name__)

MODULE = "academy_hpc.exchange.http.serve"

STOP_GRACE_S = 5.0
"""From SIGINT to SIGKILL."""

# glibc would give memory back to the kernel after each large message and fault it in again for the next; this keeps up
# to 64 MiB, and halves the time of messages over 10 kB (mallopt(3); other C libraries ignore these).
_MALLOC = {
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TOP_PAD_": str(1 << 20),
}

TAIL_BYTES = 8192
TAIL_LINES = 20


class ExchangeProcess:
    """One exchange process, as a context manager: entering starts it, leaving stops it.

    Entering is the start of the interpreter only; `wait_ready` returns when it serves.

    Raises:
        ExchangeStartError: On entering, no process can be started or no log written.
    """

    def __init__(
        self, listener: socket.socket, handover: Handover, *, log_path: str | os.PathLike[str] | None = None
    ) -> None:
        """Store what the process is to be given.

        Args:
            listener: Listening socket; it is the process's from then on, and closed here.
            handover: The rest; its ``socket_fd`` is the number of `listener`.
            log_path: File to which the process appends its log; default: a temporary file without a name.
        """
        self._listener = listener
        self._handover = handover
        self._log_path = log_path
        self._owner = os.getpid()
        self._served = False
        self._log_told = False

    def __enter__(self) -> Self:
        """Start the interpreter and write it the handover."""
        with self._listener:
            try:
                self._log = _open_log(self._log_path)
                self._log_start = os.fstat(self._log.fileno()).st_size
            except OSError as error:
                raise ExchangeStartError(f"The log of the exchange process can't be opened: {error}.") from error
            try:
                self._process = _start(self._listener.fileno(), self._log.fileno())
            except OSError as error:
                self._log.close()
                raise ExchangeStartError(f"No process can be started for the exchange: {error}.") from error
        with contextlib.suppress(BrokenPipeError):  # it has died already; wait_ready says of what
            self._stdin.write(msgspec.json.encode(self._handover) + b"\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the process: SIGINT, and after `STOP_GRACE_S` SIGKILL. One that never served is killed at once."""
        try:
            if os.getpid() == self._owner:  # in a forked copy of this program, the process is not ours to stop
                self._stop()
        finally:
            for stream in (self._process.stdin, self._process.stdout, self._log):
                if stream is not None:
                    stream.close()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def wait_ready(self, deadline: float) -> Ready:
        """Wait until the process says that it serves, and return what it says.

        Args:
            deadline: By `time.monotonic`.

        Raises:
            ExchangeStartError: It ended, said something else, or `deadline` passed; with its last log lines.
        """
        line = b""
        while not line.endswith(b"\n"):
            part = self._read_output(deadline)
            if not part:
                raise self.failed(f"ended before it served ({self._ending()})")
            line += part
        self._stdout.close()
        try:
            ready = msgspec.json.decode(line, type=Ready)
        except msgspec.DecodeError as error:
            raise self.failed(f"did not answer as one ({error})") from None
        self._served = True
        return ready

    def failed(self, what: str) -> ExchangeStartError:
        """The error that says that the process `what`, with its last log lines."""
        self._log_told = True
        tail = self._tail()
        return ExchangeStartError(
            f"The exchange process {what}. " + (f"Its last log lines:\n{tail}" if tail else "It logged nothing.")
        )

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _read_output(self, deadline: float) -> bytes:
        # poll, not select: a program with many connections has descriptors past FD_SETSIZE.
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise self.failed("did not serve in time")
        return os.read(self._stdout.fileno(), 1 << 16)

    def _ending(self) -> str:
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _stop(self) -> None:
        if self._served and self._process.poll() is not None:
            log.warning("%s", self.failed(f"ended by itself ({self._ending()})"))
            return
        try:
            self._process.send_signal(signal.SIGINT if self._served else signal.SIGKILL)
            self._process.wait(timeout=STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            log.warning("%s", self.failed(f"did not stop within {STOP_GRACE_S:g} s and is killed"))
        finally:  # also when Ctrl-C interrupts the waiting
            self._process.kill()
            self._process.wait()
        self._relay_log()

    def _relay_log(self) -> None:
        """Show what the process logged where the program logs; else the nameless file would take it along."""
        tail = self._tail() if self._log_path is None else ""
        if tail and not self._log_told:
            log.log(self._handover.log_level, "the exchange process %d logged:\n%s", self.pid, tail)

    def _tail(self) -> str:
        fd = self._log.fileno()
        size = os.fstat(fd).st_size
        start = max(self._log_start if size >= self._log_start else 0, size - TAIL_BYTES)
        # pread: the process writes through the same open file, and its position must stay.
        text = os.pread(fd, TAIL_BYTES, start).decode(errors="replace")
        return "\n".join(text.strip().splitlines()[-TAIL_LINES:])


def _open_log(path: str | os.PathLike[str] | None) -> IO[bytes]:
    if path is None:
        return tempfile.TemporaryFile(buffering=0)  # nameless where possible, always 0600
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "a+b", buffering=0)


def _start(listener_fd: int, log_fd: int) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise FileNotFoundError("sys.executable is empty, so there is no interpreter to start")
    return subprocess.Popen(  # noqa: S603 our own interpreter, no text from outside
        [sys.executable, "-P", "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log_fd,
        bufsize=0,
        pass_fds=(listener_fd,),
        env=_environment(),
        # Ctrl-C in the terminal is for the parent, which may have work to finish before it stops the exchange.
        start_new_session=True,
    )


def _environment() -> dict[str, str]:
    """Ours, with the places from which this program imports, so that the process finds the same academy_hpc."""
    places = [str(Path(place).absolute()) for place in sys.path if isinstance(place, str)]
    return {**_MALLOC, **os.environ, "PYTHONPATH": os.pathsep.join(places)}
