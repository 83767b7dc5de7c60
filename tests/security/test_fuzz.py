"""Whatever comes in, only the declared errors come out; and an exchange that is fed with anything keeps its books."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from academy_hpc.errors import BadRequestError, ConnectionInfoError, LaunchError, StoreError
from academy_hpc.exchange.http import wire
from academy_hpc.exchange.http.client import HttpAgentRegistration
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.handover import Handover, Ready
from academy_hpc.exchange.http.identity import Identity
from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.exchange.http.server_rest import ROUTES
from academy_hpc.exchange.http.tokens import agent_token
from academy_hpc.exchange.store.sqlite import SqliteStore
from academy_hpc.launch.spec import AgentReport, LaunchSpec, WorkerReport
from academy_hpc.message import ActionRequest, Message, SuccessResponse, parse_message
from tests.exchange_server import TOKEN, running_exchange
from tests.security.fuzz.harness import ENTITIES, LIMITS, SECRET, check_books, feed_frames, feed_rest, new_service

__all__: list[str] = []

AGENT = HttpAgentRegistration(ENTITIES[1], token="t")  # type: ignore[arg-type, var-annotated]  # noqa: S106
MESSAGE = Message.create(ENTITIES[0], ENTITIES[1], ActionRequest("run", "W10=", "e30=", "json"))
INFO = ConnectionInfo(("http://127.0.0.1:1",), {"Authorization": "Bearer x"})


def _identity(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "identity.json"
        path.touch(mode=0o600)
        path.write_bytes(data)
        Identity.read(Path(folder))


def _entity(data: bytes) -> None:
    wire.decode_entity(data.decode(errors="replace"))


def _message(data: bytes) -> None:
    parse_message(data).decoded()


# What reads text or bytes from outside, the errors that it declares, and something that it takes.
READERS: dict[str, tuple[Callable[[bytes], Any], tuple[type[Exception], ...], bytes]] = {
    "frame of a client": (wire.decode_from_client, (BadRequestError,), wire.encode_operations([wire.Call(1, "x", [])])),
    "frame of a server": (wire.decode_from_server, (BadRequestError,), wire.encode_operations([wire.Reply(1, [1])])),
    "message": (_message, (BadRequestError,), MESSAGE.to_json()),
    "entity": (
        lambda data: wire.decode_entity(data.decode(errors="replace")),
        (BadRequestError,),
        msgspec.json.encode(ENTITIES[0]),
    ),
    "connection info": (ConnectionInfo.from_json, (ConnectionInfoError,), INFO.to_json().encode()),
    "registration": (HttpAgentRegistration.from_json, (BadRequestError,), AGENT.to_json().encode()),
    "launch spec": (LaunchSpec.from_json, (LaunchError,), b'{"kind": "academy-hpc-launch", "version": 1}'),
    "agent report": (AgentReport.from_json, (LaunchError,), b'{"kind": "academy-hpc-agent-report", "version": 1}'),
    "worker report": (WorkerReport.from_json, (LaunchError,), b'{"kind": "academy-hpc-worker-report", "version": 1}'),
    "identity": (_identity, (StoreError,), msgspec.json.encode(Identity(1, "t"))),
    # These two come through a pipe from the other side of our own process.
    "handover": (lambda data: msgspec.json.decode(data, type=Handover), (ValueError, RecursionError), b"{}"),
    "ready": (lambda data: msgspec.json.decode(data, type=Ready), (ValueError, RecursionError), b"{}"),
    **{
        fields.__name__: (
            lambda data, fields=fields: wire.decode_fields(data, fields),  # type: ignore[misc]
            (BadRequestError,),
            b'{"mailbox": "{}", "agent": "a", "allow_subclasses": true, "group_id": "g", "message": "{}"}',
        )
        for fields in vars(wire).values()
        if isinstance(fields, type) and fields.__name__.endswith("Fields")
    },
}

PIECES = [b"NaN", b"1e999", b"-0", b'"\\ud800"', b"null", b"\xdb\xff\xff\xff\xff", b"\xcf" + b"\xff" * 8]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**400]),
    st.floats(),
    st.text(st.characters()),
    st.just("\ud800"),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner), max_leaves=20
)


def _deep(depth: int, kind: str) -> bytes:
    opening, closing = {"list": (b"[", b"]"), "object": (b'{"kind":', b"}"), "msgpack": (b"\x91", b"")}[kind]
    return opening * depth + b"0" + closing * depth


@st.composite
def _mutated(draw: st.DrawFn, valid: bytes) -> bytes:
    """`valid`, with pieces replaced, repeated, moved or left out."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 16)))
        piece = draw(st.binary(max_size=9) | st.just(bytes(data[start:end]) * 2) | st.sampled_from(PIECES))
        data[start:end] = piece
    return bytes(data)


