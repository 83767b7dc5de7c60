"""Our client by REST and event streams, as on an exchange without a stream: here on one of ours, to look into it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from academy_hpc.agent import Agent, action
from academy_hpc.errors import AgentTerminatedError, ExchangeUnavailableError, UnauthorizedError
from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.http import client as http_client, rest
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.dial import NoStreamError
from academy_hpc.exchange.http.rest import RestChannel, read_events
from academy_hpc.handle import Handle
from academy_hpc.message import ActionRequest, Message
from academy_hpc.registry import Limits
from academy_hpc.runtime import Runtime
from tests.exchange_server import RunningExchange, running_exchange
from tests.rest_client import eventually

__all__: list[str] = []


@pytest.fixture(autouse=True)
def _no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exchange of these tests has a stream; the client is told that it has none."""

    async def refuse(info: Any, options: Any, entity: Any, **rights: Any) -> None:
        raise NoStreamError(info.urls[0])

    monkeypatch.setattr(http_client.Stream, "acquire", refuse)


@pytest.fixture
async def user(exchange: RunningExchange) -> AsyncIterator[UserExchangeClient]:
    async with await exchange.factory.create_user_client() as client:
        yield client


class Worker(Agent):
    def __init__(self, start: int = 0) -> None:
        self.total = start

    @action
    async def add(self, number: int) -> int:
        self.total += number
        return self.total

    @action
    async def repeat(self, text: str, times: int) -> str:
        return text * times


@pytest.mark.parametrize("size", [1, 100_000, 2_000_000])
async def test_calls_of_any_size_are_answered(size: int, user: UserExchangeClient, exchange: RunningExchange) -> None:
    registration = await user.register_agent(Worker)
    runtime = Runtime(Worker(), exchange_factory=exchange.factory, registration=registration)
    running = asyncio.create_task(runtime.run_until_complete())
    handle: Handle[Worker] = Handle(registration.agent_id)
    assert await asyncio.wait_for(handle.repeat("é" * size, 2), 10) == "é" * size * 2
    assert not exchange.server._streams
    await handle.shutdown()
    await running


