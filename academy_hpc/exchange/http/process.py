"""The exchange process as its parent sees it: start, first words, last log lines, stop.

A new interpreter, not a fork: a fork of a program with threads, event loops or an accelerator's runtime inherits
their locks, and the exchange would carry the memory of the whole program.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import secrets
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

from academy_hpc.errors import ExchangeStartError, StoreError
from academy_hpc.exchange.http.handover import Ended, Handover, Ready
from academy_hpc.exchange.http.tokens import proof

__all__ = ["ExchangeProcess", "child_environment"]

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
    """The exchange process, as a context manager: entering starts it, leaving stops the one that runs then.

    Entering is the start of the interpreter only; `wait_ready` returns when it serves.

    Raises:
        ExchangeStartError: On entering, no process can be started or no log written.
    """

    def __init__(
        self,
        listener: socket.socket,
        handover: Handover,
        *,
        log_path: str | os.PathLike[str] | None = None,
        lock_fd: int | None = None,
    ) -> None:
        """Store what the process is to be given.

        Args:
            listener: Listening socket, of which the process has a copy.
            handover: The rest; its ``socket_fd`` is the number of `listener`.
            log_path: File to which the process appends its log; default: a temporary file without a name.
            lock_fd: Descriptor that the process is to hold as long as it lives.
        """
        self._kept = (listener.fileno(),) if lock_fd is None else (listener.fileno(), lock_fd)
        self._handover = handover
        self._log_path = log_path
        self._owner = os.getpid()

    def __enter__(self) -> Self:
        """Start the interpreter and write it the handover."""
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the process: SIGINT, and after `STOP_GRACE_S` SIGKILL. One that never served is killed at once."""
        try:
            if os.getpid() == self._owner:  # in a forked copy of this program, the process is not ours to stop
                self._stop()
        finally:
            _close(self._process.stdin, self._process.stdout, self._log)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def finish(self) -> None:
        """See to it that the process, which is about to end, has ended."""
        self.ending()
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        """Start another in the place of this one; see `finish`.

        Raises:
            ExchangeStartError: As on entering; this one is still that which has ended.
        """
        self.finish()
        before = (self._process.stdin, self._process.stdout, self._log)
        self._handover = msgspec.structs.replace(self._handover, nonce=secrets.token_hex(32))
        self._start()
        _close(*before)

    def wait_ready(self, deadline: float, *, cancel_fd: int | None = None) -> Ready:
        """Wait until the process says that it serves, and proves that it is ours; return what it says.

        Args:
            deadline: By `time.monotonic`.
            cancel_fd: Descriptor that ends the waiting when there is something to read.

        Raises:
            ExchangeStartError: It ended, said something else, `deadline` passed or the waiting was ended; with its last
                log lines.
            StoreError: It can't use its state directory.
        """
        line = b""
        while not line.endswith(b"\n"):
            part = self._read_output(deadline, cancel_fd)
            if not part:
                raise self.failed(f"ended before it served ({self.ending()})")
            line += part
        try:
            ready = msgspec.json.decode(line, type=Ready | Ended)
        except msgspec.DecodeError as error:
            raise self.failed(f"did not answer as one ({error})") from None
        if isinstance(ready, Ended):
            self._log_told = True
            raise StoreError(ready.why)
        expected = proof(self._handover.server["token"], self._handover.nonce)
        if not hmac.compare_digest(ready.proof, expected) or ready.pid != self.pid:
            raise self.failed("did not prove that it holds the token")
        self._served = True
        return ready

    def wait_end(self, cancel_fd: int) -> bool:
        """Wait until the process has ended. False: there was something to read at `cancel_fd` first."""
        poll = select.poll()
        poll.register(self._stdout, 0)  # which the process has open as long as it lives; nothing more comes from it
        poll.register(cancel_fd, select.POLLIN)
        return cancel_fd not in {fd for fd, _ in poll.poll()}

    def last_words(self) -> str | None:
        """Why it ended on purpose, where it did. To be asked once it has ended."""
        try:
            return msgspec.json.decode(os.read(self._stdout.fileno(), 1 << 16), type=Ended).why
        except msgspec.DecodeError:
            return None

    def ending(self) -> str:
        """How it ended, in words."""
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return "it closed its output"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def failed(self, what: str) -> ExchangeStartError:
        """The error that says that the process `what`, with its last log lines."""
        self._log_told = True
        tail = self._tail()
        return ExchangeStartError(
            f"The exchange process {what}. " + (f"Its last log lines:\n{tail}" if tail else "It logged nothing.")
        )

    def _start(self) -> None:
        try:
            log_file = _open_log(self._log_path)
            log_start = os.fstat(log_file.fileno()).st_size
        except OSError as error:
            raise ExchangeStartError(f"The log of the exchange process can't be opened: {error}.") from error
        try:
            self._process = _run(self._kept, log_file.fileno())
        except OSError as error:
            log_file.close()
            raise ExchangeStartError(f"No process can be started for the exchange: {error}.") from error
        self._log, self._log_start = log_file, log_start
        self._served = self._log_told = False
        with contextlib.suppress(BrokenPipeError):  # it has died already; wait_ready says of what
            self._stdin.write(msgspec.json.encode(self._handover) + b"\n")

    @property
    def _stdin(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    @property
    def _stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _read_output(self, deadline: float, cancel_fd: int | None) -> bytes:
        # poll, not select: a program with many connections has descriptors past FD_SETSIZE.
        poll = select.poll()
        poll.register(self._stdout, select.POLLIN)
        if cancel_fd is not None:
            poll.register(cancel_fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000)}
        if cancel_fd in ready:
            raise self.failed("is not waited for any longer")
        if not ready:
            raise self.failed("did not serve in time")
        return os.read(self._stdout.fileno(), 1 << 16)

    def _stop(self) -> None:
        if self._served and self._process.poll() is not None:
            if not self._log_told:
                log.warning("%s", self.failed(f"ended by itself ({self.ending()})"))
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


def _close(*files: IO[bytes] | None) -> None:
    for file in files:
        if file is not None:
            file.close()


def _open_log(path: str | os.PathLike[str] | None) -> IO[bytes]:
    if path is None:
        return tempfile.TemporaryFile(buffering=0)  # nameless where possible, always 0600
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "a+b", buffering=0)


def _run(kept_fds: tuple[int, ...], log_fd: int) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise FileNotFoundError("sys.executable is empty, so there is no interpreter to start")
    return subprocess.Popen(  # noqa: S603 our own interpreter, no text from outside
        [sys.executable, "-P", "-m", MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log_fd,
        bufsize=0,
        pass_fds=kept_fds,
        env=child_environment(),
        # Ctrl-C in the terminal is for the parent, which may have work to finish before it stops the exchange.
        start_new_session=True,
    )


def child_environment() -> dict[str, str]:
    """Ours, with the places from which this program imports, so that the process finds the same academy_hpc."""
    places = [str(Path(place).absolute()) for place in sys.path if isinstance(place, str)]
    return {**_MALLOC, **os.environ, "PYTHONPATH": os.pathsep.join(places)}
