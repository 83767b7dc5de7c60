"""REST and SSE for exchanges that have no stream: the Academy protocol as it stands (docs/protocol.md).

There are no acknowledgements: what the exchange has written to a broken connection is lost there.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec

from academy_hpc.errors import (
    AcademyError,
    BadEntityIdError,
    BadRequestError,
    ExchangeUnavailableError,
    ExchangeUnreachableError,
    MailboxTerminatedError,
    UnauthorizedError,
)
from academy_hpc.exchange.http import wire
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.credential import Credential
from academy_hpc.exchange.http.dial import DIAL_S, ClientOptions, new_session, reason
from academy_hpc.exchange.transport import OnEnd, OnMessage
from academy_hpc.identifiers import AgentId, EntityId
from academy_hpc.message import Message, parse_message

__all__ = ["RestChannel", "read_events"]

logger = logging.getLogger(__name__)

BEAT_S = 30.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 5.0
# Between two event streams: an exchange that ends each at once is not to be stormed.
REOPEN_S = 0.02
# An exchange sends a comment at least every 20 s (docs/protocol.md, section 7).
SILENCE_S = 60.0
# Answers after which the exchange has surely not done what was asked, so that asking again can't double it.
_AGAIN = frozenset({429, 502, 503})
# What a proxy answers when it has waited for the exchange in vain: what can't be doubled is asked for again.
_UNKNOWN = frozenset({408, 504})


class RestChannel:
    """One entity's traffic by REST requests, and an event stream for what arrives."""

    def __init__(
        self,
        info: ConnectionInfo,
        options: ClientOptions,
        entity: EntityId,
        *,
        url: str | None = None,
        credential: Credential | None = None,
    ) -> None:
        self._info = info
        self._options = options
        self._credential = credential
        self._entity = entity
        self._session = new_session(info, options)
        self._url = (url or info.urls[0]).rstrip("/")
        self._tasks: list[asyncio.Task[None]] = []
        self._posts: set[asyncio.Task[None]] = set()
        self._last_post: dict[EntityId, asyncio.Task[None]] = {}

    async def call(self, method: str, *arguments: Any) -> Any:
        """See `Channel`."""
        operation = getattr(self, f"_{method}", None)
        if operation is None:
            raise BadRequestError(f"This exchange has no stream, and so no operation {method!r}.")
        return await operation(*arguments)

    async def post(
        self,
        message: Message,
        outcome: Callable[[AcademyError | None], None],
        acknowledges: int | None,
        *,
        waits: bool,
    ) -> None:
        """See `Channel`. Messages for one destination go one after another, to keep their order."""
        before = self._last_post.get(message.dest)
        task = asyncio.create_task(self._post(message, outcome, before))
        self._last_post[message.dest] = task
        self._posts.add(task)
        task.add_done_callback(self._posts.discard)

    async def attach(self, on_message: OnMessage, on_end: OnEnd, *, one_by_one: bool = False) -> None:
        """See `Channel`."""
        await self._heartbeat(self._entity)
        await self._request("GET", wire.HEARTBEAT_PATH, _mailbox(self._entity), self._entity)  # 404 or 419 now
        self._tasks.append(asyncio.create_task(self._listen(on_message, on_end)))
        self._tasks.append(asyncio.create_task(self._beat()))

    def acknowledge(self, seq: int) -> None:
        """See `Channel`: there is nothing to acknowledge."""

    def give_back(self, seq: int) -> None:
        """See `Channel`: such an exchange forgets what it has delivered."""

    async def close(self) -> None:
        """See `Channel`."""
        if self._posts:
            await asyncio.wait(self._posts, timeout=self._options.request_timeout_s)
        for task in (*self._tasks, *self._posts):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._posts, return_exceptions=True)
        await self._session.close()

    # Operations

    async def _create(self, entity: EntityId, classes: tuple[str, ...]) -> None:
        await self._request("POST", wire.MAILBOX_PATH, _mailbox(entity) | {"agent": ",".join(classes) or None}, entity)

    async def _terminate(self, entity: EntityId) -> None:
        await self._request("DELETE", wire.MAILBOX_PATH, _mailbox(entity), entity)

    async def _status(self, entity: EntityId) -> dict[str, Any]:
        try:
            seen = await self._request("GET", wire.HEARTBEAT_PATH, _mailbox(entity), entity)
        except BadEntityIdError:
            return {"status": "MISSING"}
        except MailboxTerminatedError:
            return {"status": "TERMINATED"}
        return {"status": "ACTIVE", "seen_s": seen["heartbeat"]}

    async def _discover(self, name: str, subclasses: bool) -> list[AgentId[Any]]:
        fields = {"agent": name, "allow_subclasses": subclasses}
        found = await self._request("GET", wire.DISCOVER_PATH, fields, None)
        return [msgspec.convert({"uid": uid}, AgentId[Any]) for uid in found["agent_ids"].split(",") if uid]

    async def _heartbeat(self, entity: EntityId) -> None:
        await self._request("POST", wire.HEARTBEAT_PATH, _mailbox(entity), entity)

    async def _stats(self, entity: EntityId) -> Any:
        return await self._request("GET", wire.STATS_PATH, _mailbox(entity), entity)

    async def _share(self, entity: EntityId, group: str) -> None:
        await self._request("POST", wire.SHARE_PATH, _mailbox(entity) | {"group_id": group}, entity)

    async def _unshare(self, entity: EntityId, group: str) -> None:
        await self._request("DELETE", wire.SHARE_PATH, _mailbox(entity) | {"group_id": group}, entity)

    async def _groups(self, entity: EntityId) -> list[str]:
        found = await self._request("GET", wire.SHARE_PATH, _mailbox(entity), entity)
        return list(found["group_ids"])

    # Sending

    async def _post(
        self, message: Message, outcome: Callable[[AcademyError | None], None], before: asyncio.Task[None] | None
    ) -> None:
        error: AcademyError | None = ExchangeUnavailableError("The client was closed before the exchange had answered.")
        try:
            if before is not None:
                await asyncio.wait([before])
            await self._request("PUT", wire.MESSAGE_PATH, {"message": message.to_json().decode()}, message.dest)
            error = None
        except AcademyError as refusal:
            error = refusal
        finally:  # whatever happens, somebody may wait for the outcome
            outcome(error)
            if self._last_post.get(message.dest) is asyncio.current_task():
                del self._last_post[message.dest]

    async def _request(self, method: str, path: str, fields: dict[str, Any], entity: EntityId | None) -> Any:
        until, pause = time.monotonic() + self._options.reconnect_s, FIRST_PAUSE_S
        while True:
            error, again = await self._try(method, path, fields, entity)
            if not isinstance(error, AcademyError):
                return error
            if not again or time.monotonic() + pause > until:
                raise error
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads clients, hides nothing
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _try(self, method: str, path: str, fields: dict[str, Any], entity: EntityId | None) -> tuple[Any, bool]:
        """The answer or an error, and whether asking again is safe and may help."""
        try:
            async with asyncio.timeout(self._options.request_timeout_s):
                body, headers = _json(fields), await self._headers()
                async with self._session.request(method, self._url + path, data=body, headers=headers) as response:
                    if response.status == 200:
                        data = await response.read()
                        return (json.loads(data) if data else None), False
                    text = await response.text()
                    again = response.status in (_AGAIN if method == "PUT" else _AGAIN | _UNKNOWN)
                    return _refusal(response.status, text, entity), again or await self._renewed(text, headers)
        except UnauthorizedError as error:
            return error, False
        except ExchangeUnavailableError as error:  # who gives out tokens does not answer: nothing was sent
            return error, True
        except (aiohttp.ClientConnectorError, aiohttp.ServerFingerprintMismatch) as error:
            return ExchangeUnreachableError({self._url: reason(error)}), True
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            return ExchangeUnavailableError(f"{method} {self._url}{path}: {_reason(error)}"), method != "PUT"

    # Receiving

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_S)
            with contextlib.suppress(AcademyError):  # the listener reports what matters
                await self._heartbeat(self._entity)

    async def _listen(self, on_message: OnMessage, on_end: OnEnd) -> None:
        until, pause = time.monotonic() + self._options.reconnect_s, FIRST_PAUSE_S
        while True:
            try:
                await self._read_stream(on_message)
                await asyncio.sleep(REOPEN_S)
                until, pause = time.monotonic() + self._options.reconnect_s, FIRST_PAUSE_S
            except ExchangeUnavailableError as error:
                if time.monotonic() + pause > until:
                    on_end(error)
                    return
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - spreads clients, hides nothing
                pause = min(2 * pause, LONGEST_PAUSE_S)
            except AcademyError as error:
                on_end(error)
                return

    async def _read_stream(self, on_message: OnMessage) -> None:
        """One event stream, until the exchange ends it. Raises AcademyError."""
        url = self._url + wire.LISTEN_PATH
        try:
            silence = aiohttp.ClientTimeout(total=None, sock_connect=DIAL_S, sock_read=SILENCE_S)
            body, headers = _json(_mailbox(self._entity)), await self._headers()
            async with self._session.get(url, data=body, headers=headers, timeout=silence) as response:
                if response.status == 429:  # of a proxy: a listener is never one too many for an exchange
                    raise ExchangeUnavailableError(f"GET {url}: answered 429")
                if response.status != 200:
                    text = await response.text()
                    if await self._renewed(text, headers):
                        raise ExchangeUnavailableError(f"GET {url}: {text}")
                    raise _refusal(response.status, text, self._entity)
                async for text in read_events(response.content.iter_any()):
                    self._received(text, on_message)
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ExchangeUnavailableError(f"GET {url}: {_reason(error)}") from error

    async def _headers(self) -> dict[str, str]:
        """Of one request. Raises UnauthorizedError."""
        headers = self._info.headers
        if self._credential is not None:
            headers = self._info.headers_with(await self._credential.authorization())
        return headers | {"Content-Type": "application/json"}

    async def _renewed(self, answer: str, headers: dict[str, str]) -> bool:
        """Whether there is another token than the one that the exchange has refused with this answer."""
        if self._credential is None or not answer.startswith("Token "):  # the other refusals are about rights
            return False
        shown = headers["Authorization"]
        return await self._credential.authorization(refused=shown) != shown

    def _received(self, text: str, on_message: OnMessage) -> None:
        try:
            message = parse_message(text)
        except BadRequestError as error:  # the next one may be readable
            logger.warning("%s received something that is no message: %s", self._entity, error)
        else:
            on_message(message)


