"""Who is registered, who may do what, and what is full: one example for each rule."""

from __future__ import annotations

import gc
import tracemalloc
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from academy_hpc import errors
from academy_hpc.changes import MailboxCreated
from academy_hpc.directory import Caller, Effects
from academy_hpc.identifiers import AgentId, EntityId, UserId
from academy_hpc.message import ActionRequest, Message, PingRequest, SuccessResponse
from tests.stored_registry import BASE, OWNER, Exchange

__all__: list[str] = []

STRANGER = Caller("bob", frozenset({"lab"}))


@pytest.fixture
def exchange() -> Exchange:
    return Exchange()


# Life of a mailbox


def test_a_mailbox_is_missing_then_active_then_terminated_for_good(exchange: Exchange) -> None:
    entity = AgentId[Any].new()
    assert exchange.registry.status(entity, OWNER) == "MISSING"
    exchange.create(entity, "pkg.Worker", BASE)
    assert exchange.registry.status(entity, OWNER) == "ACTIVE"
    exchange.terminate(entity)
    exchange.create(entity, "pkg.Worker", BASE)
    assert exchange.registry.status(entity, OWNER) == "TERMINATED"
    exchange.restart()
    assert exchange.registry.status(entity, OWNER) == "TERMINATED"


def test_creating_again_changes_nothing(exchange: Exchange) -> None:
    """Not the queue, not the owner, not the type, and the store hears nothing of it."""
    exchange.request()
    effects = Effects()
    exchange.registry.create(exchange.agent, ("pkg.Other",), OWNER, effects)
    assert effects.changes == []
    assert exchange.registry.discover("pkg.Other", OWNER, subclasses=True) == []
    assert exchange.counters(exchange.agent)[4] == 1


def test_terminating_an_unknown_mailbox_leaves_no_trace(exchange: Exchange) -> None:
    entity = AgentId[Any].new()
    assert exchange.terminate(entity).changes == []
    exchange.create(entity)
    assert exchange.registry.status(entity, OWNER) == "ACTIVE"
    exchange.terminate(entity)
    assert exchange.terminate(entity).changes == []


def test_there_are_no_more_mailboxes_than_allowed() -> None:
    exchange = Exchange(mailboxes=3)
    third = exchange.create(AgentId[Any].new())
    with pytest.raises(errors.ExchangeFullError, match="mailboxes"):
        exchange.create(AgentId[Any].new())
    exchange.create(third)  # it is there already
    exchange.terminate(third)
    exchange.create(AgentId[Any].new())


def test_tombstones_are_bounded_and_the_oldest_go_first() -> None:
    exchange = Exchange(tombstones=2)
    gone = [exchange.create(AgentId[Any].new()) for _ in range(3)]
    for entity in gone:
        exchange.terminate(entity)
    statuses = [exchange.registry.status(entity, OWNER) for entity in gone]
    assert statuses == ["MISSING", "TERMINATED", "TERMINATED"]


@pytest.mark.parametrize("operation", ["send", "attach", "last_seen", "groups"])
def test_a_mailbox_that_is_not_open_is_told_with_its_reason(exchange: Exchange, operation: str) -> None:
    def attempt(entity: EntityId) -> None:
        operations: dict[str, Callable[[], object]] = {
            "send": lambda: exchange.request(dest=entity),
            "attach": lambda: exchange.listen(entity),
            "last_seen": lambda: exchange.registry.last_seen(entity, OWNER, now=0.0),
            "groups": lambda: exchange.registry.groups(entity, OWNER),
        }
        operations[operation]()

    with pytest.raises(errors.BadEntityIdError):
        attempt(AgentId[Any].new())
    exchange.terminate(exchange.user)
    exchange.terminate(exchange.agent)
    with pytest.raises(errors.UserTerminatedError):
        attempt(exchange.user)
    with pytest.raises(errors.AgentTerminatedError) as caught:
        attempt(exchange.agent)
    assert caught.value.uid == exchange.agent


# Limits


def test_a_message_over_the_limit_leaves_no_trace() -> None:
    """A message refused leaves no trace in queue, pending table and counters."""
    exchange = Exchange(message_bytes=1000)
    with pytest.raises(errors.MessageTooLargeError) as caught:
        exchange.request(size=1000)
    assert caught.value.limit == 1000
    assert exchange.counters(exchange.user) == exchange.counters(exchange.agent) == (0, 0, 0, 0, 0)
    assert exchange.received(exchange.agent) == []


