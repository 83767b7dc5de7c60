"""An exchange in this process and event loop, on a port of loopback: for tests that look into it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

import msgspec

from academy_hpc.exchange.http.auth import Authenticator
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.exchange.http.server import ExchangeServer, ServerConfig

__all__ = ["TOKEN", "RunningExchange", "running_exchange"]

TOKEN = "a-token-that-is-only-good-for-tests-0123456789"  # noqa: S105 - opens nothing but these


class RunningExchange(msgspec.Struct):
    """The server and what reaches it."""

    server: ExchangeServer
    port: int
    factory: HttpExchangeFactory

    def factory_at(self, *ports: int, reconnect_s: float = 10.0) -> HttpExchangeFactory:
        """A factory that goes through other ports of loopback."""
        certificate = self.server.config.certificate
        scheme, fingerprint = ("http", None) if certificate is None else ("https", certificate.fingerprint)
        urls = tuple(f"{scheme}://127.0.0.1:{port}" for port in ports)
        info = ConnectionInfo(urls, {"Authorization": f"Bearer {TOKEN}"}, fingerprint)
        return HttpExchangeFactory.from_connection_info(info, options=ClientOptions(reconnect_s=reconnect_s))


@contextlib.asynccontextmanager
async def running_exchange(
    config: ServerConfig | None = None, *, port: int = 0, authenticator: Authenticator | None = None
) -> AsyncIterator[RunningExchange]:
    """Serve until the block ends."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", port))
    sock.listen()
    server = ExchangeServer(config or ServerConfig(token=TOKEN), authenticator=authenticator)
    await server.start(sock)
    exchange = RunningExchange(server, sock.getsockname()[1], None)  # type: ignore[arg-type]
    exchange.factory = exchange.factory_at(exchange.port)
    try:
        yield exchange
    finally:
        await server.close()
