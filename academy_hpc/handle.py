"""Handles: calling an agent as if it were here."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Generic, Self, TypeVar

from academy_hpc.directory import MailboxCounters
from academy_hpc.errors import AcademyRemoteError, ExchangeClientNotFoundError
from academy_hpc.exchange.client import ExchangeClient, current_client
from academy_hpc.exchange.transport import MailboxStatus
from academy_hpc.identifiers import AgentId, EntityId
from academy_hpc.message import (
    AcademyErrorResponse,
    ActionRequest,
    ActionResponse,
    Body,
    CancelRequest,
    Message,
    PingRequest,
    ShutdownRequest,
    SuccessResponse,
    UserErrorResponse,
)
from academy_hpc.serialization import ALL_STRATEGIES, Strategy, deserialize, deserialize_exception, serialize

__all__ = ["Handle"]

AgentT = TypeVar("AgentT")


class Handle(Generic[AgentT]):
    """A reference to an agent, usable wherever its exchange can be reached.

    ``await handle.simulate(3)`` runs the action ``simulate`` and returns its result, or raises what it raised. An
    agent that dies in mid-action and comes back runs it again, and the ``await`` just takes longer. Cancelling the
    ``await`` cancels the action.

    A handle pickles; it takes its exchange from the surrounding ``async with client`` or agent.

    Args:
        agent_id: Whom to call.
        exchange: The client to speak through, if not the surrounding one.
        ignore_context: Use `exchange` even inside another client's context.
        request_serializer: How arguments travel: "pickle" (default) or "json".
        result_serializer: How the result is to travel; default: as the arguments.
        exception_serializer: How an exception is to travel; default: as the result.
        allowed_deserializers: How results and exceptions may come: give ``{"json"}`` to read no pickles, and nothing
            else need be given. None: any.
        timeout: Seconds after which a call fails with TimeoutError and is cancelled; None: never.
    """

    def __init__(
        self,
        agent_id: AgentId[AgentT],
        *,
        exchange: ExchangeClient | None = None,
        ignore_context: bool = False,
        request_serializer: Strategy | None = None,
        result_serializer: Strategy | None = None,
        exception_serializer: Strategy | None = None,
        allowed_deserializers: Collection[Strategy] | None = None,
        timeout: float | None = None,
    ) -> None:
        self.agent_id = agent_id
        self._exchange = exchange
        self._ignore_context = ignore_context
        self._allowed = ALL_STRATEGIES if allowed_deserializers is None else frozenset(allowed_deserializers)
        if len(self._allowed) == 1:  # ask for nothing that would be refused
            (only,) = self._allowed
            request_serializer, result_serializer = request_serializer or only, only
        self._formats = (request_serializer or "pickle", result_serializer, exception_serializer)
        self._timeout = timeout
        self._label = uuid.uuid4()

    @property
    def exchange(self) -> ExchangeClient:
        """The client this handle speaks through here. Raises ExchangeClientNotFoundError."""
        context = None if self._ignore_context else current_client()
        exchange = context or self._exchange
        if exchange is None:
            raise ExchangeClientNotFoundError(self.agent_id)
        return exchange

    def with_timeout(self, timeout: float | None) -> Self:
        """A handle of the same agent whose calls fail with TimeoutError after `timeout` seconds."""
        copy = self.__copy__()
        copy._timeout = timeout
        return copy

    def __copy__(self) -> Self:
        """The same agent, exchange and options."""
        copy = type(self).__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy._label = uuid.uuid4()
        return copy

    def __reduce__(self) -> Any:
        """Without the exchange, which stays here."""
        return _restore, (type(self), self.agent_id, self._formats, self._timeout, self._allowed)

    def __repr__(self) -> str:
        """Whom it calls."""
        return f"Handle({self.agent_id})"

    def __eq__(self, other: object) -> bool:
        """Equal is who calls the same agent."""
        return isinstance(other, Handle) and self.agent_id == other.agent_id

    def __hash__(self) -> int:
        """Hash of the agent."""
        return hash(self.agent_id)

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        """The action `name`, to be called."""
        if name.startswith("__"):  # copy, pickle and inspect look for these
            raise AttributeError(name)

        async def remote_action(*args: Any, **kwargs: Any) -> Any:
            return await self.action(name, *args, **kwargs)

        remote_action.__name__ = name
        return remote_action

    async def action(self, action: str, /, *args: Any, **kwargs: Any) -> Any:
        """Run the action with this name.

        Raises:
            Exception: Whatever the action raised, with the remote traceback as a note.
            MailboxTerminatedError: The agent was terminated before it answered.
            ActionInterruptedError: It died in mid-action, and the action is declared ``idempotent=False``.
            DeliveryFailedError: It died each time it was given this request.
            SerializationError: Arguments or result can't travel.
            ExchangeError: The exchange refused the request, or is gone.
            TimeoutError: See `timeout`.
        """
        arguments, result, exception = self._formats
        body = ActionRequest(
            action, serialize(args, arguments), serialize(kwargs, arguments), arguments, result, exception
        )
        return await self._call(body, self._timeout)

    async def ping(self, *, timeout: float | None = None) -> float:
        """Seconds until the agent answered. It answers once it has started.

        Raises:
            PingCancelledError: It ended while starting. TimeoutError: After `timeout` seconds; None: wait for ever.
        """
        start = time.perf_counter()
        await self._call(PingRequest(), self._timeout if timeout is None else timeout)
        return time.perf_counter() - start

    async def shutdown(self, *, terminate: bool | None = None) -> None:
        """Ask the agent to end, and return when it has agreed.

        Args:
            terminate: Close its mailbox for good too; None: as the agent is configured.
        """
        await self._call(ShutdownRequest(terminate), self._timeout)

    async def agent_status(self) -> MailboxStatus:
        """What the exchange knows of the agent."""
        return await self.exchange.status(self.agent_id)

    async def agent_stats(self) -> MailboxCounters:
        """Counters of the agent's mailbox."""
        return await self.exchange.agent_stats(self.agent_id)

    async def _call(self, body: Body, timeout: float | None) -> Any:
        exchange, tag = self.exchange, uuid.uuid4()
        try:
            if timeout is None:
                answer = await exchange.request(self.agent_id, body, label=self._label, tag=tag)
            else:
                async with asyncio.timeout(timeout):
                    answer = await exchange.request(self.agent_id, body, label=self._label, tag=tag)
        except (asyncio.CancelledError, TimeoutError):
            if isinstance(body, ActionRequest):
                exchange.cast(self.agent_id, CancelRequest(tag), label=self._label)
            raise
        return _result(answer, self._allowed)


def _result(answer: Message, allowed: Collection[Strategy]) -> Any:
    body = answer.decoded()
    if isinstance(body, ActionResponse):
        return deserialize(body.result[1], body.serialization, allowed)
    if isinstance(body, SuccessResponse):
        return None
    if isinstance(body, UserErrorResponse):
        raise deserialize_exception(body.exception, body.serialization, allowed)
    if isinstance(body, AcademyErrorResponse):
        raise body.exception()
    raise AcademyRemoteError(f"{answer.src} answered with {type(body).__name__}, which is no answer.")


def _restore(
    cls: type[Handle[Any]],
    agent_id: EntityId,
    formats: tuple[Strategy, Strategy | None, Strategy | None],
    timeout: float | None,
    allowed: frozenset[Strategy],
) -> Handle[Any]:
    handle = cls(AgentId(agent_id.uid, agent_id.name), timeout=timeout)
    handle._allowed = allowed
    handle._formats = formats
    return handle