def _inputs(name: str) -> st.SearchStrategy[bytes]:
    json_bytes = VALUES.map(lambda value: json.dumps(value).encode())
    pack = VALUES.filter(lambda value: "\\ud800" not in json.dumps(value)).map(_packed)
    doubled = st.just(b'{"kind": 1, "kind": 2, "mailbox": "a", "mailbox": 3, "version": 1, "version": 1}')
    deep = st.builds(_deep, st.sampled_from([100, 2_000, 200_000]), st.sampled_from(["list", "object", "msgpack"]))
    return st.one_of(
        st.binary(), json_bytes, pack, doubled, deep, _mutated(READERS[name][2]), _mutated(READERS[name][2])
    )


def _packed(value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, UnicodeError):
        return b""


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=60)
@given(data=st.data())
def test_only_the_declared_errors_come_out(name: str, data: st.DataObject) -> None:
    read, declared, _ = READERS[name]
    with contextlib.suppress(*declared):
        read(data.draw(_inputs(name), label="input"))


@pytest.mark.parametrize("name", READERS)
def test_the_deepest_nesting_is_only_malformed(name: str) -> None:
    read, declared, _ = READERS[name]
    for kind in ("list", "object", "msgpack"):
        with pytest.raises(declared):
            read(_deep(100_000, kind))


# An exchange that is fed with operations that look good

NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 5, -1, -(2**63), 2**31, 2**63 - 1, 2**63, 2**64 - 1]) | st.integers(0, 10)
UIDS = st.sampled_from([entity.uid for entity in ENTITIES]) | st.builds(uuid.UUID, int=st.integers(4, 9))
SESSIONS = st.builds(uuid.UUID, int=st.integers(0, 3))
PEOPLE = st.sampled_from(ENTITIES) | st.builds(
    lambda uid, role: msgspec.convert({"uid": str(uid), "name": None, "role": role}, type(ENTITIES[0])),
    UIDS,
    st.sampled_from(["agent", "user"]),
)
BODIES = st.sampled_from([b"{}", b"", b"null", b"\xff", b"{" * 500, b'"' + b"x" * 3_990 + b'"', b"x" * 5_000])
MESSAGES = st.builds(
    lambda src, dest, request, tag: Message.create(
        src, dest, ActionRequest("a", "", "") if request else SuccessResponse(), tag=uuid.UUID(int=tag)
    ),
    PEOPLE,
    PEOPLE,
    st.booleans(),
    st.integers(0, 3),
)
TWO = ("share", "unshare")
METHODS = [
    "create",
    "terminate",
    "status",
    "discover",
    "heartbeat",
    "stats",
    "share",
    "unshare",
    "groups",
    "__init__",
    "",
]
OPERATIONS = st.one_of(
    st.builds(
        wire.Attach, NUMBERS, PEOPLE, SESSIONS, NUMBERS, NUMBERS, st.none() | st.tuples(NUMBERS, st.lists(NUMBERS))
    ),
    st.builds(wire.Detach, UIDS),
    st.builds(
        lambda number, message, body, acknowledges, waits: wire.Send(number, message.header, body, acknowledges, waits),
        NUMBERS,
        MESSAGES,
        BODIES,
        st.none() | NUMBERS,
        st.booleans(),
    ),
    st.builds(wire.Acknowledge, UIDS, NUMBERS, st.lists(NUMBERS)),
    st.builds(
        wire.Call,
        NUMBERS,
        st.sampled_from(METHODS),
        st.lists(
            PEOPLE | st.sampled_from(["m.Worker", "", "a,b", True, None, 2**64 - 1, ["m.Worker"], {}]), max_size=4
        ),
        st.none() | UIDS,
    ),
    st.builds(
        lambda number, method, entity: wire.Call(number, method, [entity, "m.Worker"][: 1 + (method in TWO)]),
        NUMBERS,
        st.sampled_from(METHODS),
        PEOPLE,
    ),
    st.builds(lambda uid, good: wire.Present(uid, agent_token(SECRET, uid) if good else "x.y.z"), UIDS, st.booleans()),
)
FRAMES = st.lists(OPERATIONS, max_size=8).map(wire.encode_operations)


