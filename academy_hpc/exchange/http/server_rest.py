"""The thirteen REST routes of the Academy protocol (docs/protocol.md), and its event stream.

A REST listener acknowledges nothing: a message counts as delivered when its bytes were accepted by a live connection.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
from aiohttp import web

from academy_hpc.delivery import Delivery, Window
from academy_hpc.directory import Caller, Effects
from academy_hpc.errors import (
    AcademyError,
    BadRequestError,
    ListenerSupersededError,
    MessageTooLargeError,
    RefusedError,
)
from academy_hpc.exchange.http import wire
from academy_hpc.exchange.http.wire import decode_entity, decode_fields
from academy_hpc.exchange.service import ExchangeService
from academy_hpc.identifiers import EntityId
from academy_hpc.message import Message, UserErrorResponse, encode_body, parse_message
from academy_hpc.serialization import error_json

__all__ = ["ROUTES", "RestSessions"]

logger = logging.getLogger(__name__)

PING_S = 15.0
# The reader of academy-py refuses longer lines of an event stream (docs/protocol.md, section 4.2).
LINE_BYTES = 256 * 1024
# What it does take, less the field name and the line break. A single token can't be split.
ACADEMY_LINE_BYTES = 512 * 1024 - 16
# To see whether a message would be small enough in another form, it is taken apart if it has no more values than this.
TAKEN_APART = 1_000_000
_ONE = Window(messages=1)
# Text without white space, up to and with the next comma or opening bracket that is not in a string. All repetitions
# are possessive, so that no text takes long.
_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_PIECE = re.compile(rb'[^",\[{]*+(?:%b[^",\[{]*+)*+[,\[{]' % _STRING)
_PIECES = re.compile(rb"(?:%b)++" % _PIECE.pattern)
_number_keeper = msgspec.json.Decoder(float_hook=lambda text: msgspec.Raw(text.encode()))

Handler = Callable[["RestSessions", web.BaseRequest, Caller, bytes], Awaitable[web.StreamResponse]]


class _RestListener:
    """One open long poll or event stream."""

    def __init__(self) -> None:
        self.session = uuid.uuid4()
        self.ended: AcademyError | None = None
        self._event = asyncio.Event()

    def wake(self, uid: uuid.UUID) -> None:
        self._event.set()

    def end(self, uid: uuid.UUID, error: AcademyError) -> None:
        self.ended = error
        self._event.set()

    async def wait(self, timeout_s: float) -> None:
        """Until there is something to take, or the end, or the time is over (TimeoutError)."""
        async with asyncio.timeout(timeout_s):
            await self._event.wait()
        self._event.clear()


class RestSessions:
    """What the routes work on: the service, and the listeners that are open."""

    def __init__(self, service: ExchangeService, *, listen_timeout_s: float) -> None:
        self.service = service
        self.listen_timeout_s = listen_timeout_s
        self._open: set[_RestListener] = set()

    def close(self) -> None:
        """End all polls and streams properly: the reference client does not survive one that breaks off."""
        for listener in list(self._open):
            listener.end(listener.session, _ClosingError("The exchange is shutting down."))

    async def listen(self, entity: EntityId, caller: Caller) -> _RestListener:
        """A new listener for the mailbox; the newest has it. Raises RefusedError."""
        effects, listener = Effects(), _RestListener()
        self.service.attach(entity, listener, listener.session, caller, effects)
        try:
            await self.service.commit(effects)
        except BaseException:  # cancelled while the store was writing
            self.service.detach(entity.uid, listener, listener.session)
            raise
        self._open.add(listener)
        return listener

    def leave(self, entity: EntityId, listener: _RestListener) -> None:
        """The listener's connection is gone."""
        self._open.discard(listener)
        self.service.detach(entity.uid, listener, listener.session)

    async def take(self, entity: EntityId, listener: _RestListener, window: Window) -> list[Delivery]:
        """Deliveries for the listener. A body that is no JSON, which only a stream can bring, would be its end."""
        while taken := self.service.registry.take(entity.uid, listener.session, window):
            bad = [delivery for delivery in taken if not _is_json(delivery.message.body)]
            for delivery in bad:
                logger.warning("dropped %r: its body is not JSON", delivery.message)
                await self.delivered(entity, listener, [delivery.seq])
            if len(bad) < len(taken):
                return [delivery for delivery in taken if delivery not in bad]
        return []

    async def delivered(self, entity: EntityId, listener: _RestListener, seqs: list[int]) -> None:
        """The bytes of these deliveries were accepted by a live connection."""
        effects = Effects()
        self.service.registry.consumed(entity.uid, listener.session, seqs[-1])
        self.service.registry.acknowledge(entity.uid, listener.session, seqs, effects)
        await self.service.commit(effects)


