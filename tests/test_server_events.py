"""Listening by REST: event streams and long polls, their ends, and what becomes of messages meanwhile."""

from __future__ import annotations

import asyncio
import json
import time
from uuid import UUID

import aiohttp
import pytest

from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.identifiers import EntityId
from academy_hpc.message import Message, PingRequest
from academy_hpc.registry import Limits
from tests.rest_client import Events, Rest, agent, eventually, message, rest_exchange, text_of, user

__all__: list[str] = []

SERVER_REST = "academy_hpc.exchange.http.server_rest"
ACADEMY_LIMIT_BYTES = 512 * 1024
# The reader of academy-py gives up on a line longer than this.
ACADEMY_LINE_BYTES = 512 * 1024


async def test_the_head_of_a_stream_comes_before_any_message() -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(dest := user())
        async with asyncio.timeout(1), rest.listen(dest) as events:
            assert await events.read_until(b"\r\n\r\n") == b"retry: 20\r\n\r\n"


async def test_events_come_one_by_one_as_messages_do() -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(dest := user())
        sent = [message(user(), dest, {"number": number}) for number in range(5)]
        async with rest.listen(dest) as events:
            for number, content in enumerate(sent, 1):
                await rest.put(content)
                while len(events.messages) < number:
                    await events.read_more()
        assert events.messages == sent


@pytest.mark.parametrize("timeout_s", [0.05, 0.3])
async def test_a_stream_ends_properly_after_a_silence_of_its_timeout(timeout_s: float) -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(dest := user())
        start = time.monotonic()
        async with rest.listen(dest, timeout_s) as events:
            assert await events.read_to_end() == b"retry: 20\r\n\r\n"
        assert timeout_s <= time.monotonic() - start < timeout_s + 0.5


async def test_the_silence_is_counted_from_the_last_message_and_not_from_comments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"{SERVER_REST}.PING_S", 0.05)
    async with rest_exchange() as (rest, _):
        await rest.create(dest := user())
        start = time.monotonic()
        async with rest.listen(dest, 0.4) as events:
            await asyncio.sleep(0.3)
            await rest.put(message(user(), dest))
            raw = await events.read_to_end()
        assert 0.7 <= time.monotonic() - start < 1.2
        assert raw.count(b"data: ") == 1
        assert raw.count(b": ping\r\n\r\n") >= 8


async def test_comments_come_at_least_every_fifteen_seconds() -> None:
    from academy_hpc.exchange.http import server_rest

    assert server_rest.PING_S <= 15


async def test_a_stream_ends_properly_when_its_mailbox_is_terminated() -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(dest := user())
        async with rest.listen(dest) as events:
            await rest.on(dest, "DELETE", "/mailbox")
            await events.read_to_end(timeout_s=1)


async def test_a_waiting_poll_is_told_that_its_mailbox_was_terminated() -> None:
    async with rest_exchange() as (rest, exchange):
        await rest.create(dest := user())
        poll = asyncio.create_task(rest.get(dest, 30))
        await eventually(lambda: exchange.server._rest._open)
        await rest.on(dest, "DELETE", "/mailbox")
        answer = await poll
        assert (answer.status, answer.text) == (419, "Mailbox was closed")


async def test_streams_end_properly_when_the_exchange_stops_and_polls_are_told_to_try_again() -> None:
    """The reference client does not survive a stream that breaks off."""
    async with rest_exchange() as (rest, exchange):
        await rest.create(one := user(), other := user())
        poll = asyncio.create_task(rest.get(other, 30))
        async with rest.listen(one) as events:
            await eventually(lambda: len(exchange.server._rest._open) == 2)
            start = time.monotonic()
            await exchange.server.close()
            await events.read_to_end(timeout_s=1)
            assert (await poll).status == 503
        assert time.monotonic() - start < 0.5


async def test_the_newest_stream_has_the_mailbox_and_the_older_one_ends_properly() -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(dest := user())
        async with rest.listen(dest) as old, rest.listen(dest) as new:
            await old.read_to_end(timeout_s=1)
            await rest.put(content := message(user(), dest))
            await new.read_until(b"data: ")
            assert (old.messages, new.messages) == ([], [content])


