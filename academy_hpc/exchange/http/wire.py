"""All that client and server share: paths, JSON fields, stream operations, and errors as statuses.

REST and SSE are the Academy protocol (docs/protocol.md). The stream is ours: a WebSocket whose binary frames are
MessagePack arrays of operations, each one of the structs below. Bodies of messages are passed on as bytes.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any, TypeVar

import msgspec

from academy_hpc.errors import (
    AcademyError,
    BadEntityIdError,
    BadRequestError,
    ExchangeUnavailableError,
    ForbiddenError,
    MailboxTerminatedError,
    RefusedError,
    UnauthorizedError,
)
from academy_hpc.identifiers import EntityId
from academy_hpc.message import Header
from academy_hpc.serialization import error_arguments, make_error

__all__ = [
    "BATCH_BYTES",
    "DISCOVER_PATH",
    "HEARTBEAT_PATH",
    "HEARTBEAT_S",
    "LISTEN_PATH",
    "MAILBOX_PATH",
    "MAX_UNCONFIRMED",
    "MESSAGE_PATH",
    "OPERATIONS_BYTES",
    "SHARE_PATH",
    "STATS_PATH",
    "STREAM_PATH",
    "STREAM_PROTOCOL",
    "UNHURRIED",
    "UNHURRIED_S",
    "WHOAMI_PATH",
    "Acknowledge",
    "Attach",
    "Bye",
    "Call",
    "CreateFields",
    "Deliver",
    "Detach",
    "DiscoverFields",
    "Ended",
    "Failed",
    "FromClient",
    "FromServer",
    "Hello",
    "ListenFields",
    "MailboxFields",
    "MessageFields",
    "Present",
    "Reply",
    "Send",
    "Sent",
    "ShareFields",
    "Status",
    "decode_entity",
    "decode_fields",
    "decode_from_client",
    "decode_from_server",
    "encode_operations",
    "error_from_status",
    "error_text",
    "failure",
    "failure_error",
]

MAILBOX_PATH = "/mailbox"
MESSAGE_PATH = "/message"
LISTEN_PATH = "/mailbox/listen"
DISCOVER_PATH = "/discover"
HEARTBEAT_PATH = "/mailbox/heartbeat"
STATS_PATH = "/mailbox/stats"
SHARE_PATH = "/mailbox/share"
STREAM_PATH = "/stream"
WHOAMI_PATH = "/whoami"

STREAM_PROTOCOL = "academy-hpc.1"
# A frame is closed at about this size: larger ones are slower (docs/design.md, section 5).
BATCH_BYTES = 64 * 1024
# Room in a large frame for what is not a message: in memory, such operations may take seventy times their size.
OPERATIONS_BYTES = 1024 * 1024
# And for how many operations: a client closes a frame at `BATCH_BYTES`, and counts 200 for each.
OPERATIONS = 4096
# Both sides of a stream ping after this many seconds of silence, and give up half as long after that.
HEARTBEAT_S = 15.0
# Confirmations and acknowledgements that nobody waits for travel with the next frame in their direction, after this
# time, or when this many have gathered: alone they would double the frames of a single call.
UNHURRIED_S = 0.02
UNHURRIED = 64
# Sends of one entity that may be under way without confirmation. The server remembers more than that
# (registry.Limits.remembered_per_source), so what is sent again after a broken connection is stored once.
MAX_UNCONFIRMED = 500

FieldsT = TypeVar("FieldsT")


# REST: the fields of each body. Unknown ones are ignored.


class MailboxFields(msgspec.Struct):
    """Most routes: the JSON text of an entity."""

    mailbox: str


class CreateFields(msgspec.Struct):
    """POST /mailbox. ``agent``: the class chain, separated by commas."""

    mailbox: str
    agent: str | None = None


class ListenFields(msgspec.Struct):
    """GET /message and GET /mailbox/listen. ``timeout`` in seconds."""

    mailbox: str
    timeout: float | None = None


class MessageFields(msgspec.Struct):
    """PUT /message: the JSON text of a message."""

    message: str


class DiscoverFields(msgspec.Struct):
    """GET /discover."""

    agent: str
    allow_subclasses: bool


class ShareFields(msgspec.Struct):
    """POST and DELETE /mailbox/share."""

    mailbox: str
    group_id: str


def decode_fields(data: bytes, fields: type[FieldsT]) -> FieldsT:
    """The body of a REST request. Raises BadRequestError."""
    try:
        return msgspec.json.decode(data, type=fields)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadRequestError(f"Missing or invalid field: {error}") from error


def decode_entity(text: str) -> EntityId:
    """An entity from its JSON text. Raises BadRequestError."""
    return decode_fields(text.encode(), EntityId)


# The stream: client to server


class Attach(msgspec.Struct, array_like=True, tag=1):
    """Listen to a mailbox. ``resume``: highest number received, and the numbers still worked on."""

    call: int
    entity: EntityId
    session: uuid.UUID
    window_messages: int
    window_bytes: int
    resume: tuple[int, list[int]] | None = None


class Detach(msgspec.Struct, array_like=True, tag=2):
    """Stop listening; what is not acknowledged waits for the next listener.

    ``unbegun``: numbers of what was handed out and not begun: it does not count as an attempt.
    """

    uid: uuid.UUID
    unbegun: list[int] = []


class Send(msgspec.Struct, array_like=True, tag=3, gc=False):
    """A message. ``number`` is the client's own, for the confirmation; ``waits``: somebody waits for that."""

    number: int
    header: Header
    body: bytes
    acknowledges: int | None = None
    waits: bool = True


