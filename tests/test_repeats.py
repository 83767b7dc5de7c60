"""Messages that are sent again: stored once, also over a restart, however long ago the first one was answered."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

from academy_hpc.agent import Agent
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.spawn import spawn_http_exchange
from academy_hpc.identifiers import UserId
from academy_hpc.message import ActionRequest, Header, Message, SuccessResponse
from academy_hpc.repeats import RecentIds, RecentMessages
from tests.faults.test_exchange_killed import kill_exchange
from tests.stored_registry import Exchange

USER, AGENT = UserId.new("ada"), UserId.new("bob")


def header(source: UserId = USER) -> Header:
    return Message.create(source, AGENT, ActionRequest("run", "", "")).header


def answer_all(exchange: Exchange) -> None:
    """The agent executes what is there and answers it, and the caller takes the answers."""
    exchange.listen(exchange.agent)
    for delivery in exchange.take(exchange.agent):
        exchange.send(delivery.message.create_response(SuccessResponse()), acknowledges=delivery.seq)
    exchange.listen(exchange.user)
    exchange.acknowledge(exchange.user, *(delivery.seq for delivery in exchange.take(exchange.user)))


def test_a_request_answered_before_a_restart_is_not_executed_again_after_it() -> None:
    """The caller did not hear that it was stored, since the confirmation was lost with the exchange."""
    exchange = Exchange()
    message = exchange.request()
    answer_all(exchange)
    assert exchange.store.load().messages == []
    exchange.restart()
    exchange.send(message)
    assert exchange.received(exchange.agent) == []


def test_a_response_taken_before_a_restart_is_not_delivered_again_after_it() -> None:
    exchange = Exchange()
    response = exchange.request().create_response(SuccessResponse())
    answer_all(exchange)
    exchange.restart()
    exchange.send(response)
    assert exchange.received(exchange.user) == []


def test_what_is_recognised_is_the_same_before_and_after_a_restart() -> None:
    """Which ids are pushed out, and which source first, depends on the order in which they came."""
    exchange = Exchange(remembered_per_source=3, remembered_sources=2)
    third = exchange.create(UserId.new())
    sent = [exchange.request() for _ in range(5)] + [exchange.request(third) for _ in range(2)]
    sent.append(exchange.request())  # the first source is the last that sent

    def recognised() -> list[bool]:
        return [exchange.registry.is_repeat(message.header) for message in sent]

    assert recognised() == [False] * 3 + [True] * 5
    exchange.restart()
    assert recognised() == [False] * 3 + [True] * 5
    exchange.request(exchange.create(UserId.new()))  # a third source: the one that did not send for longest goes
    assert recognised() == [False] * 3 + [True] * 2 + [False] * 2 + [True]


def test_a_repeat_from_a_source_that_is_terminated_meanwhile_is_recognised() -> None:
    """A user sends and leaves; both are done, its connection breaks, and it asks for both again."""
    exchange = Exchange()
    source = exchange.create(UserId.new())
    message = exchange.request(source)
    exchange.terminate(source)
    assert exchange.registry.is_repeat(message.header)
    exchange.restart()
    assert exchange.registry.is_repeat(message.header)


def test_ids_are_bounded_and_come_back_in_order() -> None:
    ids = RecentIds(per_source=2, sources=2)
    first, second, third = header(), header(), header()
    others = [header(UserId(uuid.uuid4())) for _ in range(2)]
    for each in (first, others[0], second, third, others[1]):
        ids.add(each)
    assert [source for source, _ in ids.items()] == [USER.uid, others[1].src.uid]
    recent = RecentMessages(per_source=2, sources=2)
    for source, numbers in ids.items():
        recent.restore(source, numbers)
    known = [each in recent for each in (first, second, third, *others)]
    assert known == [False, True, True, False, True]


def test_a_request_answered_before_the_exchange_was_killed_is_not_delivered_again(tmp_path: Path) -> None:
    """End to end: stored, executed, answered, killed before the sender heard of it, sent again."""

    async def before(factory: HttpExchangeFactory) -> Message:
        async with await factory.create_transport(name="sender") as sender:
            registration = await sender.register_agent(Agent)
            message = Message.create(sender.mailbox_id, registration.agent_id, ActionRequest("first", "", ""))
            await sender.send(message)
            async with await factory.create_transport(registration.agent_id, registration=registration) as agent:
                async for received in agent.listen(10):
                    await agent.send(received.create_response(SuccessResponse()), acknowledges=received)
                    return message
        raise AssertionError("nothing was received")

    async def after(factory: HttpExchangeFactory, message: Message) -> list[str]:
        async with await factory.create_transport(message.src) as sender:
            await sender.send(message)
            await sender.send(Message.create(message.src, message.dest, ActionRequest("last", "", "")))
        async with await factory.create_transport(message.dest) as agent:
            executed = []
            async for received in agent.listen(10):
                executed.append(received.decoded().action)  # type: ignore[union-attr]
                if executed[-1] == "last":
                    break
            return executed

    state = tmp_path / "state"
    with spawn_http_exchange("127.0.0.1", 0, state_dir=state) as factory:
        message = asyncio.run(before(factory))
        kill_exchange()
    with spawn_http_exchange("127.0.0.1", 0, state_dir=state) as factory:
        assert asyncio.run(after(factory, message)) == ["last"]
