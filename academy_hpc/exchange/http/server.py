"""The HTTP server of an exchange: authenticate, limit, route; errors become statuses here and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Any

import msgspec
from aiohttp import web

from academy_hpc import __version__
from academy_hpc.errors import AcademyError, BadRequestError, UnauthorizedError
from academy_hpc.exchange.http.auth import Authenticator, OpenAuthenticator, TokenAuthenticator
from academy_hpc.exchange.http.server_rest import ROUTES, RestSessions
from academy_hpc.exchange.http.server_stream import StreamConnection
from academy_hpc.exchange.http.wire import (
    BATCH_BYTES,
    HEARTBEAT_S,
    STREAM_PATH,
    STREAM_PROTOCOL,
    WHOAMI_PATH,
    error_text,
)
from academy_hpc.exchange.service import ExchangeService
from academy_hpc.exchange.store import Store
from academy_hpc.exchange.store.memory import MemoryStore
from academy_hpc.registry import Caller, Limits

__all__ = ["ExchangeServer", "ServerConfig"]

logger = logging.getLogger(__name__)

# A client that has not sent a whole request head after this time is cut off; so is an idle REST connection.
HEAD_TIMEOUT_S = 30.0
# A body must arrive at no less than this rate, after a start of HEAD_TIMEOUT_S.
BODY_BYTES_PER_S = 64 * 1024
# At the end, how long handlers may take to finish their answers.
CLOSE_S = 0.25


class ServerConfig(msgspec.Struct, frozen=True):
    """How an exchange serves.

    ``token``: None is for loopback and tests: everybody is let in. ``state_dir``: where a durable exchange keeps its
    state; None: in memory.
    """

    token: str | None = None
    state_dir: str | None = None
    limits: Limits = Limits()
    listen_timeout_s: float = 60.0
    full_wait_s: float = 30.0

    def __repr__(self) -> str:
        """Without the token."""
        return f"ServerConfig(token={'***' if self.token else None}, limits={self.limits})"


class ExchangeServer:
    """One exchange, served on one socket."""

    def __init__(self, config: ServerConfig, *, authenticator: Authenticator | None = None) -> None:
        self.config = config
        default = OpenAuthenticator() if config.token is None else TokenAuthenticator(config.token)
        self._authenticator: Authenticator = authenticator or default
        self.service = ExchangeService(_open_store(config), limits=config.limits, full_wait_s=config.full_wait_s)
        self._rest = RestSessions(self.service, listen_timeout_s=config.listen_timeout_s)
        self._streams: set[StreamConnection] = set()
        self._runner: web.ServerRunner | None = None

    @property
    def exchange_id(self) -> str:
        """Changes whenever an exchange starts with nothing in it."""
        return self.service.exchange_id

    async def start(self, sock: socket.socket) -> None:
        """Serve on `sock`, which is bound already."""
        server = web.Server(
            self._handle,
            request_factory=self._make_request,
            handler_cancellation=True,
            keepalive_timeout=HEAD_TIMEOUT_S,
            access_log=None,
            tcp_keepalive=True,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=CLOSE_S)
        await self._runner.setup()
        await web.SockSite(self._runner, sock, backlog=1024).start()

    async def close(self) -> None:
        """End streams and polls in order, then the server. What listeners did not acknowledge stays in the store."""
        self._rest.close()
        await asyncio.gather(
            *(asyncio.wait_for(stream.close(), CLOSE_S) for stream in self._streams), return_exceptions=True
        )
        await self.service.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def _make_request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        # Text in text: every quote of the message is escaped, so a body may be longer than the message it holds.
        limit = 3 * self.config.limits.message_bytes + BATCH_BYTES
        return web.BaseRequest(
            message, payload, protocol, writer, task, asyncio.get_running_loop(), client_max_size=limit
        )

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            caller = await self._authenticator.authenticate(request.headers.get("Authorization"))
            return await self._route(request, caller)
        except UnauthorizedError as error:
            return web.Response(status=401, text=error_text(error), headers={"WWW-Authenticate": "Bearer"})
        except AcademyError as error:
            return web.Response(status=error.status, text=error_text(error))

    async def _route(self, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
        if request.path == STREAM_PATH and request.method == "GET":
            return await self._stream(request, caller)
        if request.path == WHOAMI_PATH and request.method == "GET":
            return web.json_response({"exchange": self.exchange_id, "pid": os.getpid(), "version": __version__})
        methods = ROUTES.get(request.path)
        if methods is None:
            return web.Response(status=404, text="404: Not Found")
        handler = methods.get(request.method)
        if handler is None:
            return web.Response(status=405, text="405: Method Not Allowed", headers={"Allow": ",".join(methods)})
        return await handler(self._rest, request, caller, await _read_body(request))

    async def _stream(self, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
        response = web.WebSocketResponse(
            protocols=(STREAM_PROTOCOL,),
            heartbeat=HEARTBEAT_S,
            compress=False,
            max_msg_size=self.config.limits.message_bytes + 16 * BATCH_BYTES,
        )
        if not response.can_prepare(request):
            raise BadRequestError(f"{STREAM_PATH} is a WebSocket")
        try:
            await response.prepare(request)
        except ConnectionResetError:  # the client tries all addresses at once, and has kept another
            return web.Response()
        stream = StreamConnection(response, self.service, caller, durable=self.config.state_dir is not None)
        self._streams.add(stream)
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)
        return response


def _open_store(config: ServerConfig) -> Store:
    if config.state_dir is None:
        return MemoryStore(tombstones=config.limits.tombstones)
    from academy_hpc.exchange.store.sqlite import SqliteStore

    return SqliteStore(config.state_dir, tombstones=config.limits.tombstones)


async def _read_body(request: web.BaseRequest) -> bytes:
    allowed_s = HEAD_TIMEOUT_S + (request.content_length or 0) / BODY_BYTES_PER_S
    try:
        async with asyncio.timeout(allowed_s):
            return await request.read()
    except TimeoutError:
        raise BadRequestError(f"the body did not arrive within {allowed_s:.0f} s") from None
    except web.HTTPRequestEntityTooLarge as error:
        raise _TooLargeError(error.text or "") from None


class _TooLargeError(BadRequestError):
    code = "BODY_TOO_LARGE"
    status = 413