class Acknowledge(msgspec.Struct, array_like=True, tag=4):
    """Done with the messages ``seqs``; all up to ``consumed`` was read, so the window opens."""

    uid: uuid.UUID
    consumed: int
    seqs: list[int]


class Call(msgspec.Struct, array_like=True, tag=5):
    """Any other operation, by name. ``caller``: on behalf of which entity."""

    call: int
    method: str
    arguments: list[Any]
    caller: uuid.UUID | None = None


class Present(msgspec.Struct, array_like=True, tag=6):
    """What the entity `uid` does on this connection from now on, it does by right of this agent's token.

    Without it, by right of the token that opened the connection.
    """

    uid: uuid.UUID
    token: str

    def __repr__(self) -> str:
        """Without the token."""
        return f"Present({self.uid})"

    def __rich_repr__(self) -> list[Any]:
        """The same for rich, which would otherwise show all fields of a Struct."""
        return [self.uid]


FromClient = Attach | Detach | Send | Acknowledge | Call | Present


# The stream: server to client


class Hello(msgspec.Struct, array_like=True, tag=1):
    """The first operation. ``exchange`` changes when an exchange starts with nothing in it. ``unix_s``: its clock."""

    exchange: str
    message_bytes: int
    durable: bool
    unix_s: float | None = None


class Sent(msgspec.Struct, array_like=True, tag=2):
    """These sends are stored."""

    numbers: list[int]


class Failed(msgspec.Struct, array_like=True, tag=3):
    """This send was refused: nothing was stored."""

    number: int
    code: str
    arguments: list[Any]


class Deliver(msgspec.Struct, array_like=True, tag=4, gc=False):
    """A message for a mailbox of this connection."""

    uid: uuid.UUID
    seq: int
    attempt: int
    header: Header
    body: bytes


class Reply(msgspec.Struct, array_like=True, tag=5):
    """The answer to an `Attach` or a `Call`; with ``code`` it is an error."""

    call: int
    result: Any = None
    code: str | None = None


class Ended(msgspec.Struct, array_like=True, tag=6):
    """This session is the listener of the mailbox no more, and why."""

    uid: uuid.UUID
    session: uuid.UUID
    code: str
    arguments: list[Any]


class Bye(msgspec.Struct, array_like=True, tag=7):
    """The exchange is being shut down, in order."""


