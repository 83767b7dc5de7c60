"""Who is registered at an exchange, who may do what, and which requests await an answer. No I/O, no clock.

A mailbox is MISSING until created, then ACTIVE, then TERMINATED for good; a bounded number of tombstones remembers
the last. Every method that changes something adds to an `Effects`: what a store must keep before anybody is told, whose
listeners have something to take, and whose must end.
"""

from __future__ import annotations

import json
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from typing import Literal

import msgspec

from academy_hpc.changes import (
    Change,
    MailboxCreated,
    MailboxTerminated,
    MessagesRemoved,
    MessageStored,
    RequestAnswered,
    RequestPending,
    SessionStarted,
    ShareChanged,
    Snapshot,
)
from academy_hpc.delivery import Delivery, Mailbox, Window
from academy_hpc.errors import (
    BadEntityIdError,
    BadRequestError,
    DeliveryFailedError,
    ExchangeFullError,
    ForbiddenError,
    ListenerSupersededError,
    MailboxFullError,
    MailboxTerminatedError,
    MessageTooLargeError,
)
from academy_hpc.identifiers import EntityId, terminated_error
from academy_hpc.message import AcademyErrorResponse, Body, Header, Message, UserErrorResponse, encode_body
from academy_hpc.repeats import RecentMessages
from academy_hpc.serialization import error_json

__all__ = ["Caller", "Effects", "Limits", "MailboxCounters", "Registry", "WireStatus"]

WireStatus = Literal["MISSING", "ACTIVE", "TERMINATED"]


class Limits(msgspec.Struct, frozen=True):
    """What one exchange will hold. All have room for a large run; all are there to be hit by a mistake."""

    message_bytes: int = 64 * 1024 * 1024
    mailboxes: int = 100_000
    mailbox_messages: int = 100_000
    # Requests that were accepted and not answered, whether they were read or not.
    mailbox_requests: int = 100_000
    mailbox_bytes: int = 256 * 1024 * 1024
    total_bytes: int = 2 * 1024 * 1024 * 1024
    max_attempts: int = 5
    tombstones: int = 50_000
    # A repeated message is dropped if fewer than this many later ones came from the same source ...
    remembered_per_source: int = 512
    # ... and the source is among this many that sent last.
    remembered_sources: int = 10_000


class Caller(msgspec.Struct, frozen=True):
    """On whose behalf an operation comes in: told by the token alone."""

    user: str
    groups: frozenset[str] = frozenset()


class MailboxCounters(msgspec.Struct, frozen=True):
    """Counters of one mailbox (docs/protocol.md, section 9)."""

    incoming: int = 0
    outgoing: int = 0
    completed: int = 0
    in_progress: int = 0
    queued: int = 0


_NO_COUNTS = MailboxCounters()


class Effects:
    """What follows from operations: collected over a batch, carried out by the shell in this order."""

    __slots__ = ("changes", "ended", "freed", "given_up", "stored", "woken")

    def __init__(self) -> None:
        self.changes: list[Change] = []
        # Mailboxes with something to take, mailboxes with new room, and mailboxes that are gone.
        self.woken: dict[uuid.UUID, None] = {}
        self.freed: dict[uuid.UUID, None] = {}
        self.ended: dict[uuid.UUID, MailboxTerminatedError] = {}
        # Messages handed out too often; requests among them are answered, the shell only notes it.
        self.given_up: list[Delivery] = []
        # The highest number of the messages that were accepted, for each mailbox.
        self.stored: dict[uuid.UUID, int] = {}


class _Record:
    """One registered entity. Slots, and nothing made before it is used: there may be 100,000."""

    __slots__ = (
        "classes",
        "completed",
        "entity",
        "groups",
        "kept",
        "listening",
        "mailbox",
        "number",
        "outgoing",
        "owner",
        "pending",
        "seen",
    )

    def __init__(self, entity: EntityId, owner: str, classes: tuple[str, ...], mailbox: Mailbox, number: int) -> None:
        self.entity = entity
        self.owner = owner
        self.classes = classes
        self.groups: frozenset[str] = frozenset()
        self.mailbox = mailbox
        self.number = number
        self.kept = 0
        self.pending: dict[uuid.UUID, Header] | None = None
        self.completed = 0
        self.outgoing = 0
        self.seen: float | None = None
        self.listening = False

    def usable_by(self, caller: Caller) -> bool:
        return self.owner == caller.user or not self.groups.isdisjoint(caller.groups)


