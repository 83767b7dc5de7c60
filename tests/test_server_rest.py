"""Every captured exchange of HTTP requests with academy-py's server, played to ours: it answers the same."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from academy_hpc.directory import Caller
from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.registry import Limits
from tests.rest_client import Answer, Events, Rest, rest_exchange

__all__: list[str] = []

WIRE = Path(__file__).parent / "wire"
CAPTURES = sorted(path.stem for path in WIRE.glob("http_*.json"))
BODIES = sorted(path.stem for path in WIRE.glob("message_*.json"))
LIMIT_BYTES = 512 * 1024

# Where an exchange of captures starts: the captures that must have been played before. None of them is listed twice.
AFTER: dict[str, tuple[str, ...]] = {
    "auth_malformed_401": ("auth_create_user",),
    "auth_send_forbidden_403": ("auth_create_user",),
    "auth_wrong_audience_403": ("auth_create_user",),
    "create_after_terminate": ("create_agent", "terminate"),
    "create_again": ("create_agent",),
    "discover": ("create_agent",),
    "discover_none": ("create_agent",),
    "heartbeat_null": ("create_agent",),
    "heartbeat_seconds": ("create_user", "heartbeat_update"),
    "heartbeat_terminated_419": ("create_agent", "terminate"),
    "heartbeat_update": ("create_user",),
    "listen_bad_timeout_400": ("create_agent",),
    "listen_terminated_419": ("create_agent", "terminate"),
    "receive": ("create_user", "create_agent", "send"),
    "receive_terminated_419": ("create_agent", "terminate"),
    "receive_timeout_408": ("create_agent",),
    "send": ("create_user", "create_agent"),
    "send_terminated_419": ("create_user", "create_agent", "terminate"),
    "send_too_large_413": ("create_user", "create_agent"),
    "send_unknown_404": ("create_user",),
    "share": ("auth_create_user",),
    "share_foreign_group_403": ("auth_create_user",),
    "shares": ("auth_create_user", "share"),
    "stats": ("create_user", "create_agent", "send"),
    "stats_in_progress": ("create_user", "create_agent", "send", "receive"),
    "status_active": ("create_agent",),
    "status_terminated": ("create_agent", "terminate", "create_after_terminate"),
    "terminate": ("create_user", "create_agent", "send"),
    "terminate_user": ("create_user",),
    "unshare": ("auth_create_user", "share"),
}
# Where we answer otherwise on purpose: section 13 of the protocol.
BETTER_STATUS = {"malformed_body_500": 400}
GROUP = "aaaaaaaa-0000-4000-8000-000000000001"
CALLERS = {"tok-a": Caller("a", frozenset({GROUP})), "tok-b": Caller("b", frozenset({GROUP})), "tok-c": Caller("c")}


def capture(name: str) -> dict[str, Any]:
    return json.loads((WIRE / f"{name}.json").read_text())


def exchange_like_that_of(name: str) -> Any:
    """Captures with tokens come from an exchange with authentication, the others from one without."""
    wants_tokens = "auth" in name or "share" in name
    config = ServerConfig(limits=Limits(message_bytes=LIMIT_BYTES))
    return rest_exchange(config, callers=CALLERS if wants_tokens else None)


async def play(rest: Rest, name: str) -> Answer:
    request = capture(f"http_{name}")["request"]
    text = request["body_text"]
    if text.endswith("... (shortened)"):
        text = text.removesuffix(" ... (shortened)") + "x" * LIMIT_BYTES + '\\\\\\"]\\",\\"kargs\\":\\"{}\\"}}"}'
    names = ("Authorization", "Content-Type", "academy_version", "Accept")
    headers = {key: value for key, value in request["headers"].items() if key in names}
    return await rest.as_caller(None).call(request["method"], request["path"], text.encode(), headers=headers)


def shape(value: Any) -> Any:
    """JSON with seconds left out, and with messages as JSON: the order of their keys has no meaning."""
    if isinstance(value, dict):
        return {key: json.loads(item) if key == "message" else shape(item) for key, item in value.items()}
    return "seconds" if isinstance(value, float) else value


@pytest.mark.parametrize("name", [name.removeprefix("http_") for name in CAPTURES])
async def test_the_answer_is_that_of_academy(name: str) -> None:
    expected = capture(f"http_{name}")["response"]
    async with exchange_like_that_of(name) as (rest, _):
        for before in AFTER.get(name, ()):
            assert (await play(rest, before)).status == 200
        answer = await play(rest, name)
    assert answer.status == BETTER_STATUS.get(name, expected["status"])
    assert answer.content_type == expected["headers"].get("Content-Type")
    if "body_json" in expected:
        assert shape(answer.json) == shape(expected["body_json"])
    elif name == "send_too_large_413":
        assert answer.text.endswith(f" larger than limit {LIMIT_BYTES}.")
    elif expected["status"] == 400 and "timeout" not in name:
        assert answer.text.startswith("Missing or invalid field: ")  # the rest is free
    elif name not in BETTER_STATUS:
        assert answer.text == expected["body_text"]


def test_every_capture_is_played() -> None:
    index = json.loads((WIRE / "INDEX.json").read_text())
    played = {*CAPTURES, *BODIES, "session_agent_run", *(path.stem for path in WIRE.glob("sse_*.json"))}
    assert set(index) == played


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("way", ["poll", "events"])
async def test_every_body_is_passed_on_as_it_came(name: str, way: str) -> None:
    """Each kind of message comes out as it went in, by either way of listening; the exchange reads no body."""
    text = capture(name)["message_text"]
    sent = json.loads(text)
    async with rest_exchange() as (rest, _):
        dest = sent["header"]["dest"]
        await rest.create(dest)
        assert (await rest.put(text)).status == 200
        if way == "poll":
            assert await rest.received(dest) == sent
        else:
            async with rest.listen(dest) as events:
                await events.read_until(b"}}\r\n\r\n")
            assert events.messages == [sent]


async def test_what_the_exchange_answers_for_a_terminated_mailbox_is_what_academy_answers() -> None:
    expected = capture("message_academy_error_0_mailbox_terminated")["message"]
    user = expected["header"]["dest"]
    async with rest_exchange(ServerConfig()) as (rest, _):
        for name in ("create_user", "create_agent", "send", "terminate"):
            assert (await play(rest, name)).status == 200
        assert await rest.received(user) == expected


async def test_the_events_of_two_messages_and_silence_are_those_of_academy() -> None:
    """Head, events and proper end of a stream are academy-py's, but for our `retry`, which its client obeys."""
    stream = capture("sse_two_messages_then_timeout")["streams"][0]
    expected = stream["response"]
    entity = json.loads(stream["request"]["body_json"]["mailbox"])
    async with rest_exchange() as (rest, _):
        await rest.create(entity)
        async with rest.listen(entity, 0.3) as events:
            for chunk in expected["chunks"]:
                text = chunk["text"].removeprefix("data: ").strip()
                assert (await rest.put(text)).status == 200
            raw = await events.read_to_end()
        texts = raw.decode().split("\r\n\r\n")
        assert [texts[0], texts[-1]] == ["retry: 20", ""]
        assert events.messages == [json.loads(chunk["text"].removeprefix("data: ")) for chunk in expected["chunks"]]
        assert [text[:8] for text in texts[1:-1]] == ['data: {"', 'data: {"']
        for name in ("Content-Type", "Cache-Control", "Connection", "X-Accel-Buffering", "Transfer-Encoding"):
            assert events.response.headers[name] == expected["headers"][name]
        assert "Content-Encoding" not in events.response.headers


