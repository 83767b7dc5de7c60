"""What the holder of one agent's token can do to the exchange with a single frame or request."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import pytest

from academy_hpc.errors import BadRequestError
from academy_hpc.exchange.http import wire
from academy_hpc.exchange.http.server_rest import _compact
from academy_hpc.identifiers import AgentId, EntityId
from academy_hpc.message import Header

__all__: list[str] = []

LIMIT = 1 << 20
AGENT: EntityId = AgentId.new()
NOTHING = b"\x90"  # an empty list: one byte on the wire, 72 in memory


def call_with(argument: bytes) -> bytes:
    """An operation, as it is in a frame."""
    return msgspec.msgpack.encode([5, 1, "status", [msgspec.Raw(argument)]])


def list_of(size: int, item: bytes) -> bytes:
    """A list of `size` times the same."""
    return b"\xdd" + size.to_bytes(4, "big") + size * item


def acknowledging(size: int) -> bytes:
    return msgspec.msgpack.encode([4, AGENT.uid.bytes, 0, [1] * size])


@pytest.mark.parametrize(
    "operations",
    [
        [call_with(list_of(2 * LIMIT, NOTHING))],
        [acknowledging(2 * LIMIT)],
        [call_with(list_of(LIMIT // 20, NOTHING))] * 40,
        [call_with(NOTHING)] * (LIMIT // 10),
        [NOTHING] * 2 * LIMIT,
        [b"\xdc\x00\x03\x03" + list_of(2 * LIMIT, NOTHING)],
        [b"\x93\x03\x01" + list_of(2 * LIMIT, NOTHING)],
    ],
)
def test_a_large_frame_is_large_by_its_messages_alone(operations: list[bytes]) -> None:
    """All else would take many times its size in memory, and long to read."""
    frame = list_of(len(operations), b"")[:5] + b"".join(operations)
    with pytest.raises(BadRequestError, match="frame"):
        wire.decode_from_client(frame)


def test_a_large_frame_with_large_messages_is_read() -> None:
    header = Header(AGENT, AGENT, uuid.uuid4(), "request")
    operations: list[Any] = [wire.Acknowledge(AGENT.uid, 7, list(range(10_000))), wire.Detach(AGENT.uid)]
    operations += [wire.Send(number, header, bytes(LIMIT)) for number in range(3)]
    operations += [wire.Call(1, "status", [msgspec.to_builtins(AGENT)])]
    assert wire.decode_from_client(wire.encode_operations(operations)) == operations


@pytest.mark.parametrize("item", [b"[]", b"0", b'{"a":0}'])
def test_a_message_of_many_small_things_is_not_taken_apart(item: bytes) -> None:
    """To see whether a message that is too large would be small enough in another form."""
    body = b"[" + b" , ".join([item] * 2_000_000) + b',"\\u00e9"]'
    assert _compact(body) == body.replace(b" ", b"")
