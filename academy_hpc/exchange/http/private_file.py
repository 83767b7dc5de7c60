"""Files that hold a secret: 0600, in a directory 0700, ours, and never seen half written.

Login nodes and parallel file systems are shared. A file that others could write could send us to their exchange,
and one that they could read would let them into ours; so both writing and reading refuse what is looser.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["private_directory", "read_private", "read_private_bytes", "write_private"]

MAX_BYTES = 1 << 20
"""More than this is not one of our files, whatever it is."""


def write_private(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write `content` to `path` so that only this user can ever read it; an older file there is replaced in one step.

    The directory is made (0700) where there is none.

    Raises:
        OSError: The directory belongs to somebody else or is open to others (PermissionError, which says what
            mends it), or the file can't be written.
    """
    target = Path(path).expanduser().absolute()
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with private_directory(target.parent) as folder:
        aside = f".{target.name}.{secrets.token_hex(8)}"
        try:
            _write_new(aside, content.encode() if isinstance(content, str) else content, folder)
            os.replace(aside, target.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=folder)
            raise
        os.fsync(folder)


def read_private(path: str | os.PathLike[str], *, limit_bytes: int = MAX_BYTES) -> str:
    """Read the text of `path`, having checked that nobody else could have read or written it.

    Raises:
        OSError: There is no such file, or it or its directory is open to others, not ours, or a link
            (PermissionError, which says what mends it).
        ValueError: The file is not UTF-8 text, or too large to be one of ours.
    """
    return read_private_bytes(path, limit_bytes=limit_bytes).decode()


def read_private_bytes(path: str | os.PathLike[str], *, limit_bytes: int | None = None) -> bytes:
    """The same for any content. Raises OSError, and ValueError: it is larger than `limit_bytes`."""
    source = Path(path).expanduser().absolute()
    with private_directory(source.parent) as folder:
        # O_NONBLOCK: opening a FIFO that was put in our way must not hang; for a regular file it means nothing.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(source.name, "rb", opener=lambda file, _: os.open(file, flags, dir_fd=folder)) as file:
            _check(os.fstat(file.fileno()), source, "600", stat.S_ISREG)
            content: bytes = file.read(-1 if limit_bytes is None else limit_bytes + 1)
    if limit_bytes is not None and len(content) > limit_bytes:
        raise ValueError(f"{source} is larger than {limit_bytes} bytes")
    return content


def _write_new(name: str, content: bytes, folder: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(name, "wb", opener=lambda file, _: os.open(file, flags, 0o600, dir_fd=folder)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def private_directory(directory: Path, *, follow: bool = True) -> Iterator[int]:
    """A descriptor of `directory`, checked; what is opened relative to it can't be swapped behind our back.

    Args:
        directory: Its path.
        follow: Whether it may be a link. In /tmp and its like, others could have made that, to a directory of ours.
    """
    if not follow and directory.is_symlink():
        raise PermissionError(f"{directory} is a link; remove it, or take another place")
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        _check(os.fstat(folder), directory, "700", stat.S_ISDIR)
        yield folder
    finally:
        os.close(folder)


def _check(status: os.stat_result, path: Path, mode: str, is_kind: Callable[[int], bool]) -> None:
    if not is_kind(status.st_mode):
        raise PermissionError(f"{path} is not a regular file")
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user (uid {status.st_uid})")
    if status.st_mode & 0o077:
        raise PermissionError(f"{path} is open to other users; `chmod {mode} {path}` closes it")