@settings(max_examples=120)
@given(frames=st.lists(FRAMES, max_size=6))
def test_an_exchange_fed_with_frames_keeps_its_books(frames: list[bytes]) -> None:
    async def feed() -> None:
        service = new_service()
        await feed_frames(service, frames)
        check_books(service, service._store)
        await service.close()

    asyncio.run(feed())


@settings(max_examples=25)
@given(frames=st.lists(FRAMES, max_size=6))
def test_so_does_a_durable_one(frames: list[bytes]) -> None:
    async def feed(folder: str) -> None:
        service = new_service(SqliteStore(folder, tombstones=100))
        await feed_frames(service, frames)
        assert not service.failed.is_set()
        await service.close()
        reopened = SqliteStore(folder, tombstones=100)
        check_books(service, reopened)
        await reopened.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(feed(folder))


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "mailbox": PEOPLE.map(lambda entity: msgspec.json.encode(entity).decode()) | SCALARS,
        "message": MESSAGES.map(lambda message: message.to_json().decode()) | SCALARS,
        "agent": st.sampled_from(["m.Worker", "", ",,", "a,b"]) | SCALARS,
        "allow_subclasses": st.booleans() | SCALARS,
        "group_id": SCALARS,
        "timeout": st.sampled_from([0, 0.001, 1e400, float("nan"), -1, 10**400]),
    },
)
ROUTE_LIST = [(method, path) for path, methods in ROUTES.items() for method in methods]
REQUESTS = st.builds(
    lambda route, body: (*route, json.dumps(body).encode()), st.sampled_from(ROUTE_LIST), FIELDS | VALUES
)


@settings(max_examples=60)
@given(requests=st.lists(REQUESTS, max_size=8))
def test_no_json_makes_a_route_fail(requests: list[tuple[str, str, bytes]]) -> None:
    async def feed() -> None:
        service = new_service()
        statuses = await feed_rest(service, requests)
        assert all(status < 500 or status in (503, 507) for status in statuses)
        check_books(service, service._store)
        await service.close()

    asyncio.run(feed())


@settings(max_examples=15)
@given(frames=st.lists(FRAMES | st.binary(), max_size=4), requests=st.lists(REQUESTS, min_size=1, max_size=6))
def test_over_the_network_neither(frames: list[bytes], requests: list[tuple[str, str, bytes]]) -> None:
    asyncio.run(_over_the_network(frames, requests))


async def _over_the_network(frames: list[bytes], requests: list[tuple[str, str, bytes]]) -> None:
    config = ServerConfig(token=TOKEN, limits=LIMITS, listen_timeout_s=0.05, full_wait_s=0.05)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with running_exchange(config) as exchange, aiohttp.ClientSession(headers=headers) as session:
        url = f"http://127.0.0.1:{exchange.port}"
        async with session.ws_connect(f"{url}/stream", protocols=(wire.STREAM_PROTOCOL,)) as socket:
            for frame in frames:
                with contextlib.suppress(ConnectionError):
                    await socket.send_bytes(frame)
        for method, path, body in requests:
            async with session.request(method, url + path, data=body) as answer:
                assert answer.status < 500 or answer.status == 507, (method, path, body, await answer.text())
                await answer.read()
        async with session.get(f"{url}/whoami") as answer:
            assert answer.status == 200