def _is_json(body: bytes) -> bool:
    try:
        body.decode()
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    return True


class _ClosingError(AcademyError):
    code = "CLOSING"
    status = 503


async def _create(rest: RestSessions, request: web.BaseRequest, caller: Caller, body: bytes) -> web.Response:
    fields = decode_fields(body, wire.CreateFields)
    classes = tuple(name.strip() for name in (fields.agent or "").split(",") if name.strip())
    effects = Effects()
    rest.service.registry.create(decode_entity(fields.mailbox), classes, caller, effects)
    await rest.service.commit(effects)
    return web.Response()


async def _status(rest: RestSessions, request: web.BaseRequest, caller: Caller, body: bytes) -> web.Response:
    entity = decode_entity(decode_fields(body, wire.MailboxFields).mailbox)
    return web.json_response({"status": rest.service.registry.status(entity, caller)})


async def _terminate(rest: RestSessions, request: web.BaseRequest, caller: Caller, body: bytes) -> web.Response:
    effects = Effects()
    rest.service.registry.terminate(decode_entity(decode_fields(body, wire.MailboxFields).mailbox), caller, effects)
    await rest.service.commit(effects)
    return web.Response()


async def _send(rest: RestSessions, request: web.BaseRequest, caller: Caller, body: bytes) -> web.Response:
    try:
        message = parse_message(decode_fields(body, wire.MessageFields).message)
    except BadRequestError as error:
        raise BadRequestError(f"Missing or invalid field: {error}") from None
    limit = rest.service.registry.limits.message_bytes
    if _size(message) > limit:
        message = Message(message.header, _compact(message.body))  # exact where it matters
    if (size := _size(message)) > limit:
        rest.service.registry.check_send(message.header, caller)
        await _answer_too_large(rest, message, caller, MessageTooLargeError(size, limit))
        raise MessageTooLargeError(size, limit)
    await rest.service.send_and_wait(message, caller)
    return web.Response()


def _size(message: Message) -> int:
    return len(message.body) + len(msgspec.json.encode(message.header)) + len('{"header":,"body":}')


def _compact(body: bytes) -> bytes:
    """The same JSON in the form whose bytes count: no white space, UTF-8 instead of escapes, numbers as they are."""
    try:
        body = msgspec.json.format(body, indent=-1)
        if sum(map(body.count, (b",", b"[", b"{"))) > TAKEN_APART:
            return body
        return msgspec.json.encode(_number_keeper.decode(body))
    except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError):
        return body


async def _answer_too_large(rest: RestSessions, message: Message, caller: Caller, error: AcademyError) -> None:
    """A response that is too large: tell the requester, who would wait for ever."""
    if message.is_request:
        return
    text = json.dumps(error_json(error))
    answer = Message.create(
        message.src, message.dest, UserErrorResponse(text, "json"), label=message.header.label, tag=message.tag
    )
    await rest.service.send_and_wait(answer, caller)


