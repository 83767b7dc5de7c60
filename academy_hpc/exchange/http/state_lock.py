"""One program at a time runs the exchange of a state directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from academy_hpc.errors import StoreError
from academy_hpc.exchange.http.copies import close_in_copies
from academy_hpc.exchange.http.origin import ServerOrigin
from academy_hpc.exchange.http.private_file import private_directory

__all__ = ["lock_state_dir", "start_lock"]

FILE = "owner.lock"

REMAINS_S = 6.0
"""How long an exchange process may take to end after its program was killed; more than serve.CLOSE_LIMIT_S."""

PAUSE_S = 0.02


@contextlib.contextmanager
def lock_state_dir(directory: Path) -> Iterator[int]:
    """Have `directory`, which is made where there is none, for the ``with`` block.

    Yields:
        Descriptor that holds the lock. The exchange process inherits it, so that who has the lock next finds the port
        and the database free, even if this program is killed.

    Raises:
        StoreError: Another program has it, or it is not a directory of this user's alone.
    """
    try:
        file = close_in_copies(_open(directory))
    except OSError as error:
        raise StoreError(f"The state directory {directory} can't be used: {error}.") from None
    with file:
        _lock(file, directory)
        yield file.fileno()


@contextlib.contextmanager
def start_lock(directory: Path) -> Iterator[None]:
    """For the ``with`` block, nobody else starts an exchange in this directory, which is made where there is none.

    Whoever comes second waits.

    Raises:
        StoreError: It is not a directory of this user's alone.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with private_directory(directory, follow=False) as folder:
            lock = os.open("start.lock", flags, 0o600, dir_fd=folder)
    except OSError as error:
        raise StoreError(f"The state directory {directory} can't be used: {error}.") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _open(directory: Path) -> IO[bytes]:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with private_directory(directory, follow=False) as folder:
        return os.fdopen(os.open(FILE, flags, 0o600, dir_fd=folder), "r+b", buffering=0)


def _lock(file: IO[bytes], directory: Path) -> None:
    deadline = time.monotonic() + REMAINS_S
    while not _try_lock(file, directory):
        owner = _owner(file)
        if owner is None or owner.ended() is None or time.monotonic() > deadline:
            program = "another program" if owner is None else f"process {owner.pid} on {owner.host}"
            raise StoreError(f"The state directory {directory} is in use by {program}. Stop that one first.")
        time.sleep(PAUSE_S)  # its exchange process is putting things in order
    os.ftruncate(file.fileno(), 0)
    os.pwrite(file.fileno(), msgspec.json.encode(ServerOrigin.here()), 0)


def _try_lock(file: IO[bytes], directory: Path) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise StoreError(
            f"The state directory {directory} can't be locked: {error}. Take one on a local disk."
        ) from None
    return True


def _owner(file: IO[bytes]) -> ServerOrigin | None:
    try:
        return msgspec.json.decode(os.pread(file.fileno(), 1 << 16, 0), type=ServerOrigin)
    except msgspec.DecodeError:  # it has the lock, and has not written yet
        return None
