"""The HTTP server of an exchange: authenticate, limit, route; errors become statuses here and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import Any

import msgspec
from aiohttp import web

from academy_hpc import __version__
from academy_hpc.directory import Caller
from academy_hpc.errors import AcademyError, BadRequestError, UnauthorizedError
from academy_hpc.exchange.http.auth import AgentTokens, Authenticator, OpenAuthenticator, TokenAuthenticator
from academy_hpc.exchange.http.certificate import Certificate, server_context
from academy_hpc.exchange.http.challenge import CHALLENGE_HEADER, PROOF_HEADER, answer_challenge
from academy_hpc.exchange.http.door import Door
from academy_hpc.exchange.http.globus_settings import GlobusSettings
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
from academy_hpc.registry import Limits

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
    state; None: in memory. ``certificate``: None: plain http. ``globus``: whoever has a token of Globus Auth for this
    exchange is let in, too.
    """

    token: str | None = None
    state_dir: str | None = None
    certificate: Certificate | None = None
    globus: GlobusSettings | None = None
    limits: Limits = Limits()
    listen_timeout_s: float = 60.0
    full_wait_s: float = 30.0
    # Longer than jobs wait in queues.
    absent_s: float = 7 * 24 * 3600.0

    def __repr__(self) -> str:
        """Without the token."""
        return f"ServerConfig(token={'***' if self.token else None}, globus={self.globus}, limits={self.limits})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same for rich, which would otherwise show all fields of a Struct."""
        return [("token", "***" if self.token else None), ("globus", self.globus), ("limits", self.limits)]


class ExchangeServer:
    """One exchange, served on one socket."""

    def __init__(self, config: ServerConfig, *, authenticator: Authenticator | None = None) -> None:
        self.config = config
        self._authenticator: Authenticator = authenticator or _authenticator(config)
        self.service = ExchangeService(_open_store(config), limits=config.limits, full_wait_s=config.full_wait_s)
        self._agents = AgentTokens(config.token, self.service.registry)
        self._rest = RestSessions(self.service, listen_timeout_s=config.listen_timeout_s)
        self._streams: set[StreamConnection] = set()
        self._absent: asyncio.Task[None] | None = None
        self.door = Door(self._handle, self._make_request, idle_s=HEAD_TIMEOUT_S)
        self._started = time.monotonic()
        self._port = 0

    @property
    def exchange_id(self) -> str:
        """Changes whenever an exchange starts with nothing in it."""
        return self.service.exchange_id

    async def start(self, sock: socket.socket) -> None:
        """Serve on `sock`, which is bound already."""
        self._port = sock.getsockname()[1]
        self._absent = asyncio.create_task(self.service.watch_absent(self.config.absent_s))
        self.door.open(sock, **_tls(self.config.certificate))

    async def close(self) -> None:
        """End streams and polls in order, then the server. What listeners did not acknowledge stays in the store."""
        self._rest.close()
        await asyncio.gather(
            *(asyncio.wait_for(stream.close(), CLOSE_S) for stream in self._streams), return_exceptions=True
        )
        if self._absent is not None:
            self._absent.cancel()
        await self.service.close()
        await self.door.close(CLOSE_S)

    def _make_request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        # Text in text: every quote of the message is escaped, so a body may be longer than the message it holds.
        limit = 3 * self.config.limits.message_bytes + BATCH_BYTES
        return web.BaseRequest(
            message, payload, protocol, writer, task, asyncio.get_running_loop(), client_max_size=limit
        )

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            caller = await self._authenticate(request.headers.get("Authorization"))
            self.door.let_in(request)
            return await self._route(request, caller)
        except UnauthorizedError as error:
            return web.Response(status=401, text=error_text(error), headers=self._unauthorized_headers(request))
        except AcademyError as error:
            return web.Response(status=error.status, text=error_text(error))

    async def _authenticate(self, authorization: str | None) -> Caller:
        if self.config.token is None:
            return await self._authenticator.authenticate(authorization)
        return self._agents.caller(authorization) or await self._authenticator.authenticate(authorization)

    def _unauthorized_headers(self, request: web.BaseRequest) -> dict[str, str]:
        # The client that asked for a proof goes on over the same connection: it must stay open.
        challenge = request.headers.get(CHALLENGE_HEADER)
        proof = None
        if challenge is not None and self.config.token is not None:
            proof = answer_challenge(challenge, secret=self.config.token, port=self._port)
        return {"WWW-Authenticate": "Bearer"} | ({} if proof is None else {PROOF_HEADER: proof})

    async def _route(self, request: web.BaseRequest, caller: Caller) -> web.StreamResponse:
        if request.path == STREAM_PATH and request.method == "GET":
            return await self._stream(request, caller)
        if request.path == WHOAMI_PATH and request.method == "GET":
            return web.json_response(self._who_am_i(caller))
        methods = ROUTES.get(request.path)
        if methods is None:
            return web.Response(status=404, text="404: Not Found")
        handler = methods.get(request.method)
        if handler is None:
            return web.Response(status=405, text="405: Method Not Allowed", headers={"Allow": ",".join(methods)})
        return await handler(self._rest, request, caller, await _read_body(request))

    def _who_am_i(self, caller: Caller) -> dict[str, Any]:
        answer = {"exchange": self.exchange_id, "pid": os.getpid(), "version": __version__}
        answer["uptime_s"] = round(time.monotonic() - self._started, 1)
        if caller.entity is None:
            answer["mailboxes"] = self.service.registry.mailboxes
        return answer

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
        authorization = request.headers.get("Authorization")
        stream = StreamConnection(
            response,
            self.service,
            caller,
            self._agents,
            authenticate=lambda: self._authenticate(authorization),
            durable=self.config.state_dir is not None,
        )
        self._streams.add(stream)
        try:
            await stream.run()
        finally:
            self._streams.discard(stream)
        return response


def _tls(certificate: Certificate | None) -> dict[str, Any]:
    if certificate is None:
        return {}
    return {
        "ssl": server_context(certificate),
        "ssl_shutdown_timeout": CLOSE_S,
    }


def _authenticator(config: ServerConfig) -> Authenticator:
    globus = None
    if config.globus is not None:
        from academy_hpc.exchange.http.globus_auth import GlobusAuthenticator

        globus = GlobusAuthenticator(config.globus)
    if config.token is None:
        return globus or OpenAuthenticator()
    return TokenAuthenticator(config.token, others=globus)


def _open_store(config: ServerConfig) -> Store:
    if config.state_dir is None:
        return MemoryStore()
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
