"""The journal of a durable store: the file to which each batch of changes goes before anybody is told of it.

A head of 4096 bytes says which exchange it belongs to; after it come records, one for each batch. What they say is
taken over into the database now and then; the database then has the next *generation*, and records are written from the
start of the file again, over those of the generation before. So the file stays as large as it is, which makes a record
durable with one write to the disk, and a crash at any point leaves either the old generation or the new one.

A record that is cut off or does not fit its checksum ends the journal: its write was not completed, and nobody was told
that it was. If a later record says that it was on the disk, the file was damaged.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import msgspec

from academy_hpc.changes import Change
from academy_hpc.exchange.store.damage import DamageError
from academy_hpc.message import Header, Message

__all__ = ["JOURNAL", "Journal", "decode_changes", "encode_changes"]

JOURNAL = "exchange.journal"
HEAD_BYTES = 4096
FIRST_BYTES = 64 << 10
# The file grows by this much at once: a record that makes it longer takes the disk twice as long.
STEP_BYTES = 1 << 20
# A file that was longer is cut down to this.
LARGE_BYTES = 64 << 20

_MAGIC = b"academy_hpc journal 1\n"
_HEAD = struct.Struct("<22s16s16s")  # magic, exchange, mark
# As in `_Head`, with the mark before them.
_RECORD = struct.Struct("<16sQQQQQI")


class _Head(NamedTuple):
    """What stands before the changes of a record, after the file's mark."""

    generation: int
    number: int
    durable: int  # so many of the records before it were on the disk when it was written
    file_bytes: int  # so long was the file
    length: int  # so many bytes follow
    checksum: int = 0  # of all this and of them


