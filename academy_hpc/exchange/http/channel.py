"""How the traffic of one entity reaches an exchange: the port, and a stream as such. rest.py has the other one."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Protocol

from academy_hpc.exchange.http.link import Link
from academy_hpc.exchange.http.stream import Stream
from academy_hpc.exchange.transport import OnEnd, OnMessage
from academy_hpc.identifiers import EntityId
from academy_hpc.message import Message

__all__ = ["Channel", "StreamChannel"]

# How long a closing transport waits for its last messages to be confirmed.
CLOSE_S = 5.0


class Channel(Protocol):
    """How one entity's traffic reaches the exchange: over a stream, or by REST."""

    async def call(self, method: str, *arguments: Any) -> Any:
        """An operation by name (exchange/http/operations.py)."""

    async def post(self, message: Message, outcome: Any, acknowledges: int | None, *, waits: bool) -> None:
        """Put a message under way; `outcome` is called once, with None (soon if somebody `waits`) or an error."""

    async def attach(self, on_message: OnMessage, on_end: OnEnd, *, one_by_one: bool = False) -> None:
        """Listen. `one_by_one`: what is not acknowledged counts as not read, and holds up the exchange."""

    def acknowledge(self, seq: int) -> None:
        """Done with this message."""

    def give_back(self, seq: int) -> None:
        """This message was not begun, and is for the next listener."""

    async def close(self) -> None:
        """Let go."""


class StreamChannel:
    """A mailbox on the stream of this process."""

    def __init__(self, stream: Stream, entity: EntityId) -> None:
        """`stream`: acquired for this entity; released by `close`."""
        self.stream = stream
        self._link = Link(entity)
        self._closed = False

    async def call(self, method: str, *arguments: Any) -> Any:
        """See `Channel`."""
        return await self.stream.call(self._link.entity.uid, method, *arguments)

    async def post(self, message: Message, outcome: Any, acknowledges: int | None, *, waits: bool) -> None:
        """See `Channel`."""
        await self.stream.post(self._link, message, outcome, acknowledges=acknowledges, waits=waits)

    async def attach(self, on_message: OnMessage, on_end: OnEnd, *, one_by_one: bool = False) -> None:
        """See `Channel`."""
        self._link.listen(on_message, on_end, reads_by_acknowledging=one_by_one)
        await self.stream.attach(self._link)

    def acknowledge(self, seq: int) -> None:
        """See `Channel`."""
        self.stream.acknowledge(self._link, seq)

    def give_back(self, seq: int) -> None:
        """See `Channel`."""
        self._link.give_back(seq)

    async def close(self) -> None:
        """See `Channel`."""
        if not self._closed:
            self._closed = True
            try:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_S):
                        await self._link.wait_confirmed()
            finally:  # also when the caller is cancelled
                self.stream.detach(self._link)
                await self.stream.release()
