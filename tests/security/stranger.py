"""Somebody without a token who knows the address of an exchange, and what can be seen of the exchange's process."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import psutil

from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.spawn import spawn_http_exchange

__all__ = ["UPGRADE", "Reply", "Spawned", "ask", "connect", "everything", "request", "spawned_exchange", "until"]


# To ask for a WebSocket.
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


class Reply(NamedTuple):
    """What came back before the connection was closed; status 0: nothing."""

    status: int
    head: str
    body: bytes
    after_s: float


class Spawned(msgspec.Struct):
    """An exchange in a process of its own on loopback."""

    factory: HttpExchangeFactory
    port: int
    token: str
    pid: int
    log: Path
    tls: ssl.SSLContext | None = None

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.pid)

    def resident(self) -> int:
        """Bytes of memory."""
        return int(self.process.memory_info().rss)

    def descriptors(self) -> int:
        return int(self.process.num_fds())

    def whoami(self) -> Reply:
        """What the owner is told, on a new connection."""
        data = request("GET", "/whoami", Authorization=f"Bearer {self.token}", Connection="close")
        return ask(self.port, data, tls=self.tls)


@contextlib.contextmanager
def spawned_exchange(folder: Path, *, tls: bool = False) -> Iterator[Spawned]:
    """A real one, as a user gets it."""
    log = folder / "exchange.log"
    with spawn_http_exchange("127.0.0.1", 0, log_path=log, tls=tls) as factory:
        info = factory.connection_info
        port, token = int(info.urls[0].rpartition(":")[2]), info.headers["Authorization"].partition(" ")[2]
        running = Spawned(factory, port, token, 0, log, _unchecked() if tls else None)
        running.pid = msgspec.json.decode(running.whoami().body)["pid"]
        yield running


def _unchecked() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """One HTTP/1.1 request as bytes; underscores in the names of headers are hyphens."""
    lines = [f"{method} {path} HTTP/1.1", "Host: exchange"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def connect(port: int, *, tls: ssl.SSLContext | None = None) -> socket.socket:
    """A connection that sends at once what it is given."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection if tls is None else tls.wrap_socket(connection)


def ask(port: int, data: bytes, *, wait_s: float = 5.0, tls: ssl.SSLContext | None = None) -> Reply:
    """Send `data`, and read one answer."""
    start = time.monotonic()
    with connect(port, tls=tls) as connection:
        connection.settimeout(wait_s)
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        return _read(connection, start, empty=data.startswith(b"HEAD "))


def _read(connection: socket.socket, start: float, *, empty: bool) -> Reply:
    received = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        while part := connection.recv(1 << 16):
            received += part
            head, end, body = received.partition(b"\r\n\r\n")
            length = _length(head)
            if end and (empty or (length is not None and len(body) >= length)):
                break
    head, _, body = received.partition(b"\r\n\r\n")
    body = body[: _length(head)]
    words = head.split(b" ", 2)
    status = int(words[1]) if words[0].startswith(b"HTTP/") else 0
    return Reply(status, head.decode("latin-1"), body, time.monotonic() - start)


def _length(head: bytes) -> int | None:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return None


def everything(connection: socket.socket, *, wait_s: float) -> bytes:
    """All that comes until the other side closes. Raises TimeoutError when it does not."""
    received, deadline = b"", time.monotonic() + wait_s
    with contextlib.suppress(ConnectionError):
        while True:
            connection.settimeout(max(0.01, deadline - time.monotonic()))
            part = connection.recv(1 << 16)
            if not part:
                break
            received += part
    return received


def until(condition: object, *, wait_s: float = 5.0) -> None:
    """Wait until calling `condition` gives something true."""
    assert callable(condition)
    deadline = time.monotonic() + wait_s
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)
