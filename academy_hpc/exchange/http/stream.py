"""The stream client: one WebSocket a process and exchange, shared by all clients in it.

A broken connection is opened again with capped, jittered pauses; then every mailbox is attached where it was, and
whatever was not confirmed is sent again. The exchange drops what it has already.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

import aiohttp

from academy_hpc.errors import (
    AcademyError,
    ConnectionInfoError,
    ExchangeChangedError,
    ExchangeUnavailableError,
    ExchangeUnreachableError,
    ListenerSupersededError,
    MessageTooLargeError,
    UnauthorizedError,
)
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.credential import Credential
from academy_hpc.exchange.http.dial import ClientOptions, Dialled, NoStreamError, OtherServerError, dial
from academy_hpc.exchange.http.link import Link
from academy_hpc.exchange.http.memory import keep_freed_memory
from academy_hpc.exchange.http.wire import (
    BATCH_BYTES,
    UNHURRIED_S,
    Bye,
    Call,
    Deliver,
    Ended,
    Failed,
    FromServer,
    Hello,
    Present,
    Reply,
    Send,
    Sent,
    decode_from_server,
    encode_operations,
    failure_error,
)
from academy_hpc.identifiers import EntityId
from academy_hpc.message import Message

__all__ = ["Stream"]

logger = logging.getLogger(__name__)

LAST_WRITE_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 5.0

# Told how a send went: None, or why it was not stored.
SendOutcome = Callable[[AcademyError | None], None]


class _UnderWay:
    """A send that is not confirmed."""

    __slots__ = ("link", "operation", "outcome")

    def __init__(self, operation: Send, link: Link, outcome: SendOutcome) -> None:
        self.operation = operation
        self.link = link
        self.outcome = outcome


class Stream:
    """The connection of this process to one exchange. Use `acquire` and `release`."""

    _shared: ClassVar[dict[tuple[asyncio.AbstractEventLoop, str, ClientOptions, Credential | None], Stream]] = {}

    def __init__(self, info: ConnectionInfo, options: ClientOptions, credential: Credential | None) -> None:
        self._info = info
        self._options = options
        self._credential = credential
        self._tokens: dict[EntityId, str] = {}  # of agents that act by a right of their own
        self._users = 0
        self._numbers = 0
        self._links: dict[uuid.UUID, Link] = {}
        self._under_way: dict[int, _UnderWay] = {}
        self._calls: dict[int, tuple[Call, asyncio.Future[Any]]] = {}
        self._attaching: dict[int, tuple[Link, asyncio.Future[None] | None]] = {}
        self._outbox: deque[Any] = deque()
        self._reporting: dict[uuid.UUID, Link] = {}  # links with something to report
        self._timer: asyncio.TimerHandle | None = None
        self._wake, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._pause_s = FIRST_PAUSE_S
        self._opening = asyncio.Lock()
        self._hello: Hello | None = None
        self._dialled: Dialled | None = None
        self._task: asyncio.Task[None] | None = None
        self._dead: AcademyError | None = None

    @classmethod
    async def acquire(
        cls,
        info: ConnectionInfo,
        options: ClientOptions,
        entity: EntityId,
        *,
        token: str | None = None,
        credential: Credential | None = None,
    ) -> Stream:
        """The open stream of this process and event loop to the exchange.

        Args:
            info: Where the exchange is, and what opens it.
            options: How a client behaves.
            entity: For whom.
            token: By whose right it acts, where that is its own.
            credential: What opens the exchange in place of the Authorization header of `info`.

        Raises:
            NoStreamError, UnauthorizedError, ExchangeUnreachableError
        """
        key = (asyncio.get_running_loop(), info.to_json(), options, credential)
        stream = cls._shared.get(key)
        if stream is None or stream._dead is not None:
            stream = cls._shared[key] = cls(info, options, credential)
        stream._users += 1
        try:
            if token is not None and stream._tokens.get(entity) != token:
                stream._tokens[entity] = token
                stream._push(Present(entity.uid, token))
            await stream._open()
        except BaseException:
            await stream.release()
            raise
        return stream

    async def release(self) -> None:
        """The caller needs it no more; the last one closes it, after all that is to be written is written."""
        self._users -= 1
        if self._users:
            return
        for key in [key for key, stream in self._shared.items() if stream is self]:
            del self._shared[key]
        if self._timer is not None and self._dead is None:
            self._hurry()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WRITE_S):
                    await self._idle.wait()
        finally:  # also when the caller is cancelled
            if self._task is not None:
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)
            if self._dialled is not None:
                await self._dialled.close()

    # For transports

    async def call(self, caller: uuid.UUID, method: str, *arguments: Any) -> Any:
        """Do an operation by name on behalf of an entity.

        It is asked for again on a new connection, which is safe. Raises AcademyError.
        """
        self._check_alive()
        self._numbers += 1
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        operation = Call(self._numbers, method, list(arguments), caller)
        self._calls[self._numbers] = operation, future
        self._push(operation)
        try:
            return await future
        finally:
            self._calls.pop(operation.call, None)

    async def attach(self, link: Link) -> None:
        """Listen for `link`. Raises RefusedError, ExchangeUnavailableError."""
        self._check_alive()
        older = self._links.get(link.entity.uid)
        self._links[link.entity.uid] = link
        if older is not None and older is not link:
            older.end(ListenerSupersededError(link.entity))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._attach(link, future)
        await future

    def detach(self, link: Link) -> None:
        """Stop listening; what is not acknowledged waits for the next listener."""
        if self._links.get(link.entity.uid) is not link:  # one that only sends, or has been superseded here
            return
        del self._links[link.entity.uid]
        if link.attached:
            link.attached = False
            self._report(link)
            self._push(link.detach_operation())

    async def post(
        self, link: Link, message: Message, outcome: SendOutcome, *, acknowledges: int | None, waits: bool
    ) -> None:
        """Put a message under way, waiting for room first; `outcome` is called once, soon if somebody `waits`."""
        size = len(message.body)
        if self._hello is not None and size > self._hello.message_bytes:
            # The exchange would close the connection, and everybody's traffic with it.
            outcome(MessageTooLargeError(size, self._hello.message_bytes))
            return
        await link.reserve(size)
        try:
            self._check_alive()
        except AcademyError:
            link.leave(size)
            raise
        self._numbers += 1
        operation = Send(self._numbers, message.header, message.body, acknowledges, waits)
        self._under_way[self._numbers] = _UnderWay(operation, link, outcome)
        self._push(operation)

    def acknowledge(self, link: Link, seq: int) -> None:
        """Done with number `seq` of the link."""
        link.acknowledge(seq)
        self._mark(link)

    @property
    def dialled(self) -> Dialled | None:
        """The latest connection; None: there was none yet."""
        return self._dialled

    # Connecting

    async def _open(self) -> None:
        async with self._opening:
            if self._task is None:
                keep_freed_memory()
                dialled = self._dialled = await self._dial_first()
                self._hello = dialled.hello
                self._task = asyncio.create_task(self._run(dialled), name="academy_hpc stream")

    async def _dial_first(self) -> Dialled:
        try:
            return await self._dial()
        except ExchangeUnreachableError:
            if not self._options.first_connection_s:
                raise
        return await self._redial(self._options.first_connection_s)

    async def _dial(self) -> Dialled:
        """A new connection. Where agents bring their own tokens, any of them opens it."""
        if self._credential is None:
            if not self._tokens:
                return await dial(self._info, self._options)
            for token in list(self._tokens.values()):
                with contextlib.suppress(UnauthorizedError):
                    return await dial(self._info, self._options, authorization=f"Bearer {token}")
            raise UnauthorizedError("it accepts none of the tokens of the agents here")
        authorization = await self._credential.authorization()
        try:
            return await dial(self._info, self._options, authorization=authorization)
        except UnauthorizedError:
            renewed = await self._credential.authorization(refused=authorization)
            if renewed == authorization:
                raise
            return await dial(self._info, self._options, authorization=renewed)

    async def _run(self, dialled: Dialled) -> None:
        try:
            while True:
                await self._serve(dialled)
                logger.info("the stream to %s broke; connecting again", dialled.url)
                dialled = self._dialled = await self._redial(self._options.reconnect_s)
        except asyncio.CancelledError:  # nobody may wait for a stream that is gone
            self._die(ExchangeUnavailableError("The connection to the exchange was closed."))
            raise
        except AcademyError as error:
            self._die(error)
        except Exception as error:
            logger.exception("the stream failed")
            self._die(ExchangeUnavailableError(f"The stream failed: {type(error).__name__}: {error}"))

    async def _serve(self, dialled: Dialled) -> None:
        """Until the connection breaks. Raises AcademyError when there is no use in another."""
        writer = None
        try:
            self._start_over(dialled)
            writer = asyncio.create_task(self._write(dialled.socket))
            async for frame in dialled.socket:
                if frame.type is not aiohttp.WSMsgType.BINARY:
                    break
                for operation in decode_from_server(frame.data):
                    self._handle(operation)
        finally:
            if writer is not None:
                writer.cancel()
            await dialled.close()
        await asyncio.wait([writer])
        if not writer.cancelled():
            writer.result()  # what it raised is a bug of ours that another connection would meet again

    async def _redial(self, within_s: float) -> Dialled:
        until = time.monotonic() + within_s
        while True:
            # Before the first try, too: a connection that breaks as soon as it stands must not become a storm.
            await asyncio.sleep(self._pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - spreads clients
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            await self._look_where()
            try:
                return await self._dial()
            except NoStreamError as error:  # something else answers there meanwhile
                failure: AcademyError = ExchangeUnreachableError({str(error): "answered, and not as an exchange does"})
            except OtherServerError as error:
                self._check_not_replaced(error.others)
                failure = error
            except ExchangeUnavailableError as error:  # the exchange, or who gives out tokens for it
                failure = error
            if time.monotonic() + self._pause_s > until:
                raise failure

    async def _look_where(self) -> None:
        if self._options.follow is not None:
            with contextlib.suppress(ConnectionInfoError):  # there is none while it moves
                found = await asyncio.to_thread(ConnectionInfo.read, self._options.follow)
                self._info = self._info.at_place_of(found)

    def _check_not_replaced(self, others: tuple[str, ...]) -> None:
        """Where another server has the place of an exchange in memory, ours has ended, and took all it had along."""
        if self._dialled is not None and not self._dialled.hello.durable and self._dialled.url in others:
            raise ExchangeChangedError(self._dialled.url)

    def _start_over(self, dialled: Dialled) -> None:
        """Write on the new connection: mailboxes first, then all that has no answer, in its old order."""
        if self._hello is not None and dialled.hello.exchange != self._hello.exchange:
            raise ExchangeChangedError(dialled.url)
        self._outbox.clear()
        for entity, token in self._tokens.items():
            self._push(Present(entity.uid, token))
        attaching = dict(self._attaching.values())
        self._attaching.clear()
        for link in self._links.values():
            if link.attached:
                self._attach(link, attaching.get(link))
        unanswered: dict[int, Call | Send] = {number: operation for number, (operation, _) in self._calls.items()}
        unanswered |= {number: under_way.operation for number, under_way in self._under_way.items()}
        for number in sorted(unanswered):
            self._push(unanswered[number])
        if not self._outbox:
            self._idle.set()

    def _die(self, error: AcademyError) -> None:
        """Everybody who waits gets the error."""
        self._dead = error
        self._idle.set()
        if self._timer is not None:
            self._timer.cancel()
        under_way, self._under_way = self._under_way, {}
        for item in under_way.values():
            item.link.leave(len(item.operation.body))
            item.outcome(error)
        for _, future in (*self._calls.values(), *self._attaching.values()):
            if future is not None and not future.done():
                future.set_exception(error)
        for link in list(self._links.values()):
            link.end(error)

    def _check_alive(self) -> None:
        if self._dead is not None:
            raise type(self._dead)(*self._dead.args)

    # Reading

    def _handle(self, operation: FromServer) -> None:
        self._pause_s = FIRST_PAUSE_S  # this connection gets something done
        if isinstance(operation, Deliver):
            link = self._links.get(operation.uid)
            if link is not None:
                link.deliver(operation)
                self._mark(link)
        elif isinstance(operation, Sent):
            for number in operation.numbers:
                self._confirmed(number, None)
        elif isinstance(operation, Failed):
            self._confirmed(operation.number, failure_error(operation.code, operation.arguments))
        elif isinstance(operation, Reply):
            self._replied(operation)
        elif isinstance(operation, Ended):
            link = self._links.get(operation.uid)
            if link is not None and link.session == operation.session:
                del self._links[operation.uid]
                link.end(failure_error(operation.code, operation.arguments))
        elif isinstance(operation, Bye) and self._hello is not None and not self._hello.durable:
            raise ExchangeUnavailableError("The exchange was shut down.")

    def _confirmed(self, number: int, error: AcademyError | None) -> None:
        item = self._under_way.pop(number, None)
        if item is None:
            return
        item.link.leave(len(item.operation.body))
        if error is None and item.operation.acknowledges is not None:
            item.link.answered(item.operation.acknowledges)
        item.outcome(error)

    def _replied(self, operation: Reply) -> None:
        error = None if operation.code is None else failure_error(operation.code, operation.result or [])
        if operation.call in self._attaching:
            self._attached(*self._attaching.pop(operation.call), error)
            return
        _, future = self._calls.pop(operation.call, (None, None))
        if future is not None and not future.done():
            if error is None:
                future.set_result(operation.result)
            else:
                future.set_exception(error)

    def _attach(self, link: Link, future: asyncio.Future[None] | None) -> None:
        self._numbers += 1
        self._attaching[self._numbers] = link, future
        self._push(link.attach_operation(self._numbers))

    def _attached(self, link: Link, future: asyncio.Future[None] | None, error: AcademyError | None) -> None:
        if error is None:
            link.established = True
        else:
            self._links.pop(link.entity.uid, None)
        if future is not None and not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
        elif error is not None:
            link.end(error)

    # Writing

    def _push(self, operation: Any) -> None:
        self._outbox.append(operation)
        self._idle.clear()
        self._wake.set()

    def _mark(self, link: Link) -> None:
        if link.must_report:
            self._reporting[link.entity.uid] = link
            self._hurry()
        elif link.has_report:
            self._reporting[link.entity.uid] = link
            self._idle.clear()
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(UNHURRIED_S, self._hurry)

    def _hurry(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._idle.clear()
        self._wake.set()

    def _report(self, link: Link) -> None:
        self._reporting.pop(link.entity.uid, None)
        self._push(link.report())

    async def _write(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while batch := self._next_batch():
                    await socket.send_bytes(encode_operations(batch))
                self._idle.set()
        except (aiohttp.ClientError, ConnectionError):
            pass  # the reader sees it and connects again
        finally:
            await socket.close()

    def _next_batch(self) -> list[Any]:
        for link in list(self._reporting.values()):
            self._report(link)
        batch, size = [], 0
        while self._outbox and size < BATCH_BYTES:
            operation = self._outbox.popleft()
            batch.append(operation)
            size += 200 + (len(operation.body) if isinstance(operation, Send) else 0)
        return batch
