"""A stranger on the port where clients look for an exchange: he writes down all that they send, and answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = ["ANSWERS", "Answer", "Squatter", "relaying_to", "saying", "squatting"]

# From the number of the connection and the head of a request to what is sent back; None: hang up.
Answer = Callable[[int, bytes], Awaitable[bytes | None]]


class Squatter:
    """What he has seen."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.received: list[bytearray] = []  # of each connection

    @property
    def everything(self) -> bytes:
        return b"".join(self.received)


@contextlib.asynccontextmanager
async def squatting(answer: Answer, *, port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[Squatter]:
    """Listen on loopback until the block ends."""
    sock = socket.create_server(("127.0.0.1", port))
    squatter = Squatter(sock.getsockname()[1])
    tasks: set[asyncio.Task[None]] = set()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        number = len(squatter.received)
        squatter.received.append(bytearray())
        with contextlib.suppress(OSError, asyncio.CancelledError), contextlib.closing(writer):
            while data := await reader.read(1 << 16):
                squatter.received[number] += data
                reply = await answer(number, data)
                if reply is None:
                    return
                writer.write(reply)
                await writer.drain()

    server = await asyncio.start_server(meet, sock=sock, ssl=tls)
    try:
        yield squatter
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def saying(reply: bytes | None) -> Answer:
    """The same to everybody."""

    async def answer(number: int, head: bytes) -> bytes | None:
        return reply

    return answer


def relaying_to(port: int) -> Answer:
    """Ask the real exchange, and pass on what it says."""

    async def answer(number: int, head: bytes) -> bytes | None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(writer):
            writer.write(head)
            return await reader.read(1 << 16)

    return answer


ANSWERS = {
    "nothing": b"",
    "hanging up": None,
    "401": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
    "a wrong proof": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nAcademy-Proof: " + b"00" * 32 + b"\r\n\r\n",
    "an empty proof": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nAcademy-Proof: \r\n\r\n",
    "200": b'HTTP/1.1 200 OK\r\nContent-Length: 27\r\n\r\n{"exchange": "e", "pid": 1}',
    "404": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "101": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    "somewhere else": b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /stream\r\nContent-Length: 0\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
}