async def _receive(rest: RestSessions, request: web.BaseRequest, caller: Caller, body: bytes) -> web.StreamResponse:
    entity, timeout_s = _listen_fields(rest, body)
    listener = await rest.listen(entity, caller)
    deadline = time.monotonic() + timeout_s
    try:
        while not (deliveries := await rest.take(entity, listener, _ONE)):
            _raise_ended(listener)
            await listener.wait(max(0.0, deadline - time.monotonic()))
        response = web.json_response({"message": deliveries[0].message.to_json().decode()})
        await response.prepare(request)
        await response.write_eof()
        await rest.delivered(entity, listener, [deliveries[0].seq])
        return response
    except TimeoutError:
        return web.Response(status=408, text="Request timeout")
    finally:
        rest.leave(entity, listener)


async def _listen(rest: RestSessions, request: web.BaseRequest, caller: Caller, body: bytes) -> web.StreamResponse:
    entity, timeout_s = _listen_fields(rest, body)
    listener = await rest.listen(entity, caller)
    response = web.StreamResponse(
        headers={
            "Content-Type": "text/event-stream",
            "Cache-Control": "no-cache",
            "Connection": "keep-alive",
            "X-Accel-Buffering": "no",
        }
    )
    try:
        await response.prepare(request)
        # The reference client sleeps this long between streams, one second if it is not told.
        await response.write(b"retry: 20\r\n\r\n")
        # Clients of academy-py say which release they are; what their reader can't take ends them.
        line_bytes = ACADEMY_LINE_BYTES if "academy_version" in request.headers else None
        await _write_events(_Feed(rest, response, entity, listener, caller, line_bytes), timeout_s)
        await response.write_eof()
    except ConnectionError:
        pass  # the client has gone: what it did not get waits for its next stream
    finally:
        rest.leave(entity, listener)
    return response


class _Feed(NamedTuple):
    """One event stream."""

    rest: RestSessions
    response: web.StreamResponse
    entity: EntityId
    listener: _RestListener
    caller: Caller
    line_bytes: int | None


async def _write_events(feed: _Feed, timeout_s: float) -> None:
    """Until the mailbox has been silent for `timeout_s`, or another listener or the end of the mailbox comes.

    Or until the caller's right has to be looked at again: the next stream, which comes at once, is asked for its token.
    """
    expires_s = math.inf if feed.caller.expires_s is None else feed.caller.expires_s
    deadline = time.monotonic() + timeout_s
    while feed.listener.ended is None and time.monotonic() < expires_s:
        if deliveries := await feed.rest.take(feed.entity, feed.listener, Window()):
            await feed.response.write(b"".join([await _event(feed, delivery.message) for delivery in deliveries]))
            await feed.rest.delivered(feed.entity, feed.listener, [delivery.seq for delivery in deliveries])
            deadline = time.monotonic() + timeout_s
            continue
        try:
            await feed.listener.wait(max(0.0, min(PING_S, min(deadline, expires_s) - time.monotonic())))
        except TimeoutError:
            if time.monotonic() >= min(deadline, expires_s):
                return
            await feed.response.write(b": ping\r\n\r\n")


async def _event(feed: _Feed, message: Message) -> bytes:
    """One event; where a line would be too long for the reader it is split between JSON tokens."""
    text = message.to_json()
    if len(text) > LINE_BYTES or b"\n" in text or b"\r" in text:
        lines = _lines(text)
        longest = max(map(len, lines))
        if feed.line_bytes is not None and longest > feed.line_bytes:
            return await _unreadable(feed, message, MessageTooLargeError(longest, feed.line_bytes))
        text = b"\r\ndata: ".join(lines)
    return b"data: %b\r\n\r\n" % text


async def _unreadable(feed: _Feed, message: Message, error: AcademyError) -> bytes:
    """What takes the place of a message with a token too long for the reader: who waits for an answer gets an error."""
    logger.warning("%r can't be read by its receiver: %s", message, error)
    body = UserErrorResponse(json.dumps(error_json(error)), "json")
    if not message.is_request:
        return await _event(feed, Message(message.header, encode_body(body)))
    try:
        await feed.rest.service.send_and_wait(message.create_response(body), feed.caller)
    except RefusedError as refusal:
        logger.warning("could not answer %r: %s", message, refusal)
    return b""


