"""Requests that were given up: kept aside, put back, discarded."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from pathlib import Path

import pytest

from academy_hpc.agent import Agent
from academy_hpc.changes import DeadRemoved, MessageDied
from academy_hpc.dead_letters import DeadLetter, DeadLetters
from academy_hpc.delivery import size_of
from academy_hpc.errors import BadEntityIdError, DeliveryFailedError, ForbiddenError, MailboxFullError
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.spawn import spawn_http_exchange
from academy_hpc.handle import Handle
from academy_hpc.identifiers import AgentId, EntityId, UserId
from academy_hpc.message import ActionRequest, Message, SuccessResponse
from academy_hpc.registry import Caller, Effects, Limits
from tests.faults.test_exchange_killed import kill_exchange
from tests.stored_registry import OWNER, Exchange

__all__: list[str] = []

ATTEMPTS = Limits().max_attempts


def give_up(exchange: Exchange, message: Message | None = None, *, at: float = 0.0) -> Message:
    """A request that kills its agent again and again."""
    message = message or exchange.request()
    for _ in range(exchange.limits.max_attempts):
        exchange.listen(exchange.agent)
        exchange.take(exchange.agent)
    effects = Effects()
    exchange.registry.attach(exchange.agent, uuid.uuid4(), OWNER, effects, now=0.0, unix_s=at)
    exchange.commit(effects)
    return message


def letters(exchange: Exchange, caller: Caller = OWNER) -> list[DeadLetter]:
    return exchange.registry.dead_letters(exchange.agent, caller)


def tags(exchange: Exchange) -> list[uuid.UUID]:
    return [letter.tag for letter in letters(exchange)]


def requeue(exchange: Exchange, tag: uuid.UUID, caller: Caller = OWNER) -> None:
    effects = Effects()
    exchange.registry.requeue(exchange.agent, tag, caller, effects)
    exchange.commit(effects)


def discard(exchange: Exchange, tag: uuid.UUID, caller: Caller = OWNER) -> None:
    effects = Effects()
    exchange.registry.discard(exchange.agent, tag, caller, effects)
    exchange.commit(effects)


@pytest.mark.parametrize("restart", [False, True])
def test_a_request_that_was_given_up_is_kept(*, restart: bool) -> None:
    exchange = Exchange()
    message = give_up(exchange, exchange.request(size=50), at=7.5)
    if restart:
        exchange.restart()
    (letter,) = letters(exchange)
    assert letter == DeadLetter(message.tag, exchange.user, ATTEMPTS, len(message.body), 7.5)
    assert exchange.received(exchange.agent) == []


def test_a_response_that_was_given_up_is_not_kept() -> None:
    """Nobody could execute it again."""
    exchange = Exchange()
    response = Message.create(exchange.user, exchange.agent, SuccessResponse())
    exchange.send(response)
    give_up(exchange, response)
    assert letters(exchange) == []


@pytest.mark.parametrize("restart", [False, True])
def test_a_dead_letter_that_is_put_back_is_delivered_as_if_new(*, restart: bool) -> None:
    exchange = Exchange()
    message = give_up(exchange)
    requeue(exchange, message.tag)
    if restart:
        exchange.restart()
    assert tags(exchange) == []
    exchange.listen(exchange.agent)
    (delivery,) = exchange.take(exchange.agent)
    assert (delivery.message.tag, delivery.message.body) == (message.tag, message.body)
    assert delivery.attempt == 1 + restart  # after a restart it may have been handed out once already


def test_the_caller_of_a_request_that_was_put_back_hears_nothing_more() -> None:
    """It was told that it failed. The answer is dropped, and the request is settled."""
    exchange = Exchange()
    message = give_up(exchange)
    (error,) = exchange.received(exchange.user)
    assert error.tag == message.tag
    requeue(exchange, message.tag)
    exchange.listen(exchange.agent)
    (delivery,) = exchange.take(exchange.agent)
    exchange.send(message.create_response(SuccessResponse()), acknowledges=delivery.seq)
    assert [received.tag for received in exchange.received(exchange.user)] == [error.tag]
    assert exchange.store.load().pending == []
    assert exchange.received(exchange.agent) == []


@pytest.mark.parametrize("end", ["terminated", "killed"])
def test_nor_does_it_hear_of_another_end_of_what_was_put_back(end: str) -> None:
    exchange = Exchange()
    message = give_up(exchange)
    requeue(exchange, message.tag)
    if end == "terminated":
        exchange.terminate(exchange.agent)
    else:
        give_up(exchange, message)
    assert [received.tag for received in exchange.received(exchange.user)] == [message.tag]


def test_a_request_that_kills_its_agent_again_is_a_dead_letter_again() -> None:
    exchange = Exchange()
    message = give_up(exchange)
    requeue(exchange, message.tag)
    give_up(exchange, message)
    assert [(letter.tag, letter.attempts) for letter in letters(exchange)] == [(message.tag, ATTEMPTS)]


def test_a_full_mailbox_takes_no_dead_letter_back() -> None:
    exchange = Exchange(mailbox_messages=1)
    message = give_up(exchange)
    exchange.request()
    with pytest.raises(MailboxFullError):
        requeue(exchange, message.tag)
    assert tags(exchange) == [message.tag]


def test_a_discarded_letter_is_gone_for_good() -> None:
    exchange = Exchange()
    first, second = give_up(exchange), give_up(exchange)
    discard(exchange, first.tag)
    assert tags(exchange) == [second.tag]
    exchange.restart()
    assert tags(exchange) == [second.tag]


def test_what_is_not_there_can_be_put_back_and_discarded_without_harm() -> None:
    """A client asks again after a broken connection."""
    exchange = Exchange()
    message = give_up(exchange)
    for _ in range(2):
        requeue(exchange, message.tag)
        discard(exchange, message.tag)
    assert [received.tag for received in exchange.received(exchange.agent)] == [message.tag]


def test_only_the_owner_sees_dead_letters() -> None:
    exchange = Exchange()
    message = give_up(exchange)
    for caller in (Caller("eve"), Caller(OWNER.user, entity=exchange.agent.uid)):
        for operation in (letters, lambda e, c: requeue(e, message.tag, c), lambda e, c: discard(e, message.tag, c)):
            with pytest.raises(ForbiddenError):
                operation(exchange, caller)
    with pytest.raises(BadEntityIdError):
        exchange.registry.dead_letters(AgentId.new(), OWNER)


def test_dead_letters_end_with_their_mailbox() -> None:
    exchange = Exchange()
    give_up(exchange)
    exchange.terminate(exchange.agent)
    assert exchange.store.load().dead == []
    exchange.restart()


def test_the_oldest_of_a_mailbox_give_way() -> None:
    exchange = Exchange(dead_letters=2)
    messages = [give_up(exchange) for _ in range(3)]
    assert tags(exchange) == [message.tag for message in messages[1:]]
    exchange.restart()
    assert tags(exchange) == [message.tag for message in messages[1:]]


def died(entity: EntityId, size: int, at: float) -> MessageDied:
    message = Message.create(UserId.new(), entity, ActionRequest("run", "", ""))
    return MessageDied(entity.uid, Message(message.header, bytes(size)), 5, at)


def test_all_together_take_no_more_than_the_bytes_they_may() -> None:
    """The oldest go first, of whatever mailbox; one that is too large alone is not kept."""
    one, other = AgentId.new(), AgentId.new()
    empty = size_of(died(one, 0, 0.0).message)
    kept = DeadLetters(per_mailbox=10, limit_bytes=100 + 2 * empty)
    first, second, third = died(one, 60, 1.0), died(other, 40, 2.0), died(other, 30, 3.0)
    large = died(one, 101 + empty, 4.0)
    assert kept.add(first) == kept.add(second) == []
    assert kept.add(third) == [DeadRemoved(one.uid, (first.message.tag,))]
    assert [letter.size_bytes for letter in kept.of(other.uid)] == [40, 30]
    assert len(kept.add(large)) == 3
    assert kept.of(one.uid) == kept.of(other.uid) == []
    assert kept.add(first) == []


def test_a_dead_letter_is_found_and_put_back_through_the_client_also_after_a_crash(tmp_path: Path) -> None:
    async def before(factory: HttpExchangeFactory) -> tuple[EntityId, EntityId]:
        async with await factory.create_user_client() as user:
            registration = await user.register_agent(Agent)
            call = asyncio.create_task(Handle(registration.agent_id).ping())
            async with contextlib.AsyncExitStack() as stack:  # each is replaced before it could say good-bye
                for _ in range(ATTEMPTS + 1):
                    agent = await factory.create_transport(registration.agent_id, registration=registration)
                    await stack.enter_async_context(agent)
                    async for _ in agent.listen(1):
                        break
                with pytest.raises(DeliveryFailedError):
                    await call
            assert await user.dead_letters(registration.agent_id) != ()
            return registration.agent_id, user.client_id

    async def after(factory: HttpExchangeFactory, agent_id: EntityId, user_id: EntityId) -> None:
        async with await factory.create_user_client(start_listener=False) as user:
            (letter,) = await user.dead_letters(agent_id)
            assert (letter.source, letter.attempts) == (user_id, ATTEMPTS)
            await user.requeue(agent_id, letter.tag)
            assert await user.dead_letters(agent_id) == ()
            async with await factory.create_transport(agent_id) as agent:
                async for message in agent.listen(10):
                    assert message.tag == letter.tag
                    break
            await user.discard(agent_id, letter.tag)

    state = tmp_path / "state"
    with spawn_http_exchange("127.0.0.1", 0, state_dir=state) as factory:
        agent_id, user_id = asyncio.run(before(factory))
        kill_exchange()
    with spawn_http_exchange("127.0.0.1", 0, state_dir=state) as factory:
        asyncio.run(after(factory, agent_id, user_id))
