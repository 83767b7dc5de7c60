"""Which file systems can hold the state of an exchange."""

from __future__ import annotations

from pathlib import Path

import psutil

__all__ = ["file_system", "network_file_system"]

# SQLite's locks and its shared memory do not work on these (https://sqlite.org/wal.html, section 1).
_NETWORK_FILE_SYSTEMS = frozenset(
    [
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.sshfs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "orangefs",
        "panfs",
        "pvfs2",
        "smb3",
        "smbfs",
        "wekafs",
    ]
)


def file_system(directory: Path) -> str:
    """The kind of file system that `directory` is on, such as ``"ext4"``; "" where that can't be known."""
    place = directory.resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[parent] for parent in (place, *place.parents) if parent in mounts), "")


def network_file_system(directory: Path) -> str | None:
    """The kind of network file system that `directory` is on; None: it is on none that is known."""
    kind = file_system(directory)
    return kind if kind in _NETWORK_FILE_SYSTEMS else None
