"""The SQLite database of a durable store: all that was taken over from the journal, as tables."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from academy_hpc.changes import (
    MailboxCreated,
    MailboxRow,
    MessageDied,
    MessageStored,
    RequestPending,
    Snapshot,
)
from academy_hpc.errors import StoreError
from academy_hpc.exchange.store.damage import DamageError
from academy_hpc.exchange.store.digest import BoxDigest, Digest
from academy_hpc.message import Header, Message
from academy_hpc.repeats import PER_SOURCE, SOURCES

__all__ = ["DATABASE", "SCHEMA_VERSION", "Database", "read_damaged"]

DATABASE = "exchange.sqlite"
SCHEMA_VERSION = 2

_SCHEMA = """
CREATE TABLE about (exchange_id BLOB NOT NULL, generation INTEGER NOT NULL);
CREATE TABLE mailbox (
    number INTEGER PRIMARY KEY, uid BLOB NOT NULL UNIQUE, created BLOB NOT NULL, checksum INTEGER NOT NULL,
    groups BLOB NOT NULL DEFAULT x'90', session BLOB, last_seq INTEGER NOT NULL DEFAULT 0);
CREATE TABLE message (
    mailbox BLOB NOT NULL, seq INTEGER NOT NULL, header BLOB NOT NULL, body BLOB NOT NULL, checksum INTEGER NOT NULL,
    PRIMARY KEY (mailbox, seq));
CREATE TABLE pending (
    number INTEGER PRIMARY KEY, mailbox BLOB NOT NULL, tag BLOB NOT NULL, header BLOB NOT NULL,
    checksum INTEGER NOT NULL, UNIQUE (mailbox, tag));
CREATE TABLE dead (
    number INTEGER PRIMARY KEY, mailbox BLOB NOT NULL, tag BLOB NOT NULL, header BLOB NOT NULL, body BLOB NOT NULL,
    checksum INTEGER NOT NULL, attempts INTEGER NOT NULL, died_s REAL NOT NULL, UNIQUE (mailbox, tag));
CREATE TABLE tombstone (number INTEGER PRIMARY KEY, uid BLOB NOT NULL UNIQUE);
CREATE TABLE recent (
    number INTEGER PRIMARY KEY, source BLOB NOT NULL UNIQUE, ids BLOB NOT NULL, checksum INTEGER NOT NULL);