async def read_events(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The data of each event of an event stream; lines of one event are joined by line breaks."""
    begun: list[bytes] = []  # of a line whose end has not come; a long one comes in many chunks
    data: list[bytes] = []
    async for chunk in chunks:
        begun.append(chunk)
        if b"\n" not in chunk:
            continue
        *lines, rest = b"".join(begun).split(b"\n")
        begun = [rest]
        for line in lines:
            text = line.rstrip(b"\r")
            if text.startswith(b"data:"):
                data.append(text[5:].removeprefix(b" "))
            elif not text and data:
                yield b"\n".join(data).decode()
                data = []


def _json(fields: dict[str, Any]) -> io.BytesIO:
    """The body of a request. As a file: aiohttp writes those in pieces, and warns of large bytes."""
    return io.BytesIO(msgspec.json.encode(fields))


def _reason(error: Exception) -> str:
    # Not the repr: aiohttp's errors show the request in it, with its Authorization header.
    return f"{type(error).__name__}: {reason(error)}"


def _mailbox(entity: EntityId) -> dict[str, Any]:
    return {"mailbox": msgspec.json.encode(entity).decode()}


def _refusal(status: int, text: str, entity: EntityId | None) -> AcademyError:
    numbers = re.findall(r"\d+", text) if status == 413 else []
    size, limit = (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else (0, 0)
    return wire.error_from_status(status, text, entity, size=size, limit=limit)
