"""The HTTP exchange as programs use it: `HttpExchangeFactory`, `HttpExchangeTransport`, `HttpAgentRegistration`."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator
from typing import Any, Generic, Literal, Self, TypeVar

import msgspec

from academy_hpc.dead_letters import DeadLetter
from academy_hpc.directory import MailboxCounters
from academy_hpc.errors import (
    AcademyError,
    AgentTerminatedError,
    BadEntityIdError,
    BadRequestError,
    UserTerminatedError,
)
from academy_hpc.exchange.factory import ExchangeFactory
from academy_hpc.exchange.http.channel import Channel, StreamChannel
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.console import HttpExchangeConsole
from academy_hpc.exchange.http.credential import Credential, TokenCredential
from academy_hpc.exchange.http.dial import ClientOptions, Dialled, NoStreamError
from academy_hpc.exchange.http.globus_login import GlobusCredential
from academy_hpc.exchange.http.rest import RestChannel
from academy_hpc.exchange.http.stream import Stream
from academy_hpc.exchange.http.wire import Status
from academy_hpc.exchange.transport import (
    STALE_S,
    AgentRegistration,
    ExchangeTransportMixin,
    MailboxStatus,
    OnEnd,
    OnMessage,
    class_chain,
    class_name,
)
from academy_hpc.identifiers import AgentId, EntityId, UserId
from academy_hpc.message import Message

__all__ = ["HttpAgentRegistration", "HttpExchangeFactory", "HttpExchangeTransport"]

AgentT = TypeVar("AgentT")


class HttpAgentRegistration(msgspec.Struct, Generic[AgentT], frozen=True):
    """What an agent needs to become one entity of an HTTP exchange, and no other: keep it as private as a key.

    Attributes:
        agent_id: Which entity.
        exchange_type: Of all registrations at HTTP exchanges.
        token: Opens the agent's mailbox until it is terminated; None: the exchange gives out none. `repr` hides it.
    """

    agent_id: AgentId[AgentT]
    exchange_type: Literal["http"] = "http"
    token: str | None = None

    def __repr__(self) -> str:
        """Without the token."""
        return f"HttpAgentRegistration({self.agent_id})"

    def __rich_repr__(self) -> list[Any]:
        """The same for rich, which would otherwise show all fields of a Struct."""
        return [str(self.agent_id)]

    def to_json(self) -> str:
        """As text, for another process."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """What `to_json` wrote. Raises BadRequestError."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            raise BadRequestError(f"This text is no registration of an agent: {error}") from error


