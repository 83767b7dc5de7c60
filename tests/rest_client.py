"""A plain HTTP client of the Academy protocol that knows nothing of academy_hpc: it sends what a test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import msgspec

from academy_hpc.directory import Caller
from academy_hpc.errors import ForbiddenError
from academy_hpc.exchange.http.auth import bearer_token
from academy_hpc.exchange.http.server import ServerConfig
from tests.exchange_server import TOKEN, RunningExchange, running_exchange

__all__ = [
    "MAILBOX_ROUTES",
    "SHARE_ROUTES",
    "Answer",
    "Events",
    "Rest",
    "TokenTable",
    "agent",
    "eventually",
    "message",
    "rest_exchange",
    "sized",
    "text_of",
    "user",
]

Entity = dict[str, Any]

# The routes about one mailbox: method, path, and what a body needs besides the mailbox.
MAILBOX_ROUTES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/mailbox", {}),
    ("GET", "/mailbox", {}),
    ("GET", "/message", {"timeout": 0.01}),
    ("GET", "/mailbox/listen", {"timeout": 0.01}),
    ("POST", "/mailbox/heartbeat", {}),
    ("GET", "/mailbox/heartbeat", {}),
    ("GET", "/mailbox/stats", {}),
    ("DELETE", "/mailbox", {}),
]
SHARE_ROUTES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/mailbox/share", {"group_id": "a-group"}),
    ("GET", "/mailbox/share", {}),
    ("DELETE", "/mailbox/share", {"group_id": "a-group"}),
]


def user(name: str | None = "someone") -> Entity:
    """A new user as written on the wire."""
    return {"uid": str(uuid.uuid4()), "name": name, "role": "user"}


def agent(name: str | None = "worker") -> Entity:
    """A new agent as written on the wire."""
    return {"uid": str(uuid.uuid4()), "name": name, "role": "agent"}


def message(source: Entity, dest: Entity, body: Any = None, *, kind: str = "request", **header: Any) -> dict[str, Any]:
    """A message; `header` overrides or adds fields."""
    fields = {"src": source, "dest": dest, "tag": str(uuid.uuid4()), "label": None, "kind": kind}
    versions = {"protocol_version": "1.1", "academy_version": "1.0.0"}
    return {"header": fields | versions | header, "body": {"kind": "ping-request"} if body is None else body}


def text_of(value: Any) -> str:
    """Compact JSON in UTF-8, as pydantic and msgspec write it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def sized(source: Entity, dest: Entity, size: int, *, kind: str = "request", filler: str = "x") -> dict[str, Any]:
    """A message whose compact text has `size` bytes."""
    content = message(source, dest, {"kind": "action-response", "v": ""}, kind=kind)
    content["body"]["v"] = filler * ((size - len(text_of(content).encode())) // len(text_of(filler)[1:-1].encode()))
    content["body"]["v"] += "y" * (size - len(text_of(content).encode()))
    assert len(text_of(content).encode()) == size
    return content


class Answer(msgspec.Struct):
    """A whole answer."""

    status: int
    text: str
    content_type: str | None
    headers: Any = None

    @property
    def json(self) -> Any:
        """The text read as JSON."""
        return json.loads(self.text)


class Events:
    """One open event stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.raw = b""

    async def read_until(self, part: bytes, *, timeout_s: float = 5.0) -> bytes:
        """Read on until `part` has been seen; all that was read so far."""
        while part not in self.raw:
            await self.read_more(timeout_s=timeout_s)
        return self.raw

    async def read_more(self, *, timeout_s: float = 5.0) -> None:
        """What comes next."""
        async with asyncio.timeout(timeout_s):
            chunk = await self.response.content.readany()
        assert chunk, f"the stream ended after {self.raw!r}"
        self.raw += chunk

    async def read_to_end(self, *, timeout_s: float = 5.0) -> bytes:
        """All of it. A stream that breaks off instead of ending raises ClientPayloadError."""
        async with asyncio.timeout(timeout_s):
            self.raw += await self.response.content.read()
        return self.raw

    @property
    def messages(self) -> list[Any]:
        """The messages of the whole events read so far."""
        found = []
        for event in self.raw.split(b"\r\n\r\n")[:-1]:
            data = [line[6:] for line in event.split(b"\r\n") if line.startswith(b"data: ")]
            if data:
                found.append(json.loads(b"\n".join(data)))
        return found


class Rest:
    """Talks to the exchange at `url` with one token, or with none."""

    def __init__(self, session: aiohttp.ClientSession, url: str, token: str | None = TOKEN) -> None:
        self._session = session
        self._url = url
        self._token = token

    def as_caller(self, token: str | None) -> Rest:
        """The same exchange with another token."""
        return Rest(self._session, self._url, token)

    def request(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The context manager of a request; `body` is JSON, or bytes as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        headers |= options.pop("headers", {})
        # As a file: aiohttp warns of large bytes.
        return self._session.request(method, self._url + path, data=io.BytesIO(data), headers=headers, **options)

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> Answer:
        """Send a request and read the answer."""
        async with self.request(method, path, body, **options) as response:
            content_type = response.headers.get("Content-Type")
            return Answer(response.status, await response.text(), content_type, response.headers)

    async def on(self, entity: Entity, method: str, path: str, **fields: Any) -> Answer:
        """A request about a mailbox."""
        return await self.call(method, path, {"mailbox": text_of(entity)} | fields)

    async def create(self, *entities: Entity, chain: str | None = None) -> None:
        """Open mailboxes."""
        for entity in entities:
            answer = await self.on(entity, "POST", "/mailbox", agent=chain)
            assert (answer.status, answer.text) == (200, "")

    async def put(self, content: dict[str, Any] | str) -> Answer:
        """Send a message."""
        text = content if isinstance(content, str) else text_of(content)
        return await self.call("PUT", "/message", {"message": text})

    async def get(self, entity: Entity, timeout_s: float = 2.0) -> Answer:
        """One long poll."""
        return await self.on(entity, "GET", "/message", timeout=timeout_s)

    async def received(self, entity: Entity, timeout_s: float = 2.0) -> Any:
        """The next message of a mailbox."""
        answer = await self.get(entity, timeout_s)
        assert answer.status == 200, answer
        return json.loads(answer.json["message"])

    async def status(self, entity: Entity) -> str:
        """MISSING, ACTIVE or TERMINATED."""
        return str((await self.on(entity, "GET", "/mailbox")).json["status"])

    async def stats(self, entity: Entity) -> tuple[int, int, int, int, int]:
        """The counters: incoming, outgoing, completed, in_progress, queued."""
        found = (await self.on(entity, "GET", "/mailbox/stats")).json
        return tuple(found[name] for name in ("incoming", "outgoing", "completed", "in_progress", "queued"))  # type: ignore[return-value]

    @contextlib.asynccontextmanager
    async def listen(self, entity: Entity, timeout_s: float = 30.0) -> AsyncIterator[Events]:
        """An event stream, from the moment its head has come."""
        async with self.request("GET", "/mailbox/listen", {"mailbox": text_of(entity), "timeout": timeout_s}) as answer:
            assert answer.status == 200, await answer.text()
            yield Events(answer)


class TokenTable:
    """An Authenticator that knows a few tokens: what Globus does for a public exchange, without Globus."""

    def __init__(self, callers: dict[str, Caller]) -> None:
        self._callers = callers

    async def authenticate(self, authorization: str | None) -> Caller:
        """See `Authenticator`."""
        caller = self._callers.get(bearer_token(authorization))
        if caller is None:
            raise ForbiddenError("Token expired or revoked.")
        return caller


@contextlib.asynccontextmanager
async def rest_exchange(
    config: ServerConfig | None = None, *, callers: dict[str, Caller] | None = None
) -> AsyncIterator[tuple[Rest, RunningExchange]]:
    """An exchange, and a client that has its token; with `callers` whoever is in that table may use it."""
    authenticator = None if callers is None else TokenTable(callers)
    async with (
        running_exchange(config, authenticator=authenticator) as exchange,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
    ):
        yield Rest(session, f"http://127.0.0.1:{exchange.port}"), exchange


async def eventually(condition: Any, *, within_s: float = 2.0) -> None:
    """Wait until `condition` holds."""
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "it never came true"
        await asyncio.sleep(0.005)
