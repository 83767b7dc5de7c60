"""Who is registered at an exchange, and who may do what with whom. No I/O, no clock.

A mailbox is MISSING until created, then ACTIVE, then TERMINATED for good; a bounded number of tombstones remembers
the last.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from typing import Literal

import msgspec

from academy_hpc.changes import Change, MailboxCreated, ShareChanged
from academy_hpc.delivery import Delivery, Mailbox
from academy_hpc.errors import (
    BadEntityIdError,
    BadRequestError,
    ExchangeFullError,
    ForbiddenError,
    RefusedError,
)
from academy_hpc.identifiers import EntityId, terminated_error
from academy_hpc.message import Header

__all__ = ["NO_COUNTS", "Caller", "Directory", "Effects", "MailboxCounters", "Record", "WireStatus"]

WireStatus = Literal["MISSING", "ACTIVE", "TERMINATED"]


class Caller(msgspec.Struct, frozen=True):
    """On whose behalf an operation comes in: told by the token alone.

    ``entity``: it comes with the token of this agent, and may listen, send and end as this agent, see who else there
    is, and no more. ``expires_s``: until when this is known to hold, by `time.monotonic`; None: for good.
    """

    user: str
    groups: frozenset[str] = frozenset()
    entity: uuid.UUID | None = None
    expires_s: float | None = None


class MailboxCounters(msgspec.Struct, frozen=True):
    """Counters of one mailbox (docs/protocol.md, section 9)."""

    incoming: int = 0
    outgoing: int = 0
    completed: int = 0
    in_progress: int = 0
    queued: int = 0


NO_COUNTS = MailboxCounters()


class Effects:
    """What follows from operations: collected over a batch, carried out by the shell in this order."""

    __slots__ = ("changes", "ended", "freed", "given_up", "hurried", "repeated", "stored", "woken")

    def __init__(self) -> None:
        self.changes: list[Change] = []
        # Somebody waits for an answer to one of the operations.
        self.hurried = True
        # Mailboxes with something to take, mailboxes with new room, and those whose listener has to end.
        self.woken: dict[uuid.UUID, None] = {}
        self.freed: dict[uuid.UUID, None] = {}
        self.ended: dict[uuid.UUID, RefusedError] = {}
        # Messages handed out too often; requests among them are answered, the shell only notes it.
        self.given_up: list[Delivery] = []
        # The highest number of the messages that were accepted, for each mailbox.
        self.stored: dict[uuid.UUID, int] = {}
        # Something was done before, and is perhaps not kept yet: to be confirmed when it is.
        self.repeated = False


class Record:
    """One registered entity. Slots, and nothing made before it is used: there may be 100,000."""

    __slots__ = (
        "classes",
        "completed",
        "entity",
        "groups",
        "guest",
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
        self.guest: Caller | None = None  # who listens, if it is not the owner

    def usable_by(self, user: str, groups: frozenset[str]) -> bool:
        """Whether a user in these groups may do all but share it."""
        return self.owner == user or not self.groups.isdisjoint(groups)


class Directory:
    """All entities of one exchange, their owners and groups.

    Args:
        mailboxes: How many may be open.
        tombstones: How many that are not are remembered.
    """

    def __init__(self, *, mailboxes: int, tombstones: int) -> None:
        self._mailboxes, self._remembered = mailboxes, tombstones
        self._records: dict[uuid.UUID, Record] = {}
        self._tombstones: OrderedDict[uuid.UUID, MailboxCounters] = OrderedDict()
        self._by_classes: dict[tuple[str, ...], dict[uuid.UUID, Record]] = {}
        self._numbers = 0

    def __len__(self) -> int:
        """Mailboxes that are open."""
        return len(self._records)

    def create(self, entity: EntityId, classes: tuple[str, ...], caller: Caller, effects: Effects) -> None:
        """Open a mailbox. An existing or a terminated one stays as it is.

        Raises:
            ForbiddenError: It exists and is somebody else's, or the caller is an agent.
            ExchangeFullError: There are as many mailboxes as there may be.
        """
        _owners_only(caller)
        record = self._records.get(entity.uid)
        if record is not None:
            self._check_use(record, caller)
        if record is not None or entity.uid in self._tombstones:
            effects.repeated = True
            return
        if len(self._records) >= self._mailboxes:
            raise ExchangeFullError("mailboxes", self._mailboxes)
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
        self._check_use(record, caller)
        return "ACTIVE"

    @property
    def mailboxes(self) -> int:
        """How many are open."""
        return len(self._records)

    def owner(self, entity: EntityId) -> str | None:
        """Whose mailbox it is; None where there is none."""
        record = self._records.get(entity.uid)
        return None if record is None else record.owner

    def agent_caller(self, uid: uuid.UUID) -> Caller:
        """Who comes with the token of the agent `uid`: without its mailbox nobody, to whom everything is refused."""
        record = self._records.get(uid)
        return Caller("" if record is None else record.owner, entity=uid)

    def discover(self, name: str, caller: Caller, *, subclasses: bool) -> list[EntityId]:
        """Agents of class `name`, in the order of registration; with `subclasses` of classes derived from it, too."""
        user, groups = caller.user, self._groups(caller)
        found = [
            record
            for classes, records in self._by_classes.items()
            if classes and (classes[0] == name or (subclasses and name in classes))
            for record in records.values()
            if record.usable_by(user, groups)
        ]
        found.sort(key=lambda record: record.number)
        return [record.entity for record in found]

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
        """Take back what `share` gave, also from who listens by it; harmless if it never did. Owner only."""
        record = self._owned(entity, caller)
        self._set_groups(record, record.groups - {group}, effects)
        guest = record.guest
        if record.listening and guest is not None and not record.usable_by(guest.user, guest.groups):
            record.listening, record.guest = False, None
            effects.ended[entity.uid] = ForbiddenError("Incorrect permissions")

    # Steps

    def _add(self, entity: EntityId, owner: str, classes: tuple[str, ...], mailbox: Mailbox) -> Record:
        group = self._by_classes.setdefault(classes, {})
        if group:  # share one tuple among all agents of a class
            classes = next(iter(group.values())).classes
        self._numbers += 1
        record = Record(entity, owner, classes, mailbox, self._numbers)
        self._records[entity.uid] = group[entity.uid] = record
        return record

    def _bury(self, uid: uuid.UUID, counters: MailboxCounters) -> None:
        self._tombstones[uid] = counters
        if len(self._tombstones) > self._remembered:
            self._tombstones.popitem(last=False)

    def _check_use(self, record: Record, caller: Caller) -> None:
        if not record.usable_by(caller.user, self._groups(caller)):
            raise ForbiddenError("Incorrect permissions")

    def _check_acting(self, record: Record, caller: Caller) -> None:
        """An agent's token speaks for this agent only, whoever owns the others."""
        if caller.entity is None:
            self._check_use(record, caller)
        elif caller.entity != record.entity.uid:
            raise ForbiddenError("Incorrect permissions")

    def _groups(self, caller: Caller) -> frozenset[str]:
        """Those of a user; an agent meets whom its own mailbox is shared with."""
        if caller.entity is None:
            return caller.groups
        record = self._records.get(caller.entity)
        if record is None:  # its token is revoked
            raise self._gone(EntityId(caller.entity))
        return record.groups

    def _gone(self, entity: EntityId) -> RefusedError:
        return terminated_error(entity) if entity.uid in self._tombstones else BadEntityIdError(entity)

    def _source(self, header: Header, caller: Caller) -> Record | None:
        """Who sends; nobody can speak as another. A user may send from where there is no mailbox."""
        source = self._records.get(header.src.uid)
        if source is not None:
            self._check_acting(source, caller)
        elif caller.entity is not None:
            raise self._gone(header.src) if caller.entity == header.src.uid else ForbiddenError("Incorrect permissions")
        return source

    def _usable(self, entity: EntityId, caller: Caller) -> Record:
        record = self._records.get(entity.uid)
        if record is None:
            raise self._gone(entity)
        self._check_use(record, caller)
        return record

    def _owned(self, entity: EntityId, caller: Caller) -> Record:
        _owners_only(caller)
        record = self._usable(entity, caller)
        if record.owner != caller.user:
            raise ForbiddenError("Incorrect permissions")
        return record

    def _set_groups(self, record: Record, groups: frozenset[str], effects: Effects) -> None:
        record.groups = groups
        effects.changes.append(ShareChanged(record.entity.uid, groups))

    def _close(self, record: Record) -> None:
        """The mailbox is closed for good."""
        uid = record.entity.uid
        del self._records[uid]
        del self._by_classes[record.classes][uid]
        if not self._by_classes[record.classes]:
            del self._by_classes[record.classes]
        self._bury(uid, _counters(record.completed, record.outgoing))


def _owners_only(caller: Caller) -> None:
    if caller.entity is not None:
        raise ForbiddenError("Incorrect permissions")


def _counters(completed: int, outgoing: int) -> MailboxCounters:
    return MailboxCounters(completed, outgoing, completed) if completed or outgoing else NO_COUNTS