FromServer = Hello | Sent | Failed | Deliver | Reply | Ended | Bye

_encoder = msgspec.msgpack.Encoder(uuid_format="bytes")
_from_client: msgspec.msgpack.Decoder[list[FromClient]] = msgspec.msgpack.Decoder(list[FromClient])
_sends: msgspec.msgpack.Decoder[Send] = msgspec.msgpack.Decoder(Send)
_parts = msgspec.msgpack.Decoder(Annotated[list[msgspec.Raw], msgspec.Meta(max_length=OPERATIONS)])
_from_server: msgspec.msgpack.Decoder[list[FromServer]] = msgspec.msgpack.Decoder(list[FromServer])


def encode_operations(operations: list[Any]) -> bytes:
    """One frame."""
    return _encoder.encode(operations)


def decode_from_client(frame: bytes) -> list[FromClient]:
    """The operations of a frame. Raises BadRequestError."""
    try:
        return _from_client.decode(frame) if len(frame) <= OPERATIONS_BYTES else _from_large(frame)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadRequestError(f"malformed frame: {error}") from error


def _from_large(frame: bytes) -> list[FromClient]:
    parts = [memoryview(part) for part in _parts.decode(frame)]
    others = [part for part in parts if not _is_send(part)]
    if sum(map(len, others)) > OPERATIONS_BYTES:
        raise BadRequestError("a large frame with other things than messages")
    read = iter(_from_client.decode(_encoder.encode([msgspec.Raw(part) for part in others])))
    return [_sends.decode(part) if _is_send(part) else next(read) for part in parts]


def _is_send(part: memoryview) -> bool:
    return bytes(part[1:2]) == b"\x03"  # its tag, behind one byte that says how long it is


def decode_from_server(frame: bytes) -> list[FromServer]:
    """The operations of a frame. Raises BadRequestError."""
    try:
        return _from_server.decode(frame)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadRequestError(f"malformed frame: {error}") from error


class Status(msgspec.Struct):
    """What `Call` "status" answers. ``seen_s``: seconds since the last sign of life."""

    status: str
    seen_s: float | None = None


# Errors


def failure(error: AcademyError) -> tuple[str, list[Any]]:
    """An error as code and arguments."""
    return error.code, error_arguments(error)


def failure_error(code: str, arguments: list[Any]) -> AcademyError:
    """The error that `failure` was given."""
    return make_error(code, arguments)


_TEXTS: dict[type[RefusedError], str] = {
    BadEntityIdError: "Unknown mailbox ID",
    MailboxTerminatedError: "Mailbox was closed",
}


def error_text(error: AcademyError) -> str:
    """The text of the REST answer, as docs/protocol.md has it where it has one."""
    for cls, text in _TEXTS.items():
        if isinstance(error, cls):
            return text
    # Without our advice: whoever can't be let in may be another program.
    return str(error.args[0]) if isinstance(error, UnauthorizedError) else str(error)


def error_from_status(
    status: int, text: str, entity: EntityId | None, *, size: int = 0, limit: int = 0
) -> AcademyError:
    """The error that a REST answer means."""
    code = {404: "BAD_ENTITY_ID", 419: "MAILBOX_TERMINATED"}.get(status)
    if status == 419 and entity is not None:
        code = "AGENT_TERMINATED" if entity.role == "agent" else "USER_TERMINATED"
    if code is not None:
        return make_error(code, [entity if entity is not None else text])
    if status == 401:
        return UnauthorizedError(text)
    if status == 403:
        return ForbiddenError(text)
    if status == 413:
        return make_error("MESSAGE_TOO_LARGE", [size, limit])
    if status == 429:
        return make_error("MAILBOX_FULL", [entity if entity is not None else text, 0])
    answer = f"The exchange answered {status}: {' '.join(text.split())[:200]}"  # a proxy may answer with a page
    return ExchangeUnavailableError(answer) if status >= 500 or status == 408 else BadRequestError(answer)