def test_a_full_mailbox_takes_a_message_again_when_one_is_acknowledged() -> None:
    exchange = Exchange(mailbox_messages=2)
    refused = Message.create(exchange.user, exchange.agent, PingRequest())
    for _ in range(2):
        exchange.request()
    with pytest.raises(errors.MailboxFullError):
        exchange.send(refused)
    exchange.listen(exchange.agent)
    exchange.take(exchange.agent)
    assert list(exchange.acknowledge(exchange.agent, 1).freed) == [exchange.agent.uid]
    exchange.send(refused)  # it was not remembered when it was refused
    assert [delivery.message for delivery in exchange.take(exchange.agent)] == [refused]


def test_where_there_is_no_room_for_requests_there_is_some_for_answers() -> None:
    """Else what is full of requests, whose work waits for answers, would be full for ever."""
    for limits in ({"mailbox_messages": 4}, {"mailbox_bytes": 2500}, {"total_bytes": 2200}):
        exchange = Exchange(**limits)
        for _ in range(4):
            exchange.request()
        with pytest.raises((errors.MailboxFullError, errors.ExchangeFullError)):
            exchange.request()
        answer = Message.create(exchange.user, exchange.agent, SuccessResponse())
        exchange.send(answer)
        with pytest.raises((errors.MailboxFullError, errors.ExchangeFullError)):
            for _ in range(2):
                exchange.send(Message.create(exchange.user, exchange.agent, SuccessResponse()))


def test_a_mailbox_is_full_of_requests_that_were_read_and_never_answered_too() -> None:
    exchange = Exchange(mailbox_requests=2)
    exchange.listen(exchange.agent)
    first = exchange.request()
    exchange.request()
    exchange.take(exchange.agent)
    exchange.acknowledge(exchange.agent, 1, 2)
    with pytest.raises(errors.MailboxFullError):
        exchange.request()
    assert exchange.agent.uid in exchange.send(first.create_response(SuccessResponse())).freed
    exchange.request()


def test_bytes_are_limited_for_a_mailbox_and_in_total() -> None:
    exchange = Exchange(mailbox_bytes=3000, total_bytes=5000)
    other = exchange.create(AgentId[Any].new())
    exchange.request(size=2500)
    with pytest.raises(errors.MailboxFullError):
        exchange.request()
    with pytest.raises(errors.ExchangeFullError, match="bytes"):
        exchange.request(dest=other, size=2500)
    exchange.terminate(exchange.agent)
    exchange.request(dest=other, size=2500)


def test_an_answer_of_the_exchange_itself_is_never_refused() -> None:
    exchange = Exchange(mailbox_messages=1)
    exchange.request(source=exchange.user)
    exchange.request(source=exchange.agent, dest=exchange.user)
    exchange.terminate(exchange.agent)
    assert len(exchange.received(exchange.user)) == 2


# Discovery


def test_discovery_by_class_and_by_subclass(exchange: Exchange) -> None:
    """Exact: the first item of the chain. With subclasses: any item. Whole names only; in order of registration."""
    special = exchange.create(AgentId[Any].new("special"), "pkg.Special", "pkg.Worker", BASE)
    plain = exchange.create(AgentId[Any].new("plain"), "pkg.Worker", BASE)
    exchange.create(AgentId[Any].new("without a class"))
    discover = exchange.registry.discover
    assert discover("pkg.Worker", OWNER, subclasses=False) == [exchange.agent, plain]
    assert discover("pkg.Worker", OWNER, subclasses=True) == [exchange.agent, special, plain]
    assert [entity.name for entity in discover(BASE, OWNER, subclasses=True)] == ["worker", "special", "plain"]
    for name in ("Worker", "pkg.Work", "pkg.Worker,", "", "pkg.Special,pkg.Worker"):
        assert discover(name, OWNER, subclasses=True) == []
    exchange.terminate(exchange.agent)
    assert discover("pkg.Worker", OWNER, subclasses=False) == [plain]
    exchange.restart()
    assert discover("pkg.Worker", OWNER, subclasses=True) == [special, plain]


def test_a_user_has_no_class(exchange: Exchange) -> None:
    """The class chain is kept only for agents: a user is never discovered, after a restart neither."""
    exchange.create(UserId.new(), "pkg.Person")
    assert exchange.registry.discover("pkg.Person", OWNER, subclasses=True) == []
    exchange.restart()
    assert exchange.registry.discover("pkg.Person", OWNER, subclasses=True) == []
    assert [row.classes for row in exchange.store.load().mailboxes if row.entity.role == "user"] == [(), ()]


# Rights