"""
_OF_A_MAILBOX = ("mailbox.uid", "message.mailbox", "pending.mailbox", "dead.mailbox")

ID_BYTES = 17  # a tag and one bit, signed

_encode = msgspec.msgpack.Encoder(uuid_format="bytes").encode
_header = msgspec.msgpack.Decoder(Header)
_created = msgspec.msgpack.Decoder(MailboxCreated)
_names = msgspec.msgpack.Decoder(tuple[str, ...])


class Database:
    """Opens, or makes, the database in `path`. Its methods raise sqlite3.Error.

    Raises:
        DamageError: The file is not as SQLite wrote it.
        StoreError: It can't be opened, or another version wrote it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = _connect(path)
        try:
            self.is_new = _check(self._connection, path)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close it."""
        self.close()

    def create(self, exchange_id: uuid.UUID) -> None:
        """Make the tables; until then the database `is_new`."""
        with self._transaction() as execute:
            for statement in _SCHEMA.split(";"):
                execute(statement)
            execute("INSERT INTO about VALUES (?, 1)", (exchange_id.bytes,))
            execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        self.is_new = False

    @property
    def exchange_id(self) -> uuid.UUID:
        """Which exchange's state this is."""
        (value,) = self._connection.execute("SELECT exchange_id FROM about").fetchone()
        return uuid.UUID(bytes=value)

    @property
    def generation(self) -> int:
        """Which generation of the journal goes on from here."""
        (value,) = self._connection.execute("SELECT generation FROM about").fetchone()
        return int(value)

    def close(self) -> None:
        """Let go of the files."""
        self._connection.close()

    # Writing

    def take_over(self, digest: Digest, *, tombstones: int) -> None:
        """Write what `digest` says, and expect the next generation of the journal: both, or neither."""
        with self._transaction():
            boxes = [(uid.bytes, box) for uid, box in digest.boxes.items()]
            self._remove_rows(boxes)
            self._write_mailboxes(boxes)
            self._write_messages(boxes)
            self._write_tombstones(digest, tombstones)
            self._write_recent(digest)
            self._connection.execute("UPDATE about SET generation = generation + 1")

    def _remove_rows(self, boxes: list[tuple[bytes, BoxDigest]]) -> None:
        many = self._connection.executemany
        ended = [(uid,) for uid, box in boxes if box.ended]
        for place in _OF_A_MAILBOX:
            table, column = place.split(".")
            many(f"DELETE FROM {table} WHERE {column} = ?", ended)  # noqa: S608 - our own names
        many(
            "DELETE FROM message WHERE mailbox = ? AND seq = ?",
            ((uid, seq) for uid, box in boxes for seq in box.removed),
        )
        for table, attribute in (("pending", "answered"), ("dead", "revived")):
            rows = ((uid, tag.bytes) for uid, box in boxes for tag in getattr(box, attribute))
            many(f"DELETE FROM {table} WHERE mailbox = ? AND tag = ?", rows)  # noqa: S608 - our own names

    def _write_mailboxes(self, boxes: list[tuple[bytes, BoxDigest]]) -> None:
        many = self._connection.executemany
        created = [(uid, _encode(box.created)) for uid, box in boxes if box.created is not None]
        many(
            "INSERT INTO mailbox (uid, created, checksum) VALUES (?, ?, ?)",
            ((uid, made, _checksum(made)) for uid, made in created),
        )
        for column, rows in (
            ("last_seq", [(box.last_seq, uid) for uid, box in boxes if box.last_seq]),
            ("session", [(box.session.bytes, uid) for uid, box in boxes if box.session is not None]),
            ("groups", [(_encode(sorted(box.groups)), uid) for uid, box in boxes if box.groups is not None]),
        ):
            many(f"UPDATE mailbox SET {column} = ? WHERE uid = ?", rows)  # noqa: S608 - our own names

    def _write_messages(self, boxes: list[tuple[bytes, BoxDigest]]) -> None:
        many = self._connection.executemany
        messages = ((uid, seq, m) for uid, box in boxes for seq, m in box.messages.items())
        rows = ((uid, seq, header := _encode(m.header), m.body, _checksum(header, m.body)) for uid, seq, m in messages)
        many("INSERT OR REPLACE INTO message VALUES (?, ?, ?, ?, ?)", rows)
        pending = ((uid, tag.bytes, _encode(header)) for uid, box in boxes for tag, header in box.pending.items())
        many(
            "INSERT OR REPLACE INTO pending (mailbox, tag, header, checksum) VALUES (?, ?, ?, ?)",
            ((uid, tag, header, _checksum(header)) for uid, tag, header in pending),
        )
        letters = [(uid, letter) for uid, box in boxes for letter in box.dead.values()]
        for uid, letter in letters:
            message = letter.message
            header = _encode(message.header)
            self._connection.execute(
                "INSERT OR REPLACE INTO dead (mailbox, tag, header, body, checksum, attempts, died_s) VALUES "
                "(?, ?, ?, ?, ?, ?, ?)",
                (
                    uid,
                    message.tag.bytes,
                    header,
                    message.body,
                    _checksum(header, message.body),
                    letter.attempts,
                    letter.died_s,
                ),
            )

    def _write_tombstones(self, digest: Digest, limit: int) -> None:
        many = self._connection.executemany
        many("DELETE FROM tombstone WHERE uid = ?", ((uid.bytes,) for uid in digest.tombstones))
        added = ((uid.bytes,) for uid, add in digest.tombstones.items() if add)
        many("INSERT INTO tombstone (uid) VALUES (?)", added)
        self._keep_last("tombstone", limit)

    def _write_recent(self, digest: Digest) -> None:
        execute = self._connection.execute
        for source, numbers in digest.recent.items():
            ids = b"".join(number.to_bytes(ID_BYTES, "big", signed=True) for number in numbers)
            if len(numbers) < PER_SOURCE:
                (before,) = execute("SELECT ids FROM recent WHERE source = ?", (source.bytes,)).fetchone() or (b"",)
                ids = (before + ids)[-PER_SOURCE * ID_BYTES :]
            insert = "INSERT OR REPLACE INTO recent (source, ids, checksum) VALUES (?, ?, ?)"
            execute(insert, (source.bytes, ids, _checksum(ids)))
        self._keep_last("recent", SOURCES)

    def _keep_last(self, table: str, limit: int) -> None:
        oldest = f"SELECT number FROM {table} ORDER BY number DESC LIMIT 1 OFFSET ?"  # noqa: S608 - our own names
        self._connection.execute(f"DELETE FROM {table} WHERE number <= ({oldest})", (limit,))  # noqa: S608

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection.execute
            self._connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    # Reading

    def load(self) -> Snapshot:
        """All that the tables hold. Raises DamageError, too."""
        try:
            parts: list[Any] = [
                [part.read(*row) for row in self._connection.execute(part.query("ASC"))] for part in _PARTS
            ]
            return Snapshot(*parts)
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            raise DamageError(f"{self.path.name} holds a row that was not written so: {error}") from error


