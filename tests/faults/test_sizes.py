"""Messages of all sizes, at the edges of every buffer, and very many small ones: by stream and by REST."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from academy_hpc.errors import MessageTooLargeError
from academy_hpc.exchange.http import client as http_client
from academy_hpc.exchange.http.client import HttpExchangeFactory, HttpExchangeTransport
from academy_hpc.exchange.http.dial import NoStreamError
from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.identifiers import EntityId
from academy_hpc.message import ActionRequest, Message
from academy_hpc.registry import Limits
from tests.exchange_server import TOKEN, running_exchange
from tests.faults.durable import DurableExchange

__all__: list[str] = []

pytestmark = pytest.mark.faults

KIB = 1024
LIMIT = 3 * KIB * KIB
EDGES = (64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB, KIB * KIB)
SIZES = [0, 1, *(edge + step for edge in EDGES for step in (-1, 0, 1)), LIMIT]
TEXTS = ["é", "\u2028", "\x00", "\U0001d54a", "\\", '"', "\r\n", "data: "]
MANY = 100_000


@pytest.fixture(params=["stream", "rest"])
async def transports(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[HttpExchangeTransport, HttpExchangeTransport]]:
    """Sender and receiver."""

    async def refuse(info: Any, *arguments: Any, **options: Any) -> None:
        raise NoStreamError(info.urls[0])

    if request.param == "rest":
        monkeypatch.setattr(http_client.Stream, "acquire", refuse)
    config = ServerConfig(token=TOKEN, limits=Limits(message_bytes=LIMIT))
    async with running_exchange(config) as exchange:
        async with (
            await exchange.factory.create_transport(name="sender") as sender,
            await exchange.factory.create_transport(name="receiver") as receiver,
        ):
            yield sender, receiver


def sized(source: EntityId, dest: EntityId, size: int, filler: str = "x") -> Message:
    """A message whose body has `size` bytes, or the fewest that a body can have."""
    empty = len(Message.create(source, dest, ActionRequest("", "", "")).body)
    count = max(0, size - empty) // len(filler.encode())
    return Message.create(source, dest, ActionRequest(filler * count, "", ""))


async def receive(receiver: HttpExchangeTransport, count: int) -> list[Message]:
    got: list[Message] = []
    async for message in receiver.listen(20):
        got.append(message)
        if len(got) == count:
            break
    return got


async def test_bodies_at_every_edge_pass_unchanged_and_in_order(
    transports: tuple[HttpExchangeTransport, HttpExchangeTransport],
) -> None:
    sender, receiver = transports
    by_rest = type(sender._channel).__name__ == "RestChannel"
    # By REST header and body are one text, and the limit is of both.
    sizes = [size if size < LIMIT or not by_rest else LIMIT - KIB for size in SIZES]
    sent = [sized(sender.mailbox_id, receiver.mailbox_id, size) for size in sizes]
    assert [len(message.body) for message in sent][2:] == sizes[2:]
    listening = asyncio.create_task(receive(receiver, len(sent)))
    for message in sent:
        await sender.send(message)
    for message, got in zip(sent, await listening, strict=True):
        assert (got.tag, got.decoded()) == (message.tag, message.decoded())


async def test_one_byte_over_the_limit_is_refused_and_does_no_harm(
    transports: tuple[HttpExchangeTransport, HttpExchangeTransport],
) -> None:
    sender, receiver = transports
    for size in (LIMIT + 1, 2 * LIMIT):
        with pytest.raises(MessageTooLargeError):
            await sender.send(sized(sender.mailbox_id, receiver.mailbox_id, size))
    last = sized(sender.mailbox_id, receiver.mailbox_id, 100)
    await sender.send(last)
    assert [message.tag for message in await receive(receiver, 1)] == [last.tag]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
async def test_every_character_passes_unchanged(
    text: str, transports: tuple[HttpExchangeTransport, HttpExchangeTransport]
) -> None:
    sender, receiver = transports
    message = sized(sender.mailbox_id, receiver.mailbox_id, 300 * KIB, text)
    await sender.send(message)
    assert [got.decoded() for got in await receive(receiver, 1)] == [message.decoded()]


async def test_a_hundred_thousand_small_messages_survive_the_death_of_the_exchange_in_their_order(
    tmp_path: Path,
) -> None:
    exchange = DurableExchange(tmp_path)
    factory = HttpExchangeFactory.from_connection_info(await exchange.start())
    got: list[str] = []
    done = asyncio.Event()
    try:
        async with (
            await factory.create_transport(name="sender") as sender,
            await factory.create_transport(name="receiver") as receiver,
        ):

            def on_message(message: Message) -> None:
                body = message.decoded()
                assert isinstance(body, ActionRequest)
                got.append(body.action)
                receiver.acknowledge(message)
                if len(got) >= MANY:
                    done.set()

            await receiver.subscribe(on_message, lambda error: done.set())
            killing = asyncio.create_task(_kill_and_start(exchange, lambda: len(got) > MANY // 4))
            for number in range(MANY):
                message = Message.create(sender.mailbox_id, receiver.mailbox_id, ActionRequest(str(number), "", ""))
                await sender.post(message, lambda error: pytest.fail(str(error)))
            async with asyncio.timeout(40):
                await killing
                await done.wait()
            assert got == [str(number) for number in range(MANY)]
    finally:
        await exchange.stop()


async def _kill_and_start(exchange: DurableExchange, when: Any) -> None:
    while not when():  # noqa: ASYNC110 - a list grows
        await asyncio.sleep(0.01)
    await exchange.kill()
    await exchange.start()
