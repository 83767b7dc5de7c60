"""The exchange process: ``python -m academy_hpc.exchange.http.serve``, started by `spawn_http_exchange` alone.

It takes its configuration from standard input and its listening socket by descriptor, says on standard output when it
serves, and ends by SIGINT, by SIGTERM, or when its parent has ended, however that happened. It is imported at each
start, so it imports the server and what that needs, nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator

import msgspec

from academy_hpc.errors import StoreError
from academy_hpc.exchange.http.handover import Ended, Handover, Ready
from academy_hpc.exchange.http.tokens import proof

__all__ = ["LogHandler", "main", "watch_parent"]

log = logging.getLogger("academy_hpc.exchange.http.serve")  # __name__ is __main__ here

STORE_EXIT = os.EX_IOERR
"""Exit code of an exchange that can't use its state directory, or not any longer."""

CLOSE_LIMIT_S = 5
"""A close that takes longer is cut short: with a dead parent, nobody else would do it."""

PARENT_POLL_S = 5.0
"""How often an old kernel, which can't tell, is asked whether the parent is still there."""


def main() -> None:
    """Serve until told to stop.

    Exit code 0: stopped in order; `STORE_EXIT`: the state directory can't be used; 1: failed otherwise. The reason is
    on standard error.
    """
    handover = _read_handover()
    ready_fd = os.dup(sys.stdout.fileno())
    # What anything prints from here on is log, and the parent does not read our standard output any longer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _prepare_process(handover)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(handover, ready_fd))


def _read_handover() -> Handover:
    # Byte by byte from the descriptor would be slow and a buffered reader would read past the line; nothing follows it.
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(sys.stdin.fileno(), 1 << 16)
        if not part:
            sys.exit("This program is started by spawn_http_exchange(), which writes its configuration to it.")
        line += part
    return msgspec.json.decode(line, type=Handover)


def _prepare_process(handover: Handover) -> None:
    faulthandler.enable()
    os.umask(0o077)
    # A parent that blocks signals in the thread that spawned us would make us deaf to them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGALRM})
    # Each agent process is a connection, and the usual soft limit is 1024.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    logging.raiseExceptions = False  # a full disk must not stop the exchange, nor flood its log
    secrets = handover.server.get("token"), (handover.server.get("globus") or {}).get("client_secret")
    handler = LogHandler(sys.stderr.fileno(), secrets=list(filter(None, secrets)), limit_bytes=handover.log_limit_bytes)
    logging.basicConfig(level=handover.log_level, handlers=[handler])


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(handover: Handover, ready_fd: int) -> None:
    with _quick_import():
        from academy_hpc.exchange.http.server import ExchangeServer, ServerConfig
    loop = asyncio.get_running_loop()
    log.debug("%s, Python %s, event loop %s", __file__, sys.version, type(loop).__module__)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    watch_parent(loop, handover.parent_pid, stop.set)
    try:
        server = ExchangeServer(msgspec.convert(handover.server, ServerConfig))
    except StoreError as error:
        log.critical("%s", error)
        _say(ready_fd, Ended(str(error)))
        sys.exit(STORE_EXIT)
    await server.start(socket.socket(fileno=handover.socket_fd))
    _announce(ready_fd, server.exchange_id, handover)
    await _first_of(stop, server.service.failed)
    log.info("stopping")
    failed = server.service.failed.is_set()
    _say(ready_fd, Ended("its state directory can't be written" if failed else "it was told to end by a signal"))
    # The default action of SIGALRM ends the process, whatever it hangs in.
    signal.alarm(CLOSE_LIMIT_S)
    await server.close()
    if failed:
        sys.exit(STORE_EXIT)


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


@contextlib.contextmanager
def _quick_import() -> Iterator[None]:
    """Import without reading the machine's CA certificates and without garbage collection: half of our start.

    aiohttp reads the certificates for its client when it is imported. Later reading finds them again; only an aiohttp
    client in this process could not verify a server, and there is none. What is imported stays, so that no later
    collection needs to look at it either.
    """
    name = "SSL_CERT_FILE"  # of OpenSSL
    before = os.environ.get(name)
    os.environ[name] = os.devnull
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        # What an exchange stores has no cycles; looking for them again and again costs more the more it stores.
        gc.set_threshold(50_000, 20, 100)
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _announce(ready_fd: int, exchange_id: str, handover: Handover) -> None:
    pid = os.getpid()
    token = handover.server.get("token") or ""
    ready = Ready(pid=pid, exchange=exchange_id, proof=proof(token, handover.nonce))
    log.info("exchange %s serves in process %d", exchange_id, pid)
    _say(ready_fd, ready)


def _say(ready_fd: int, words: Ready | Ended) -> None:
    """Tell the parent. The descriptor is never closed: its end tells the parent that this process has ended."""
    with contextlib.suppress(BrokenPipeError):  # a parent that ended meanwhile is noticed by the watch
        os.write(ready_fd, msgspec.json.encode(words) + b"\n")


def watch_parent(loop: asyncio.AbstractEventLoop, parent_pid: int, ended: Callable[[], None]) -> None:
    """Call `ended` when the parent has ended; even SIGKILL closes its end of our standard input.

    A process that the parent forked may hold that end open beyond its death, so the process itself is watched, too.

    Args:
        loop: Loop in which to watch.
        parent_pid: Process id of the parent.
        ended: Called one or more times.
    """

    def read_input(fd: int) -> None:
        if not os.read(fd, 1 << 16):
            report(fd)

    def report(fd: int) -> None:
        loop.remove_reader(fd)
        ended()

    def look() -> None:
        if os.getppid() != parent_pid:
            ended()
        else:
            loop.call_later(PARENT_POLL_S, look)

    loop.add_reader(sys.stdin.fileno(), read_input, sys.stdin.fileno())
    try:
        parent_fd = os.pidfd_open(parent_pid)
    except (AttributeError, OSError):  # before Linux 5.3, or not Linux
        look()
        return
    loop.add_reader(parent_fd, report, parent_fd)
    if os.getppid() != parent_pid:  # it ended before we could watch, and the number may be another process by now
        ended()


class LogHandler(logging.Handler):
    """Writes the log to a descriptor, without secrets, and never more than a limit.

    Nobody rotates the log of an exchange that runs for weeks. Where it has a limit, reaching it starts it again from
    nothing: what is of interest is its end.
    """

    def __init__(self, fd: int, *, secrets: Iterable[str], limit_bytes: int | None) -> None:
        """Store where to write.

        Args:
            fd: Open descriptor of a file.
            secrets: Texts that are replaced wherever they appear, should anything ever log them.
            limit_bytes: Size at which the file is truncated; None: never.
        """
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self._fd = fd
        self._secrets = tuple(secrets)
        self._limit_bytes = limit_bytes

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; one that can't be written is dropped."""
        try:
            text = self.format(record) + "\n"
            for secret in self._secrets:
                text = text.replace(secret, "[token]")
            if self._limit_bytes is not None and os.fstat(self._fd).st_size > self._limit_bytes:
                os.ftruncate(self._fd, 0)
                os.lseek(self._fd, 0, os.SEEK_SET)
            os.write(self._fd, text.encode(errors="backslashreplace"))
        except Exception:  # noqa: BLE001 - as logging does: a record must never stop what it tells about
            self.handleError(record)


if __name__ == "__main__":
    main()
