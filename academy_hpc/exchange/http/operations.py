"""The operations that a stream client calls by name; the REST routes have the same ones."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from academy_hpc.dead_letters import DeadLetter
from academy_hpc.directory import Caller, Effects, MailboxCounters
from academy_hpc.errors import BadRequestError
from academy_hpc.exchange.http.auth import AgentTokens
from academy_hpc.exchange.http.wire import Status
from academy_hpc.exchange.service import ExchangeService
from academy_hpc.identifiers import EntityId

__all__ = ["Operations"]


class Operations:
    """What can be called by name at one exchange."""

    def __init__(self, service: ExchangeService, agents: AgentTokens) -> None:
        self._service = service
        self._agents = agents

    def call(self, caller: Caller, effects: Effects, method: str, arguments: Sequence[Any]) -> Any:
        """Do `method`. Its changes are in `effects`, to be committed by the caller.

        Raises:
            RefusedError: As the operation; BadRequestError for an unknown one or wrong arguments.
        """
        operation = _OPERATIONS.get(method)
        if operation is None:
            raise BadRequestError(f"unknown operation {method!r}")
        try:
            return operation(self, caller, effects, *arguments)
        except (msgspec.ValidationError, TypeError) as error:
            raise BadRequestError(f"wrong arguments of {method}: {error}") from error

    def create(self, caller: Caller, effects: Effects, value: Any, classes: Any) -> str | None:
        """A mailbox; the token of an agent goes to its owner alone."""
        entity, registry = _entity(value), self._service.registry
        registry.create(entity, msgspec.convert(classes, tuple[str, ...]), caller, effects)
        if entity.role != "agent" or registry.owner(entity) != caller.user:
            return None
        return self._agents.issue(entity.uid)

    def terminate(self, caller: Caller, effects: Effects, entity: Any) -> None:
        """See `Registry.terminate`."""
        self._service.registry.terminate(_entity(entity), caller, effects)

    def status(self, caller: Caller, effects: Effects, value: Any) -> Status:
        """Status, and the last sign of life."""
        entity, registry = _entity(value), self._service.registry
        status = registry.status(entity, caller)
        seen = registry.last_seen(entity, caller, now=time.monotonic()) if status == "ACTIVE" else None
        return Status(status, seen)

    def discover(self, caller: Caller, effects: Effects, name: Any, subclasses: Any) -> list[EntityId]:
        """See `Registry.discover`."""
        return self._service.registry.discover(msgspec.convert(name, str), caller, subclasses=bool(subclasses))

    def heartbeat(self, caller: Caller, effects: Effects, entity: Any) -> None:
        """See `Registry.beat`."""
        self._service.registry.beat(_entity(entity), caller, now=time.monotonic())

    def stats(self, caller: Caller, effects: Effects, entity: Any) -> MailboxCounters:
        """See `Registry.counters`."""
        return self._service.registry.counters(_entity(entity), caller)

    def share(self, caller: Caller, effects: Effects, entity: Any, group: Any) -> None:
        """See `Registry.share`."""
        self._service.registry.share(_entity(entity), msgspec.convert(group, str), caller, effects)

    def unshare(self, caller: Caller, effects: Effects, entity: Any, group: Any) -> None:
        """See `Registry.unshare`."""
        self._service.registry.unshare(_entity(entity), msgspec.convert(group, str), caller, effects)

    def groups(self, caller: Caller, effects: Effects, entity: Any) -> list[str]:
        """See `Registry.groups`."""
        return sorted(self._service.registry.groups(_entity(entity), caller))

    def dead_letters(self, caller: Caller, effects: Effects, entity: Any) -> list[DeadLetter]:
        """See `Registry.dead_letters`."""
        return self._service.registry.dead_letters(_entity(entity), caller)

    def requeue(self, caller: Caller, effects: Effects, entity: Any, tag: Any) -> None:
        """See `Registry.requeue`."""
        self._service.registry.requeue(_entity(entity), msgspec.convert(tag, uuid.UUID), caller, effects)

    def discard(self, caller: Caller, effects: Effects, entity: Any, tag: Any) -> None:
        """See `Registry.discard`."""
        self._service.registry.discard(_entity(entity), msgspec.convert(tag, uuid.UUID), caller, effects)


def _entity(value: Any) -> EntityId:
    return msgspec.convert(value, EntityId)


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "create": Operations.create,
    "terminate": Operations.terminate,
    "status": Operations.status,
    "discover": Operations.discover,
    "heartbeat": Operations.heartbeat,
    "stats": Operations.stats,
    "share": Operations.share,
    "unshare": Operations.unshare,
    "groups": Operations.groups,
    "dead_letters": Operations.dead_letters,
    "requeue": Operations.requeue,
    "discard": Operations.discard,
}