class _Part(NamedTuple):
    """How one field of a snapshot is read."""

    columns: str
    table: str
    read: Callable[..., Any]
    order: str = "number {0}"

    def query(self, direction: str) -> str:
        order = self.order.format(direction)
        return f"SELECT {self.columns} FROM {self.table} ORDER BY {order}"  # noqa: S608 - our own names


def _mailbox(made: bytes, checksum: int, groups: bytes, session: bytes | None, last_seq: int) -> MailboxRow:
    created = _created.decode(_checked(checksum, made))
    listener = None if session is None else uuid.UUID(bytes=session)
    shared = frozenset(_names.decode(groups))
    return MailboxRow(created.entity, created.owner, created.classes, shared, listener, last_seq)


def _message(uid: bytes, seq: int, header: bytes, body: bytes, checksum: int) -> MessageStored:
    _checked(checksum, header, body)
    return MessageStored(uuid.UUID(bytes=uid), seq, Message(_header.decode(header), body))


def _pending(uid: bytes, header: bytes, checksum: int) -> RequestPending:
    return RequestPending(uuid.UUID(bytes=uid), _header.decode(_checked(checksum, header)))


def _tombstone(uid: bytes) -> uuid.UUID:
    return uuid.UUID(bytes=uid)


def _recent(source: bytes, ids: bytes, checksum: int) -> tuple[uuid.UUID, tuple[int, ...]]:
    _checked(checksum, ids)
    places = range(0, len(ids), ID_BYTES)
    numbers = (int.from_bytes(ids[place : place + ID_BYTES], "big", signed=True) for place in places)
    return uuid.UUID(bytes=source), tuple(numbers)


def _dead(uid: bytes, header: bytes, body: bytes, attempts: int, died_s: float, checksum: int) -> MessageDied:
    _checked(checksum, header, body)
    return MessageDied(uuid.UUID(bytes=uid), Message(_header.decode(header), body), attempts, died_s)


# In the order of the fields of `Snapshot`.
_PARTS = (
    _Part("created, checksum, groups, session, last_seq", "mailbox", _mailbox),
    _Part("mailbox, seq, header, body, checksum", "message", _message, "mailbox {0}, seq {0}"),
    _Part("mailbox, header, checksum", "pending", _pending),
    _Part("uid", "tombstone", _tombstone),
    _Part("source, ids, checksum", "recent", _recent),
    _Part("mailbox, header, body, attempts, died_s, checksum", "dead", _dead),
)


def read_damaged(path: Path) -> tuple[Snapshot, int]:
    """What can be read of a database that can't be trusted, and its generation; 0 if not even that. Changes nothing."""
    generation = 0
    found: list[Any] = []
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        with contextlib.suppress(sqlite3.Error, TypeError):
            (generation,) = connection.execute("SELECT generation FROM about").fetchone()
        found = [_readable(connection, part) for part in _PARTS]
    return Snapshot(*found), generation


def _readable(connection: sqlite3.Connection, part: _Part) -> list[Any]:
    """The rows before the damage, and those behind it: a table can be read from both ends."""
    before: list[Any] = []
    behind: list[Any] = []
    for direction, rows in (("ASC", before), ("DESC", behind)):
        with contextlib.suppress(sqlite3.Error):
            for row in connection.execute(part.query(direction)):
                with contextlib.suppress(msgspec.MsgspecError, ValueError, TypeError):
                    rows.append((row, part.read(*row)))
            return [item for _, item in rows]  # all of it; this way, or that
    seen = {row for row, _ in before}
    return [item for _, item in before] + [item for row, item in reversed(behind) if row not in seen]


def _checksum(*parts: bytes) -> int:
    """SQLite notices damage to its own structures, and not to what it keeps for us."""
    value = 0
    for part in parts:
        value = zlib.crc32(part, value)
    return value


def _checked(checksum: int, *parts: bytes) -> bytes:
    if checksum != _checksum(*parts):
        raise ValueError("it does not fit its checksum")
    return parts[0]


def _connect(path: Path) -> sqlite3.Connection:
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        # The writing thread is the only user after `load`.
        return sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path} can't be opened: {error}. Nothing was changed.") from error


def _check(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the database has no tables yet."""
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.OperationalError:
        raise
    except sqlite3.DatabaseError as error:
        raise DamageError(f"{path.name}: {error}") from error
    if found != "ok":
        raise DamageError(f"{path.name}: {' '.join(str(found).split())}")
    if version not in (0, SCHEMA_VERSION):
        raise StoreError(
            f"{path} was written by another version of academy_hpc (schema {version}, here {SCHEMA_VERSION}). Nothing "
            "was changed: go on with that version, or take another state directory."
        )
    return bool(version == 0)
