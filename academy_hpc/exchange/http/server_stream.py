"""The server's end of one stream: many mailboxes of one client process on one WebSocket."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from aiohttp import ClientConnectionResetError, WSCloseCode, WSMsgType, web

from academy_hpc.delivery import Window
from academy_hpc.directory import Caller, Effects
from academy_hpc.errors import AcademyError, BadRequestError, RefusedError, StoreError
from academy_hpc.exchange.http.auth import AgentTokens
from academy_hpc.exchange.http.operations import Operations
from academy_hpc.exchange.http.wire import (
    BATCH_BYTES,
    UNHURRIED,
    UNHURRIED_S,
    Acknowledge,
    Attach,
    Bye,
    Call,
    Deliver,
    Detach,
    Ended,
    Failed,
    FromClient,
    Hello,
    Present,
    Reply,
    Send,
    Sent,
    decode_from_client,
    encode_operations,
    failure,
)
from academy_hpc.exchange.service import ExchangeService
from academy_hpc.message import Message

__all__ = ["StreamConnection"]

logger = logging.getLogger(__name__)

# Operations that may wait to be written while further ones are read.
OUTBOX_LIMIT = 10_000
# Frames that may wait for the store while further ones are read.
FRAMES_LIMIT = 256
# After working for this long, in one frame or in many, a connection lets the others be heard.
TURN_S = 0.01
# A right that ends at once is not asked for more often than this.
SHORTEST_RIGHT_S = 1.0


class _Attached:
    __slots__ = ("session", "window")

    def __init__(self, session: uuid.UUID, window: Window) -> None:
        self.session = session
        self.window = window


class StreamConnection:
    """Reads operations, hands them to the service, and writes what comes back in batches, once a loop turn."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        service: ExchangeService,
        caller: Caller,
        agents: AgentTokens,
        *,
        authenticate: Callable[[], Awaitable[Caller]],
        durable: bool,
    ) -> None:
        self._socket = socket
        self._service = service
        self._operations = Operations(service, agents)
        self._agents = agents
        self._caller = caller
        self._authenticate = authenticate
        self._callers: dict[uuid.UUID, Caller | None] = {}  # agents that presented a token of their own
        self._attached: dict[uuid.UUID, _Attached] = {}
        self._outbox: deque[Any] = deque()
        self._busy_s = 0.0  # worked since the others were heard
        self._finishing: deque[asyncio.Task[None]] = deque()
        self._ready: dict[uuid.UUID, None] = {}  # mailboxes with something to take, in order
        self._wake, self._written = asyncio.Event(), asyncio.Event()
        self._unhurried: list[int] = []  # sends that are stored, which nobody waits to hear
        self._timer: asyncio.TimerHandle | None = None
        self._hello = Hello(service.exchange_id, service.registry.limits.message_bytes, durable, time.time())

    async def run(self) -> None:
        """Serve until either side closes. What was not acknowledged waits for the next listener."""
        await self._socket.send_bytes(encode_operations([self._hello]))
        writer = asyncio.create_task(self._write())
        renewal = asyncio.create_task(self._renew())
        try:
            await self._read()
        except BadRequestError as error:
            logger.warning("closing a stream: %s", error)
            await self._socket.close(code=WSCloseCode.PROTOCOL_ERROR, message=b"malformed frame")
        finally:
            # First of all and without waiting: this may be cancelled, and a listener that stays looks alive.
            for uid, attached in self._attached.items():
                self._service.detach(uid, self, attached.session)
            if self._timer is not None:
                self._timer.cancel()
            renewal.cancel()
            writer.cancel()
            await asyncio.wait([writer, renewal])
            if not writer.cancelled() and (failure_of_writer := writer.exception()) is not None:
                logger.error("a stream could not be written to", exc_info=failure_of_writer)

    async def close(self) -> None:
        """Say that the exchange is shutting down, and close."""
        try:
            await self._socket.send_bytes(encode_operations([Bye()]))
            await self._socket.close(code=WSCloseCode.GOING_AWAY)
        except (ConnectionError, RuntimeError):  # it was closed already
            pass

    async def _renew(self) -> None:
        """Ask again whether the token is good, whenever that may have changed; without it the connection ends."""
        while self._caller.expires_s is not None:
            await asyncio.sleep(max(SHORTEST_RIGHT_S, self._caller.expires_s - time.monotonic()))
            try:
                renewed = await self._authenticate()
            except AcademyError as error:  # the client opens another one, with a new token if it has one
                logger.info("closing a stream: %s", error)
                renewed = None
            if renewed is None or (renewed.user, renewed.groups) != (self._caller.user, self._caller.groups):
                await self._socket.close(code=WSCloseCode.POLICY_VIOLATION)  # what it listens to is to be judged anew
                return
            self._caller = renewed

    # As a Listener of the service

    def wake(self, uid: uuid.UUID) -> None:
        """See `Listener`."""
        self._ready[uid] = None
        self._wake.set()

    def end(self, uid: uuid.UUID, error: AcademyError) -> None:
        """See `Listener`."""
        attached = self._attached.pop(uid, None)
        if attached is not None:
            self._ready.pop(uid, None)
            self._push(Ended(uid, attached.session, *failure(error)))

    # Reading

    async def _read(self) -> None:
        async for frame in self._socket:
            if frame.type is not WSMsgType.BINARY:
                raise BadRequestError("a frame that is not binary")
            await self._handle(decode_from_client(frame.data))
            if len(self._outbox) > OUTBOX_LIMIT:  # a client that does not read is not read from
                await self._written.wait()

    async def _handle(self, received: list[FromClient]) -> None:
        operations = deque(received)
        while operations:
            if self._busy_s > TURN_S:
                await self._let_others()
            await self._handle_some(operations)

    async def _let_others(self) -> None:
        """Hear the others, and have written what there is: what takes long to answer has long answers."""
        self._busy_s = 0.0
        await asyncio.sleep(0)
        if self._outbox:
            await self._written.wait()

    async def _handle_some(self, operations: deque[FromClient]) -> None:
        """Those for which there is time; they are kept and answered before the others are heard."""
        start = time.monotonic()
        effects = Effects()
        sent: list[Send] = []
        answers: list[Any] = []
        while operations:
            operation = operations.popleft()
            if isinstance(operation, Send):
                self._send(operation, effects, sent, answers)
            elif isinstance(operation, Acknowledge):
                self._acknowledge(operation, effects)
            elif isinstance(operation, Present):
                self._present(operation)
            else:
                self._other(operation, effects, answers)
            if time.monotonic() - start > TURN_S:
                break
        self._busy_s += time.monotonic() - start
        effects.hurried = bool(answers) or any(operation.waits for operation in sent)
        committed = self._service.commit(effects)
        if self._hello.durable:
            await self._finish_later(self._finish(committed, sent, answers))
        else:
            await self._finish(committed, sent, answers)

    async def _finish(self, committed: Awaitable[None], sent: list[Send], answers: list[Any]) -> None:
        try:
            await committed
        except StoreError:
            await self._socket.close(code=WSCloseCode.INTERNAL_ERROR)
            return
        self._confirm(sent)
        for answer in answers:
            self._push(answer)

    async def _finish_later(self, finishing: Coroutine[Any, Any, None]) -> None:
        """While the disk is at work, further frames are read: what they ask for is written together."""
        self._finishing.append(asyncio.create_task(finishing))
        while self._finishing and (self._finishing[0].done() or len(self._finishing) >= FRAMES_LIMIT):
            await self._finishing.popleft()

    def _send(self, operation: Send, effects: Effects, sent: list[Send], answers: list[Any]) -> None:
        number = operation.number

        def done(error: AcademyError | None) -> None:
            self._push(Sent([number]) if error is None else Failed(number, *failure(error)))

        message = Message(operation.header, operation.body)
        try:
            caller = self._caller_for(operation.header.src.uid)
            if self._service.send(message, caller, effects, operation.acknowledges, done):
                sent.append(operation)
        except RefusedError as error:
            answers.append(Failed(number, *failure(error)))

    def _acknowledge(self, operation: Acknowledge, effects: Effects) -> None:
        attached = self._attached.get(operation.uid)
        if attached is None:
            return  # fenced off, or terminated, since
        registry = self._service.registry
        registry.acknowledge(operation.uid, attached.session, operation.seqs, effects)
        if registry.consumed(operation.uid, attached.session, operation.consumed):
            self.wake(operation.uid)

    def _other(self, operation: Attach | Detach | Call, effects: Effects, answers: list[Any]) -> None:
        if isinstance(operation, Detach):
            self._detach(operation, effects)
            return
        try:
            if isinstance(operation, Attach):
                self._attach(operation, effects)
                result = None
            else:
                caller = self._caller_for(operation.caller)
                result = self._operations.call(caller, effects, operation.method, operation.arguments)
            answers.append(Reply(operation.call, result))
        except RefusedError as error:
            code, arguments = failure(error)
            answers.append(Reply(operation.call, arguments, code))

    def _attach(self, operation: Attach, effects: Effects) -> None:
        uid = operation.entity.uid
        caller = self._caller_for(uid)
        self._service.attach(operation.entity, self, operation.session, caller, effects, resume=operation.resume)
        window = Window(max(1, operation.window_messages), max(1, operation.window_bytes))
        self._attached[uid] = _Attached(operation.session, window)

    def _present(self, operation: Present) -> None:
        if self._agents.is_good(operation.token, operation.uid):
            self._callers[operation.uid] = None

    def _caller_for(self, uid: uuid.UUID | None) -> Caller:
        """By whose right the entity acts on this connection."""
        if uid is None or uid not in self._callers:
            return self._caller
        caller = self._callers[uid]
        if caller is None:  # asked for when it is needed: the token may have been here before its mailbox
            caller = self._service.registry.agent_caller(uid)
            self._callers[uid] = caller if caller.user else None
        return caller

    def _detach(self, operation: Detach, effects: Effects) -> None:
        attached = self._attached.pop(operation.uid, None)
        if attached is not None:
            self._service.detach(operation.uid, self, attached.session, in_order=effects, unbegun=operation.unbegun)

    # Writing

    def _push(self, operation: Any) -> None:
        self._outbox.append(operation)
        self._written.clear()
        self._wake.set()

    def _confirm(self, sent: list[Send]) -> None:
        waiting = [operation.number for operation in sent if operation.waits]
        if waiting:
            self._push(Sent(waiting))
        self._unhurried += [operation.number for operation in sent if not operation.waits]
        if len(self._unhurried) >= UNHURRIED:
            self._confirm_unhurried()
        elif self._unhurried and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(UNHURRIED_S, self._confirm_unhurried)

    def _confirm_unhurried(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._unhurried:
            numbers, self._unhurried = self._unhurried, []
            self._push(Sent(numbers))

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while batch := self._next_batch():
                    await self._socket.send_bytes(encode_operations(batch))
                self._written.set()
        except (ClientConnectionResetError, ConnectionError):
            logger.debug("a stream was closed while written to")
        finally:
            await self._socket.close()

    def _next_batch(self) -> list[Any]:
        if not self._outbox:
            self._take()
        if self._outbox and self._unhurried:
            self._confirm_unhurried()
        batch, size = [], 0
        while self._outbox and size < BATCH_BYTES:
            operation = self._outbox.popleft()
            batch.append(operation)
            size += 200 + (len(operation.body) if isinstance(operation, Deliver) else 0)
        return batch

    def _take(self) -> None:
        while self._ready:
            uid = next(iter(self._ready))
            del self._ready[uid]
            attached = self._attached.get(uid)
            if attached is None:
                continue
            for delivery in self._service.registry.take(uid, attached.session, attached.window):
                message = delivery.message
                self._outbox.append(Deliver(uid, delivery.seq, delivery.attempt, message.header, message.body))
