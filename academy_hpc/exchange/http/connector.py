"""aiohttp's connector of a client, for connections that are closed when their session is."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import aiohttp

__all__ = ["Connector"]

# How long the event loop may take to close what was aborted.
CLOSE_S = 1.0


class Connector(aiohttp.TCPConnector):
    """Closes TLS connections for good.

    aiohttp lets each say good-bye in its own time, up to half a minute, and forgets it; an event loop that ends before
    that warns of it as a leak. What matters has been said by then: requests have had their answers, and a WebSocket
    has been closed by both sides.
    """

    def __init__(self, verify: ssl.SSLContext | aiohttp.Fingerprint | bool) -> None:
        """`verify`: as the parameter `ssl` of aiohttp."""
        super().__init__(ssl=verify, limit=0)
        self._open: dict[Any, asyncio.Transport] = {}  # by aiohttp's ResponseHandler

    async def connect(self, *arguments: Any, **options: Any) -> Any:
        """A connection, new or used before."""
        connection: Any = await super().connect(*arguments, **options)
        self._open = {handler: transport for handler, transport in self._open.items() if _is_open(handler)}
        if connection.transport is not None and connection.transport.get_extra_info("sslcontext") is not None:
            self._open[connection.protocol] = connection.transport
            if connection.protocol.closed is not None:
                connection.protocol.closed.add_done_callback(_look_at)
        return connection

    async def close(self, *, abort_ssl: bool = False) -> None:
        """Close all connections."""
        closing = [handler.closed for handler in self._open if _is_open(handler)]
        await super().close(abort_ssl=True)
        for transport in self._open.values():
            transport.abort()
        self._open.clear()
        if closing:
            await asyncio.wait(closing, timeout=CLOSE_S)


def _look_at(closed: asyncio.Future[None]) -> None:
    """How it ended was told to whoever used it; an error that nobody looks at would be shown to the user."""
    if not closed.cancelled():
        closed.exception()


def _is_open(handler: Any) -> bool:
    return handler.closed is not None and not handler.closed.done()
