"""One mailbox on a stream: what it has received, still works on, and has under way. No I/O.

A link outlives connections: it can tell a new one where to go on.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque

from academy_hpc.errors import AcademyError
from academy_hpc.exchange.http.wire import MAX_UNCONFIRMED, UNHURRIED, Acknowledge, Attach, Deliver, Detach
from academy_hpc.exchange.transport import OnEnd, OnMessage
from academy_hpc.identifiers import EntityId
from academy_hpc.message import Message

__all__ = ["Link"]

WINDOW_MESSAGES = 512
WINDOW_BYTES = 16 * 1024 * 1024
# Bytes that one entity may have under way without confirmation; a larger message goes alone.
UNCONFIRMED_BYTES = 32 * 1024 * 1024


class Link:
    """The state of one mailbox's traffic on this side."""

    def __init__(self, entity: EntityId) -> None:
        self.entity = entity
        self.session = uuid.uuid4()
        self.attached = False  # this side wants to listen
        self.established = False  # the exchange has agreed at least once
        self._on_message: OnMessage | None = None
        self._on_end: OnEnd | None = None
        self._received = self._consumed = 0
        self._reads_by_acknowledging = False
        self._held: dict[int, None] = {}
        self._done: list[int] = []
        self._unbegun: list[int] = []
        self._unreported_messages = self._unreported_bytes = 0
        self._under_way = self._under_way_bytes = 0
        self._quiet = asyncio.Event()
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def listen(self, on_message: OnMessage, on_end: OnEnd, *, reads_by_acknowledging: bool = False) -> None:
        """From now on these are called. To be done before the exchange is asked to attach.

        `reads_by_acknowledging`: a message counts as read when it is acknowledged, not when `on_message` returns; so a
        program that takes them one by one is never sent more than a window full.
        """
        self._on_message, self._on_end = on_message, on_end
        self._reads_by_acknowledging = reads_by_acknowledging
        self.attached = True

    # Receiving

    def attach_operation(self, call: int) -> Attach:
        """What a connection must send to go on where the last one broke off."""
        resume = (self._received, list(self._held)) if self.established else None
        self._done.clear()  # a resume says it all
        return Attach(call, self.entity, self.session, WINDOW_MESSAGES, WINDOW_BYTES, resume)

    def deliver(self, operation: Deliver) -> None:
        """Pass a message on to the program."""
        if operation.seq <= self._received or self._on_message is None:
            return  # a resumed connection never sends these; a faulty one may
        self._received = operation.seq
        self._held[operation.seq] = None
        if not self._reads_by_acknowledging:
            self._consumed = operation.seq
        self._unreported_messages += 1
        self._unreported_bytes += len(operation.body)
        message = Message(operation.header, operation.body, seq=operation.seq, attempt=operation.attempt)
        self._on_message(message)

    def acknowledge(self, seq: int) -> None:
        """Done with number `seq`; to be reported."""
        if self._held.pop(seq, 0) is None:
            self._done.append(seq)
            if self._reads_by_acknowledging:
                self._consumed = max(self._consumed, seq)

    def give_back(self, seq: int) -> None:
        """Number `seq` was not begun, and is for the next listener: told when this one goes."""
        self._unbegun.append(seq)

    def detach_operation(self) -> Detach:
        """What tells that this listener goes, in order."""
        return Detach(self.entity.uid, self._unbegun)

    def answered(self, seq: int) -> None:
        """The exchange has stored the answer to number `seq`, and forgotten the request."""
        self._held.pop(seq, None)

    @property
    def has_report(self) -> bool:
        """Whether there is something done that the exchange does not know."""
        return bool(self._done)

    @property
    def must_report(self) -> bool:
        """Whether the exchange should hear of what was done, or of room in the window, without delay."""
        return (
            len(self._done) >= UNHURRIED
            or self._unreported_messages >= WINDOW_MESSAGES // 4
            or self._unreported_bytes > WINDOW_BYTES // 8
        )

    def report(self) -> Acknowledge:
        """What was done and read since the last report."""
        done, self._done = self._done, []
        self._unreported_messages = self._unreported_bytes = 0
        return Acknowledge(self.entity.uid, self._consumed, done)

    def end(self, error: AcademyError) -> None:
        """No more messages will come."""
        if self.attached:
            self.attached = False
            if self._on_end is not None:
                self._on_end(error)

    # Sending

    async def reserve(self, size: int) -> None:
        """Wait until a message of `size` bytes may go under way. First come, first served."""
        if not self._waiting and self._fits(size):
            self._enter(size)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.leave(size)
            raise

    def leave(self, size: int) -> None:
        """A message of `size` bytes was confirmed, or refused."""
        self._under_way -= 1
        self._under_way_bytes -= size
        if not self._under_way:
            self._quiet.set()
        while self._waiting and (self._waiting[0][1].done() or self._fits(self._waiting[0][0])):
            size, future = self._waiting.popleft()
            if not future.done():
                self._enter(size)
                future.set_result(None)

    async def wait_confirmed(self) -> None:
        """Until nothing is under way."""
        while self._under_way:
            self._quiet.clear()
            await self._quiet.wait()

    def _fits(self, size: int) -> bool:
        if not self._under_way:
            return True
        return self._under_way < MAX_UNCONFIRMED and self._under_way_bytes + size <= UNCONFIRMED_BYTES

    def _enter(self, size: int) -> None:
        self._under_way += 1
        self._under_way_bytes += size
