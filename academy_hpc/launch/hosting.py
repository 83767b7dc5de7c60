"""The exchange of a run, on the first node of its job: ``academy-hpc exchange host RUN``.

While it serves, its state is on a disk of the node, for SQLite can't work on the file systems that nodes share. When it
ends in order, it moves the state to the run directory, and the exchange of the next job goes on with it: the same
token, mailboxes and undelivered messages.

Each time an exchange takes over the state is a life, with a number that is kept in the run directory. What an earlier
life has left, on a node that crashed or came back, is never taken for the newest: restored, it would have agents do
again what they have done.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import shutil
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from academy_hpc.errors import ExchangeStartError, LaunchError, StoreError
from academy_hpc.exchange.file_system import network_file_system
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.identity import Identity
from academy_hpc.exchange.http.private_file import read_private, write_private
from academy_hpc.exchange.http.spawn import spawn_http_exchange
from academy_hpc.exchange.http.state_lock import start_lock
from academy_hpc.launch.enrol import EnrolledMailbox, enrolled_mailboxes
from academy_hpc.launch.run import Run

__all__ = ["host_exchange", "node_local_directory"]

LOG_LIMIT_BYTES = 1 << 20

LINGER_S = 6.0
"""From SIGTERM, which may have come to all processes of the job at once, until the exchange stops, unless all workers
have ended before: they have a last word to say. SIGINT stops it now. Schedulers kill after 10 s or more."""

LOOK_S = 0.1

LIFE, STATE = "life", "state"
_STOPS = (signal.SIGTERM, signal.SIGINT)
# For the workers: the end of the walltime comes near.
_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


def host_exchange(run: Run, *, interface: str | None = None, log_level: str = "WARNING") -> None:
    """Serve until told to stop by SIGTERM or SIGINT. To be called in the main thread of a process of its own.

    Args:
        run: Submitted by `submit_run`.
        interface: Bind and advertise this network interface only.
        log_level: Of its log, which is ``exchange/exchange.log`` in the run directory.

    Raises:
        LaunchError: The run has no exchange, or the node no place for its state.
        ExchangeStartError, StoreError: The exchange can't be started, or has ended by itself.
    """
    stop: queue.SimpleQueue[str | signal.Signals] = queue.SimpleQueue()
    for number in _STOPS:
        signal.signal(number, lambda number, _: stop.put(signal.Signals(number)))
    for number in _WARNINGS:
        signal.signal(number, signal.SIG_IGN)
    run.connection_path.unlink(missing_ok=True)  # of an earlier job, on another node
    mailboxes = enrolled_mailboxes(run)
    with (
        _state_of(run) as state,
        spawn_http_exchange(
            port=0,
            interface=interface,
            level=log_level.upper(),
            state_dir=state,
            log_path=run.exchange_dir / "exchange.log",
            log_limit_bytes=LOG_LIMIT_BYTES,
            on_end=stop.put,
        ) as factory,
    ):
        asyncio.run(_open(factory, mailboxes))
        with factory.connection_info.kept_at(run.connection_path):
            run.event("exchange", host=socket.gethostname(), pid=os.getpid(), urls=factory.connection_info.urls)
            _wait(stop, run)


def node_local_directory(environ: Mapping[str, str]) -> Path:
    """Where this node keeps files of its own: TMPDIR, unless it is on a network file system, or the usual places.

    Raises:
        LaunchError: There is no such place.
    """
    places = [Path(place) for place in (environ.get("TMPDIR"), "/tmp", "/var/tmp", "/dev/shm") if place]  # noqa: S108
    for place in places:
        if place.is_dir() and os.access(place, os.W_OK | os.X_OK) and network_file_system(place) is None:
            return place
    tried = ", ".join(map(str, places))
    raise LaunchError(f"{socket.gethostname()} has no disk of its own for the exchange (tried {tried}); set TMPDIR.")


async def _open(factory: HttpExchangeFactory, mailboxes: list[EnrolledMailbox]) -> None:
    """Before anybody knows where the exchange is, so that nobody misses a mailbox."""
    async with await factory.create_transport(mailboxes[0].entity) as transport:
        opens = (transport.open_mailbox(mailbox.entity, classes=mailbox.classes) for mailbox in mailboxes)
        await asyncio.gather(*opens)


def _wait(stop: queue.SimpleQueue[str | signal.Signals], run: Run) -> None:
    word = stop.get()
    ranks = range(run.spec().ranks or 1)
    until = time.monotonic() + LINGER_S
    while word is signal.SIGTERM and time.monotonic() < until:
        if all(run.exit_code(rank) is not None for rank in ranks):
            break
        with contextlib.suppress(queue.Empty):
            word = stop.get(timeout=LOOK_S)
    if not isinstance(word, signal.Signals):
        raise ExchangeStartError(word)


# State


@contextlib.contextmanager
def _state_of(run: Run) -> Iterator[Path]:
    place = node_local_directory(os.environ) / f"academy_hpc-{run.id}"
    with start_lock(place):
        life = _begin(run, place)
        try:
            yield place / STATE
        finally:
            for number in (*_STOPS, *_WARNINGS):  # what is half saved is lost
                signal.signal(number, signal.SIG_IGN)
            _save(run, place, life)


def _begin(run: Run, place: Path) -> int:
    """The number of this life, whose state is at `place` when this returns."""
    last, state = _life(run.exchange_dir), place / STATE
    if last and _life(place) == last and state.is_dir():
        return last  # only the process that served here has died
    shutil.rmtree(state, ignore_errors=True)
    saved = run.exchange_dir / f"saved-{last}"
    if saved.is_dir():
        shutil.copytree(saved, state)
    identity = Identity.read(state if saved.is_dir() else run.exchange_dir)
    if identity is None:
        raise LaunchError(
            f"{run.exchange_dir} has lost its identity.json, without which nobody can reach the exchange."
        )
    msgspec.structs.replace(identity, port=0).write(state)  # the port is another node's
    write_private(place / LIFE, str(last + 1))
    run.write_private(f"exchange/{LIFE}", str(last + 1))
    shutil.rmtree(saved, ignore_errors=True)
    return last + 1


def _save(run: Run, place: Path, life: int) -> None:
    if _life(run.exchange_dir) != life:
        raise LaunchError(f"Another job of run {run.id} has taken over its exchange: what this one held is dropped.")
    aside = run.exchange_dir / f".saving-{life}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        shutil.copytree(place / STATE, aside, ignore=shutil.ignore_patterns("*lock"), copy_function=_copy)
        aside.rename(run.exchange_dir / f"saved-{life}")
    except OSError as error:
        raise StoreError(
            f"The state of the exchange can't be moved to {run.exchange_dir}: {error}. It is kept on "
            f"{socket.gethostname()} in {place}."
        ) from None
    shutil.rmtree(place)


def _copy(source: str, target: str) -> None:
    shutil.copy(source, target)
    with Path(target).open("rb") as file:
        os.fsync(file.fileno())


def _life(directory: Path) -> int:
    try:
        return int(read_private(directory / LIFE))
    except FileNotFoundError:
        return 0
