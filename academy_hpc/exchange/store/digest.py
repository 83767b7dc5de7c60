"""What a run of changes comes to: each row that is to be written or removed, once.

Most messages are stored and removed again within a second. Of these nothing is left here but their ids.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from typing import Any

from academy_hpc.changes import (
    Change,
    DeadRemoved,
    MailboxCreated,
    MailboxTerminated,
    MessageDied,
    MessagesRemoved,
    MessageStored,
    RequestAnswered,
    RequestPending,
    SessionStarted,
    ShareChanged,
    Snapshot,
)
from academy_hpc.message import Header, Message
from academy_hpc.repeats import RecentIds

__all__ = ["BoxDigest", "Digest"]


class BoxDigest:
    """What happened to one mailbox. ``ended``: whatever a database holds of it goes first."""

    __slots__ = (
        "answered",
        "created",
        "dead",
        "ended",
        "groups",
        "last_seq",
        "messages",
        "pending",
        "removed",
        "revived",
        "session",
    )

    def __init__(self, created: MailboxCreated | None = None, *, ended: bool = False) -> None:
        self.created = created
        self.ended = ended
        self.last_seq = 0
        self.session: uuid.UUID | None = None
        self.groups: frozenset[str] | None = None
        self.messages: dict[int, Message] = {}
        self.removed: set[int] = set()
        self.pending: dict[uuid.UUID, Header] = {}
        self.answered: set[uuid.UUID] = set()
        self.dead: dict[uuid.UUID, MessageDied] = {}
        self.revived: set[uuid.UUID] = set()


class Digest:
    """Changes, put together. What has happened since the database was written last."""

    def __init__(self) -> None:
        self.boxes: dict[uuid.UUID, BoxDigest] = {}
        self.tombstones: dict[uuid.UUID, bool] = {}  # True: to be added, in this order; False: to be removed
        self.recent = RecentIds()
        self.live = self.live_bytes = 0  # messages that would have to be written, and their bytes
        self._apply: dict[type[Change], Callable[[Any], None]] = {
            MailboxCreated: self._create,
            MailboxTerminated: self._terminate,
            MessageStored: self._store,
            MessagesRemoved: self._remove,
            RequestPending: self._pend,
            RequestAnswered: self._answer,
            SessionStarted: self._start_session,
            ShareChanged: self._share,
            MessageDied: self._die,
            DeadRemoved: self._revive,
        }

    def __bool__(self) -> bool:
        """Whether anything has happened."""
        return bool(self.boxes)

    def add(self, changes: Iterable[Change]) -> None:
        """Take in further changes."""
        for change in changes:
            self._apply[type(change)](change)

    def restore(self, snapshot: Snapshot) -> None:
        """Start with all that `snapshot` has, as far as it is of mailboxes that it has; only when nothing is here."""
        self.tombstones = dict.fromkeys(snapshot.tombstones, True)
        for row in snapshot.mailboxes:
            box = self.boxes[row.entity.uid] = BoxDigest(MailboxCreated(row.entity, row.owner, row.classes))
            box.session, box.groups = row.session, row.groups
        parts = (snapshot.messages, snapshot.pending, snapshot.dead)
        self.add(change for part in parts for change in part if change.uid in self.boxes)
        for row in snapshot.mailboxes:
            self.boxes[row.entity.uid].last_seq = row.last_seq
        for source, numbers in snapshot.recent:
            self.recent.restore(source, numbers)

    def drop_incomplete(self) -> None:
        """Without the mailboxes of which nobody knows who made them."""
        self.boxes = {uid: box for uid, box in self.boxes.items() if box.created is not None}

    def _box(self, uid: uuid.UUID) -> BoxDigest:
        box = self.boxes.get(uid)
        if box is None:
            box = self.boxes[uid] = BoxDigest()
        return box

    def _create(self, change: MailboxCreated) -> None:
        uid = change.entity.uid
        before = self.boxes.pop(uid, None)  # the last that was created comes last
        self.boxes[uid] = BoxDigest(change, ended=before is not None and before.ended)
        self.tombstones[uid] = False  # the exchange had forgotten it

    def _terminate(self, change: MailboxTerminated) -> None:
        box = self.boxes.pop(change.uid, None)
        if box is not None:
            self.live -= len(box.messages)
            self.live_bytes -= sum(len(message.body) for message in box.messages.values())
        self.boxes[change.uid] = BoxDigest(ended=True)
        self.tombstones.pop(change.uid, None)
        self.tombstones[change.uid] = True

    def _store(self, change: MessageStored) -> None:
        box = self._box(change.uid)
        box.messages[change.seq] = change.message
        box.last_seq = change.seq
        self.live += 1
        self.live_bytes += len(change.message.body)
        self.recent.add(change.message.header)

    def _remove(self, change: MessagesRemoved) -> None:
        box = self._box(change.uid)
        for seq in change.seqs:
            message = box.messages.pop(seq, None)
            if message is None:
                box.removed.add(seq)
            else:
                self.live -= 1
                self.live_bytes -= len(message.body)

    def _pend(self, change: RequestPending) -> None:
        self._box(change.uid).pending[change.header.tag] = change.header

    def _answer(self, change: RequestAnswered) -> None:
        box = self._box(change.uid)
        if box.pending.pop(change.tag, None) is None:
            box.answered.add(change.tag)

    def _start_session(self, change: SessionStarted) -> None:
        self._box(change.uid).session = change.session

    def _share(self, change: ShareChanged) -> None:
        self._box(change.uid).groups = change.groups

    def _die(self, change: MessageDied) -> None:
        dead = self._box(change.uid).dead
        dead.pop(change.message.tag, None)
        dead[change.message.tag] = change

    def _revive(self, change: DeadRemoved) -> None:
        box = self._box(change.uid)
        for tag in change.tags:
            box.dead.pop(tag, None)
            box.revived.add(tag)
