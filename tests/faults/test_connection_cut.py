"""Connections are cut while messages flow: none is lost, none doubled, and the order stays."""

from __future__ import annotations

import asyncio
import random

import pytest

from academy_hpc.agent import Agent, action
from academy_hpc.errors import ExchangeUnavailableError, ExchangeUnreachableError
from academy_hpc.exchange.http.client import HttpExchangeTransport
from academy_hpc.handle import Handle
from academy_hpc.identifiers import UserId
from academy_hpc.message import ActionRequest, Message
from academy_hpc.runtime import Runtime
from tests.exchange_server import TOKEN, running_exchange
from tests.faults.proxy import Proxy, running_proxy

pytestmark = pytest.mark.faults

MESSAGES = 2_000


def numbered(source: UserId, dest: UserId, number: int) -> Message:
    return Message.create(source, dest, ActionRequest(str(number), "", ""))


def number_of(message: Message) -> int:
    body = message.decoded()
    assert isinstance(body, ActionRequest)
    return int(body.action)


async def transport(factory, name: str) -> HttpExchangeTransport:
    made = await factory.create_transport(name=name)
    assert isinstance(made, HttpExchangeTransport)
    return made


async def cut_now_and_then(proxy: Proxy, seed: int) -> None:
    rng = random.Random(seed)
    while True:
        await asyncio.sleep(rng.uniform(0.005, 0.05))
        proxy.cut()


@pytest.mark.parametrize("side", ["sender", "receiver", "both"])
async def test_all_messages_arrive_once_and_in_order_over_connections_that_are_cut(side: str) -> None:
    async with running_exchange() as exchange, running_proxy(exchange.port) as proxy:
        through, direct = exchange.factory_at(proxy.port), exchange.factory
        async with (
            await transport(through if side != "receiver" else direct, "sender") as sender,
            await transport(through if side != "sender" else direct, "receiver") as receiver,
        ):
            got: list[int] = []
            done = asyncio.Event()

            def on_message(message: Message) -> None:
                got.append(number_of(message))
                receiver.acknowledge(message)
                if len(got) >= MESSAGES:
                    done.set()

            await receiver.subscribe(on_message, lambda error: done.set())
            cutter = asyncio.create_task(cut_now_and_then(proxy, seed=7))
            for number in range(MESSAGES):
                message = numbered(sender.mailbox_id, receiver.mailbox_id, number)
                await sender.post(message, lambda error: pytest.fail(str(error)))
                if number % 100 == 0:
                    await asyncio.sleep(0.01)
            async with asyncio.timeout(30):
                await done.wait()
            cutter.cancel()
            await asyncio.sleep(0.1)  # a doubled message would come now
            assert proxy.connections >= 3
            assert got == list(range(MESSAGES))


class Adder(Agent):
    def __init__(self) -> None:
        self.runs: list[int] = []

    @action
    async def add(self, number: int) -> int:
        self.runs.append(number)
        await asyncio.sleep(0.002)
        return number + 1


async def test_calls_over_connections_that_are_cut_are_executed_once_each_and_all_answered() -> None:
    async with running_exchange() as exchange, running_proxy(exchange.port) as proxy:
        through = exchange.factory_at(proxy.port)
        async with await through.create_user_client() as user:
            registration = await user.register_agent(Adder)
            agent = Adder()
            runtime = asyncio.create_task(
                Runtime(agent, exchange_factory=through, registration=registration).run_until_complete()
            )
            handle: Handle[Adder] = Handle(registration.agent_id)
            await handle.ping()
            cutter = asyncio.create_task(cut_now_and_then(proxy, seed=3))
            async with asyncio.timeout(30):
                answers = await asyncio.gather(*(handle.add(number) for number in range(1_000)))
            cutter.cancel()
            assert answers == [number + 1 for number in range(1_000)]
            assert agent.runs == list(range(1_000))
            await handle.shutdown()
            await runtime


async def test_when_the_exchange_does_not_come_back_within_the_budget_every_call_fails() -> None:
    async with running_exchange() as exchange, running_proxy(exchange.port) as proxy:
        factory = exchange.factory_at(proxy.port, reconnect_s=0.3)
        async with await transport(factory, "caller") as caller, await transport(exchange.factory, "other") as other:
            proxy.stall(True)
            waiting = asyncio.create_task(caller.send(numbered(caller.mailbox_id, other.mailbox_id, 1)))
            await asyncio.sleep(0.05)
            proxy.refuse(True)
            proxy.cut()
            with pytest.raises(ExchangeUnreachableError, match="No URL of the exchange"):
                async with asyncio.timeout(10):
                    await waiting
            with pytest.raises(ExchangeUnavailableError):
                await caller.status(other.mailbox_id)


async def test_a_message_that_was_stored_before_its_confirmation_was_lost_is_not_doubled() -> None:
    """The answer of a send is lost, not the send: it is sent again, and stored once."""
    async with running_exchange() as exchange, running_proxy(exchange.port) as proxy:
        async with (
            await transport(exchange.factory_at(proxy.port), "sender") as sender,
            await transport(exchange.factory, "receiver") as receiver,
        ):
            got: list[int] = []
            arrived = asyncio.Event()

            def on_message(message: Message) -> None:
                got.append(number_of(message))
                arrived.set()

            await receiver.subscribe(on_message, lambda error: None)
            counters = exchange.server.service.registry.counters
            # The request passes, then nothing passes back: the proxy holds the confirmation and the cut loses it.
            sending = asyncio.create_task(sender.send(numbered(sender.mailbox_id, receiver.mailbox_id, 1)))
            await arrived.wait()
            proxy.cut()
            await sending
            assert got == [1]
            owner = exchange.server._authenticator  # the caller of the token
            caller = await owner.authenticate(f"Bearer {TOKEN}")
            assert counters(receiver.mailbox_id, caller).incoming == 1