async def test_the_newest_of_stream_and_poll_has_the_mailbox() -> None:
    """Both ways of listening share one queue and one rule."""
    async with rest_exchange() as (rest, exchange):
        await rest.create(dest := user())
        async with rest.listen(dest) as events:
            poll = asyncio.create_task(rest.get(dest, 30))
            await events.read_to_end(timeout_s=1)
        async with rest.listen(dest) as events:
            answer = await poll
            assert (answer.status, answer.text) == (408, "Request timeout")
            await rest.put(content := message(user(), dest))
            await events.read_until(b"data: ")
            assert events.messages == [content]
        assert exchange.server.service.registry.stored_bytes == 0


async def test_messages_wait_for_the_next_stream_in_their_order() -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(dest := user())
        sent = [message(user(), dest, {"number": number}) for number in range(20)]
        for content in sent[:10]:
            await rest.put(content)
        assert [await rest.received(dest) for _ in range(5)] == sent[:5]
        async with rest.listen(dest, 0.2) as events:
            await events.read_to_end()
        assert events.messages == sent[5:10]
        for content in sent[10:]:
            await rest.put(content)
        async with rest.listen(dest, 0.2) as events:
            await events.read_to_end()
        assert events.messages == sent[10:]


@pytest.mark.parametrize("path", ["/mailbox/listen", "/message"])
async def test_the_exchange_notices_at_once_that_a_listener_has_gone(path: str) -> None:
    """What comes after that waits for the next listener, and is not written into a dead connection."""
    async with rest_exchange() as (rest, exchange):
        await rest.create(dest := user())
        listening = asyncio.create_task(rest.on(dest, "GET", path, timeout=30))
        await eventually(lambda: exchange.server._rest._open)
        listening.cancel()
        await eventually(lambda: not exchange.server._rest._open)
        assert not exchange.server.service._listeners
        await rest.put(content := message(user(), dest))
        assert await rest.received(dest) == content


@pytest.mark.parametrize("size", [100, 300_000, ACADEMY_LIMIT_BYTES])
async def test_no_line_of_an_event_is_too_long_for_academy(size: int) -> None:
    """A long event is split between JSON tokens; joined by line breaks, as readers do, it is the message."""
    async with rest_exchange(ServerConfig(token=None, limits=Limits(message_bytes=ACADEMY_LIMIT_BYTES))) as (rest, _):
        await rest.create(dest := user())
        content = message(user(), dest, {"kind": "action-request", "pargs": "", "kargs": "{}", "é\n": ["\r\n", 1.0]})
        content["body"]["pargs"] = "y" * (size - len(text_of(content).encode()))
        assert (await rest.put(content)).status == 200
        async with rest.listen(dest, 0.2) as events:
            raw = await events.read_to_end()
        assert events.messages == [content]
        assert max(len(line) for line in raw.split(b"\n")) < ACADEMY_LINE_BYTES
        for line in raw.split(b"\r\n"):
            assert line == b"" or line.startswith((b"data: ", b"retry: "))


@pytest.mark.parametrize("item", ["1", "[]", '"a,[{"', '{"k": "\\\\\\""}'])
async def test_no_event_is_much_longer_than_its_message_however_deep_it_is_nested(item: str) -> None:
    """Else one agent's message could take all of the exchange's memory."""
    async with rest_exchange() as (rest, _):
        await rest.create(dest := user())
        content = message(user(), dest, json.loads("[" * 500 + ",".join([item] * 150_000) + "]" * 500))
        assert (await rest.put(content)).status == 200
        async with rest.listen(dest, 0.2) as events:
            raw = await events.read_to_end()
        assert len(raw) < len(text_of(content)) + 1_000
        assert events.messages == [content]


async def test_line_breaks_between_the_tokens_of_a_message_do_not_break_its_event() -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(dest := user())
        content = message(user(), dest, {"a": [1, {"b": "\r\n\r\n"}]})
        for text in (json.dumps(content, indent=1), json.dumps(content, indent="\t").replace("\n", "\r\n")):
            answer = await rest.put(text.replace(content["header"]["tag"], user()["uid"]))
            assert answer.status == 200
        async with rest.listen(dest, 0.2) as events:
            await events.read_to_end()
        assert [found["body"] for found in events.messages] == [content["body"]] * 2


@pytest.mark.parametrize("body", [b"nonsense", b'{"a": 1}, "x": {}', b'"\xff"', b"", b"[" * 100_000])
async def test_a_body_that_is_no_json_reaches_no_rest_listener(body: bytes) -> None:
    """Streams carry bodies unread. One that is not JSON would end the listener that reads it."""
    async with rest_exchange() as (rest, exchange):
        await rest.create(dest := user())
        entity = EntityId(UUID(dest["uid"]), role="user")
        async with await exchange.factory.create_transport(name="sender") as sender:
            for text in (body, b'{"good": 1}', body, body, b'{"good": 2}'):
                content = Message.create(sender.mailbox_id, entity, PingRequest())
                await sender.send(Message(content.header, text))
        assert (await rest.received(dest))["body"] == {"good": 1}
        async with rest.listen(dest, 0.2) as events:
            await events.read_to_end()
        assert [found["body"] for found in events.messages] == [{"good": 2}]
        assert exchange.server.service.registry.stored_bytes == 0