async def test_messages_to_one_agent_keep_their_order_whatever_each_takes(
    user: UserExchangeClient, exchange: RunningExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, pauses = RestChannel._try, iter([0.1, 0.05, 0.02])

    async def slow(self: RestChannel, method: str, *arguments: Any) -> Any:
        await asyncio.sleep(next(pauses, 0.0) if method == "PUT" else 0.0)
        return await original(self, method, *arguments)

    registration = await user.register_agent(Worker)
    runtime = Runtime(Worker(), exchange_factory=exchange.factory, registration=registration)
    running = asyncio.create_task(runtime.run_until_complete())
    handle: Handle[Worker] = Handle(registration.agent_id, exchange=user)
    await runtime.wait_started()
    monkeypatch.setattr(RestChannel, "_try", slow)
    totals = await asyncio.gather(*(handle.add(10**number) for number in range(5)))
    assert totals == [1, 11, 111, 1_111, 11_111]
    await handle.shutdown()
    await running


async def test_an_agent_that_comes_back_gets_what_waits_for_it(
    user: UserExchangeClient, exchange: RunningExchange
) -> None:
    registration = await user.register_agent(Worker)
    handle: Handle[Worker] = Handle(registration.agent_id)
    for start in (10, 20, 30):
        waiting = [asyncio.create_task(handle.add(1)) for _ in range(3)]
        runtime = Runtime(Worker(start), exchange_factory=exchange.factory, registration=registration)
        running = asyncio.create_task(runtime.run_until_complete())
        assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [start + 1, start + 2, start + 3]
        await handle.shutdown(terminate=False)
        await running


async def test_a_wrong_token_is_told_at_once(exchange: RunningExchange) -> None:
    factory = HttpExchangeFactory(f"http://127.0.0.1:{exchange.port}")
    with pytest.raises(UnauthorizedError):
        await factory.create_user_client()


async def test_a_client_hears_that_it_was_terminated(user: UserExchangeClient, exchange: RunningExchange) -> None:
    registration = await user.register_agent(Worker)

    async def handler(request: Message) -> None:
        pytest.fail("no request is sent")

    async with await exchange.factory.create_agent_client(registration, handler) as agent:
        await user.terminate(registration.agent_id)
        assert isinstance(await asyncio.wait_for(agent.wait_ended(), 5), AgentTerminatedError)


async def test_two_listeners_of_one_mailbox_do_not_storm_the_exchange(
    user: UserExchangeClient, exchange: RunningExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a stream none learns that it was superseded: they take turns, and not as fast as they can."""
    opened = 0
    original = RestChannel._read_stream

    async def counted(self: RestChannel, on_message: Any) -> None:
        nonlocal opened
        opened += 1
        await original(self, on_message)

    monkeypatch.setattr(RestChannel, "_read_stream", counted)
    registration = await user.register_agent(Worker)

    async def handler(request: Message) -> None:
        pytest.fail("no request is sent")

    opened = 0
    async with (
        await exchange.factory.create_agent_client(registration, handler),
        await exchange.factory.create_agent_client(registration, handler),
    ):
        await asyncio.sleep(0.5)
    assert 2 <= opened < 0.5 / rest.REOPEN_S * 2


async def test_when_the_exchange_is_gone_calls_and_listeners_fail_within_the_budget() -> None:
    async with running_exchange() as exchange:
        client = await exchange.factory_at(exchange.port, reconnect_s=0.3).create_user_client()
        await exchange.server.close()
        assert isinstance(await asyncio.wait_for(client.wait_ended(), 5), ExchangeUnavailableError)
        with pytest.raises(ExchangeUnavailableError):
            await asyncio.wait_for(client.status(client.client_id), 5)
        await asyncio.wait_for(client.close(), 5)


async def test_a_send_that_is_under_way_when_the_client_closes_fails(exchange: RunningExchange) -> None:
    factory = exchange.factory_at(exchange.port)
    transport = await factory.create_transport(name="sender")
    other = await factory.create_transport(name="receiver")
    exchange.server.service.registry.limits = Limits(mailbox_messages=1)
    bodies = [ActionRequest(str(number), "", "") for number in range(3)]
    messages = [Message.create(transport.mailbox_id, other.mailbox_id, body) for body in bodies]
    await transport.send(messages[0])
    waiting = [asyncio.create_task(transport.send(content)) for content in messages[1:]]
    await eventually(lambda: exchange.server.service._waiting)
    transport._channel._options = type(factory.options)(request_timeout_s=0.1)
    await asyncio.wait_for(transport.close(), 5)
    for task in waiting:
        with pytest.raises(ExchangeUnavailableError):
            await asyncio.wait_for(task, 1)
    await other.close()


EVENTS = (
    b'retry: 20\r\n\r\n: ping\r\n\r\ndata: {"a":\r\ndata: 1}\r\n\r\n'
    b'data:{"b": "\xc3\xa9"}\n\nid: 7\ndata: {}\n\ndata: {"cut'
)


@pytest.mark.parametrize("size", range(1, len(EVENTS) + 1, 3))
async def test_events_are_read_however_they_are_cut(size: int) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(EVENTS), size):
            yield EVENTS[start : start + size]

    assert [json.loads(text) async for text in read_events(chunks())] == [{"a": 1}, {"b": "é"}, {}]


async def test_what_is_no_message_is_passed_over() -> None:
    got: list[Message] = []
    async with running_exchange() as exchange:
        transport = await exchange.factory.create_transport(name="reader")
        content = Message.create(transport.mailbox_id, transport.mailbox_id, ActionRequest("", "", ""))
        for text in ("{}", "nonsense", content.to_json().decode()):
            transport._channel._received(text, got.append)
        await transport.close()
    assert [received.tag for received in got] == [content.tag]
