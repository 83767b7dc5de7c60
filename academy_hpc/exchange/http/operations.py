"""The operations that a stream client calls by name; the REST routes have the same ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from academy_hpc.errors import BadRequestError
from academy_hpc.exchange.http.wire import Status
from academy_hpc.exchange.service import ExchangeService
from academy_hpc.identifiers import EntityId
from academy_hpc.registry import Caller, Effects

__all__ = ["call"]


def call(service: ExchangeService, caller: Caller, effects: Effects, method: str, arguments: Sequence[Any]) -> Any:
    """Do `method`. Its changes are in `effects`, to be committed by the caller.

    Raises:
        RefusedError: As the operation; BadRequestError for an unknown one or wrong arguments.
    """
    operation = _OPERATIONS.get(method)
    if operation is None:
        raise BadRequestError(f"unknown operation {method!r}")
    try:
        return operation(service, caller, effects, *arguments)
    except (msgspec.ValidationError, TypeError) as error:
        raise BadRequestError(f"wrong arguments of {method}: {error}") from error


def _entity(value: Any) -> EntityId:
    return msgspec.convert(value, EntityId)


def _create(service: ExchangeService, caller: Caller, effects: Effects, entity: Any, classes: Any) -> None:
    service.registry.create(_entity(entity), msgspec.convert(classes, tuple[str, ...]), caller, effects)


def _terminate(service: ExchangeService, caller: Caller, effects: Effects, entity: Any) -> None:
    service.registry.terminate(_entity(entity), caller, effects)


def _status(service: ExchangeService, caller: Caller, effects: Effects, value: Any) -> Status:
    entity = _entity(value)
    status = service.registry.status(entity, caller)
    seen = service.registry.last_seen(entity, caller, now=time.monotonic()) if status == "ACTIVE" else None
    return Status(status, seen)


def _discover(service: ExchangeService, caller: Caller, effects: Effects, name: Any, subclasses: Any) -> list[EntityId]:
    return service.registry.discover(msgspec.convert(name, str), caller, subclasses=bool(subclasses))


def _heartbeat(service: ExchangeService, caller: Caller, effects: Effects, entity: Any) -> None:
    service.registry.beat(_entity(entity), caller, now=time.monotonic())


def _stats(service: ExchangeService, caller: Caller, effects: Effects, entity: Any) -> Any:
    return service.registry.counters(_entity(entity), caller)


def _share(service: ExchangeService, caller: Caller, effects: Effects, entity: Any, group: Any) -> None:
    service.registry.share(_entity(entity), msgspec.convert(group, str), caller, effects)


def _unshare(service: ExchangeService, caller: Caller, effects: Effects, entity: Any, group: Any) -> None:
    service.registry.unshare(_entity(entity), msgspec.convert(group, str), caller, effects)


def _groups(service: ExchangeService, caller: Caller, effects: Effects, entity: Any) -> list[str]:
    return sorted(service.registry.groups(_entity(entity), caller))


_OPERATIONS: dict[str, Callable[..., Any]] = {
    "create": _create,
    "terminate": _terminate,
    "status": _status,
    "discover": _discover,
    "heartbeat": _heartbeat,
    "stats": _stats,
    "share": _share,
    "unshare": _unshare,
    "groups": _groups,
}
