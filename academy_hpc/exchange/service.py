"""The exchange as its routes see it: the core, a store, and who listens now.

The core decides; here its effects are carried out in order: first the store keeps the changes, then listeners hear of
them, then waiting senders get the room that came free.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Protocol

from academy_hpc.delivery import size_of
from academy_hpc.directory import Caller, Effects
from academy_hpc.errors import (
    AcademyError,
    ExchangeFullError,
    ListenerSupersededError,
    MailboxFullError,
    RefusedError,
    StoreError,
)
from academy_hpc.exchange.store import Store
from academy_hpc.identifiers import EntityId
from academy_hpc.message import Message
from academy_hpc.registry import Limits, Registry

__all__ = ["ExchangeService", "Listener", "Outcome"]

logger = logging.getLogger(__name__)

Outcome = Callable[[AcademyError | None], None]
# Where a message waits for room: of which mailbox, and whether with the requests. Answers do not wait behind these,
# which may need them in order to leave.
_Place = tuple[uuid.UUID, bool]


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
        self._waiting: dict[_Place, deque[_Waiting]] = {}
        self._waiting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self.failed = asyncio.Event()
        self.registry.restore(store.load())

    def commit(self, effects: Effects) -> Coroutine[Any, Any, None]:
        """Keep the changes, then tell those concerned; to be awaited. Nothing of `effects` may be answered before.

        The store is asked at once, so that it hears of changes in the order in which they happened.
        """
        return self._finish(effects, self._write(effects))

    def _write(self, effects: Effects) -> Awaitable[None] | None:
        written = None
        if effects.changes:
            hand_out = functools.partial(self._hand_out, effects)
            written = self._store.write(effects.changes, written=hand_out, hurried=effects.hurried)
        else:
            self._hand_out(effects)
        return self._store.write(()) if effects.repeated else written

    def _hand_out(self, effects: Effects) -> None:
        """What was accepted is on its way: were this process killed, the next one would know of it."""
        self.registry.kept(effects)
        for uid, error in effects.ended.items():
            self._end(uid, error)
        for uid in effects.woken:
            self._wake(uid)

    async def _finish(self, effects: Effects, written: Awaitable[None] | None) -> None:
        await self._carry_out(effects, written)
        full = deque(self._waited_for(effects))
        while full:  # what is admitted to one mailbox may make room in another
            admitted, answers = self._admit(full.popleft())
            await self._carry_out(admitted, self._write(admitted))
            full += self._waited_for(admitted)
            for done, answer in answers:
                done(answer)

    async def _carry_out(self, effects: Effects, written: Awaitable[None] | None) -> None:
        if written is not None:
            await self._keep(effects, written)
        for delivery in effects.given_up:
            logger.warning("gave up %r after %d deliveries", delivery.message, delivery.attempt)

    def _waited_for(self, effects: Effects) -> list[_Place]:
        if not self._waiting:
            return []
        places = [(uid, requests) for uid in (*effects.freed, *effects.ended) for requests in (False, True)]
        return [place for place in places if place in self._waiting]

    def send(self, message: Message, caller: Caller, effects: Effects, acknowledges: int | None, done: Outcome) -> bool:
        """Accept a message now (True), or let it wait for room (False; `done` is called in the end).

        Raises:
            RefusedError: As `Registry.send`, but for MailboxFullError.
        """
        place = message.dest.uid, message.is_request
        # It must not overtake those that wait, unless it is here already and only its confirmation was lost.
        if place not in self._waiting or self.registry.is_repeat(message.header):
            try:
                self.registry.send(message, caller, effects, acknowledges=acknowledges)
                return True
            except MailboxFullError:
                pass
        self._check_waiting(message)
        self._waiting.setdefault(place, deque()).append(_Waiting(message, caller, acknowledges, done, time.monotonic()))
        self._start_timer()
        return False

    def _check_waiting(self, message: Message) -> None:
        """What waits takes memory as what is stored does."""
        limit = self.registry.limits.total_bytes
        self._waiting_bytes += size_of(message)
        if self.registry.stored_bytes + self._waiting_bytes > limit:
            self._waiting_bytes -= size_of(message)
            raise ExchangeFullError("bytes", limit)

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
        now, unix_s = time.monotonic(), time.time()
        self.registry.attach(entity, session, caller, effects, now=now, unix_s=unix_s, resume=resume)
        before = self._listeners.get(entity.uid)
        self._listeners[entity.uid] = (listener, session)
        if before is not None and (before[0] is not listener or before[1] != session):
            before[0].end(entity.uid, ListenerSupersededError(entity))

    def detach(
        self,
        uid: uuid.UUID,
        listener: Listener,
        session: uuid.UUID,
        *,
        in_order: Effects | None = None,
        unbegun: Iterable[int] = (),
    ) -> None:
        """`listener` is gone, or has ended `in_order`. Late calls, when another has come, have no effect.

        `unbegun`: numbers of what it was handed and has not begun.
        """
        current = self._listeners.get(uid)
        if current is not None and current[0] is listener:
            del self._listeners[uid]
            self.registry.detach(uid, session, now=time.monotonic(), in_order=in_order, unbegun=unbegun)

    async def watch_absent(self, absent_s: float) -> None:
        """For ever: whoever waits for an entity that nobody has run for `absent_s` seconds gets an error.

        Looked at ten times in that time, so it takes a tenth longer at the most.
        """
        first_missed: dict[EntityId, float] = {}
        while True:
            await asyncio.sleep(absent_s / 10)
            now, effects = time.monotonic(), Effects()
            first_missed = {
                entity: max(first_missed.get(entity, now), seen or 0.0) for entity, seen in self.registry.absent()
            }
            for entity, since in first_missed.items():
                if now - since >= absent_s:
                    logger.warning("nobody has run %s for %.0f s: who waits for it gets an error", entity, now - since)
                    self.registry.give_up_absent(entity, now - since, effects)
            with contextlib.suppress(StoreError):  # the exchange ends by it
                await self.commit(effects)

    async def close(self) -> None:
        """Fail what waits and close the store."""
        if self._timer is not None:
            self._timer.cancel()
        for place in list(self._waiting):
            for waiting in self._waiting.pop(place):
                waiting.done(RefusedError("The exchange is shutting down."))
        await self._store.close()

    async def _keep(self, effects: Effects, written: Awaitable[None]) -> None:
        try:
            await written
        except StoreError as error:
            # What is in memory is ahead of the disk now: only a restart from the disk can be trusted.
            logger.critical("%s The exchange ends here.", error)
            self.failed.set()
            raise

    def _wake(self, uid: uuid.UUID) -> None:
        current = self._listeners.get(uid)
        if current is not None:
            current[0].wake(uid)

    def _end(self, uid: uuid.UUID, error: AcademyError) -> None:
        current = self._listeners.pop(uid, None)
        if current is not None:
            current[0].end(uid, error)

    def _admit(self, place: _Place) -> tuple[Effects, list[tuple[Outcome, AcademyError | None]]]:
        """Accept what waits for a mailbox, as far as there is room; whom to tell what once it is kept."""
        effects = Effects()
        answers: list[tuple[Outcome, AcademyError | None]] = []
        queue = self._waiting.get(place, deque())
        while queue:
            waiting = queue[0]
            try:
                self.registry.send(waiting.message, waiting.caller, effects, acknowledges=waiting.acknowledges)
                answers.append((waiting.done, None))
            except MailboxFullError:
                break
            except RefusedError as error:
                answers.append((waiting.done, error))
            self._leave(queue)
        if not queue:
            self._waiting.pop(place, None)
        return effects, answers

    def _leave(self, queue: deque[_Waiting]) -> _Waiting:
        waiting = queue.popleft()
        self._waiting_bytes -= size_of(waiting.message)
        return waiting

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(min(1.0, self._full_wait_s), self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = time.monotonic()
        for place in list(self._waiting):
            queue = self._waiting[place]
            while queue and now - queue[0].since >= self._full_wait_s:
                waiting = self._leave(queue)
                waiting.done(MailboxFullError(waiting.message.header.dest, self._full_wait_s))
            if not queue:
                del self._waiting[place]
        if self._waiting:
            self._start_timer()
