"""Clients: a transport plus the dispatch of what it receives."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Self

from academy_hpc.dead_letters import DeadLetter
from academy_hpc.directory import MailboxCounters
from academy_hpc.errors import (
    AcademyError,
    AgentTerminatedError,
    BadEntityIdError,
    BadRequestError,
    ExchangeUnavailableError,
    ListenerSupersededError,
)
from academy_hpc.exchange.transport import AgentRegistration, ExchangeTransport, MailboxStatus
from academy_hpc.identifiers import AgentId, EntityId, UserId
from academy_hpc.message import AcademyErrorResponse, Body, Message
from academy_hpc.serialization import NoPickleMixin

__all__ = [
    "AgentExchangeClient",
    "ExchangeClient",
    "RequestHandler",
    "UserExchangeClient",
    "current_client",
    "exchange_client",
]

logger = logging.getLogger(__name__)

# At the end, how long what is under way may take, and an exchange to answer a user who says good-bye.
LAST_CALL_S = 2.0

RequestHandler = Callable[[Message], Coroutine[Any, Any, None]]

exchange_client: contextvars.ContextVar[ExchangeClient] = contextvars.ContextVar("exchange_client")


def current_client() -> ExchangeClient | None:
    """The client of the surrounding ``async with client`` or agent, if there is one."""
    return exchange_client.get(None)


class ExchangeClient(NoPickleMixin):
    """What agents and users have in common. Inside ``async with client`` handles find it by themselves."""

    def __init__(self, client_id: EntityId, transport: ExchangeTransport, *, factory: Any) -> None:
        self._id = client_id
        self._transport = transport
        self._factory = factory
        self._pending: dict[uuid.UUID, asyncio.Future[Message]] = {}
        self._heard: dict[uuid.UUID, Callable[[Message | AcademyError], None]] = {}  # by label
        self._requests: dict[uuid.UUID, Message] = {}  # received and not answered, by tag
        self._tasks: set[asyncio.Task[None]] = set()
        self._casts: set[asyncio.Task[None]] = set()
        self._task_context: contextvars.Context | None = None
        # Why no answer can come; None: they can.
        self._deaf: AcademyError | None = BadRequestError(
            f"The client of {client_id} does not listen, so it would wait for an answer for ever. "
            "Create it with start_listener=True."
        )
        self._ended: AcademyError | None = None
        self._end_event = asyncio.Event()
        self._closed = False
        self._token: contextvars.Token[ExchangeClient] | None = None

    @property
    def client_id(self) -> EntityId:
        """Which entity this is."""
        return self._id

    def factory(self) -> Any:
        """What makes further clients of the same exchange."""
        return self._factory

    async def __aenter__(self) -> Self:
        """Handles used inside find this client."""
        self._token = exchange_client.set(self)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close."""
        if self._token is not None:
            # An asynchronous generator that is finalized by the event loop leaves in another context than it entered.
            with contextlib.suppress(ValueError):
                exchange_client.reset(self._token)
        await self.close()

    def __repr__(self) -> str:
        """Class and entity."""
        return f"{type(self).__name__}({self._id})"

    async def start(self) -> None:
        """Listen. Raises BadEntityIdError, MailboxTerminatedError, ExchangeUnavailableError."""
        # What arrives is read by a task that all clients of the process share; handlers must not see its context.
        self._task_context = contextvars.copy_context()
        self._task_context.run(exchange_client.set, self)
        self._deaf = None
        await self._transport.subscribe(self._on_message, self._on_end)

    async def close(self) -> None:
        """Send what is to be sent, then let go. Pending requests fail, request handlers are cancelled."""
        if self._closed:
            return
        self._closed = True
        self._deaf = ExchangeUnavailableError("The exchange client was closed.")
        self._fail_pending(self._deaf)
        try:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._send_casts()
        finally:
            await self._transport.close()

    async def wait_handled(self) -> None:
        """Until the request handlers that run now have returned, or some seconds have passed."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=LAST_CALL_S)

    async def wait_ended(self) -> AcademyError:
        """Until no more messages can come, and why: terminated, superseded, or the exchange is gone."""
        await self._end_event.wait()
        assert self._ended is not None  # set before the event
        return self._ended

    # Operations of the exchange

    async def register_agent(self, agent: type, *, name: str | None = None) -> AgentRegistration:
        """Make a mailbox for a new agent of class `agent`. Raises ForbiddenError, ExchangeFullError."""
        return await self._open_transport().register_agent(agent, name=name)

    async def register_agents(self, agents: list[tuple[type, str | None]]) -> list[AgentRegistration]:
        """Several at once: pairs of class and name."""
        return list(await asyncio.gather(*(self.register_agent(agent, name=name) for agent, name in agents)))

    async def discover(self, agent: type | str, *, allow_subclasses: bool = True) -> tuple[AgentId[Any], ...]:
        """Agents of a class, or with a class of this full name, in the order of registration."""
        return await self._open_transport().discover(agent, allow_subclasses=allow_subclasses)

    async def status(self, uid: EntityId) -> MailboxStatus:
        """What is known of a mailbox."""
        return await self._open_transport().status(uid)

    async def terminate(self, uid: EntityId) -> None:
        """Close a mailbox for good; its pending requests are answered with an error."""
        await self._open_transport().terminate(uid)

    async def heartbeat_status(self, uid: EntityId) -> float | None:
        """Seconds since the last sign of life of an entity; None before the first."""
        return await self._open_transport().heartbeat_status(uid)

    async def update_heartbeat(self) -> None:
        """Give a sign of life. A listening client need not."""
        await self._open_transport().update_heartbeat()

    async def agent_stats(self, uid: EntityId) -> MailboxCounters:
        """Counters of a mailbox."""
        return await self._open_transport().agent_stats(uid)

    async def dead_letters(self, uid: EntityId) -> tuple[DeadLetter, ...]:
        """Requests of an agent that were given up: handed out too often without an answer. Oldest first.

        Raises:
            BadRequestError: The exchange keeps none: it is not one of academy_hpc.
            ForbiddenError: The agent is somebody else's.
            BadEntityIdError: There is no such agent.
            MailboxTerminatedError: It was terminated.
        """
        return await self._open_transport().dead_letters(uid)

    async def requeue(self, uid: EntityId, tag: uuid.UUID) -> None:
        """Put a dead letter back into the agent's mailbox, with no attempt counted; harmless if it is not there.

        Its caller was told that it failed, and does not hear of it again.

        Raises:
            MailboxFullError, ExchangeFullError: It stays a dead letter.
        """
        await self._open_transport().requeue(uid, tag)

    async def discard(self, uid: EntityId, tag: uuid.UUID) -> None:
        """Forget a dead letter; harmless if it is not there."""
        await self._open_transport().discard(uid, tag)

    def _open_transport(self) -> ExchangeTransport:
        if self._closed:
            raise ExchangeUnavailableError("The exchange client was closed.")
        return self._transport

    # Messages

    async def send(self, message: Message) -> None:
        """Return once the exchange holds the message. An answer acknowledges its request. Raises ExchangeError."""
        request = self._answered_by(message)
        try:
            await self._open_transport().send(message, acknowledges=request)
        except BaseException:
            if request is not None:
                self._requests[request.tag] = request  # it is still to be answered
            raise

    async def respond(self, request: Message, body: Body, on_failure: Callable[[AcademyError], None]) -> None:
        """Answer `request`, and return as soon as the answer is under way; `on_failure` if it is not stored."""
        answer = request.create_response(body)

        def failed(error: AcademyError) -> None:
            self._requests[request.tag] = request  # it is still to be answered
            on_failure(error)

        await self._transport.post(answer, failed, acknowledges=self._answered_by(answer))

    def drop(self, request: Message) -> None:
        """Never answer `request`: it will not come again either."""
        self._requests.pop(request.tag, None)
        self._transport.acknowledge(request)

    def give_back(self, request: Message) -> None:
        """Leave `request` to the next listener: it was not begun, so this does not count as an attempt."""
        self._requests.pop(request.tag, None)
        self._transport.give_back(request)

    async def request(self, dest: EntityId, body: Body, *, label: uuid.UUID | None = None, tag: uuid.UUID) -> Message:
        """Send a request and wait for its answer, however long that takes.

        Raises:
            ExchangeError: It was refused, the client is closed or does not listen, or the exchange is gone.
        """
        self._check_hears()
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._pending[tag] = future

        def failed(error: AcademyError) -> None:
            if not future.done():
                future.set_exception(error)

        try:
            await self._transport.post(Message.create(self._id, dest, body, label=label, tag=tag), failed)
            return await future
        finally:
            self._pending.pop(tag, None)

    def cast(self, dest: EntityId, body: Body, *, label: uuid.UUID | None = None) -> None:
        """Send a request in the background; its answer, and whether it arrives, is of no interest."""
        if self._closed:
            return
        task = asyncio.get_running_loop().create_task(self._cast(Message.create(self._id, dest, body, label=label)))
        self._casts.add(task)
        task.add_done_callback(self._casts.discard)

    async def _cast(self, message: Message) -> None:
        def failed(error: AcademyError) -> None:
            logger.debug("%r was not sent: %s", message, error)

        try:
            await self._transport.post(message, failed)
        except AcademyError as error:
            failed(error)

    def expect(self, tag: uuid.UUID) -> asyncio.Future[Message]:
        """The response with `tag`, to a request that this client did not send itself. Cancel it to forget it.

        Raises:
            ExchangeError: None can come: the client is closed or does not listen, or the exchange is gone.
        """
        self._check_hears()
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._pending[tag] = future
        future.add_done_callback(lambda _: self._pending.pop(tag, None))
        return future

    def hear(self, label: uuid.UUID, listener: Callable[[Message | AcademyError], None]) -> None:
        """Give `listener` each response with this label that nobody else waits for, and the error after the last one.

        May be called before the client listens, so that nothing is missed.

        Raises:
            ExchangeError: The client is closed, or the exchange is gone.
        """
        if self._closed or self._ended is not None:
            self._check_hears()
        self._heard[label] = listener

    def ignore(self, label: uuid.UUID) -> None:
        """End `hear`."""
        self._heard.pop(label, None)

    @property
    def superseded(self) -> bool:
        """Whether another client listens to the mailbox in place of this one."""
        return isinstance(self._ended, ListenerSupersededError)

    def _check_hears(self) -> None:
        if self._deaf is not None:
            raise type(self._deaf)(*self._deaf.args)

    def _answered_by(self, message: Message) -> Message | None:
        return None if message.is_request else self._requests.pop(message.tag, None)

    async def _send_casts(self) -> None:
        if self._casts:
            await asyncio.wait(set(self._casts), timeout=LAST_CALL_S)

    # What arrives

    def _on_message(self, message: Message) -> None:
        if message.is_request:
            self._requests[message.tag] = message
            self._on_request(message)
            return
        future = self._pending.get(message.tag)
        if future is not None and not future.done():
            future.set_result(message)
        elif (listener := self._listener(message)) is not None:
            listener(message)
        else:
            logger.debug("dropped a late or repeated response %s from %s", message.tag, message.src)
        self._transport.acknowledge(message)

    def _listener(self, message: Message) -> Callable[[Message | AcademyError], None] | None:
        return None if message.header.label is None else self._heard.get(message.header.label)

    def _on_request(self, message: Message) -> None:
        raise NotImplementedError

    def _on_end(self, error: AcademyError) -> None:
        self._ended = error
        self._deaf = self._deaf or error
        self._end_event.set()
        self._fail_pending(error)

    def _fail_pending(self, error: AcademyError) -> None:
        for future in self._pending.values():
            if not future.done():
                future.set_exception(type(error)(*error.args))
        listeners, self._heard = self._heard, {}
        for listener in listeners.values():
            listener(error)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something in the background, at the longest until the client is closed."""
        context = None if self._task_context is None else self._task_context.copy()
        task = asyncio.get_running_loop().create_task(coroutine, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a request handler of %s failed", self._id, exc_info=error)


class AgentExchangeClient(ExchangeClient):
    """The client of one agent: gives requests to its handler."""

    def __init__(
        self, agent_id: AgentId[Any], transport: ExchangeTransport, request_handler: RequestHandler, *, factory: Any
    ) -> None:
        super().__init__(agent_id, transport, factory=factory)
        self._handler = request_handler

    async def start(self) -> None:
        """Listen. Raises BadEntityIdError: not registered, or terminated."""
        try:
            await super().start()
        except AgentTerminatedError as error:
            await self.close()
            raise BadEntityIdError(self._id) from error
        except BaseException:
            await self.close()
            raise

    def _on_request(self, message: Message) -> None:
        self.spawn(self._handler(message))


class UserExchangeClient(ExchangeClient):
    """The client of a user: calls agents, and serves no requests. Its mailbox goes when it is closed."""

    def __init__(self, user_id: UserId, transport: ExchangeTransport, *, factory: Any) -> None:
        super().__init__(user_id, transport, factory=factory)

    async def leave(self) -> None:
        """Close, and leave the mailbox open for a later client of this user. Pending requests fail."""
        if not self._closed:
            await self._send_casts()
        await super().close()

    async def close(self) -> None:
        """Terminate the user's mailbox, unless it is another client's now, then close. Pending requests fail."""
        if not self._closed and not self.superseded:
            self._deaf = ExchangeUnavailableError("The exchange client was closed.")
            self._fail_pending(self._deaf)
            await self._send_casts()
            try:
                async with asyncio.timeout(LAST_CALL_S):
                    await self.terminate(self._id)
            except (AcademyError, TimeoutError) as error:
                logger.debug("could not terminate %s: %s", self._id, error)
        await super().close()

    def _on_request(self, message: Message) -> None:
        body = AcademyErrorResponse(4, self._id)
        self.spawn(self.respond(message, body, lambda error: logger.debug("could not answer: %s", error)))
