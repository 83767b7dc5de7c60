"""Messages: a header, which the exchange reads, and a body, which it does not.

Bodies are the JSON of the Academy protocol (docs/protocol.md, sections 5 and 6). A `Message` keeps its body as the
bytes that travel; `Message.decoded` reads them once, on the receiving side.
"""

from __future__ import annotations

import uuid
from typing import Any, Literal, TypeAlias

import msgspec

from academy_hpc.errors import (
    AcademyError,
    ActionCancelledError,
    ActionInvalidStateError,
    BadRequestError,
    IncompatibleProtocolError,
    InvalidClientError,
    MailboxTerminatedError,
    PingCancelledError,
)
from academy_hpc.identifiers import EntityId, terminated_error
from academy_hpc.serialization import Strategy

__all__ = [
    "ACADEMY_VERSION",
    "PROTOCOL_VERSION",
    "AcademyErrorResponse",
    "ActionRequest",
    "ActionResponse",
    "Body",
    "CancelRequest",
    "Header",
    "Message",
    "PingRequest",
    "ShutdownRequest",
    "SuccessResponse",
    "UserErrorResponse",
    "compatible",
    "encode_body",
    "parse_message",
]

PROTOCOL_VERSION = "1.1"
_MAJOR = PROTOCOL_VERSION.partition(".")[0]
# The release of academy-py whose protocol this is; peers show it in messages about versions.
ACADEMY_VERSION = "1.0.0"


class Header(msgspec.Struct, frozen=True, gc=False):
    """What the exchange routes by."""

    src: EntityId
    dest: EntityId
    tag: uuid.UUID
    kind: Literal["request", "response"]
    label: uuid.UUID | None = None
    protocol_version: str | None = PROTOCOL_VERSION
    academy_version: str = "0.5.0"  # what leaving it out means (docs/protocol.md, section 5)

    def response(self) -> Header:
        """The header of the answer to this request."""
        return Header(self.dest, self.src, self.tag, "response", self.label, PROTOCOL_VERSION, ACADEMY_VERSION)


class PingRequest(msgspec.Struct, frozen=True, tag_field="kind", tag="ping-request"):
    """Answered as soon as the agent has started."""


class ActionRequest(msgspec.Struct, frozen=True, tag_field="kind", tag="action-request"):
    """Run an action. ``pargs`` and ``kargs`` are serialized values."""

    action: str
    pargs: str
    kargs: str
    serialization: Strategy = "pickle"
    result_serialization: Strategy | None = None
    exception_serialization: Strategy | None = None


class CancelRequest(msgspec.Struct, frozen=True, tag_field="kind", tag="cancel-request"):
    """Cancel the action whose request had ``target_tag``."""

    target_tag: uuid.UUID


class ShutdownRequest(msgspec.Struct, frozen=True, tag_field="kind", tag="shutdown-request"):
    """End the agent. ``terminate``: close its mailbox too; None: as the agent is configured."""

    terminate: bool | None = None


class SuccessResponse(msgspec.Struct, frozen=True, tag_field="kind", tag="success-response"):
    """Done, nothing to say."""


class ActionResponse(msgspec.Struct, frozen=True, tag_field="kind", tag="action-response"):
    """The result of an action: ``result[1]`` is the serialized value."""

    result: tuple[str, str]
    serialization: Strategy = "pickle"


class UserErrorResponse(msgspec.Struct, frozen=True, tag_field="kind", tag="user-error-response"):
    """The action raised: ``exception`` is the serialized exception."""

    exception: str
    serialization: Strategy = "pickle"