def test_a_stranger_may_do_nothing_with_a_mailbox(exchange: Exchange) -> None:
    registry, agent, effects = exchange.registry, exchange.agent, Effects()
    for attempt in (
        lambda: registry.create(agent, (), STRANGER, effects),
        lambda: registry.status(agent, STRANGER),
        lambda: registry.terminate(agent, STRANGER, effects),
        lambda: exchange.send(Message.create(UserId.new(), agent, ActionRequest("run", "", "")), STRANGER),
        lambda: registry.attach(agent, uuid.uuid4(), STRANGER, effects, now=0.0),
        lambda: registry.beat(agent, STRANGER, now=0.0),
        lambda: registry.last_seen(agent, STRANGER, now=0.0),
        lambda: registry.counters(agent, STRANGER),
        lambda: registry.groups(agent, STRANGER),
        lambda: registry.share(agent, "lab", STRANGER, effects),
        lambda: registry.unshare(agent, "lab", STRANGER, effects),
    ):
        with pytest.raises(errors.ForbiddenError):
            attempt()
    assert registry.discover(BASE, STRANGER, subclasses=True) == []
    assert effects.changes == []
    assert registry.status(AgentId[Any].new(), STRANGER) == "MISSING"


def test_members_of_a_group_may_do_all_but_sharing(exchange: Exchange) -> None:
    owner = Caller("ada", frozenset({"lab"}))
    effects = Effects()
    exchange.registry.share(exchange.agent, "lab", owner, effects)
    exchange.commit(effects)
    exchange.restart()
    assert exchange.registry.groups(exchange.agent, owner) == {"lab"}
    assert exchange.registry.discover(BASE, STRANGER, subclasses=True) == [exchange.agent]
    exchange.send(Message.create(UserId.new(), exchange.agent, ActionRequest("run", "", "")), STRANGER)
    with pytest.raises(errors.ForbiddenError):
        exchange.registry.unshare(exchange.agent, "lab", STRANGER, Effects())
    exchange.terminate(exchange.agent, STRANGER)


def test_one_can_give_access_only_to_a_group_one_is_in(exchange: Exchange) -> None:
    for group, error in (("", errors.BadRequestError), ("lab", errors.ForbiddenError)):
        with pytest.raises(error):
            exchange.registry.share(exchange.agent, group, Caller("ada", frozenset({"other"})), Effects())
    exchange.registry.unshare(exchange.agent, "never shared", OWNER, Effects())


def test_nobody_sends_in_the_name_of_anothers_mailbox(exchange: Exchange) -> None:
    mine = exchange.create(AgentId[Any].new(), caller=STRANGER)
    with pytest.raises(errors.ForbiddenError):
        exchange.send(Message.create(exchange.user, mine, ActionRequest("run", "", "")), STRANGER)


# What a store is told


def test_a_mailbox_is_restored_as_it_was_made(exchange: Exchange) -> None:
    assert MailboxCreated(exchange.agent, "ada", ("pkg.Worker", BASE)) in exchange.store._mailboxes.values()
    with pytest.raises(errors.ForbiddenError):
        exchange.restart()
        exchange.registry.status(exchange.agent, STRANGER)


def test_pending_requests_are_answered_after_a_restart_too(exchange: Exchange) -> None:
    request = exchange.request()
    exchange.restart()
    exchange.terminate(exchange.agent)
    assert [message.tag for message in exchange.received(exchange.user)] == [request.tag]


def test_an_idle_mailbox_is_small() -> None:
    """Less than 1 KB in registry and store, and little more when it was used: queues go when they are empty."""
    exchange = Exchange()
    entities = [EntityId(uuid.uuid4(), f"agent-{number}") for number in range(1000)]
    tracemalloc.start()
    try:
        for entity in entities:
            exchange.create(entity, "pkg.Worker", BASE)
        new = tracemalloc.get_traced_memory()[0] / len(entities)
        for entity in entities:
            use(exchange, entity)
        used = tracemalloc.get_traced_memory()[0] / len(entities)
        for entity in entities:
            exchange.terminate(entity)
        exchange.sessions.clear()
        gc.collect()
        closed = tracemalloc.get_traced_memory()[0] / len(entities)
    finally:
        tracemalloc.stop()
    assert new < 1000
    assert used < 1800
    assert closed < 1200  # the ids of what it sent, tables that do not shrink, and that the next mailboxes use


def use(exchange: Exchange, entity: EntityId) -> None:
    """One request and its response, both acknowledged."""
    request = exchange.request(dest=entity)
    exchange.listen(entity)
    exchange.take(entity)
    exchange.registry.consumed(entity.uid, exchange.sessions[entity.uid], 1)
    exchange.send(request.create_response(SuccessResponse()), acknowledges=1)
    exchange.listen(exchange.user)
    exchange.acknowledge(exchange.user, *[delivery.seq for delivery in exchange.take(exchange.user)])
