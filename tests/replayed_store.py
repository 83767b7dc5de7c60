"""A store that keeps everything in dictionaries: what changes come to, for tests to start a registry from."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import Any

from academy_hpc.changes import (
    Change,
    DeadRemoved,
    MailboxCreated,
    MailboxRow,
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
from academy_hpc.repeats import RecentIds

__all__ = ["ReplayedStore"]


class _Done:
    """Nothing to wait for."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_DONE = _Done()


class ReplayedStore:
    """Lives as long as its object. Not for use by two exchanges at once."""

    def __init__(self, *, tombstones: int = 50_000) -> None:
        self._limit = tombstones
        self._exchange_id = uuid.uuid4().hex
        self._mailboxes: dict[uuid.UUID, MailboxCreated] = {}
        self._last_seqs: dict[uuid.UUID, int] = {}
        self._sessions: dict[uuid.UUID, uuid.UUID] = {}
        self._groups: dict[uuid.UUID, frozenset[str]] = {}
        self._messages: dict[uuid.UUID, dict[int, MessageStored]] = {}
        self._pending: dict[uuid.UUID, dict[uuid.UUID, RequestPending]] = {}
        self._tombstones: dict[uuid.UUID, None] = {}
        self._recent = RecentIds()
        self._dead: dict[uuid.UUID, dict[uuid.UUID, MessageDied]] = {}
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

    @property
    def exchange_id(self) -> str:
        """See `Store`: new with each object."""
        return self._exchange_id

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
        dead = [letter for letters in self._dead.values() for letter in letters.values()]
        return Snapshot(rows, messages, pending, list(self._tombstones), list(self._recent.items()), dead)

    def write(
        self, changes: Sequence[Change], *, written: Callable[[], None] = lambda: None, hurried: bool = True
    ) -> Awaitable[None]:
        """See `Store`. Done when it returns."""
        for change in changes:
            self._apply[type(change)](change)
        written()
        return _DONE

    async def close(self) -> None:
        """See `Store`."""

    def _create(self, change: MailboxCreated) -> None:
        self._mailboxes[change.entity.uid] = change
        self._tombstones.pop(change.entity.uid, None)  # the exchange had forgotten it

    def _store(self, change: MessageStored) -> None:
        self._messages.setdefault(change.uid, {})[change.seq] = change
        self._last_seqs[change.uid] = change.seq
        self._recent.add(change.message.header)

    def _remove(self, change: MessagesRemoved) -> None:
        messages = self._messages.get(change.uid, {})
        for seq in change.seqs:
            messages.pop(seq, None)
        if not messages:  # a dictionary that was large once stays large
            self._messages.pop(change.uid, None)

    def _pend(self, change: RequestPending) -> None:
        self._pending.setdefault(change.uid, {})[change.header.tag] = change

    def _answer(self, change: RequestAnswered) -> None:
        pending = self._pending.get(change.uid, {})
        pending.pop(change.tag, None)
        if not pending:
            self._pending.pop(change.uid, None)

    def _start_session(self, change: SessionStarted) -> None:
        self._sessions[change.uid] = change.session

    def _share(self, change: ShareChanged) -> None:
        self._groups[change.uid] = change.groups

    def _die(self, change: MessageDied) -> None:
        self._dead.setdefault(change.uid, {})[change.message.tag] = change

    def _revive(self, change: DeadRemoved) -> None:
        letters = self._dead.get(change.uid, {})
        for tag in change.tags:
            letters.pop(tag, None)

    def _terminate(self, change: MailboxTerminated) -> None:
        rows: tuple[dict[uuid.UUID, Any], ...] = (self._mailboxes, self._last_seqs, self._sessions, self._groups)
        for table in (*rows, self._messages, self._pending, self._dead):
            table.pop(change.uid, None)
        self._tombstones[change.uid] = None
        if len(self._tombstones) > self._limit:
            del self._tombstones[next(iter(self._tombstones))]
