"""What the core asks a store to keep: each change of state that a restart must not forget.

The names of the classes and the order of their fields are how changes are written to disk.
"""

from __future__ import annotations

import uuid
from typing import TypeAlias

import msgspec

from academy_hpc.identifiers import EntityId
from academy_hpc.message import Header, Message

__all__ = [
    "NOBODY",
    "Change",
    "DeadRemoved",
    "MailboxCreated",
    "MailboxRow",
    "MailboxTerminated",
    "MessageDied",
    "MessageStored",
    "MessagesRemoved",
    "RequestAnswered",
    "RequestPending",
    "SessionStarted",
    "ShareChanged",
    "Snapshot",
]


class MailboxCreated(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A new, empty mailbox. ``classes``: the agent's class chain, most derived first."""

    entity: EntityId
    owner: str
    classes: tuple[str, ...]


class MailboxTerminated(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The mailbox is closed for good: its messages, pending requests and ids go, a tombstone stays."""

    uid: uuid.UUID


class MessageStored(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A message was accepted as number `seq` of mailbox `uid`. Its id is among the last of its source (`repeats`)."""

    uid: uuid.UUID
    seq: int
    message: Message


class MessagesRemoved(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Messages of mailbox `uid` were acknowledged, or given up."""

    uid: uuid.UUID
    seqs: tuple[int, ...]


class RequestPending(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A request to mailbox `uid` awaits its response."""

    uid: uuid.UUID
    header: Header


class RequestAnswered(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The request with `tag` to mailbox `uid` has its response."""

    uid: uuid.UUID
    tag: uuid.UUID


NOBODY = uuid.UUID(int=0)


class SessionStarted(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """`session` is the listener of mailbox `uid` now; all earlier ones are fenced off.

    `NOBODY`: the last one has ended in order, and nothing is left that it, or one before it, may have begun.
    """

    uid: uuid.UUID
    session: uuid.UUID


class ShareChanged(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """All groups that may use mailbox `uid`, besides its owner."""

    uid: uuid.UUID
    groups: frozenset[str]


class MessageDied(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A request to mailbox `uid` was given up after `attempts` deliveries: a dead letter since `died_s` (Unix time)."""

    uid: uuid.UUID
    message: Message
    attempts: int
    died_s: float


class DeadRemoved(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Dead letters of mailbox `uid` were put back, discarded, or dropped to make room."""

    uid: uuid.UUID
    tags: tuple[uuid.UUID, ...]


Change: TypeAlias = (
    MailboxCreated
    | MailboxTerminated
    | MessageStored
    | MessagesRemoved
    | RequestPending
    | RequestAnswered
    | SessionStarted
    | ShareChanged
    | MessageDied
    | DeadRemoved
)


class MailboxRow(msgspec.Struct):
    """A mailbox as a store gives it back. ``last_seq`` is the highest number it ever gave to a message."""

    entity: EntityId
    owner: str
    classes: tuple[str, ...]
    groups: frozenset[str] = frozenset()
    session: uuid.UUID | None = None
    last_seq: int = 0


class Snapshot(msgspec.Struct):
    """All that a store holds. Mailboxes in the order of their creation, messages in the order of their numbers.

    ``dead``: dead letters, for each mailbox oldest first.

    ``recent``: the ids of the last messages of each source, as of `RecentIds.items`.

    ``starts``: grows with each time that the state is loaded.
    """

    mailboxes: list[MailboxRow] = []
    messages: list[MessageStored] = []
    pending: list[RequestPending] = []
    tombstones: list[uuid.UUID] = []
    recent: list[tuple[uuid.UUID, tuple[int, ...]]] = []
    dead: list[MessageDied] = []
    starts: int = 0