async def test_a_stream_may_be_opened_again_on_the_same_connection() -> None:
    """A proper end leaves the connection usable: clients that listen for days open one, not thousands."""
    async with rest_exchange() as (rest, exchange):
        await rest.create(dest := user())
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector) as session:
            own = Rest(session, f"http://127.0.0.1:{exchange.port}")
            for _ in range(3):
                async with own.listen(dest, 0.02) as events:
                    await events.read_to_end()
            await own.put(content := message(user(), dest))
            assert await own.received(dest) == content


@pytest.mark.parametrize("timeout", [0, -1, 60.001, 61, 1e300])
@pytest.mark.parametrize("path", ["/mailbox/listen", "/message"])
async def test_a_timeout_out_of_range_is_refused(timeout: float, path: str) -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(dest := user())
        answer = await rest.on(dest, "GET", path, timeout=timeout)
        assert answer.status == 400
        assert answer.text == "Invalid timeout (must be less than 60 and greater than 0)"


@pytest.mark.parametrize("timeout", [60, 60.0, None])
async def test_the_limit_itself_is_a_legal_timeout_and_the_default(timeout: float | None) -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(dest := user())
        await rest.put(content := message(user(), dest))
        answer = await rest.on(dest, "GET", "/message", timeout=timeout)
        assert json.loads(answer.json["message"]) == content


async def test_left_out_the_timeout_is_the_limit_of_the_server() -> None:
    async with rest_exchange(ServerConfig(listen_timeout_s=0.1)) as (rest, _):
        await rest.create(dest := user())
        async with asyncio.timeout(2):
            assert (await rest.on(dest, "GET", "/message")).status == 408
            async with rest.request("GET", "/mailbox/listen", {"mailbox": text_of(dest)}) as response:
                assert await Events(response).read_to_end() == b"retry: 20\r\n\r\n"
        assert (await rest.get(dest, 0.2)).text == "Invalid timeout (must be less than 0.1 and greater than 0)"


async def test_a_poll_with_a_fraction_of_a_second_waits_that_long() -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(dest := agent())
        start = time.monotonic()
        assert (await rest.get(dest, 0.25)).status == 408
        assert 0.25 <= time.monotonic() - start < 0.75


async def test_a_last_event_id_is_ignored() -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(dest := user())
        await rest.put(content := message(user(), dest))
        body = {"mailbox": text_of(dest), "timeout": 0.1}
        async with rest.request("GET", "/mailbox/listen", body, headers={"Last-Event-Id": "7"}) as response:
            events = Events(response)
            await events.read_to_end()
        assert events.messages == [content]


@pytest.mark.parametrize(("headers", "readable"), [({"academy_version": "1.0.0"}, False), ({}, True)])
async def test_a_token_too_long_for_academy_is_answered_with_an_error(headers: dict[str, str], readable: bool) -> None:
    """It would end the listener. Other readers, which do not say that they are academy-py, get every message."""
    async with rest_exchange() as (rest, _):
        await rest.create(caller := user(), worker := agent())
        long = {"kind": "action-request", "pargs": "x" * ACADEMY_LINE_BYTES}
        request = message(caller, worker, long)
        response = message(worker, caller, long, kind="response")
        for content, dest in ((request, worker), (response, caller)):
            await rest.put(content)
            body = {"mailbox": text_of(dest), "timeout": 0.2}
            async with rest.request("GET", "/mailbox/listen", body, headers=headers) as answer:
                events = Events(answer)
                await events.read_to_end()
            if readable:
                assert events.messages == [content]
            elif content is request:
                assert events.messages == []
                told = await rest.received(caller)
                assert told["header"]["tag"] == request["header"]["tag"]
                assert await rest.stats(worker) == (1, 0, 1, 0, 0)
            else:
                [told] = events.messages
                assert told["header"] == response["header"]
            if not readable:
                assert (told["body"]["kind"], told["body"]["serialization"]) == ("user-error-response", "json")
                assert "larger than limit" in json.loads(told["body"]["exception"])["exception_str"]
