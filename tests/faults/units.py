"""What a proxy passes on at once: WebSocket frames, heads of HTTP, or bytes as they come."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

import msgspec

__all__ = ["Splitter", "Unit"]

_METHOD = re.compile(rb"(GET|PUT|POST|DELETE|PATCH|HEAD|OPTIONS) /")


class Unit:
    """What is passed at once: a WebSocket frame, a head and what came with it, or bytes as they came."""

    def __init__(self, data: bytes, *, payload: tuple[int, int] | None = None, head: bool = False) -> None:
        self.data = data
        self.head = head
        self.method = ""  # of the request that this belongs to; of plain HTTP
        self._payload = payload

    @property
    def kinds(self) -> frozenset[int]:
        """Tags of the operations in this frame; none if it is no binary frame."""
        if self._payload is None or self.data[0] & 0x0F != 2:
            return frozenset()
        start, size = self._payload
        payload = self.data[start : start + size]
        if self.data[1] & 0x80:
            payload = _unmasked(payload, self.data[start - 4 : start])
        return frozenset(operation[0] for operation in msgspec.msgpack.decode(payload))


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


class Splitter:
    """Cuts the bytes of one direction of one connection into units."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._frames = False

    def feed(self, data: bytes) -> list[Unit]:
        self._rest += data
        if self._frames:
            return list(self._take_frames())
        if not _METHOD.match(self._rest) and not self._rest.startswith(b"HTTP/1.1 101"):
            return [Unit(self._take(len(self._rest)))]
        end = self._rest.find(b"\r\n\r\n") + 4
        if end < 4:
            return []
        head = self._rest[:end].lower()
        self._frames = b"\r\nupgrade: websocket" in head
        first = Unit(self._take(end if self._frames else len(self._rest)), head=True)
        return [first, *self._take_frames()] if self._frames else [first]

    def rest(self) -> bytes:
        """What came and is no whole unit."""
        return self._take(len(self._rest))

    def _take(self, size: int) -> bytes:
        data = bytes(self._rest[:size])
        del self._rest[:size]
        return data

    def _take_frames(self) -> Iterator[Unit]:
        while (layout := _frame_layout(self._rest)) is not None:
            start, size = layout
            if len(self._rest) < start + size:
                return
            yield Unit(self._take(start + size), payload=layout)


def _frame_layout(data: bytearray) -> tuple[int, int] | None:
    """Where the payload of the frame begins and how long it is (RFC 6455, 5.2); None: not known yet."""
    if len(data) < 14 and len(data) < 2 + {126: 2, 127: 8}.get(data[1] & 0x7F if len(data) > 1 else 127, 0):
        return None
    size, start = data[1] & 0x7F, 2
    if size == 126:
        (size,), start = struct.unpack(">H", data[2:4]), 4
    elif size == 127:
        (size,), start = struct.unpack(">Q", data[2:10]), 10
    return start + (4 if data[1] & 0x80 else 0), size