def _lines(text: bytes) -> list[bytes]:
    """The text in lines of `LINE_BYTES`, or of one piece where that is longer."""
    text = msgspec.json.format(text, indent=-1)  # indented, what is deeply nested would be a thousand times as long
    lines, start = [], 0
    while len(text) - start > LINE_BYTES:
        piece = _PIECES.match(text, start, start + LINE_BYTES) or _PIECE.match(text, start)
        if piece is None:
            break
        lines.append(piece[0])
        start = piece.end()
    return [*lines, text[start:]]


def _raise_ended(listener: _RestListener) -> None:
    if isinstance(listener.ended, ListenerSupersededError):
        raise TimeoutError  # for the older poll nothing came in time
    if listener.ended is not None:
        raise listener.ended


def _listen_fields(rest: RestSessions, body: bytes) -> tuple[EntityId, float]:
    fields = decode_fields(body, wire.ListenFields)
    entity = decode_entity(fields.mailbox)
    limit = rest.listen_timeout_s
    timeout_s = limit if fields.timeout is None else fields.timeout
    if not 0 < timeout_s <= limit or math.isnan(timeout_s):
        raise BadRequestError(f"Invalid timeout (must be less than {limit:g} and greater than 0)")
    return entity, timeout_s


async def _discover(rest: RestSessions, request: web.BaseRequest, caller: Caller, body: bytes) -> web.Response:
    fields = decode_fields(body, wire.DiscoverFields)
    found = rest.service.registry.discover(fields.agent, caller, subclasses=fields.allow_subclasses)
    return web.json_response({"agent_ids": ",".join(str(entity.uid) for entity in found)})


async def _beat(rest: RestSessions, request: web.BaseRequest, caller: Caller, body: bytes) -> web.Response:
    entity = decode_entity(decode_fields(body, wire.MailboxFields).mailbox)
    rest.service.registry.beat(entity, caller, now=time.monotonic())
    return web.Response()


async def _last_beat(rest: RestSessions, request: web.BaseRequest, caller: Caller, body: bytes) -> web.Response:
    entity = decode_entity(decode_fields(body, wire.MailboxFields).mailbox)
    return web.json_response({"heartbeat": rest.service.registry.last_seen(entity, caller, now=time.monotonic())})


async def _stats(rest: RestSessions, request: web.BaseRequest, caller: Caller, body: bytes) -> web.Response:
    entity = decode_entity(decode_fields(body, wire.MailboxFields).mailbox)
    return web.json_response(msgspec.structs.asdict(rest.service.registry.counters(entity, caller)))


async def _share(rest: RestSessions, request: web.BaseRequest, caller: Caller, body: bytes) -> web.Response:
    fields = decode_fields(body, wire.ShareFields)
    effects = Effects()
    change = rest.service.registry.share if request.method == "POST" else rest.service.registry.unshare
    change(decode_entity(fields.mailbox), fields.group_id, caller, effects)
    await rest.service.commit(effects)
    return web.Response()


async def _groups(rest: RestSessions, request: web.BaseRequest, caller: Caller, body: bytes) -> web.Response:
    entity = decode_entity(decode_fields(body, wire.MailboxFields).mailbox)
    return web.json_response({"group_ids": sorted(rest.service.registry.groups(entity, caller))})


ROUTES: dict[str, dict[str, Handler]] = {
    wire.MAILBOX_PATH: {"POST": _create, "GET": _status, "DELETE": _terminate},
    wire.MESSAGE_PATH: {"PUT": _send, "GET": _receive},
    wire.LISTEN_PATH: {"GET": _listen},
    wire.DISCOVER_PATH: {"GET": _discover},
    wire.HEARTBEAT_PATH: {"POST": _beat, "GET": _last_beat},
    wire.STATS_PATH: {"GET": _stats},
    wire.SHARE_PATH: {"POST": _share, "GET": _groups, "DELETE": _share},
}
