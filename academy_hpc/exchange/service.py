"""The exchange as its routes see it: the core, a store, and who listens now.

The core decides; here its effects are carried out in order: first the store keeps the changes, then listeners hear of
them, then waiting senders get the room that came free.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Protocol

from academy_hpc.errors import AcademyError, ListenerSupersededError, MailboxFullError, RefusedError, StoreError
from academy_hpc.exchange.store import Store
from academy_hpc.identifiers import EntityId
from academy_hpc.message import Message
from academy_hpc.registry import Caller, Effects, Limits, Registry

__all__ = ["ExchangeService", "Listener", "Outcome"]

logger = logging.getLogger(__name__)

Outcome = Callable[[AcademyError | None], None]


class Listener(Protocol):
    """One session's connection, as seen by the service. Both methods return at once and never raise."""

    def wake(self, uid: uuid.UUID) -> None:
        """The mailbox has something to take."""

    def end(self, uid: uuid.UUID, error: AcademyError) -> None:
        """The mailbox has no listener here any more, because of `error`."""


class _Waiting:
    """A send into a full mailbox."""

    __slots__ = ("acknowledges", "caller", "done", "message", "since")

    def __init__(self, message: Message, caller: Caller, acknowledges: int | None, done: Outcome, since: float) -> None:
        self.message = message
        self.caller = caller
        self.acknowledges = acknowledges
        self.done = done
        self.since = since


class ExchangeService:
    """One exchange. All methods must be called in its event loop."""

    def __init__(self, store: Store, *, limits: Limits | None = None, full_wait_s: float = 30.0) -> None:
        self.exchange_id = store.exchange_id
        self.registry = Registry(limits)
        self._store = store
        self._full_wait_s = full_wait_s
        self._listeners: dict[uuid.UUID, tuple[Listener, uuid.UUID]] = {}
        self._waiting: dict[uuid.UUID, deque[_Waiting]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.failed = asyncio.Event()
        self.registry.restore(store.load())

    async def commit(self, effects: Effects) -> None:
        """Keep the changes, then tell those concerned. Nothing of `effects` may be answered before this returns."""
        if effects.changes:
            await self._keep(effects)
        for delivery in effects.given_up:
            logger.warning("gave up %r after %d deliveries", delivery.message, delivery.attempt)
        for uid, error in effects.ended.items():
            self._end(uid, error)
        for uid in effects.woken:
            self._wake(uid)
        if self._waiting:
            await self._admit([uid for uid in (*effects.freed, *effects.ended) if uid in self._waiting])

    def send(self, message: Message, caller: Caller, effects: Effects, acknowledges: int | None, done: Outcome) -> bool:
        """Accept a message now (True), or let it wait for room (False; `done` is called in the end).

        Raises:
            RefusedError: As `Registry.send`, but for MailboxFullError.
        """
        uid = message.header.dest.uid
        if uid not in self._waiting:  # otherwise it must not overtake those that wait
            try:
                self.registry.send(message, caller, effects, acknowledges=acknowledges)
                return True
            except MailboxFullError:
                self._waiting[uid] = deque()
        self._waiting[uid].append(_Waiting(message, caller, acknowledges, done, time.monotonic()))
        self._start_timer()
        return False

    async def send_and_wait(self, message: Message, caller: Caller) -> None:
        """Accept one message, waiting for room. Raises RefusedError."""
        effects = Effects()
        future: asyncio.Future[AcademyError | None] = asyncio.get_running_loop().create_future()

        def done(error: AcademyError | None) -> None:
            if not future.done():
                future.set_result(error)

        try:
            accepted = self.send(message, caller, effects, None, done)
        finally:
            await self.commit(effects)
        if not accepted and (error := await future) is not None:
            raise error

    def attach(
        self,
        entity: EntityId,
        listener: Listener,
        session: uuid.UUID,
        caller: Caller,
        effects: Effects,
        *,
        resume: tuple[int, list[int]] | None = None,
    ) -> None:
        """`listener` has the mailbox from now on; an earlier one is told to stop. Raises RefusedError."""
        self.registry.attach(entity, session, caller, effects, now=time.monotonic(), resume=resume)
        before = self._listeners.get(entity.uid)
        self._listeners[entity.uid] = (listener, session)
        if before is not None and before[1] != session:
            before[0].end(entity.uid, ListenerSupersededError(entity))

    def detach(self, uid: uuid.UUID, listener: Listener, session: uuid.UUID) -> None:
        """`listener` is gone. Late calls, when another has come, have no effect."""
        current = self._listeners.get(uid)
        if current is not None and current[0] is listener:
            del self._listeners[uid]
            self.registry.detach(uid, session, now=time.monotonic())

    async def close(self) -> None:
        """Fail what waits and close the store."""
        if self._timer is not None:
            self._timer.cancel()
        for uid in list(self._waiting):
            for waiting in self._waiting.pop(uid):
                waiting.done(RefusedError("The exchange is shutting down."))
        await self._store.close()

    async def _keep(self, effects: Effects) -> None:
        try:
            await self._store.write(effects.changes)
        except StoreError as error:
            # What is in memory is ahead of the disk now: only a restart from the disk can be trusted.
            logger.critical("%s The exchange ends here.", error)
            self.failed.set()
            raise
        self.registry.kept(effects)

    def _wake(self, uid: uuid.UUID) -> None:
        current = self._listeners.get(uid)
        if current is not None:
            current[0].wake(uid)

    def _end(self, uid: uuid.UUID, error: AcademyError) -> None:
        current = self._listeners.pop(uid, None)
        if current is not None:
            current[0].end(uid, error)

    async def _admit(self, uids: list[uuid.UUID]) -> None:
        for uid in uids:
            effects, answers = Effects(), []
            queue = self._waiting.get(uid)  # an earlier commit of this loop may have emptied it
            if queue is None:
                continue
            while queue and (answer := self._try(queue[0], effects)) is not None:
                answers.append((queue.popleft().done, answer))
            if not queue:
                self._waiting.pop(uid, None)
            await self.commit(effects)
            for done, answer in answers:
                done(answer if isinstance(answer, AcademyError) else None)

    def _try(self, waiting: _Waiting, effects: Effects) -> AcademyError | bool | None:
        """True: accepted. None: still no room."""
        try:
            self.registry.send(waiting.message, waiting.caller, effects, acknowledges=waiting.acknowledges)
        except MailboxFullError:
            return None
        except RefusedError as error:
            return error
        return True

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(min(1.0, self._full_wait_s), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = time.monotonic()
        for uid in list(self._waiting):
            queue = self._waiting[uid]
            while queue and now - queue[0].since >= self._full_wait_s:
                waiting = queue.popleft()
                waiting.done(MailboxFullError(waiting.message.header.dest, self._full_wait_s))
            if not queue:
                del self._waiting[uid]
        if self._waiting:
            self._start_timer()