class AcademyErrorResponse(msgspec.Struct, frozen=True, tag_field="kind", tag="academy-error-response"):
    """One of the framework's own errors, by number (docs/protocol.md, section 6)."""

    error_code: int
    mailbox_id: EntityId | None = None

    def exception(self) -> AcademyError:
        """The error that the number means."""
        match self.error_code:
            case 0:
                return MailboxTerminatedError(None) if self.mailbox_id is None else terminated_error(self.mailbox_id)
            case 1:
                return PingCancelledError()
            case 2:
                return ActionInvalidStateError()
            case 3:
                return ActionCancelledError()
            case 4:
                return InvalidClientError(self.mailbox_id)
            case 5:
                return IncompatibleProtocolError(None, PROTOCOL_VERSION)
        return AcademyError(f"The other side reports error {self.error_code}, which this version does not know.")


Body: TypeAlias = (
    PingRequest
    | ActionRequest
    | CancelRequest
    | ShutdownRequest
    | SuccessResponse
    | ActionResponse
    | UserErrorResponse
    | AcademyErrorResponse
)

_body_decoder: msgspec.json.Decoder[Body] = msgspec.json.Decoder(Body)
_encoder = msgspec.json.Encoder()


def encode_body(body: Body) -> bytes:
    """`body` as the bytes that travel."""
    return _encoder.encode(body)


class Message:
    """One message. ``body`` is opaque JSON text.

    A received one also has ``seq``, its number in the receiver's mailbox (None where the exchange gives none), and
    ``attempt``, which counts its deliveries from 1.
    """

    __slots__ = ("_decoded", "attempt", "body", "header", "seq")

    def __init__(self, header: Header, body: bytes, *, seq: int | None = None, attempt: int = 1) -> None:
        self.header = header
        self.body = body
        self.seq = seq
        self.attempt = attempt
        self._decoded: Body | None = None

    @classmethod
    def create(
        cls, src: EntityId, dest: EntityId, body: Body, *, label: uuid.UUID | None = None, tag: uuid.UUID | None = None
    ) -> Message:
        """A new request, or with the `tag` of a request its answer."""
        kind: Literal["request", "response"] = "request" if isinstance(body, _REQUESTS) else "response"
        header = Header(src, dest, tag or uuid.uuid4(), kind, label, PROTOCOL_VERSION, ACADEMY_VERSION)
        return cls(header, encode_body(body))

    def create_response(self, body: Body) -> Message:
        """The answer to this request."""
        return Message(self.header.response(), encode_body(body))

    @property
    def src(self) -> EntityId:
        """Who sent it."""
        return self.header.src

    @property
    def dest(self) -> EntityId:
        """Whom it is for."""
        return self.header.dest

    @property
    def tag(self) -> uuid.UUID:
        """What ties a response to its request."""
        return self.header.tag

    @property
    def is_request(self) -> bool:
        """Whether an answer is due."""
        return self.header.kind == "request"

    def decoded(self) -> Body:
        """The body, read once.

        Raises:
            BadRequestError: It is not a body of the protocol.
        """
        if self._decoded is None:
            try:
                self._decoded = _body_decoder.decode(self.body)
            except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
                raise BadRequestError(f"The body of message {self.tag} can't be read: {error}") from error
        return self._decoded

    def to_json(self) -> bytes:
        """Header and body joined, without reading the body."""
        return b'{"header":%b,"body":%b}' % (_encoder.encode(self.header), self.body)

    def __repr__(self) -> str:
        """Who, whom and which, never what."""
        return f"<Message {self.header.kind} {self.tag} from {self.src} to {self.dest}>"


_REQUESTS = (PingRequest, ActionRequest, CancelRequest, ShutdownRequest)


class _Parts(msgspec.Struct):
    header: Header
    body: msgspec.Raw


_parts_decoder = msgspec.json.Decoder(_Parts)


def parse_message(text: str | bytes) -> Message:
    """The message that `text` holds in the JSON of the protocol; its body stays unread.

    Raises:
        BadRequestError: The text is no message.
    """
    try:
        parts = _parts_decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise BadRequestError(f"not a message: {error}") from error
    return Message(parts.header, bytes(parts.body))


def compatible(version: Any) -> bool:
    """Whether a message of protocol `version` can be understood: same major number, no local part."""
    return isinstance(version, str) and "+" not in version and version.partition(".")[0] == _MAJOR
