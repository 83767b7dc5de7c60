"""The durable store: a SQLite database in a state directory. What `write` returned from survives SIGKILL.

One thread writes. Whatever was asked for while it wrote goes into one transaction, so that the price of making it
durable is shared by all who wait. With ``synchronous=FULL`` a commit also survives the loss of power, as far as the
disk keeps its promises.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import queue
import sqlite3
import stat
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from academy_hpc.changes import (
    Change,
    MailboxCreated,
    MailboxRow,
    MailboxTerminated,
    MessagesRemoved,
    MessageStored,
    RequestAnswered,
    RequestPending,
    SessionStarted,
    ShareChanged,
    Snapshot,
)
from academy_hpc.errors import StoreError
from academy_hpc.identifiers import EntityId
from academy_hpc.message import Header, Message

__all__ = ["DATABASE", "SqliteStore"]

DATABASE = "exchange.sqlite"
SCHEMA_VERSION = 1

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

_SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE mailbox (
    number INTEGER PRIMARY KEY, uid BLOB NOT NULL UNIQUE, entity BLOB NOT NULL, owner TEXT NOT NULL,
    classes BLOB NOT NULL, groups BLOB NOT NULL, session BLOB, last_seq INTEGER NOT NULL DEFAULT 0);
CREATE TABLE message (
    mailbox INTEGER NOT NULL, seq INTEGER NOT NULL, header BLOB NOT NULL, body BLOB NOT NULL,
    PRIMARY KEY (mailbox, seq));
CREATE TABLE pending (
    mailbox INTEGER NOT NULL, tag BLOB NOT NULL, header BLOB NOT NULL, PRIMARY KEY (mailbox, tag));
CREATE TABLE tombstone (number INTEGER PRIMARY KEY, uid BLOB NOT NULL UNIQUE);
"""

_encode = msgspec.msgpack.Encoder(uuid_format="bytes").encode
_header = msgspec.msgpack.Decoder(Header)
_entity = msgspec.msgpack.Decoder(EntityId)
_names = msgspec.msgpack.Decoder(tuple[str, ...])

