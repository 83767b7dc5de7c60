"""What the server does not let anybody do: unauthenticated, malformed, too slow, too much, or pickled."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import pickle
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.exchange.http.server_rest import ROUTES
from academy_hpc.exchange.http.wire import Call, Hello, Reply, Send, decode_from_server, encode_operations
from academy_hpc.identifiers import UserId
from academy_hpc.message import ActionRequest, Message
from academy_hpc.registry import Limits
from tests.exchange_server import TOKEN, RunningExchange, running_exchange
from tests.rest_client import Rest, agent, eventually, message, rest_exchange, user

__all__: list[str] = []

SERVER = "academy_hpc.exchange.http.server"
PATHS = [*ROUTES, "/stream", "/whoami", "/", "/no/such/path", "/mailbox/"]
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]
# What is sent as Authorization, and the answer.
BAD_CREDENTIALS: list[tuple[str | None, int]] = [
    (None, 401),
    ("", 401),
    ("Bearer", 401),
    ("Bearer ", 401),
    (TOKEN, 401),
    (f"bearer {TOKEN}", 401),
    (f"Basic {TOKEN}", 401),
    (f"Bearer  {TOKEN}", 401),
    (f"Bearer {TOKEN} more", 401),
    ("Bearer wrong", 403),
    (f"Bearer {TOKEN[:-1]}", 403),
    (f"Bearer {TOKEN}x", 403),
    ("Bearer \u00fcml\u00e4ut", 403),
]


@contextlib.asynccontextmanager
async def raw_connection(exchange: RunningExchange) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", exchange.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


# Authentication


@pytest.mark.parametrize(("authorization", "status"), BAD_CREDENTIALS)
async def test_without_the_token_nothing_is_answered_on_any_path(authorization: str | None, status: int) -> None:
    """Whatever the path, method and body: nobody learns what is there, and nothing sent is parsed."""
    headers = {} if authorization is None else {"Authorization": authorization}
    text = "Missing required headers." if status == 401 else "Token expired or revoked."
    async with rest_exchange() as (rest, exchange):
        nobody = rest.as_caller(None)
        for path in PATHS:
            for method in METHODS:
                answer = await nobody.call(method, path, b"{malformed", headers=headers)
                assert answer.status == status, (method, path)
                assert answer.text == ("" if method == "HEAD" else text)
                assert answer.headers.get("WWW-Authenticate") == ("Bearer" if status == 401 else None)
        assert len(exchange.server.service.registry) == 0


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("wrong", 403)])
async def test_without_the_token_no_stream_is_opened(token: str | None, status: int) -> None:
    async with running_exchange() as exchange, aiohttp.ClientSession() as session:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await session.ws_connect(f"http://127.0.0.1:{exchange.port}/stream", headers=headers)
        assert caught.value.status == status


async def test_without_the_token_a_body_is_not_even_waited_for(exchange: RunningExchange) -> None:
    async with raw_connection(exchange) as (reader, writer):
        writer.write(b"PUT /message HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n\r\n")
        async with asyncio.timeout(1):
            assert b"401" in await reader.readline()


async def test_the_token_is_shown_nowhere(exchange: RunningExchange) -> None:
    assert TOKEN not in repr(exchange.server.config)
    assert TOKEN not in repr(exchange.factory)


async def test_with_the_token_unknown_paths_and_methods_are_told_apart() -> None:
    async with rest_exchange() as (rest, _):
        for path in PATHS:
            for method in METHODS:
                status = (await rest.call(method, path, b"{malformed")).status
                known = path in ROUTES and method in ROUTES[path]
                if path in ("/stream", "/whoami") and method == "GET":
                    assert status == (400 if path == "/stream" else 200)
                else:
                    assert status == (400 if known else 405 if path in ROUTES else 404), (method, path)


# The stream


@contextlib.asynccontextmanager
async def stream(exchange: RunningExchange) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A stream as another program would open it."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    url = f"http://127.0.0.1:{exchange.port}/stream"
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, headers=headers, protocols=("academy-hpc.1",), max_msg_size=0) as socket,
    ):
        hello, *_ = decode_from_server((await socket.receive()).data)
        assert isinstance(hello, Hello)
        yield socket


def frame(value: Any) -> bytes:
    return msgspec.msgpack.encode(value)


ENTITY = {"uid": uuid.uuid4().bytes, "name": None, "role": "user"}
HEADER = {"src": ENTITY, "dest": ENTITY, "tag": uuid.uuid4().bytes, "kind": "request"}
MALFORMED_FRAMES: dict[str, bytes | str] = {
    "empty": b"",
    "text": "hello",
    "noise": b"\xc1\xff\x00noise",
    "not a list": frame({"a": 1}),
    "a number": frame(7),
    "no operation": frame([[]]),
    "an operation without a tag": frame([["x", 1]]),
    "an unknown operation": frame([[99, 1]]),
    "fields missing": frame([[1, 1]]),
    "a field of a wrong type": frame([[2, "no uid"]]),
    "an entity with a wrong role": frame([[1, 1, {**ENTITY, "role": "admin"}, uuid.uuid4().bytes, 1, 1]]),
    "a header that is none": frame([[3, 1, {}, b"{}"]]),
    "a body that is no bytes": frame([[3, 1, HEADER, {"a": 1}]]),
    "a frame cut short": frame([[3, 1, HEADER, b"{}"]])[:-3],
    "a good operation and a bad one": frame([[5, 1, "status", [ENTITY]], [99]]),
    "nested deeply": b"\x91\x94\x05\x01\xa1x" + b"\x91" * 100_000 + b"\x90",
    "a length that lies": b"\xdd\xff\xff\xff\xff",
}


@pytest.mark.parametrize("name", MALFORMED_FRAMES)
async def test_a_malformed_frame_closes_its_connection_and_no_other(name: str) -> None:
    """The answer is a protocol error. What the others on the exchange do goes on."""
    async with running_exchange() as exchange:
        async with await exchange.factory.create_user_client() as client, stream(exchange) as socket:
            data = MALFORMED_FRAMES[name]
            await (socket.send_str(data) if isinstance(data, str) else socket.send_bytes(data))
            async with asyncio.timeout(2):
                last = await socket.receive()
            assert last.type is aiohttp.WSMsgType.CLOSE
            assert last.data == aiohttp.WSCloseCode.PROTOCOL_ERROR
            assert (await client.status(client.client_id)).name == "ACTIVE"
            waiting = client.expect(tag := uuid.uuid4())
            await client.send(Message.create(client.client_id, client.client_id, ActionRequest("", "", ""), tag=tag))
            waiting.cancel()
        await eventually(lambda: not exchange.server._streams)


async def test_a_frame_over_the_limit_closes_its_connection() -> None:
    config = ServerConfig(token=TOKEN, limits=Limits(message_bytes=10_000))
    async with running_exchange(config) as exchange, stream(exchange) as socket:
        await socket.send_bytes(b"x" * 3_000_000)
        last = await socket.receive(timeout=2)
        assert last.type is aiohttp.WSMsgType.CLOSE
        assert last.data == aiohttp.WSCloseCode.MESSAGE_TOO_BIG


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("no_such_operation", []),
        ("__init__", []),
        ("status", []),
        ("status", [1]),
        ("status", [{"uid": "no uid"}]),
        ("create", [ENTITY, 7]),
        ("discover", [7, True]),
        ("share", [ENTITY, None]),
        ("terminate", [ENTITY, ENTITY]),
    ],
)
async def test_a_call_that_can_not_be_meant_is_refused_and_the_stream_goes_on(method: str, arguments: Any) -> None:
    async with running_exchange() as exchange, stream(exchange) as socket:
        for call in (Call(1, method, arguments), Call(2, "status", [ENTITY])):
            await socket.send_bytes(encode_operations([call]))
            reply, *_ = decode_from_server((await socket.receive(timeout=2)).data)
            assert isinstance(reply, Reply)
            assert (reply.call, reply.code) == ((1, "BAD_REQUEST") if call.call == 1 else (2, None))


# Slow and dead peers


async def ends_within(reader: asyncio.StreamReader, seconds: float) -> bytes:
    """What came until the server closed, in whatever way: a reset is an end, too."""
    async with asyncio.timeout(seconds):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


@pytest.mark.parametrize("start", [b"", b"GET /mailbox HTTP/1.1\r\nHost: x\r\n"])
async def test_a_request_head_that_does_not_come_is_not_waited_for(
    start: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{SERVER}.HEAD_TIMEOUT_S", 0.3)
    async with running_exchange() as exchange, raw_connection(exchange) as (reader, writer):
        writer.write(start)
        begin = time.monotonic()
        await ends_within(reader, 2)
        assert time.monotonic() - begin >= 0.25


async def test_a_request_head_that_comes_byte_by_byte_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{SERVER}.HEAD_TIMEOUT_S", 0.3)
    async with running_exchange() as exchange, raw_connection(exchange) as (reader, writer):

        async def drip() -> None:
            writer.write(b"GET /mailbox HTTP/1.1\r\nX-Long: ")
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        try:
            await ends_within(reader, 2)
        finally:
            dripping.cancel()


async def test_an_idle_connection_is_closed_and_a_busy_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{SERVER}.HEAD_TIMEOUT_S", 0.3)
    request = f"GET /whoami HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    async with running_exchange() as exchange, raw_connection(exchange) as (reader, writer):
        for _ in range(3):
            writer.write(request)
            assert b"200" in await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.2)
        await ends_within(reader, 2)


async def test_a_listener_that_waits_longer_than_a_head_may_take_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{SERVER}.HEAD_TIMEOUT_S", 0.2)
    async with rest_exchange() as (rest, exchange):
        await rest.create(dest := user())
        async with stream(exchange) as socket, rest.listen(dest, 0.8) as events:
            poll = asyncio.create_task(rest.get(agent(), 0.8))
            assert (await poll).status == 404
            await events.read_to_end()
            await socket.send_bytes(encode_operations([Call(1, "status", [ENTITY])]))
            assert (await socket.receive(timeout=2)).type is aiohttp.WSMsgType.BINARY


async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{SERVER}.HEAD_TIMEOUT_S", 0.3)
    async with running_exchange() as exchange, raw_connection(exchange) as (reader, writer):
        head = f"PUT /message HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: 100\r\n\r\n"
        writer.write(head.encode() + b'{"mess')
        async with asyncio.timeout(2):
            assert b"400" in await reader.readline()


@pytest.mark.parametrize(
    "head", [b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 100_000, b"\x16\x03\x01\x02"]
)
async def test_what_is_no_http_is_answered_and_does_no_harm(head: bytes) -> None:
    async with rest_exchange() as (rest, exchange):
        async with raw_connection(exchange) as (reader, writer):
            writer.write(head)
            writer.write_eof()
            assert (await ends_within(reader, 2))[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.0 400")
        assert await rest.status(user()) == "MISSING"


# Too much


@pytest.mark.parametrize("with_length", [True, False])
async def test_a_body_beyond_all_limits_is_refused_without_being_kept(with_length: bool) -> None:
    config = ServerConfig(token=TOKEN, limits=Limits(message_bytes=10_000))

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 10_000

    async with rest_exchange(config) as (rest, _):
        if with_length:
            answer = await rest.call("PUT", "/message", b"x" * 1_000_000)
        else:
            answer = await _put_chunks(rest, chunks())
        assert answer == 413 or answer.status == 413


async def _put_chunks(rest: Rest, chunks: AsyncIterator[bytes]) -> int:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    try:
        async with rest._session.put(rest._url + "/message", data=chunks, headers=headers) as response:
            return response.status
    except aiohttp.ClientOSError:  # the server closed before all was sent
        return 413


async def test_more_mailboxes_than_the_limit_are_refused_until_one_is_closed() -> None:
    async with rest_exchange(ServerConfig(token=TOKEN, limits=Limits(mailboxes=2))) as (rest, _):
        await rest.create(first := agent(), agent())
        await rest.create(first)  # there already
        answer = await rest.on(third := agent(), "POST", "/mailbox")
        assert answer.status == 507
        assert "as many mailboxes as it may (2)" in answer.text
        assert await rest.status(third) == "MISSING"
        await rest.on(first, "DELETE", "/mailbox")
        await rest.create(third)


async def test_a_sender_into_a_full_mailbox_waits_for_room() -> None:
    async with rest_exchange(ServerConfig(token=TOKEN, limits=Limits(mailbox_messages=2))) as (rest, exchange):
        await rest.create(dest := agent())
        sent = [message(user(), dest) for _ in range(4)]
        for content in sent[:2]:
            await rest.put(content)
        waiting = []
        for number, content in enumerate(sent[2:], 1):
            waiting.append(asyncio.create_task(rest.put(content)))
            await eventually(lambda number=number: sum(map(len, exchange.server.service._waiting.values())) == number)
        assert not any(task.done() for task in waiting)
        assert [await rest.received(dest) for _ in sent] == sent
        assert [(await task).status for task in waiting] == [200, 200]


async def test_a_mailbox_that_stays_full_is_told_to_the_sender() -> None:
    """429, which clients take for "try again"; the message is not stored, so trying again is safe."""
    config = ServerConfig(token=TOKEN, limits=Limits(mailbox_messages=1), full_wait_s=0.2)
    async with rest_exchange(config) as (rest, _):
        await rest.create(dest := agent())
        first, second = message(user(), dest), message(user(), dest)
        await rest.put(first)
        start = time.monotonic()
        answer = await rest.put(second)
        assert answer.status == 429
        assert 0.2 <= time.monotonic() - start < 1
        assert await rest.received(dest) == first
        assert (await rest.get(dest, 0.05)).status == 408
        assert (await rest.put(second)).status == 200
        assert await rest.received(dest) == second


async def test_all_mailboxes_together_have_a_limit_too() -> None:
    limits = Limits(total_bytes=10_000)
    async with rest_exchange(ServerConfig(token=TOKEN, limits=limits)) as (rest, exchange):
        statuses = []
        for _ in range(20):
            await rest.create(dest := agent())
            statuses.append((await rest.put(message(user(), dest, {"v": "x" * 1_000}))).status)
        assert set(statuses) == {200, 507}
        assert exchange.server.service.registry.stored_bytes <= limits.total_bytes


# Pickles


class Bomb:
    """Unpickling one makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


async def test_the_server_reads_no_pickle(tmp_path: Path) -> None:
    """A body goes from sender to receiver unread, by REST and by stream; the exchange has no need of any class."""
    trap = tmp_path / "sprung"
    text = base64.b64encode(pickle.dumps(Bomb(trap))).decode()
    body = {"kind": "action-request", "action": "x", "serialization": "pickle", "pargs": text, "kargs": text}
    async with rest_exchange() as (rest, exchange):
        await rest.create(dest := user())
        await rest.put(content := message(user(), dest, body))
        assert await rest.received(dest) == content
        async with stream(exchange) as socket, await exchange.factory.create_transport(name="receiver") as receiver:
            got: list[Message] = []
            await receiver.subscribe(got.append, lambda error: None)
            request = Message.create(UserId.new(), receiver.mailbox_id, ActionRequest("x", text, text))
            await socket.send_bytes(encode_operations([Send(1, request.header, request.body)]))
            await eventually(lambda: got)
            assert got[0].body == request.body
        await rest.on(dest, "DELETE", "/mailbox")
    assert not trap.exists()
    pickle.loads(base64.b64decode(text))  # noqa: S301 - proves that the trap works
    assert trap.exists()