async def test_an_idle_stream_is_kept_alive_and_ended_as_by_academy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("academy_hpc.exchange.http.server_rest.PING_S", 0.05)
    first, second = capture("sse_idle_keep_alive_then_terminated")["streams"]
    request = first["request"]
    entity = json.loads(request["body_json"]["mailbox"])
    async with rest_exchange() as (rest, _):
        await rest.create(entity)
        async with rest.request("GET", request["path"], request["body_text"].encode()) as response:
            events = Events(response)
            await events.read_until(b": ping\r\n\r\n: ping\r\n\r\n")
            await rest.on(entity, "DELETE", "/mailbox")
            raw = await events.read_to_end()
        assert set(raw.removeprefix(b"retry: 20\r\n\r\n").split(b"\r\n\r\n")) == {b": ping", b""}
        again = await rest.call("GET", second["request"]["path"], second["request"]["body_text"].encode())
    assert (again.status, again.text) == (second["response"]["status"], second["response"]["body_text"])


async def test_a_whole_session_of_academy_takes_the_same_course() -> None:
    """From the registration of an agent to its end: same answers, same messages in the same order on both streams."""
    steps = capture("session_agent_run")["exchanges"]
    async with rest_exchange(ServerConfig()) as (rest, _), contextlib.AsyncExitStack() as stack:
        streams: list[tuple[Events, list[str]]] = []
        for step in steps:
            if step["stream"] is not None:
                stream = rest.request(step["method"], step["path"], step["body"])
                streams.append((Events(await stack.enter_async_context(stream)), step["stream"]))
                continue
            answer = await rest.call(step["method"], step["path"], step["body"])
            assert answer.status == step["status"]
            if isinstance(step["answer"], str):
                assert answer.text == step["answer"]
            elif "heartbeat" not in step["answer"]:
                assert answer.json == step["answer"]
        for events, expected in streams:
            sent = [json.loads(text.removeprefix("data: ")) for text in expected]
            while len(events.messages) < len(sent):
                await events.read_more()
            assert events.messages == sent