class HttpExchangeTransport(ExchangeTransportMixin):
    """One entity's link to an HTTP exchange. Make it with `new`."""

    def __init__(self, mailbox_id: EntityId, channel: Channel, factory: HttpExchangeFactory) -> None:
        self._mailbox_id = mailbox_id
        self._channel = channel
        self._factory = factory
        self._queue: asyncio.Queue[Message | AcademyError] | None = None  # of `listen`
        self._unread: Message | None = None  # given out by `listen`, and the next one not asked for

    @classmethod
    async def new(
        cls,
        *,
        connection_info: ConnectionInfo,
        mailbox_id: EntityId | None = None,
        name: str | None = None,
        registration: AgentRegistration | None = None,
        options: ClientOptions | None = None,
        credential: Credential | None = None,
    ) -> Self:
        """Connect; without `mailbox_id` as a new user called `name`.

        Args:
            connection_info: Where the exchange is.
            mailbox_id: An entity that has a mailbox.
            name: Of the new user, for display.
            registration: Of the agent `mailbox_id`; if it has a token, this is all that the exchange is shown.
            options: How the client behaves.
            credential: What to show in place of the headers of the connection info.

        Raises:
            ExchangeUnreachableError: No URL of the connection info answers.
            UnauthorizedError: The exchange does not accept the token.
        """
        factory = HttpExchangeFactory.from_connection_info(connection_info, options=options, credential=credential)
        credential = factory._credential
        entity = mailbox_id if mailbox_id is not None else UserId.new(name)
        token = getattr(registration, "token", None)
        if token is not None:
            connection_info, credential = connection_info.without_token(), None
        channel: Channel
        try:
            stream = await Stream.acquire(connection_info, factory.options, entity, token=token, credential=credential)
            channel = StreamChannel(stream, entity)
        except NoStreamError as error:
            shown = credential if token is None else TokenCredential(token)
            channel = RestChannel(connection_info, factory.options, entity, url=str(error), credential=shown)
        transport = cls(entity, channel, factory)
        try:
            if mailbox_id is None:
                await channel.call("create", entity, ())
        except BaseException:
            await channel.close()
            raise
        return transport

    @property
    def mailbox_id(self) -> EntityId:
        """Which entity."""
        return self._mailbox_id

    def factory(self) -> HttpExchangeFactory:
        """What makes further transports to the same exchange."""
        return self._factory

    @property
    def dialled(self) -> Dialled | None:
        """The connection of this process that it uses; None: it has none of its own, but asks by REST."""
        return self._channel.stream.dialled if isinstance(self._channel, StreamChannel) else None

    async def register_agent(self, agent: type, *, name: str | None = None) -> HttpAgentRegistration[Any]:
        """See `ExchangeTransport`."""
        agent_id: AgentId[Any] = AgentId.new(name)
        token = await self._channel.call("create", agent_id, class_chain(agent))
        return HttpAgentRegistration(agent_id, token=token)

    async def open_mailbox(self, entity: EntityId, *, classes: tuple[str, ...] = ()) -> None:
        """Open a mailbox under an id that was chosen elsewhere; one that is there, or was terminated, stays as it is.

        Args:
            entity: Whose.
            classes: Of an agent: `class_chain` of its class.

        Raises:
            ForbiddenError: It is somebody else's.
            ExchangeFullError: There are as many mailboxes as there may be.
        """
        await self._channel.call("create", entity, classes)

    async def discover(self, agent: type | str, *, allow_subclasses: bool = True) -> tuple[AgentId[Any], ...]:
        """See `ExchangeTransport`."""
        wanted = agent if isinstance(agent, str) else class_name(agent)
        found = await self._channel.call("discover", wanted, allow_subclasses)
        return tuple(msgspec.convert(found, list[AgentId[Any]]))

    async def status(self, uid: EntityId) -> MailboxStatus:
        """See `ExchangeTransport`."""
        status = msgspec.convert(await self._channel.call("status", uid), Status)
        if status.status != "ACTIVE":
            return MailboxStatus(status.status)
        fresh = status.seen_s is not None and status.seen_s < STALE_S
        return MailboxStatus.ACTIVE if fresh else MailboxStatus.INACTIVE

    async def terminate(self, uid: EntityId) -> None:
        """See `ExchangeTransport`."""
        await self._channel.call("terminate", uid)

    async def heartbeat_status(self, uid: EntityId) -> float | None:
        """See `ExchangeTransport`."""
        status = msgspec.convert(await self._channel.call("status", uid), Status)
        if status.status == "MISSING":
            raise BadEntityIdError(uid)
        if status.status == "TERMINATED":
            raise (AgentTerminatedError if uid.role == "agent" else UserTerminatedError)(uid)
        return status.seen_s

    async def update_heartbeat(self) -> None:
        """See `ExchangeTransport`."""
        await self._channel.call("heartbeat", self._mailbox_id)

    async def agent_stats(self, uid: EntityId) -> MailboxCounters:
        """See `ExchangeTransport`."""
        return msgspec.convert(await self._channel.call("stats", uid), MailboxCounters)

    async def dead_letters(self, uid: EntityId) -> tuple[DeadLetter, ...]:
        """See `ExchangeTransport`."""
        return tuple(msgspec.convert(await self._channel.call("dead_letters", uid), list[DeadLetter]))

    async def requeue(self, uid: EntityId, tag: uuid.UUID) -> None:
        """See `ExchangeTransport`."""
        await self._channel.call("requeue", uid, tag)

    async def discard(self, uid: EntityId, tag: uuid.UUID) -> None:
        """See `ExchangeTransport`."""
        await self._channel.call("discard", uid, tag)

    async def send(self, message: Message, *, acknowledges: Message | None = None) -> None:
        """See `ExchangeTransport`."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def outcome(error: AcademyError | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        await self._channel.post(message, outcome, _seq(acknowledges), waits=True)
        await future

    async def post(self, message: Message, on_failure: OnEnd, *, acknowledges: Message | None = None) -> None:
        """See `ExchangeTransport`."""

        def outcome(error: AcademyError | None) -> None:
            if error is not None:
                on_failure(error)

        await self._channel.post(message, outcome, _seq(acknowledges), waits=False)

    async def subscribe(self, on_message: OnMessage, on_end: OnEnd) -> None:
        """See `ExchangeTransport`."""
        await self._channel.attach(on_message, on_end)

    def acknowledge(self, message: Message) -> None:
        """See `ExchangeTransport`."""
        if message.seq is not None:
            self._channel.acknowledge(message.seq)

    def give_back(self, message: Message) -> None:
        """See `ExchangeTransport`."""
        if message.seq is not None:
            self._channel.give_back(message.seq)

    async def listen(self, timeout: float | None = None) -> AsyncGenerator[Message]:
        """See `ExchangeTransport`."""
        if self._queue is None:  # one for all calls: what one leaves is the next one's
            self._queue = asyncio.Queue()
            await self._channel.attach(self._queue.put_nowait, self._queue.put_nowait, one_by_one=True)
        while True:
            if self._unread is None:
                try:
                    async with asyncio.timeout(timeout):
                        item = await self._queue.get()
                except TimeoutError:
                    return
                if isinstance(item, AcademyError):
                    raise item
                self._unread = item
            yield self._unread
            self.acknowledge(self._unread)
            self._unread = None

    async def close(self) -> None:
        """See `ExchangeTransport`."""
        await self._channel.close()

    def __repr__(self) -> str:
        """Class and entity."""
        return f"{type(self).__name__}({self._mailbox_id})"


class HttpExchangeFactory(ExchangeFactory):
    """Makes clients of one HTTP exchange. Pickles, and turns into text: ``factory.connection_info.to_json()``.

    Args:
        url: Base URL of the exchange.
        auth_method: ``"globus"``: a token of Globus Auth, had and renewed by `GlobusCredential`; None: the headers are
            all, the token of a spawned exchange is one of them.
        additional_headers: Sent with every request, such as ``Authorization``.
        ssl_verify: None or True: as the certificate authorities say; False: not at all.
        reconnect_s: Seconds for which a broken connection is tried again before calls fail.
        request_timeout_s: Seconds that one REST request may take.
        trust_env: Whether proxy variables apply; give True for an exchange on the internet.
    """

    def __init__(
        self,
        url: str,
        *,
        auth_method: Literal["globus"] | None = None,
        additional_headers: dict[str, str] | None = None,
        ssl_verify: bool | None = None,
        reconnect_s: float = 300.0,
        request_timeout_s: float = 60.0,
        trust_env: bool = False,
    ) -> None:
        if auth_method not in ("globus", None):
            raise BadRequestError(f"auth_method={auth_method!r} is not known, only 'globus' and None.")
        self.connection_info = ConnectionInfo(
            urls=(url,), headers=additional_headers or {}, trust_env=trust_env, auth_method=auth_method
        )
        self.options = ClientOptions(ssl_verify, reconnect_s, request_timeout_s)
        self._credential: Credential | None = None if auth_method is None else GlobusCredential()

    @classmethod
    def from_connection_info(
        cls, info: ConnectionInfo, *, options: ClientOptions | None = None, credential: Credential | None = None
    ) -> Self:
        """A factory for the exchange that `info` tells of. `credential` takes the place of its Authorization header."""
        factory = cls(info.urls[0], auth_method=info.auth_method)
        factory.connection_info = info
        factory.options = options or ClientOptions()
        if credential is not None:
            factory._credential = credential
        return factory

    async def create_transport(
        self,
        mailbox_id: EntityId | None = None,
        *,
        name: str | None = None,
        registration: AgentRegistration | None = None,
    ) -> HttpExchangeTransport:
        """See `ExchangeFactory`."""
        return await HttpExchangeTransport.new(
            connection_info=self.connection_info,
            mailbox_id=mailbox_id,
            name=name,
            registration=registration,
            options=self.options,
            credential=self._credential,
        )

    async def console(self) -> HttpExchangeConsole:
        """With which to share mailboxes. Raises as `create_transport`."""
        transport = await self.create_transport(UserId.new("console"))  # which gets no mailbox
        return HttpExchangeConsole(transport._channel, self)

    def __repr__(self) -> str:
        """The URLs, no secrets."""
        return f"{type(self).__name__}({', '.join(self.connection_info.urls)})"


def _seq(message: Message | None) -> int | None:
    return None if message is None else message.seq