_Job = tuple[Sequence[Change], asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class SqliteStore:
    """Keeps everything in ``exchange.sqlite`` of a state directory, which is this user's alone and on a local disk.

    Raises:
        StoreError: The directory can't be used, is used by another exchange, or holds what can't be read.
    """

    def __init__(self, directory: str | os.PathLike[str], *, tombstones: int = 50_000) -> None:
        self.directory = Path(directory)
        self._limit = tombstones
        self._numbers: dict[uuid.UUID, int] = {}
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock_fd = _claim(self.directory)
        try:
            self._connection = _open(self.directory / DATABASE)
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._apply: dict[type[Change], Callable[[Any], None]] = {
            MailboxCreated: self._create,
            MailboxTerminated: self._terminate,
            MessageStored: self._store,
            MessagesRemoved: self._remove,
            RequestPending: self._pend,
            RequestAnswered: self._answer,
            SessionStarted: self._start_session,
            ShareChanged: self._share,
        }

    @property
    def exchange_id(self) -> str:
        """Names what is stored here; an exchange that serves it has this id, however often it is restarted."""
        (value,) = self._connection.execute("SELECT value FROM about WHERE key = 'exchange_id'").fetchone()
        return str(value)

    def load(self) -> Snapshot:
        """See `Store`."""
        execute = self._connection.execute
        rows = execute(
            "SELECT number, uid, entity, owner, classes, groups, session, last_seq FROM mailbox ORDER BY number"
        )
        mailboxes, names = [], {}
        for number, uid, entity, owner, classes, groups, session, last_seq in rows:
            names[number] = uuid.UUID(bytes=uid)
            listener = None if session is None else uuid.UUID(bytes=session)
            shared = frozenset(_names.decode(groups))
            row = MailboxRow(_entity.decode(entity), owner, _names.decode(classes), shared, listener, last_seq)
            mailboxes.append(row)
        self._numbers = {uid: number for number, uid in names.items()}
        messages = [
            MessageStored(names[number], seq, Message(_header.decode(header), body))
            for number, seq, header, body in execute("SELECT * FROM message ORDER BY mailbox, seq")
        ]
        highest = {stored.uid: stored.seq for stored in messages}
        for row in mailboxes:
            row.last_seq = max(row.last_seq, highest.get(row.entity.uid, 0))
        pending = [
            RequestPending(names[number], _header.decode(header))
            for number, header in execute("SELECT mailbox, header FROM pending ORDER BY rowid")
        ]
        tombstones = [uuid.UUID(bytes=uid) for (uid,) in execute("SELECT uid FROM tombstone ORDER BY number")]
        return Snapshot(mailboxes, messages, pending, tombstones)

    async def write(self, changes: Sequence[Change]) -> None:
        """See `Store`. Raises StoreError: nothing of it was kept, and nothing more can be."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="academy_hpc store", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._jobs.put((changes, loop, future))
        await asyncio.shield(future)

    async def close(self) -> None:
        """See `Store`."""
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
            self._thread = None
        self._connection.close()
        with contextlib.suppress(OSError):
            os.close(self._lock_fd)

    # The thread

    def _run(self) -> None:
        last = False
        while not last:
            jobs = [self._jobs.get()]
            with contextlib.suppress(queue.Empty):
                while True:
                    jobs.append(self._jobs.get_nowait())
            last = None in jobs
            self._write_all([job for job in jobs if job is not None])

    def _write_all(self, jobs: list[_Job]) -> None:
        error = self._transaction([change for changes, _, _ in jobs for change in changes])
        for loop in {loop for _, loop, _ in jobs}:
            futures = [future for _, of, future in jobs if of is loop]
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(_resolve, futures, error)

    def _transaction(self, changes: list[Change]) -> StoreError | None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for change in changes:
                self._apply[type(change)](change)
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            return StoreError(f"The state directory {self.directory} can't be written: {error}. Is the disk full?")
        return None

    # Changes

    def _create(self, change: MailboxCreated) -> None:
        uid = change.entity.uid
        values = (uid.bytes, _encode(change.entity), change.owner, _encode(change.classes), _encode(()))
        insert = "INSERT INTO mailbox (uid, entity, owner, classes, groups) VALUES (?, ?, ?, ?, ?)"
        self._numbers[uid] = self._connection.execute(insert, values).lastrowid or 0
        self._connection.execute("DELETE FROM tombstone WHERE uid = ?", (uid.bytes,))

    def _terminate(self, change: MailboxTerminated) -> None:
        number = self._numbers.pop(change.uid, None)
        for table, column in (("mailbox", "number"), ("message", "mailbox"), ("pending", "mailbox")):
            self._connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (number,))  # noqa: S608 - our own names
        execute = self._connection.execute
        number = execute("INSERT OR REPLACE INTO tombstone (uid) VALUES (?)", (change.uid.bytes,)).lastrowid or 0
        execute("DELETE FROM tombstone WHERE number <= ?", (number - self._limit,))

    def _store(self, change: MessageStored) -> None:
        message = change.message
        values = (self._numbers.get(change.uid), change.seq, _encode(message.header), message.body)
        self._connection.execute("INSERT OR REPLACE INTO message VALUES (?, ?, ?, ?)", values)

    def _remove(self, change: MessagesRemoved) -> None:
        number = self._numbers.get(change.uid)
        self._connection.executemany(
            "DELETE FROM message WHERE mailbox = ? AND seq = ?", [(number, seq) for seq in change.seqs]
        )
        # The numbers of a mailbox only grow, also over a restart with nothing in it.
        highest = max(change.seqs, default=0)
        update = "UPDATE mailbox SET last_seq = max(last_seq, ?) WHERE number = ?"
        self._connection.execute(update, (highest, number))

    def _pend(self, change: RequestPending) -> None:
        values = (self._numbers.get(change.uid), change.header.tag.bytes, _encode(change.header))
        self._connection.execute("INSERT OR REPLACE INTO pending VALUES (?, ?, ?)", values)

    def _answer(self, change: RequestAnswered) -> None:
        values = (self._numbers.get(change.uid), change.tag.bytes)
        self._connection.execute("DELETE FROM pending WHERE mailbox = ? AND tag = ?", values)

    def _start_session(self, change: SessionStarted) -> None:
        values = (change.session.bytes, self._numbers.get(change.uid))
        self._connection.execute("UPDATE mailbox SET session = ? WHERE number = ?", values)

    def _share(self, change: ShareChanged) -> None:
        values = (_encode(sorted(change.groups)), self._numbers.get(change.uid))
        self._connection.execute("UPDATE mailbox SET groups = ? WHERE number = ?", values)


def _resolve(futures: list[asyncio.Future[None]], error: StoreError | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _claim(directory: Path) -> int:
    """Make sure that the directory is ours, private and local, and that no other exchange uses it."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat(follow_symlinks=False)
    except OSError as error:
        raise StoreError(f"The state directory {directory} can't be made: {error.strerror}.") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise StoreError(
            f"The state directory {directory} must be a directory of yours that is closed to others: chmod 700."
        )
    kind = _file_system(directory)
    if kind in _NETWORK_FILE_SYSTEMS:
        raise StoreError(
            f"The state directory {directory} is on {kind}, where SQLite is not safe. Take one on a local disk."
        )
    return _lock(directory)


def _lock(directory: Path) -> int:
    try:
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"The state directory {directory} can't be written: {error.strerror}.") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise StoreError(
            f"The state directory {directory} is in use by another exchange. Stop that one first."
        ) from None
    return fd


def _file_system(directory: Path) -> str:
    place = directory.resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[parent] for parent in (place, *place.parents) if parent in mounts), "")


def _open(path: Path) -> sqlite3.Connection:
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        # The writing thread is the only user after `load`.
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path} can't be opened: {error}.") from error
    try:
        _prepare(connection, path)
    except sqlite3.Error as error:
        connection.close()
        raise StoreError(
            f"{path} is damaged: {error}. Move it away to start empty; sqlite3 .recover may save it."
        ) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    (found,) = connection.execute("PRAGMA quick_check").fetchone()
    if found != "ok":
        raise sqlite3.DatabaseError(found)
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == 0:
        connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        connection.execute("INSERT INTO about VALUES ('exchange_id', ?)", (uuid.uuid4().hex,))
    elif version != SCHEMA_VERSION:
        raise StoreError(f"{path} was written by another version (schema {version}, here {SCHEMA_VERSION}).")
