"""The messages of one exchange: what is sent, who listens, and which requests await an answer. No I/O, no clock.

Every method that changes something adds to an `Effects`: what a store must keep before anybody is told, whose listeners
have something to take, and whose must end.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable

import msgspec

from academy_hpc.changes import (
    NOBODY,
    DeadRemoved,
    MailboxTerminated,
    MessageDied,
    MessagesRemoved,
    MessageStored,
    RequestAnswered,
    RequestPending,
    SessionStarted,
    Snapshot,
)
from academy_hpc.dead_letters import DeadLetter, DeadLetters
from academy_hpc.delivery import Delivery, Mailbox, Window
from academy_hpc.directory import NO_COUNTS, Caller, Directory, Effects, MailboxCounters, Record
from academy_hpc.errors import (
    AgentAbsentError,
    DeliveryFailedError,
    ExchangeFullError,
    ListenerSupersededError,
    MailboxFullError,
    MessageTooLargeError,
)
from academy_hpc.identifiers import EntityId, terminated_error
from academy_hpc.message import AcademyErrorResponse, Body, Header, Message, UserErrorResponse, encode_body
from academy_hpc.repeats import PER_SOURCE, SOURCES, RecentMessages
from academy_hpc.serialization import error_json

__all__ = ["Limits", "Registry"]

# A mailbox gets fewer messages than two to this power between two starts of its exchange.
NUMBERS_OF_A_LIFE = 32

# Of the room for messages. What fills it may be requests that stay until there are answers, their own or those that
# their actions wait for.
ANSWERS_SHARE = 1.25


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
    # Requests that were given up and are kept, of each mailbox, and all their bytes.
    dead_letters: int = 100
    dead_letter_bytes: int = 64 * 1024 * 1024
    tombstones: int = 50_000
    # A repeated message is dropped if fewer than this many later ones came from the same source ...
    remembered_per_source: int = PER_SOURCE
    # ... and the source is among this many that sent last.
    remembered_sources: int = SOURCES


class Registry(Directory):
    """All entities of one exchange, and the messages in their mailboxes."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.stored_bytes = 0
        super().__init__(mailboxes=self.limits.mailboxes, tombstones=self.limits.tombstones)
        self._recent = RecentMessages(
            per_source=self.limits.remembered_per_source, sources=self.limits.remembered_sources
        )
        self._dead = DeadLetters(per_mailbox=self.limits.dead_letters, limit_bytes=self.limits.dead_letter_bytes)

    # Life of a mailbox

    def terminate(self, entity: EntityId, caller: Caller, effects: Effects) -> None:
        """Close a mailbox for good; every pending request of it is answered with an error. Raises ForbiddenError."""
        record = self._records.get(entity.uid)
        if record is None:
            effects.repeated = True
            return
        self._check_acting(record, caller)
        pending = record.pending or {}
        self.stored_bytes -= record.mailbox.stored_bytes
        record.mailbox.terminate()
        self._close(record)
        for header in pending.values():
            self._answer(header, AcademyErrorResponse(0, header.dest), effects)
        self._dead.forget(entity.uid)
        effects.changes.append(MailboxTerminated(entity.uid))
        effects.ended[entity.uid] = terminated_error(record.entity)
        effects.woken.pop(entity.uid, None)

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
        source = self._source(header, caller)
        if source is not None and header.kind == "response" and header.dest.uid not in self._records:
            self._answered(source, header.tag, effects)
        dest = self._usable(header.dest, caller)
        if source is None and acknowledges is not None:
            raise self._gone(header.src)
        if header not in self._recent:
            self._check_room(dest, message)
            self._store(dest, message, effects)
            if header.kind == "request":
                self._await_answer(dest, source, header, effects)
            elif source is not None:
                self._answered(source, header.tag, effects)
        else:
            effects.repeated = True
            if header.kind == "response" and source is not None:
                self._answered(source, header.tag, effects)  # of a request that was put back: its caller has its answer
        if acknowledges is not None and source is not None:
            self._acknowledge(source, (acknowledges,), effects)

    def check_send(self, header: Header, caller: Caller) -> None:
        """Whether `caller` may send this. Raises BadEntityIdError, MailboxTerminatedError, ForbiddenError."""
        self._source(header, caller)
        self._usable(header.dest, caller)

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
        unix_s: float = 0.0,
        resume: tuple[int, Iterable[int]] | None = None,
    ) -> None:
        """`session` listens to the mailbox from now on. `resume`: highest number received, numbers still worked on.

        `unix_s` is the time of day, for what is given up by this.

        Raises:
            ListenerSupersededError: It wants to resume, and another session has come since.
            BadEntityIdError, MailboxTerminatedError, ForbiddenError
        """
        record = self._usable(entity, caller)
        self._check_acting(record, caller)
        if resume is None and record.mailbox.session == session:
            resume = 0, ()  # it has come before, and never heard that it was let in
        if resume is None:
            self._start_session(record, session, unix_s, effects)
        elif record.mailbox.session != session:
            raise ListenerSupersededError(record.entity)
        else:
            effects.repeated = True
            before = record.mailbox.stored_bytes
            done = record.mailbox.resume(received=resume[0], held=resume[1])
            self._removed(record, done, before, effects)
        record.listening, record.seen = True, now
        record.guest = None if caller.user == record.owner else caller
        effects.woken[entity.uid] = None

    def detach(
        self,
        uid: uuid.UUID,
        session: uuid.UUID,
        *,
        now: float,
        in_order: Effects | None = None,
        unbegun: Iterable[int] = (),
    ) -> None:
        """The listener `session` is gone, or has ended `in_order`. What it did not acknowledge waits for the next.

        `unbegun`: numbers of what it was handed and has not begun.
        """
        record = self._records.get(uid)
        if record is not None and record.mailbox.session == session:
            record.listening, record.seen = False, now
            if in_order is not None and record.mailbox.detach(unbegun):
                in_order.changes.append(SessionStarted(uid, NOBODY))

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

    def absent(self) -> list[tuple[EntityId, float | None]]:
        """Who is waited for and has no listener, and when it last gave a sign of life."""
        return [
            (record.entity, record.seen) for record in self._records.values() if record.pending and not record.listening
        ]

    def give_up_absent(self, entity: EntityId, absent_s: float, effects: Effects) -> None:
        """Whoever waits for the entity, which had no listener for `absent_s`, gets an error."""
        record = self._records.get(entity.uid)
        if record is None or not record.pending or record.listening:
            return
        headers, record.pending = record.pending, None
        before = record.mailbox.stored_bytes
        given_up = record.mailbox.give_up(headers)
        self._removed(record, [delivery.seq for delivery in given_up], before, effects)
        effects.given_up += given_up
        error = AgentAbsentError(record.entity, round(absent_s))
        for tag, header in headers.items():
            effects.changes.append(RequestAnswered(record.entity.uid, tag))
            self._answer(header, UserErrorResponse(json.dumps(error_json(error)), "json"), effects)
        effects.freed[entity.uid] = None

    # What one can ask

    def beat(self, entity: EntityId, caller: Caller, *, now: float) -> None:
        """Note a heartbeat; without a mailbox it has no effect. Raises ForbiddenError."""
        record = self._records.get(entity.uid)
        if record is not None:
            self._check_acting(record, caller)
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
            return self._tombstones.get(entity.uid, NO_COUNTS)
        self._check_acting(record, caller)
        pending, queued = len(record.pending or ()), record.mailbox.ready
        in_progress = max(0, pending - queued)
        return MailboxCounters(record.completed + pending, record.outgoing, record.completed, in_progress, queued)

    # Dead letters

    def dead_letters(self, entity: EntityId, caller: Caller) -> list[DeadLetter]:
        """Requests of the mailbox that were given up, oldest first. Owner only."""
        return self._dead.of(self._owned(entity, caller).entity.uid)

    def requeue(self, entity: EntityId, tag: uuid.UUID, caller: Caller, effects: Effects) -> None:
        """Put a dead letter back into the mailbox, as if it had just come; harmless if it is not there. Owner only.

        Its caller was told that it failed, and does not hear of it again.

        Raises:
            MailboxFullError, ExchangeFullError: It stays a dead letter.
        """
        record = self._owned(entity, caller)
        letter = self._dead.peek(entity.uid, tag)
        if letter is not None:
            self._check_room(record, letter.message)
            self.discard(entity, tag, caller, effects)
            self._store(record, letter.message, effects)
            self._await_answer(record, None, letter.message.header, effects)

    def discard(self, entity: EntityId, tag: uuid.UUID, caller: Caller, effects: Effects) -> None:
        """Forget a dead letter; harmless if it is not there. Owner only."""
        self._owned(entity, caller)
        if self._dead.remove(entity.uid, tag) is not None:
            effects.changes.append(DeadRemoved(entity.uid, (tag,)))

    # Restoring

    def restore(self, snapshot: Snapshot) -> None:
        """Take over what a store holds; only on a new registry.

        Each life has numbers of its own: a message may have been handed out that the loss of power took from the store,
        and whoever received it must not take another one for it.
        """
        for uid in snapshot.tombstones:
            self._bury(uid, NO_COUNTS)
        for row in snapshot.mailboxes:
            mailbox = Mailbox(last_seq=0, session=None if row.session == NOBODY else row.session)
            self._add(row.entity, row.owner, row.classes, mailbox).groups = row.groups
        for stored in snapshot.messages:
            mailbox = self._records[stored.uid].mailbox
            before = mailbox.stored_bytes
            mailbox.restore(stored.seq, stored.message)
            self.stored_bytes += mailbox.stored_bytes - before
        for row in snapshot.mailboxes:
            record = self._records[row.entity.uid]
            record.mailbox.last_seq = record.kept = max(row.last_seq, snapshot.starts << NUMBERS_OF_A_LIFE)
        for pending in snapshot.pending:
            self._pend(self._records[pending.uid], pending.header)
        for source, numbers in snapshot.recent:
            self._recent.restore(source, numbers)
        self._dead.restore(snapshot.dead)

    # Steps

    def _check_room(self, dest: Record, message: Message) -> None:
        limits, mailbox = self.limits, dest.mailbox
        if len(message.body) > limits.message_bytes:
            raise MessageTooLargeError(len(message.body), limits.message_bytes)
        unanswered, share = (len(dest.pending or ()), 1.0) if message.is_request else (0, ANSWERS_SHARE)
        full = len(mailbox) >= share * limits.mailbox_messages or mailbox.stored_bytes >= share * limits.mailbox_bytes
        if full or unanswered >= limits.mailbox_requests:
            raise MailboxFullError(dest.entity, 0)
        if self.stored_bytes + len(message.body) > share * limits.total_bytes:
            raise ExchangeFullError("bytes", limits.total_bytes)

    def _store(self, dest: Record, message: Message, effects: Effects) -> None:
        before = dest.mailbox.stored_bytes
        seq = dest.mailbox.put(message)
        self._recent.add(message.header)
        self.stored_bytes += dest.mailbox.stored_bytes - before
        effects.changes.append(MessageStored(dest.entity.uid, seq, message))
        effects.stored[dest.entity.uid] = seq
        effects.woken[dest.entity.uid] = None

    def _await_answer(self, dest: Record, source: Record | None, header: Header, effects: Effects) -> None:
        self._pend(dest, header)
        if source is not None:
            source.outgoing += 1
        effects.changes.append(RequestPending(dest.entity.uid, header))

    def _pend(self, record: Record, header: Header) -> None:
        if record.pending is None:
            record.pending = {}
        record.pending[header.tag] = header

    def _answered(self, record: Record, tag: uuid.UUID, effects: Effects) -> None:
        if record.pending and record.pending.pop(tag, None) is not None:
            record.completed += 1
            record.pending = record.pending or None
            effects.freed[record.entity.uid] = None
            effects.changes.append(RequestAnswered(record.entity.uid, tag))

    def _answer(self, header: Header, body: Body, effects: Effects) -> None:
        """Put the exchange's own answer to the request `header` into the requester's mailbox, if there is one."""
        requester, answer = self._records.get(header.src.uid), header.response()
        if requester is not None and answer not in self._recent:  # of a request that was put back, it has an answer
            self._store(requester, Message(answer, encode_body(body)), effects)

    def _acknowledge(self, record: Record, seqs: Iterable[int], effects: Effects) -> None:
        before = record.mailbox.stored_bytes
        self._removed(record, record.mailbox.acknowledge(seqs), before, effects)

    def _removed(self, record: Record, seqs: list[int], bytes_before: int, effects: Effects) -> None:
        if seqs:
            self.stored_bytes -= bytes_before - record.mailbox.stored_bytes
            effects.changes.append(MessagesRemoved(record.entity.uid, tuple(seqs)))
            effects.freed[record.entity.uid] = None

    def _start_session(self, record: Record, session: uuid.UUID, unix_s: float, effects: Effects) -> None:
        effects.changes.append(SessionStarted(record.entity.uid, session))
        before = record.mailbox.stored_bytes
        given_up = record.mailbox.start_session(session, max_attempts=self.limits.max_attempts)
        self._removed(record, [delivery.seq for delivery in given_up], before, effects)
        for delivery in given_up:
            self._give_up(record, delivery, unix_s, effects)

    def _give_up(self, record: Record, delivery: Delivery, unix_s: float, effects: Effects) -> None:
        header = delivery.message.header
        if header.kind == "request" and record.pending and record.pending.pop(header.tag, None) is not None:
            effects.changes.append(RequestAnswered(record.entity.uid, header.tag))
            letter = MessageDied(record.entity.uid, delivery.message, delivery.attempt, unix_s)
            effects.changes += [letter, *self._dead.add(letter)]
            error = DeliveryFailedError(record.entity, delivery.attempt)
            self._answer(header, UserErrorResponse(json.dumps(error_json(error)), "json"), effects)
        effects.given_up.append(delivery)
