"""The port between one entity and an exchange: what every transport promises."""

from __future__ import annotations

import enum
import uuid
from collections.abc import AsyncGenerator, Callable
from typing import Any, Protocol, Self, runtime_checkable

from academy_hpc.dead_letters import DeadLetter
from academy_hpc.directory import MailboxCounters
from academy_hpc.errors import AcademyError
from academy_hpc.identifiers import AgentId, EntityId
from academy_hpc.message import Message
from academy_hpc.serialization import NoPickleMixin

__all__ = [
    "AgentRegistration",
    "ExchangeTransport",
    "ExchangeTransportMixin",
    "MailboxStatus",
    "OnEnd",
    "OnMessage",
    "class_chain",
    "class_name",
]

# Called for every message that arrives, in order, and once when no more will.
OnMessage = Callable[[Message], None]
OnEnd = Callable[[AcademyError], None]

# The base class of agents has this name on the wire whoever's it is, so that each implementation finds the other's.
AGENT_BASE = "academy.agent.Agent"


class MailboxStatus(enum.Enum):
    """What is known of a mailbox."""

    MISSING = "MISSING"
    ACTIVE = "ACTIVE"
    INACTIVE = "INACTIVE"
    """Registered, and without a sign of life for `STALE_S`."""
    TERMINATED = "TERMINATED"


# Three heart beats of 30 s missed (docs/protocol.md, section 8).
STALE_S = 90.0


@runtime_checkable
class AgentRegistration(Protocol):
    """What an agent needs to become one entity: a capability, to be kept as private as a key."""

    @property
    def agent_id(self) -> AgentId[Any]:
        """Which entity."""
        ...

    def to_json(self) -> str:
        """As text, for another process."""
        ...


class ExchangeTransport(Protocol):
    """One entity's link to an exchange."""

    @property
    def mailbox_id(self) -> EntityId:
        """Which entity."""
        ...

    def factory(self) -> Any:
        """What makes further transports to the same exchange."""
        ...

    async def register_agent(self, agent: type, *, name: str | None = None) -> AgentRegistration:
        """Make a mailbox for a new agent of class `agent`. Raises ForbiddenError, ExchangeFullError."""
        ...

    async def discover(self, agent: type | str, *, allow_subclasses: bool = True) -> tuple[AgentId[Any], ...]:
        """Agents of a class, or with a class of this full name, in the order of registration."""
        ...

    async def status(self, uid: EntityId) -> MailboxStatus:
        """What is known of a mailbox. Raises ForbiddenError."""
        ...

    async def terminate(self, uid: EntityId) -> None:
        """Close a mailbox for good; repeating it is harmless. Raises ForbiddenError."""
        ...

    async def heartbeat_status(self, uid: EntityId) -> float | None:
        """Seconds since the last sign of life; None before the first.

        Raises:
            BadEntityIdError, MailboxTerminatedError
        """
        ...

    async def update_heartbeat(self) -> None:
        """Give a sign of life."""
        ...

    async def agent_stats(self, uid: EntityId) -> MailboxCounters:
        """Counters of a mailbox."""
        ...

    async def dead_letters(self, uid: EntityId) -> tuple[DeadLetter, ...]:
        """Requests that were handed to an agent too often without an answer, and given up; oldest first. Owner only.

        Raises:
            BadRequestError: The exchange keeps none: it has no stream.
            ForbiddenError, BadEntityIdError, MailboxTerminatedError
        """
        ...

    async def requeue(self, uid: EntityId, tag: uuid.UUID) -> None:
        """Put a dead letter back into the mailbox, with no attempt counted; harmless if it is not there. Owner only.

        Its caller was told that it failed, and does not hear of it again.

        Raises:
            MailboxFullError, ExchangeFullError: It stays a dead letter.
        """
        ...

    async def discard(self, uid: EntityId, tag: uuid.UUID) -> None:
        """Forget a dead letter; harmless if it is not there. Owner only."""
        ...

    async def send(self, message: Message, *, acknowledges: Message | None = None) -> None:
        """Return once the exchange holds the message; repeating it is safe. Cancelled, it may have been sent.

        `acknowledges` is the received request that this answers: both happen or neither.

        Raises:
            RefusedError: Not stored. ExchangeUnavailableError: It is unknown whether it was stored.
        """
        ...

    async def post(self, message: Message, on_failure: OnEnd, *, acknowledges: Message | None = None) -> None:
        """As `send`, but return as soon as the message is under way; `on_failure` is called if it is not stored."""
        ...

    async def subscribe(self, on_message: OnMessage, on_end: OnEnd) -> None:
        """Listen to the mailbox. Both callbacks run in the event loop and must return at once.

        Raises:
            BadEntityIdError, MailboxTerminatedError, ForbiddenError
        """
        ...

    def acknowledge(self, message: Message) -> None:
        """Done with a received message: it will not come again."""
        ...

    def give_back(self, message: Message) -> None:
        """A received message was not begun: the next listener gets it, and this one does not count as an attempt.

        It is told when the transport is closed in order. An exchange without a stream has no way to take it back.
        """
        ...

    def listen(self, timeout: float | None = None) -> AsyncGenerator[Message]:
        """Messages one by one, each acknowledged when the next is asked for; ends after `timeout` s of silence."""
        ...

    async def close(self) -> None:
        """Wait for what is under way, then let go. The mailbox stays, with what is not acknowledged."""
        ...


class ExchangeTransportMixin(NoPickleMixin):
    """``async with`` for a transport."""

    async def __aenter__(self) -> Self:
        """The transport."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """To be implemented by the transport."""
        raise NotImplementedError


def class_name(cls: type) -> str:
    """``module.QualifiedName``, as in discovery; the base class of agents has academy-py's name."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    return AGENT_BASE if name == "academy_hpc.agent.Agent" else name


def class_chain(cls: type) -> tuple[str, ...]:
    """The names of a class and its bases, most derived first, the base class of agents last."""
    names = [class_name(base) for base in cls.__mro__ if base.__module__ not in {"builtins", "typing", "abc"}]
    return tuple(dict.fromkeys([*(name for name in names if name != AGENT_BASE), AGENT_BASE]))
