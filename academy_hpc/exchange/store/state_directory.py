"""A state directory: this user's alone, on a local disk, and used by one exchange at a time."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from academy_hpc.errors import StoreError
from academy_hpc.exchange.file_system import network_file_system

__all__ = ["claim"]


def claim(directory: Path) -> int:
    """Make the directory, or check it, and lock it; the descriptor that holds the lock.

    Raises:
        StoreError: It can't be made or locked, is somebody else's, open to others, or on a network file system.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat(follow_symlinks=False)
    except OSError as error:
        raise StoreError(
            f"The state directory {directory} can't be made: {error.strerror}. Make it yourself, or take another place."
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise StoreError(f"The state directory {directory} is no directory, or a link to one. Take another place.")
    if status.st_uid != os.getuid():
        raise StoreError(
            f"The state directory {directory} belongs to user {status.st_uid}, who could read and change all that is "
            f"in it; you are user {os.getuid()}. Nothing was changed: take a directory of your own."
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise StoreError(f"The state directory {directory} is open to others: chmod 700 {directory}")
    kind = network_file_system(directory)
    if kind is not None:
        raise StoreError(
            f"The state directory {directory} is on a network file system ({kind}), where neither locks nor crashes "
            "are safe. Take one on a local disk of this host, such as /var/tmp or $TMPDIR."
        )
    return _lock(directory)


def _lock(directory: Path) -> int:
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(
            f"The state directory {directory} can't be written: {error.strerror}. Nothing was changed: free space or "
            "mend its rights, and start again."
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise StoreError(
            f"The state directory {directory} is in use by another exchange. Stop that one first, or take another."
        ) from None
    return fd
