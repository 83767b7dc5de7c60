"""A TCP proxy on loopback that breaks what passes through it, exactly where and when a test says so.

It knows just enough of the traffic for that: heads of HTTP requests, WebSocket frames, and which operations of the
stream are in a frame. What it does not know, such as TLS, passes as bytes. "up" is to the exchange, "down" is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

from tests.faults.units import Splitter, Unit

__all__ = ["HTML", "Direction", "Proxy", "Trap", "running_proxy"]

Direction = Literal["up", "down"]
DIRECTIONS: tuple[Direction, Direction] = ("up", "down")

_Units = asyncio.Queue[tuple[float, Unit | None]]  # each with the time from which it may be passed on

HTML = b"<html><head><title>Bad gateway</title></head><body><h1>The proxy has no idea</h1></body></html>"
_READ_BYTES = 64 * 1024


class Trap:
    """Waits for units, and does something to the next `times` of them after the first `skip`.

    What it does: "pass": nothing but notice; "lose": reset the connection instead of passing the unit; "tear": reset it
    in the middle of the unit; "twice": pass it twice; "swallow": pass neither it nor what follows, and close nothing;
    "answer": give the client an answer of the proxy's own.
    """

    def __init__(self, act: str, matches: Callable[[Unit], bool], *, skip: int, times: float, answer: bytes) -> None:
        self.act = act
        self.answer = answer
        self.hits = 0
        self.hit = asyncio.Event()
        self._matches = matches
        self._skip = skip
        self._times = times

    def takes(self, unit: Unit) -> bool:
        """Whether this is a unit to do something to."""
        if self.hits >= self._times or not self._matches(unit):
            return False
        if self._skip > 0:
            self._skip -= 1
            return False
        self.hits += 1
        self.hit.set()
        return True


class _Connection:
    """Both sides of one connection."""

    def __init__(self, client: asyncio.StreamWriter, target: asyncio.StreamWriter) -> None:
        self.client = client
        self.target = target
        self.method = ""
        self.tasks: list[asyncio.Task[None]] = []
        self.swallowing: set[Direction] = set()
        self.used = asyncio.get_running_loop().time()

    def reset(self) -> None:
        """RST to both."""
        for writer in (self.client, self.target):
            _reset(writer)
        for task in self.tasks:
            task.cancel()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Proxy:
    """Passes bytes between a port of its own and a target. Everything it does to them is told by the test."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.connections = 0
        self.target_port = target_port
        self._alive: set[_Connection] = set()
        self._refusing = False
        self._open = {direction: asyncio.Event() for direction in DIRECTIONS}
        for event in self._open.values():
            event.set()
        self._delay_s: dict[Direction, float] = {"up": 0.0, "down": 0.0}
        self._left_bytes: dict[Direction, int | None] = {"up": None, "down": None}
        self._traps: dict[Direction, list[Trap]] = {"up": [], "down": []}

    # Faults of all connections

    def cut(self) -> int:
        """Reset every open connection, in mid-frame if need be; how many connections that were."""
        alive, self._alive = self._alive, set()
        for connection in alive:
            connection.reset()
        return len(alive)

    def refuse(self, refusing: bool) -> None:
        """Reset every new connection at once, until told otherwise."""
        self._refusing = refusing

    def stall(self, stalled: bool, *directions: Direction) -> None:
        """Pass nothing on, and close nothing: a route that went away; in both directions if none is named."""
        for direction in directions or DIRECTIONS:
            (self._open[direction].clear if stalled else self._open[direction].set)()

    @contextlib.contextmanager
    def black_hole(self, *directions: Direction) -> Iterator[None]:
        """Inside the block, nothing passes and nobody hears of it: neither data nor FIN nor RST."""
        self.stall(True, *directions)
        try:
            yield
        finally:
            self.stall(False, *directions)

    @contextlib.contextmanager
    def delay(self, *, up: float = 0.0, down: float = 0.0) -> Iterator[None]:
        """Inside the block, what comes takes this many seconds more; it keeps its order."""
        before, self._delay_s = self._delay_s, {"up": up, "down": down}
        try:
            yield
        finally:
            self._delay_s = before

    @contextlib.asynccontextmanager
    async def closing_idle(self, seconds: float) -> AsyncIterator[None]:
        """Inside the block, a connection on which nothing passed for so long is reset, as proxies do."""

        async def watch() -> None:
            while True:
                await asyncio.sleep(seconds / 20)
                now = asyncio.get_running_loop().time()
                for connection in [known for known in self._alive if now - known.used > seconds]:
                    connection.reset()
                    self._alive.discard(connection)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()

    def cut_after(self, direction: Direction, size: int) -> None:
        """Reset the connection on which the next `size` bytes in this direction have passed, wherever that is."""
        self._left_bytes[direction] = size

    # Faults of single units

    @contextlib.contextmanager
    def trap(
        self,
        act: str,
        direction: Direction,
        matches: Callable[[Unit], bool],
        *,
        skip: int = 0,
        times: float = 1,
        answer: bytes = b"",
    ) -> Iterator[Trap]:
        """Do `act` (see `Trap`) to units that match, while the block lasts."""
        trap = Trap(act, matches, skip=skip, times=times, answer=answer)
        self._traps[direction].append(trap)
        try:
            yield trap
        finally:
            self._traps[direction].remove(trap)

    def lose_answers(self, kind: type[Any] | str, **options: Any) -> contextlib.AbstractContextManager[Trap]:
        """The next frame with such an operation, or answer to such a method, is lost with its connection."""
        return self.trap("lose", "down", _kind(kind), **options)

    def lose_requests(self, kind: type[Any] | str, **options: Any) -> contextlib.AbstractContextManager[Trap]:
        """The next frame with such an operation, or request with such a method, is lost with its connection."""
        return self.trap("lose", "up", _kind(kind), **options)

    def tear(
        self, direction: Direction, kind: type[Any] | str, **options: Any
    ) -> contextlib.AbstractContextManager[Trap]:
        """The connection is reset in the middle of the next frame with such an operation."""
        return self.trap("tear", direction, _kind(kind), **options)

    def swallow(
        self, direction: Direction, kind: type[Any] | str, **options: Any
    ) -> contextlib.AbstractContextManager[Trap]:
        """From the next frame with such an operation on, its connection is dead in this direction, and stays open."""
        return self.trap("swallow", direction, _kind(kind), **options)

    def notice(
        self, direction: Direction, kind: type[Any] | str, **options: Any
    ) -> contextlib.AbstractContextManager[Trap]:
        """Nothing is done to the next frame with such an operation; but the test knows of it."""
        return self.trap("pass", direction, _kind(kind), **options)

    def twice(self, *, times: float = float("inf"), skip: int = 0) -> contextlib.AbstractContextManager[Trap]:
        """Frames of the client reach the exchange twice."""
        return self.trap("twice", "up", lambda unit: bool(unit.kinds), times=times, skip=skip)

    def answering(
        self, status: int, *, times: float = float("inf"), body: bytes = HTML
    ) -> contextlib.AbstractContextManager[Trap]:
        """Requests are not passed on; they get this status and an HTML page, as from a proxy in trouble."""
        head = f"HTTP/1.1 {status} Trouble\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n"
        answer = head.encode() + b"Connection: close\r\n\r\n" + body
        return self.trap("answer", "up", lambda unit: unit.head, times=times, answer=answer)

    # Passing on

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        if self._refusing:
            _reset(writer)
            return
        try:
            target_reader, target = await asyncio.open_connection("127.0.0.1", self.target_port)
        except OSError:
            _reset(writer)
            return
        connection = _Connection(writer, target)
        self._alive.add(connection)
        connection.tasks = [
            asyncio.create_task(self._pass(connection, "up", reader, target)),
            asyncio.create_task(self._pass(connection, "down", target_reader, writer)),
        ]
        await asyncio.wait(connection.tasks)
        self._alive.discard(connection)
        for side in (writer, target):
            side.close()

    async def _pass(
        self, connection: _Connection, direction: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        units: _Units = asyncio.Queue(64)
        reading = asyncio.create_task(self._read(direction, reader, units))
        now = asyncio.get_running_loop().time
        try:
            while (item := await units.get())[1] is not None:
                due, unit = item
                await asyncio.sleep(max(0.0, due - now()))
                await self._open[direction].wait()
                await self._deliver(connection, direction, unit, writer)
            await self._open[direction].wait()
            if direction not in connection.swallowing:
                writer.write_eof()
        except OSError:
            await self._open[direction].wait()
            connection.reset()
        finally:
            reading.cancel()

    async def _read(self, direction: Direction, reader: asyncio.StreamReader, units: _Units) -> None:
        splitter, now = Splitter(), asyncio.get_running_loop().time
        try:
            while data := await reader.read(_READ_BYTES):
                for unit in splitter.feed(data):
                    await units.put((now() + self._delay_s[direction], unit))
        except OSError:
            pass
        if rest := splitter.rest():
            await units.put((now(), Unit(rest)))
        await units.put((now(), None))

    async def _deliver(
        self, connection: _Connection, direction: Direction, unit: Unit, writer: asyncio.StreamWriter
    ) -> None:
        if unit.head and direction == "up":
            connection.method = unit.data.split(b" ", 1)[0].decode()
        unit.method = connection.method
        connection.used = asyncio.get_running_loop().time()
        if direction in connection.swallowing:
            return
        trap = next((trap for trap in self._traps[direction] if trap.takes(unit)), None)
        data = unit.data if trap is None else self._spring(trap, connection, direction, unit)
        left = self._left_bytes[direction]
        if left is not None:
            data, self._left_bytes[direction] = data[:left], left - len(data)
        writer.write(data)
        await writer.drain()
        if left is not None and left <= len(unit.data):
            self._left_bytes[direction] = None
            connection.reset()
        elif trap is not None and trap.act in ("lose", "tear"):
            connection.reset()

    def _spring(self, trap: Trap, connection: _Connection, direction: Direction, unit: Unit) -> bytes:
        """What is to be passed of `unit`."""
        if trap.act == "pass":
            return unit.data
        if trap.act == "twice":
            return unit.data * 2
        if trap.act == "tear":
            return unit.data[: len(unit.data) // 2]
        if trap.act in ("swallow", "answer"):
            connection.swallowing.add(direction)
        if trap.act == "answer":
            connection.client.write(trap.answer)
        return b""


def _kind(kind: type[Any] | str) -> Callable[[Unit], bool]:
    if isinstance(kind, str):
        return lambda unit: unit.method == kind
    tag = kind.__struct_config__.tag
    return lambda unit: tag in unit.kinds


@contextlib.asynccontextmanager
async def running_proxy(target_port: int) -> AsyncIterator[Proxy]:
    """A proxy in front of `target_port` until the block ends."""
    proxy = Proxy(target_port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, backlog=1024)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.stall(False)
        proxy.cut()
        await asyncio.sleep(0.01)
