"""A registry with a store behind it, as an exchange has them, for tests that need no more."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Iterable
from typing import Any

import pytest

from academy_hpc.delivery import Delivery, Window
from academy_hpc.directory import Caller, Effects
from academy_hpc.identifiers import AgentId, EntityId, UserId
from academy_hpc.message import ActionRequest, Message
from academy_hpc.registry import Limits, Registry
from tests.replayed_store import ReplayedStore

__all__ = ["ALL", "BASE", "OWNER", "Exchange", "finish"]

OWNER = Caller("ada")
BASE = "academy.agent.Agent"
ALL = Window(messages=10_000, limit_bytes=1 << 40)


def finish(awaitable: Awaitable[None]) -> None:
    """Await what never waits."""
    with pytest.raises(StopIteration):
        next(awaitable.__await__())


class Exchange:
    """A registry and its store; every operation is committed at once."""

    def __init__(self, **limits: int) -> None:
        self.limits = Limits(**limits)
        self.registry = Registry(self.limits)
        self.store = ReplayedStore()
        self.user = self.create(UserId.new("caller"))
        self.agent = self.create(AgentId[Any].new("worker"), "pkg.Worker", BASE)
        self.sessions: dict[uuid.UUID, uuid.UUID] = {}

    def commit(self, effects: Effects) -> Effects:
        finish(self.store.write(effects.changes))
        self.registry.kept(effects)
        return effects

    def create(self, entity: EntityId, *classes: str, caller: Caller = OWNER) -> EntityId:
        effects = Effects()
        self.registry.create(entity, classes, caller, effects)
        self.commit(effects)
        return entity

    def terminate(self, entity: EntityId, caller: Caller = OWNER) -> Effects:
        effects = Effects()
        self.registry.terminate(entity, caller, effects)
        return self.commit(effects)

    def request(self, source: EntityId | None = None, dest: EntityId | None = None, size: int = 0) -> Message:
        body = ActionRequest("run", "x" * size, "", "json")
        message = Message.create(source or self.user, dest or self.agent, body)
        self.send(message)
        return message

    def send(self, message: Message, caller: Caller = OWNER, acknowledges: int | None = None) -> Effects:
        effects = Effects()
        self.registry.send(message, caller, effects, acknowledges=acknowledges)
        return self.commit(effects)

    def listen(self, entity: EntityId, resume: tuple[int, Iterable[int]] | None = None, now: float = 0.0) -> Effects:
        effects = Effects()
        session = self.sessions[entity.uid] if resume else uuid.uuid4()
        self.registry.attach(entity, session, OWNER, effects, now=now, resume=resume)
        self.sessions[entity.uid] = session
        return self.commit(effects)

    def take(self, entity: EntityId) -> list[Delivery]:
        return self.registry.take(entity.uid, self.sessions[entity.uid], ALL)

    def acknowledge(self, entity: EntityId, *seqs: int) -> Effects:
        effects = Effects()
        self.registry.acknowledge(entity.uid, self.sessions[entity.uid], seqs, effects)
        return self.commit(effects)

    def received(self, entity: EntityId) -> list[Message]:
        """All that a new listener of `entity` gets."""
        self.listen(entity)
        return [delivery.message for delivery in self.take(entity)]

    def counters(self, entity: EntityId) -> tuple[int, ...]:
        counters = self.registry.counters(entity, OWNER)
        return counters.incoming, counters.outgoing, counters.completed, counters.in_progress, counters.queued

    def restart(self) -> None:
        self.registry = Registry(self.limits)
        self.registry.restore(self.store.load())
