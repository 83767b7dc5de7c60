"""What is no request of the protocol is refused with 400 on every route, and never with 500."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.rest_client import MAILBOX_ROUTES, SHARE_ROUTES, agent, message, rest_exchange, text_of, user

__all__: list[str] = []

GOOD = text_of(agent())
MALFORMED: list[Any] = [
    b"",
    b"{oops",
    b"[]",
    b"null",
    b'"text"',
    b"7",
    b"\xff\xfe{}",
    b'{"mailbox": "\\ud800"}',
    b'{"mailbox":' + b"[" * 100_000,
    b'{"x":' + b"[" * 100_000,
    {"mailbox": json.loads(GOOD)},
    {"mailbox": None},
    {"mailbox": 1},
    {"mailbox": "null"},
    {"mailbox": "[]"},
    {"mailbox": "{}"},
    {"mailbox": text_of({"uid": "no uuid"})},
    {"mailbox": text_of(agent() | {"role": "admin"})},
    {"mailbox": text_of(agent() | {"unknown": 1})},
    {"mailbox": text_of(agent() | {"name": 1})},
    {"mailbox": "[" * 100_000},
]


@pytest.mark.parametrize("number", range(len(MALFORMED)))
async def test_a_malformed_body_is_refused_on_every_route(number: int) -> None:
    async with rest_exchange() as (rest, _):
        for method, path, _ in [*MAILBOX_ROUTES, *SHARE_ROUTES, ("PUT", "/message", {}), ("GET", "/discover", {})]:
            answer = await rest.call(method, path, MALFORMED[number])
            assert answer.status == 400, (method, path)
            assert answer.text.startswith("Missing or invalid field: ")
            assert answer.content_type == "text/plain; charset=utf-8"


@pytest.mark.parametrize(
    ("method", "path", "fields"),
    [
        ("POST", "/mailbox", {"agent": ["a.B"]}),
        ("POST", "/mailbox", {"agent": 1}),
        ("GET", "/message", {"timeout": "1"}),
        ("GET", "/message", {"timeout": True}),
        ("GET", "/mailbox/listen", {"timeout": []}),
        ("POST", "/mailbox/share", {}),
        ("POST", "/mailbox/share", {"group_id": None}),
        ("DELETE", "/mailbox/share", {"group_id": 1}),
        ("GET", "/discover", {"agent": "a.B"}),
        ("GET", "/discover", {"agent": "a.B", "allow_subclasses": "true"}),
        ("GET", "/discover", {"agent": None, "allow_subclasses": True}),
    ],
)
async def test_a_field_of_a_wrong_type_is_refused(method: str, path: str, fields: dict[str, Any]) -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(worker := agent())
        answer = await rest.on(worker, method, path, **fields)
        assert (answer.status, answer.text[:26]) == (400, "Missing or invalid field: ")


@pytest.mark.parametrize("part", ["header", "body", "src", "dest", "tag", "kind"])
async def test_a_message_must_be_whole(part: str) -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(dest := agent())
        content = message(user(), dest)
        del (content if part in content else content["header"])[part]
        answer = await rest.put(content)
        assert (answer.status, answer.text[:26]) == (400, "Missing or invalid field: ")
        if part != "body":
            wrong = message(user(), dest)
            (wrong if part == "header" else wrong["header"])[part] = "wrong"
            assert (await rest.put(wrong)).status == 400


async def test_unknown_fields_and_any_content_type_are_accepted() -> None:
    async with rest_exchange() as (rest, _):
        body = {"mailbox": text_of(agent()), "of_a_later_version": {}}
        for content_type in ("text/html", "application/x-www-form-urlencoded", ""):
            answer = await rest.call("POST", "/mailbox", body, headers={"Content-Type": content_type})
            assert answer.status == 200
