"""One exchange without a network, to be fed with anything; afterwards its books must balance."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Iterable
from types import SimpleNamespace
from typing import Any

from aiohttp import WSMsgType
from aiohttp.test_utils import make_mocked_request

from academy_hpc.delivery import size_of
from academy_hpc.directory import Caller
from academy_hpc.errors import AcademyError
from academy_hpc.exchange.http.auth import AgentTokens
from academy_hpc.exchange.http.server_rest import ROUTES, RestSessions
from academy_hpc.exchange.http.server_stream import StreamConnection
from academy_hpc.exchange.http.wire import Call, decode_from_server, encode_operations
from academy_hpc.exchange.service import ExchangeService
from academy_hpc.exchange.store import Store
from academy_hpc.identifiers import AgentId, EntityId, UserId
from academy_hpc.registry import Limits, Registry
from tests.replayed_store import ReplayedStore

__all__ = ["ENTITIES", "LIMITS", "SECRET", "check_books", "feed_frames", "feed_rest", "new_service"]

SECRET = "a-secret-of-nothing-but-a-fuzzer-0123456789"  # noqa: S105
LIMITS = Limits(message_bytes=4_000, mailboxes=6, mailbox_messages=4, mailbox_bytes=6_000, total_bytes=10_000)
# Those that exist when feeding starts; a fuzzer that had to find a UUID would never get past the first check.
ENTITIES: list[EntityId] = [
    UserId(uuid.UUID(int=1), "user"),
    AgentId(uuid.UUID(int=2), "worker"),
    AgentId(uuid.UUID(int=3)),
]
OWNER = Caller("owner")


class _Socket:
    """The WebSocket of a client that sends `frames`, reads all answers, and goes."""

    def __init__(self, frames: Iterable[bytes]) -> None:
        self._frames = iter(frames)
        self.closed_with: int | None = None

    async def send_bytes(self, data: bytes) -> None:
        decode_from_server(data)  # what is answered can be read

    async def close(self, *, code: int | None = None, message: bytes = b"") -> None:
        self.closed_with = self.closed_with or code

    def __aiter__(self) -> _Socket:
        return self

    async def __anext__(self) -> Any:
        await asyncio.sleep(0)
        for frame in self._frames:
            return SimpleNamespace(type=WSMsgType.BINARY, data=frame)
        await asyncio.sleep(0)
        raise StopAsyncIteration


def new_service(store: Store | None = None) -> ExchangeService:
    """With small limits, so that they are met; with `ENTITIES`."""
    return ExchangeService(store or ReplayedStore(), limits=LIMITS, full_wait_s=0.01)


async def feed_frames(service: ExchangeService, frames: Iterable[bytes]) -> int | None:
    """Serve a client of the owner that sends `frames`; with which code the exchange closed the stream, if it did."""
    created = [Call(n, "create", [entity, ["m.Worker", "m.Base"]]) for n, entity in enumerate(ENTITIES)]
    socket = _Socket([encode_operations(created), *frames])

    async def authenticate() -> Caller:
        return OWNER

    agents = AgentTokens(SECRET, service.registry)
    stream = StreamConnection(
        socket,  # type: ignore[arg-type]
        service,
        OWNER,
        agents,
        authenticate=authenticate,
        durable=False,
    )
    async with asyncio.timeout(20):
        await stream.run()
    return socket.closed_with


async def feed_rest(service: ExchangeService, requests: Iterable[tuple[str, str, bytes]]) -> list[int]:
    """Serve these requests of the owner (method, path, body) one after the other; the statuses."""
    sessions = RestSessions(service, listen_timeout_s=0.002)
    statuses = []
    for method, path, body in requests:
        handler: Callable[..., Awaitable[Any]] = ROUTES[path][method]
        async with asyncio.timeout(20):
            try:
                statuses.append((await handler(sessions, make_mocked_request(method, path), OWNER, body)).status)
            except AcademyError as error:
                statuses.append(error.status)
    return statuses


def check_books(service: ExchangeService, store: Store) -> None:
    """What a restart finds is what is there, byte by byte of the account, and nobody is left as a listener."""
    snapshot = store.load()
    restarted = Registry(LIMITS)
    restarted.restore(snapshot)
    registry = service.registry
    expected = sum(size_of(entry.message) for entry in snapshot.messages)
    assert registry.stored_bytes == restarted.stored_bytes == expected
    assert len(registry) == len(restarted) <= LIMITS.mailboxes
    for uid, record in registry._records.items():
        other = restarted._records[uid]
        assert set(record.mailbox._entries or ()) == set(other.mailbox._entries or ())
        assert set(record.pending or ()) == set(other.pending or ())
        assert not record.listening
    assert not service._listeners
