"""The store that lives as long as its process: it survives nothing, and costs next to nothing."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from academy_hpc.changes import (
    Change,
    MailboxCreated,
    MailboxRow,
    MailboxTerminated,
    MessagesRemoved,
    MessageStored,
    RequestAnswered,
    RequestPending,
    SessionStarted,
    ShareChanged,
    Snapshot,
)

__all__ = ["MemoryStore"]


class MemoryStore:
    """Keeps everything in dictionaries. Not for use by two exchanges at once."""

    def __init__(self, *, tombstones: int = 50_000) -> None:
        self._limit = tombstones
        self._mailboxes: dict[uuid.UUID, MailboxCreated] = {}
        self._last_seqs: dict[uuid.UUID, int] = {}
        self._sessions: dict[uuid.UUID, uuid.UUID] = {}
        self._groups: dict[uuid.UUID, frozenset[str]] = {}
        self._messages: dict[uuid.UUID, dict[int, MessageStored]] = {}
        self._pending: dict[uuid.UUID, dict[uuid.UUID, RequestPending]] = {}
        self._tombstones: dict[uuid.UUID, None] = {}

    def load(self) -> Snapshot:
        """See `Store`."""
        rows = [
            MailboxRow(
                row.entity,
                row.owner,
                row.classes,
                self._groups.get(uid, frozenset()),
                self._sessions.get(uid),
                self._last_seqs.get(uid, 0),
            )
            for uid, row in self._mailboxes.items()
        ]
        messages = [stored for table in self._messages.values() for stored in table.values()]
        pending = [request for requests in self._pending.values() for request in requests.values()]
        return Snapshot(rows, messages, pending, list(self._tombstones))

    async def write(self, changes: Sequence[Change]) -> None:
        """See `Store`. Never suspends."""
        for change in changes:
            self._apply(change)

    async def close(self) -> None:
        """See `Store`."""

    def _apply(self, change: Change) -> None:  # noqa: C901 - one case for each kind of change
        match change:
            case MessageStored(uid, seq):
                self._messages.setdefault(uid, {})[seq] = change
                self._last_seqs[uid] = seq
            case MessagesRemoved(uid, seqs):
                messages = self._messages.get(uid, {})
                for seq in seqs:
                    messages.pop(seq, None)
                if not messages:  # a dictionary that was large once stays large
                    self._messages.pop(uid, None)
            case RequestPending(uid, header):
                self._pending.setdefault(uid, {})[header.tag] = change
            case RequestAnswered(uid, tag):
                pending = self._pending.get(uid, {})
                pending.pop(tag, None)
                if not pending:
                    self._pending.pop(uid, None)
            case SessionStarted(uid, session):
                self._sessions[uid] = session
            case ShareChanged(uid, groups):
                self._groups[uid] = groups
            case MailboxCreated(entity):
                self._mailboxes[entity.uid] = change
                self._tombstones.pop(entity.uid, None)  # the exchange had forgotten it
            case MailboxTerminated(uid):
                self._terminate(uid)

    def _terminate(self, uid: uuid.UUID) -> None:
        for table in (self._mailboxes, self._last_seqs, self._sessions, self._groups, self._messages, self._pending):
            table.pop(uid, None)
        self._tombstones[uid] = None
        if len(self._tombstones) > self._limit:
            del self._tombstones[next(iter(self._tombstones))]