class Registry:
    """All entities of one exchange and their mailboxes."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.stored_bytes = 0
        self._records: dict[uuid.UUID, _Record] = {}
        self._tombstones: OrderedDict[uuid.UUID, MailboxCounters] = OrderedDict()
        self._by_classes: dict[tuple[str, ...], dict[uuid.UUID, _Record]] = {}
        self._recent = RecentMessages(
            per_source=self.limits.remembered_per_source, sources=self.limits.remembered_sources
        )
        self._numbers = 0

    def __len__(self) -> int:
        """Mailboxes that are open."""
        return len(self._records)

    # Life of a mailbox

    def create(self, entity: EntityId, classes: tuple[str, ...], caller: Caller, effects: Effects) -> None:
        """Open a mailbox. An existing or a terminated one stays as it is.

        Raises:
            ForbiddenError: It exists and is somebody else's.
            ExchangeFullError: There are as many mailboxes as there may be.
        """
        if entity.uid in self._tombstones:
            return
        record = self._records.get(entity.uid)
        if record is not None:
            self._check(record, caller)
            return
        if len(self._records) >= self.limits.mailboxes:
            raise ExchangeFullError("mailboxes", self.limits.mailboxes)
        classes = classes if entity.role == "agent" else ()
        classes = self._add(entity, caller.user, classes, Mailbox()).classes  # one tuple for all agents of a class
        effects.changes.append(MailboxCreated(entity, caller.user, classes))

    def status(self, entity: EntityId, caller: Caller) -> WireStatus:
        """Whether the mailbox is there. Raises ForbiddenError."""
        if entity.uid in self._tombstones:
            return "TERMINATED"
        record = self._records.get(entity.uid)
        if record is None:
            return "MISSING"
        self._check(record, caller)
        return "ACTIVE"

    def terminate(self, entity: EntityId, caller: Caller, effects: Effects) -> None:
        """Close a mailbox for good; every pending request of it is answered with an error. Raises ForbiddenError."""
        record = self._records.get(entity.uid)
        if record is None:
            return
        self._check(record, caller)
        pending = record.pending or {}
        self.stored_bytes -= record.mailbox.stored_bytes
        record.mailbox.terminate()
        del self._records[entity.uid]
        del self._by_classes[record.classes][entity.uid]
        if not self._by_classes[record.classes]:
            del self._by_classes[record.classes]
        self._recent.forget(entity.uid)
        self._bury(entity.uid, _counters(record.completed, record.outgoing))
        effects.changes.append(MailboxTerminated(entity.uid))
        effects.ended[entity.uid] = terminated_error(record.entity)
        effects.woken.pop(entity.uid, None)
        for header in pending.values():
            self._answer(header, AcademyErrorResponse(0, header.dest), effects)

    # Messages

    def send(self, message: Message, caller: Caller, effects: Effects, *, acknowledges: int | None = None) -> None:
        """Accept `message` into the mailbox of its destination; a repeat is dropped.

        `acknowledges` is the number of the request, in the source's mailbox, that this response is the answer to: both
        happen, or neither.

        Raises:
            BadEntityIdError, MailboxTerminatedError, ForbiddenError, MessageTooLargeError, ExchangeFullError,
            MailboxFullError: Nothing was stored, nothing acknowledged. But a response to nobody settles its
                request: that much is in `effects`, also when it raises.
        """
        header = message.header
        source = self._records.get(header.src.uid)
        if header.kind == "response" and header.dest.uid not in self._records:
            self._settle(source, header, caller, effects)
        dest = self._usable(header.dest, caller)
        if source is not None:
            self._check(source, caller)
        elif acknowledges is not None:
            raise terminated_error(header.src) if header.src.uid in self._tombstones else BadEntityIdError(header.src)
        if header not in self._recent:
            self._check_room(dest, message)
            self._recent.add(header)
            self._store(dest, message, effects)
            if header.kind == "request":
                self._await_answer(dest, source, header, effects)
            elif source is not None:
                self._answered(source, header.tag, effects)
        if acknowledges is not None and source is not None:
            self._acknowledge(source, (acknowledges,), effects)

    def check_send(self, header: Header, caller: Caller) -> None:
        """Whether `caller` may send this. Raises BadEntityIdError, MailboxTerminatedError, ForbiddenError."""
        self._usable(header.dest, caller)
        source = self._records.get(header.src.uid)
        if source is not None:
            self._check(source, caller)

    def is_repeat(self, header: Header) -> bool:
        """Whether this message was accepted before."""
        return header in self._recent

    def attach(
        self,
        entity: EntityId,
        session: uuid.UUID,
        caller: Caller,
        effects: Effects,
        *,
        now: float,
        resume: tuple[int, Iterable[int]] | None = None,
    ) -> None:
        """`session` listens to the mailbox from now on. `resume`: highest number received, numbers still worked on.

        Raises:
            ListenerSupersededError: It wants to resume, and another session has come since.
            BadEntityIdError, MailboxTerminatedError, ForbiddenError
        """
        record = self._usable(entity, caller)
        if resume is None and record.mailbox.session == session:
            resume = 0, ()  # it has come before, and never heard that it was let in
        if resume is None:
            self._start_session(record, session, effects)
        elif record.mailbox.session != session:
            raise ListenerSupersededError(record.entity)
        else:
            before = record.mailbox.stored_bytes
            done = record.mailbox.resume(received=resume[0], held=resume[1])
            self._removed(record, done, before, effects)
        record.listening, record.seen = True, now
        effects.woken[entity.uid] = None

    def detach(self, uid: uuid.UUID, session: uuid.UUID, *, now: float) -> None:
        """The listener `session` is gone. What it did not acknowledge waits for the next one."""
        record = self._records.get(uid)
        if record is not None and record.mailbox.session == session:
            record.listening, record.seen = False, now

    def take(self, uid: uuid.UUID, session: uuid.UUID, window: Window) -> list[Delivery]:
        """What the listener `session` gets now; nothing if it is not the listener any more."""
        record = self._records.get(uid)
        if record is None or record.mailbox.session != session:
            return []
        return record.mailbox.take(window, kept=record.kept)

    def kept(self, effects: Effects) -> None:
        """The store has the changes of `effects`: what was accepted with them may be handed out."""
        for uid, seq in effects.stored.items():
            record = self._records.get(uid)
            if record is not None:
                record.kept = seq

    def consumed(self, uid: uuid.UUID, session: uuid.UUID, seq: int) -> bool:
        """The listener's program has read all up to number `seq`; whether there is something to take now."""
        record = self._records.get(uid)
        if record is None or record.mailbox.session != session:
            return False
        record.mailbox.consumed(seq)
        return record.mailbox.ready > 0

    def acknowledge(self, uid: uuid.UUID, session: uuid.UUID, seqs: Iterable[int], effects: Effects) -> None:
        """The listener has done with these messages. Late ones, of a fenced-off session, have no effect."""
        record = self._records.get(uid)
        if record is not None and record.mailbox.session == session:
            self._acknowledge(record, seqs, effects)

    # What one can ask

    def discover(self, name: str, caller: Caller, *, subclasses: bool) -> list[EntityId]:
        """Agents of class `name`, in the order of registration; with `subclasses` of classes derived from it, too."""
        found = [
            record
            for classes, records in self._by_classes.items()
            if classes and (classes[0] == name or (subclasses and name in classes))
            for record in records.values()
            if record.usable_by(caller)
        ]
        found.sort(key=lambda record: record.number)
        return [record.entity for record in found]

    def beat(self, entity: EntityId, caller: Caller, *, now: float) -> None:
        """Note a heartbeat; without a mailbox it has no effect. Raises ForbiddenError."""
        record = self._records.get(entity.uid)
        if record is not None:
            self._check(record, caller)
            record.seen = now

    def last_seen(self, entity: EntityId, caller: Caller, *, now: float) -> float | None:
        """Seconds since the entity last gave a sign of life; 0 while it listens on a stream; None before the first.

        Raises:
            BadEntityIdError, MailboxTerminatedError, ForbiddenError
        """
        record = self._usable(entity, caller)
        if record.listening:
            return 0.0
        return None if record.seen is None else max(0.0, now - record.seen)

    def counters(self, entity: EntityId, caller: Caller) -> MailboxCounters:
        """The counters; zeros for a mailbox that never was. Not kept by the store. Raises ForbiddenError."""
        record = self._records.get(entity.uid)
        if record is None:
            return self._tombstones.get(entity.uid, _NO_COUNTS)
        self._check(record, caller)
        pending, queued = len(record.pending or ()), record.mailbox.ready
        in_progress = max(0, pending - queued)
        return MailboxCounters(record.completed + pending, record.outgoing, record.completed, in_progress, queued)

    # Sharing

    def groups(self, entity: EntityId, caller: Caller) -> frozenset[str]:
        """The groups that may use the mailbox. Owner only."""
        return self._owned(entity, caller).groups

    def share(self, entity: EntityId, group: str, caller: Caller, effects: Effects) -> None:
        """Let the members of `group` use the mailbox. Owner only, and only for a group the owner is in."""
        record = self._owned(entity, caller)
        if not group:
            raise BadRequestError("group_id is empty")
        if group not in caller.groups:
            raise ForbiddenError("Incorrect permissions")
        self._set_groups(record, record.groups | {group}, effects)

    def unshare(self, entity: EntityId, group: str, caller: Caller, effects: Effects) -> None:
        """Take back what `share` gave; harmless if it never did. Owner only."""
        record = self._owned(entity, caller)
        self._set_groups(record, record.groups - {group}, effects)

    # Restoring

    def restore(self, snapshot: Snapshot) -> None:
        """Take over what a store holds; only on a new registry."""
        for uid in snapshot.tombstones:
            self._bury(uid, _NO_COUNTS)
        for row in snapshot.mailboxes:
            mailbox = Mailbox(last_seq=0, session=row.session)
            self._add(row.entity, row.owner, row.classes, mailbox).groups = row.groups
        for stored in snapshot.messages:
            mailbox = self._records[stored.uid].mailbox
            before = mailbox.stored_bytes
            mailbox.restore(stored.seq, stored.message)
            self.stored_bytes += mailbox.stored_bytes - before
            self._recent.restore(stored.message.header)
        for row in snapshot.mailboxes:
            record = self._records[row.entity.uid]
            record.mailbox.last_seq = record.kept = row.last_seq
        for pending in snapshot.pending:
            self._pend(self._records[pending.uid], pending.header)
            self._recent.restore(pending.header)

    # Steps

    def _add(self, entity: EntityId, owner: str, classes: tuple[str, ...], mailbox: Mailbox) -> _Record:
        group = self._by_classes.setdefault(classes, {})
        if group:  # share one tuple among all agents of a class
            classes = next(iter(group.values())).classes
        self._numbers += 1
        record = _Record(entity, owner, classes, mailbox, self._numbers)
        self._records[entity.uid] = group[entity.uid] = record
        return record

    def _bury(self, uid: uuid.UUID, counters: MailboxCounters) -> None:
        self._tombstones[uid] = counters
        if len(self._tombstones) > self.limits.tombstones:
            self._tombstones.popitem(last=False)

    def _check(self, record: _Record, caller: Caller) -> None:
        if not record.usable_by(caller):
            raise ForbiddenError("Incorrect permissions")

    def _usable(self, entity: EntityId, caller: Caller) -> _Record:
        record = self._records.get(entity.uid)
        if record is None:
            raise terminated_error(entity) if entity.uid in self._tombstones else BadEntityIdError(entity)
        self._check(record, caller)
        return record

    def _owned(self, entity: EntityId, caller: Caller) -> _Record:
        record = self._usable(entity, caller)
        if record.owner != caller.user:
            raise ForbiddenError("Incorrect permissions")
        return record

    def _set_groups(self, record: _Record, groups: frozenset[str], effects: Effects) -> None:
        record.groups = groups
        effects.changes.append(ShareChanged(record.entity.uid, groups))

    def _is_full(self, mailbox: Mailbox) -> bool:
        limits = self.limits
        return len(mailbox) >= limits.mailbox_messages or mailbox.stored_bytes >= limits.mailbox_bytes

    def _check_room(self, dest: _Record, message: Message) -> None:
        limits = self.limits
        if len(message.body) > limits.message_bytes:
            raise MessageTooLargeError(len(message.body), limits.message_bytes)
        unanswered = len(dest.pending or ()) if message.is_request else 0
        if self._is_full(dest.mailbox) or unanswered >= limits.mailbox_requests:
            raise MailboxFullError(dest.entity, 0)
        if self.stored_bytes + len(message.body) > limits.total_bytes:
            raise ExchangeFullError("bytes", limits.total_bytes)

    def _store(self, dest: _Record, message: Message, effects: Effects) -> None:
        before = dest.mailbox.stored_bytes
        seq = dest.mailbox.put(message)
        self.stored_bytes += dest.mailbox.stored_bytes - before
        effects.changes.append(MessageStored(dest.entity.uid, seq, message))
        effects.stored[dest.entity.uid] = seq
        effects.woken[dest.entity.uid] = None

    def _await_answer(self, dest: _Record, source: _Record | None, header: Header, effects: Effects) -> None:
        self._pend(dest, header)
        if source is not None:
            source.outgoing += 1
        effects.changes.append(RequestPending(dest.entity.uid, header))

    def _pend(self, record: _Record, header: Header) -> None:
        if record.pending is None:
            record.pending = {}
        record.pending[header.tag] = header

    def _settle(self, source: _Record | None, header: Header, caller: Caller, effects: Effects) -> None:
        if source is not None and source.usable_by(caller):
            self._answered(source, header.tag, effects)

    def _answered(self, record: _Record, tag: uuid.UUID, effects: Effects) -> None:
        if record.pending and record.pending.pop(tag, None) is not None:
            record.completed += 1
            record.pending = record.pending or None
            effects.freed[record.entity.uid] = None
            effects.changes.append(RequestAnswered(record.entity.uid, tag))

    def _answer(self, header: Header, body: Body, effects: Effects) -> None:
        """Put the exchange's own answer to the request `header` into the requester's mailbox, if there is one."""
        requester = self._records.get(header.src.uid)
        if requester is not None:
            self._store(requester, Message(header.response(), encode_body(body)), effects)

    def _acknowledge(self, record: _Record, seqs: Iterable[int], effects: Effects) -> None:
        before = record.mailbox.stored_bytes
        self._removed(record, record.mailbox.acknowledge(seqs), before, effects)

    def _removed(self, record: _Record, seqs: list[int], bytes_before: int, effects: Effects) -> None:
        if seqs:
            self.stored_bytes -= bytes_before - record.mailbox.stored_bytes
            effects.changes.append(MessagesRemoved(record.entity.uid, tuple(seqs)))
            effects.freed[record.entity.uid] = None

    def _start_session(self, record: _Record, session: uuid.UUID, effects: Effects) -> None:
        effects.changes.append(SessionStarted(record.entity.uid, session))
        before = record.mailbox.stored_bytes
        given_up = record.mailbox.start_session(session, max_attempts=self.limits.max_attempts)
        self._removed(record, [delivery.seq for delivery in given_up], before, effects)
        for delivery in given_up:
            self._give_up(record, delivery, effects)

    def _give_up(self, record: _Record, delivery: Delivery, effects: Effects) -> None:
        header = delivery.message.header
        if header.kind == "request" and record.pending and record.pending.pop(header.tag, None) is not None:
            effects.changes.append(RequestAnswered(record.entity.uid, header.tag))
            error = DeliveryFailedError(record.entity, delivery.attempt)
            self._answer(header, UserErrorResponse(json.dumps(error_json(error)), "json"), effects)
        effects.given_up.append(delivery)


def _counters(completed: int, outgoing: int) -> MailboxCounters:
    return MailboxCounters(completed, outgoing, completed) if completed or outgoing else _NO_COUNTS
