"""The door of an exchange: takes connections in, and puts out those that do not show in time whose they are.

Anybody can connect. Until a connection has authenticated it takes a bounded share of descriptors and memory for a
bounded time. Past that share the oldest is put out, not the newest turned away: whoever has a token shows it within
milliseconds, so strangers only ever displace each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http import HttpProcessingError

__all__ = ["AUTHENTICATE_S", "STRANGERS", "TLS_STRANGERS", "Door"]

logger = logging.getLogger(__name__)

Handle = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# From accepting a connection to its first authenticated request, TLS handshake included.
AUTHENTICATE_S = 10.0
# Connections without an authenticated request, if half of the descriptors allow for that many. Such a one takes 7 kB,
# in the middle of a TLS handshake up to 300 kB.
STRANGERS = 4096
TLS_STRANGERS = 1024
# Connections taken in before those that are there already are heard again.
ACCEPTS_PER_TURN = 64
# Out of descriptors, this is how long new connections wait in the kernel before the next look.
PAUSE_S = 0.05
# How long an answered request's body may still come in, so that the client reads the answer before a reset.
LINGER_S = 2.0


class Door(web.Server):
    """aiohttp's server of requests, with our own way of accepting its connections."""

    def __init__(self, handle: Handle, make_request: Any, *, idle_s: float) -> None:
        """Store what serves.

        Args:
            handle: Answers a request.
            make_request: As `request_factory` of `aiohttp.web.Server`.
            idle_s: After this time without a request a connection is closed; so is one with half a request's head.
        """
        super().__init__(handle, request_factory=make_request, handler_cancellation=True)
        self._idle_s = idle_s
        self._limit = STRANGERS
        # In the order of their coming: when each has to be gone, and its socket.
        self._strangers: dict[Any, tuple[float, socket.socket]] = {}
        self._arrivals: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._tls: dict[str, Any] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self._pause: asyncio.TimerHandle | None = None

    def __call__(self) -> web.RequestHandler:
        """The protocol of a new connection."""
        return _Handler(
            self,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=self._idle_s,
            lingering_time=LINGER_S,
            access_log=None,  # type: ignore[arg-type] # web.Server passes it on as it is
            auto_decompress=False,  # a body is decompressed while it comes in, before anybody knows whose it is
        )

    def open(self, listener: socket.socket, **tls: Any) -> None:
        """Take in the connections of `listener`, which listens already and is the door's from now on.

        `tls`: the arguments that concern it of `asyncio.loop.connect_accepted_socket`.
        """
        listener.setblocking(False)
        self._listener, self._tls = listener, tls
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._limit = max(1, min(TLS_STRANGERS if tls else STRANGERS, descriptors // 2))
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept)

    def let_in(self, request: web.BaseRequest) -> None:
        """The connection of `request` has authenticated."""
        self._strangers.pop(request.protocol, None)

    @property
    def strangers(self) -> int:
        """Connections that have not authenticated."""
        return len(self._strangers)

    async def close(self, timeout_s: float) -> None:
        """Take in nobody any more, and close all connections; handlers have `timeout_s` to finish their answers."""
        listener, self._listener = self._listener, None
        if listener is not None:
            asyncio.get_running_loop().remove_reader(listener.fileno())
            listener.close()
        for timer in (self._sweeper, self._pause):
            if timer is not None:
                timer.cancel()
        for arrival in self._arrivals:
            arrival.cancel()
        await asyncio.sleep(0)  # requests that are here already get their handlers
        self.pre_shutdown()
        await self.shutdown(timeout_s)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        """As told by the protocol of a connection."""
        self._strangers.pop(handler, None)
        super().connection_lost(handler, exc)

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._wait_for_descriptors(error)
                return
            self._admit(connection)

    def _admit(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        loop, handler = asyncio.get_running_loop(), self()
        self._strangers[handler] = loop.time() + AUTHENTICATE_S, connection
        if len(self._strangers) > self._limit:
            self._put_out_oldest()
        if self._sweeper is None:
            self._sweeper = loop.call_later(AUTHENTICATE_S, self._sweep)
        arrival = loop.create_task(self._connect(handler, connection))
        self._arrivals.add(arrival)
        arrival.add_done_callback(self._arrivals.discard)

    async def _connect(self, handler: Any, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: handler, connection, **self._tls)
        except OSError as error:  # gone again, or no TLS: ssl.SSLError is one, too
            logger.debug("a connection came to nothing: %s", error)
            _release(error)
            handler.connection_lost(None)  # it never heard of a transport, which would tell it
            connection.close()

    def _put_out_oldest(self) -> None:
        handler = next(iter(self._strangers))
        _, connection = self._strangers.pop(handler)
        # Whatever it is in the middle of, be it a handshake, reads the end of its connection.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _sweep(self) -> None:
        self._sweeper, now = None, asyncio.get_running_loop().time()
        while self._strangers:
            due, _ = next(iter(self._strangers.values()))
            if due > now:
                self._sweeper = asyncio.get_running_loop().call_at(due, self._sweep)
                return
            self._put_out_oldest()

    def _wait_for_descriptors(self, error: OSError) -> None:
        """Trying again at once would take all of the processor and change nothing."""
        assert self._listener is not None
        if self._pause is None:
            logger.warning("no new connection can be accepted for now: %s", error)
        for _ in range((len(self._strangers) + 1) // 2):
            self._put_out_oldest()
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        self._pause = loop.call_later(PAUSE_S, loop.add_reader, self._listener.fileno(), self._accept)


class _Handler(web.RequestHandler):
    """One connection. Who is not let in learns nothing about us, and fills no log."""

    __slots__ = ("_malformed",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As told by the transport."""
        self._malformed = False
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """As told by the transport. After an error, aiohttp would parse on, and fail for each further piece."""
        if self._malformed:
            return
        super().data_received(data)
        if self._messages and (error := getattr(self._messages[-1][0], "exc", None)) is not None:
            self._malformed = True
            _release(error)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """One text for all that is no HTTP: the parser's would repeat what was sent."""
        if not isinstance(exc, (HttpProcessingError, web.RequestPayloadError)):
            return super().handle_error(request, status, exc, message)
        _release(exc)
        response = web.Response(status=400, text="400: Bad Request")
        response.force_close()
        return response

    def log_exception(self, *args: Any, **options: Any) -> None:
        """Errors of ours only."""
        if not isinstance(options.get("exc_info"), (HttpProcessingError, web.RequestPayloadError)):
            super().log_exception(*args, **options)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Without the versions of Python and aiohttp."""
        resp.headers.setdefault("Server", "academy-hpc")
        return await super().finish_response(request, resp, start_time)


def _release(error: BaseException) -> None:
    """Break a cycle: aiohttp and uvloop keep an error in a frame of its own traceback, with all that was sent."""
    error.__traceback__ = None