class Journal:
    """One journal file, open. Any OSError comes through: what was to be written is not in the journal then."""

    def __init__(self, path: Path, fd: int, mark: bytes) -> None:
        self.path = path
        self.size = 0  # bytes of the records of this generation
        self._fd = fd
        self._file_bytes = os.fstat(fd).st_size
        self._mark = mark
        self._generation = self._number = self._durable = 0
        self._marking = threading.Lock()  # held for no longer than it takes to read or set them

    @classmethod
    def create(cls, path: Path, exchange_id: uuid.UUID) -> Self:
        """A new, empty journal; one that was half made when a program died is made anew."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        aside = path.with_suffix(".new")
        aside.unlink(missing_ok=True)
        fd = os.open(aside, flags, 0o600)
        try:
            mark = os.urandom(16)
            head = _HEAD.pack(_MAGIC, exchange_id.bytes, mark)
            _write_all(fd, head + bytes(FIRST_BYTES - len(head)), 0)
            os.fsync(fd)
            aside.rename(path)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, mark)

    @classmethod
    def open(cls, path: Path, exchange_id: uuid.UUID | None) -> Self:
        """The journal that is there; None takes that of any exchange. Raises DamageError."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise DamageError(f"{path.name} is missing") from None
        try:
            return cls(path, fd, _read_head(fd, path, exchange_id))
        except BaseException:
            os.close(fd)
            raise

    def read(self, generation: int) -> tuple[list[bytes], str | None]:
        """The records of `generation`, and what is wrong with the file; the next record goes after them.

        With damage, the readable records behind it are among them.
        """
        self._start(generation)
        records: list[bytes] = []
        damage: str | None = None
        with mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
            offset = HEAD_BYTES
            while offset >= 0:
                head = self._record(view, offset)
                if head is None or head.generation != generation or head.number < self._number:
                    offset = self._next_good(content, view, offset + 1)
                    damage = damage if offset < 0 else f"{self.path.name} is damaged in the middle"
                    continue
                offset += _RECORD.size
                records.append(bytes(view[offset : offset + head.length]))
                offset += head.length
                self._number, self.size = head.number + 1, offset - HEAD_BYTES
                if head.file_bytes > len(view):
                    damage = f"{self.path.name} was cut off"
        if not records and self.last_generation() > generation:
            damage = f"{self.path.name} goes on from a newer database than the one that is there"
        return records, damage

    def last_generation(self) -> int:
        """Which generation was written last; 0 if nothing was."""
        with mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
            head = self._record(view, HEAD_BYTES)
            return 0 if head is None else head.generation

    def append(self, payload: bytes | bytearray) -> None:
        """Add a record. When this returns it survives the process."""
        offset = HEAD_BYTES + self.size
        self._make_room(offset + _RECORD.size + len(payload))
        fields = _Head(self._generation, self._number, self._durable, self._file_bytes, len(payload))
        head = self._pack(fields._replace(checksum=self._checksum(fields, payload)))
        if os.pwritev(self._fd, (head, payload), offset) != len(head) + len(payload):  # cut short: slowly
            _write_all(self._fd, head + payload, offset)
        self._number += 1
        self.size += len(head) + len(payload)

    def sync(self) -> None:
        """What was appended before survives the loss of power, too. The one method for another thread."""
        with self._marking:
            generation, number = self._generation, self._number
        os.fdatasync(self._fd)
        with self._marking:
            if self._generation == generation:
                self._durable = number

    def _make_room(self, end: int) -> None:
        if not self._number and self._file_bytes > LARGE_BYTES:
            os.ftruncate(self._fd, LARGE_BYTES)
            self._file_bytes = LARGE_BYTES
        if end > self._file_bytes:
            _write_all(self._fd, bytes(end + STEP_BYTES - self._file_bytes), self._file_bytes)
            self._file_bytes = end + STEP_BYTES

    def start_over(self, generation: int) -> None:
        """The database holds it all, and expects this generation next."""
        self._start(generation)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def _start(self, generation: int) -> None:
        with self._marking:
            self._generation, self._number, self._durable, self.size = generation, 0, 0, 0

    def _pack(self, head: _Head) -> bytes:
        return _RECORD.pack(self._mark, *head)

    def _checksum(self, head: _Head, payload: bytes | bytearray | memoryview) -> int:
        return zlib.crc32(payload, zlib.crc32(self._pack(head._replace(checksum=0))))

    def _record(self, view: memoryview, offset: int) -> _Head | None:
        """The head of the record at `offset`, if there is a good one."""
        start = offset + _RECORD.size
        if start > len(view):
            return None
        mark, *fields = _RECORD.unpack_from(view, offset)
        head = _Head(*fields)
        if mark != self._mark or start + head.length > len(view):
            return None
        return head if head.checksum == self._checksum(head, view[start : start + head.length]) else None

    def _next_good(self, content: mmap.mmap, view: memoryview, offset: int) -> int:
        """Where the record is that says that the missing one was on the disk; -1 if none does."""
        while (offset := content.find(self._mark, offset)) >= 0:
            head = self._record(view, offset)
            if head is not None and head.generation == self._generation and head.durable > self._number:
                return offset
            offset += 1
        return -1


def _read_head(fd: int, path: Path, exchange_id: uuid.UUID | None) -> bytes:
    head = os.pread(fd, _HEAD.size, 0)
    if os.fstat(fd).st_size < FIRST_BYTES:
        raise DamageError(f"{path.name} was cut off")
    magic, exchange, mark = _HEAD.unpack(head)
    if magic != _MAGIC:
        raise DamageError(f"{path.name} does not start as a journal does")
    if exchange_id is not None and exchange != exchange_id.bytes:
        raise DamageError(f"{path.name} is the journal of another exchange")
    return bytes(mark)


def _write_all(fd: int, content: bytes | bytearray, offset: int) -> None:
    view = memoryview(content)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def _write_message(value: object) -> tuple[Header, bytes]:
    if isinstance(value, Message):
        return value.header, value.body
    raise NotImplementedError(type(value).__name__)


def _read_message(_: type, value: tuple[object, bytes]) -> Message:
    header, body = value
    return Message(msgspec.convert(header, Header), body)


_encoder = msgspec.msgpack.Encoder(uuid_format="bytes", enc_hook=_write_message)
_decoder = msgspec.msgpack.Decoder(list[Change], dec_hook=_read_message)


def encode_changes(changes: Sequence[Change]) -> bytes:
    """As they are written to disk."""
    return _encoder.encode(changes)


def decode_changes(record: bytes) -> list[Change]:
    """What `encode_changes` wrote. Raises DamageError."""
    try:
        return _decoder.decode(record)
    except msgspec.MsgspecError as error:
        raise DamageError(f"{JOURNAL} holds changes that this version does not know: {error}") from error
