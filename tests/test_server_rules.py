"""The rules of the Academy protocol, over REST: mailboxes, messages, sizes, counters, discovery, rights."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.registry import Caller, Limits
from tests.rest_client import Rest, agent, eventually, message, rest_exchange, text_of, user

__all__: list[str] = []

LIMIT_BYTES = 4096
BASE = "academy.agent.Agent"
OWNER, FRIEND, STRANGER = "owner-token", "friend-token", "stranger-token"
GROUP, OTHER_GROUP = "a-group", "a-group-of-the-friend"
CALLERS = {
    OWNER: Caller("owner", frozenset({GROUP})),
    FRIEND: Caller("friend", frozenset({GROUP, OTHER_GROUP})),
    STRANGER: Caller("stranger", frozenset({"another-group"})),
}


def small_exchange() -> Any:
    return rest_exchange(ServerConfig(limits=Limits(message_bytes=LIMIT_BYTES)))


def sized(source: Any, dest: Any, size: int, *, kind: str = "request", filler: str = "x") -> dict[str, Any]:
    """A message whose compact text has `size` bytes."""
    content = message(source, dest, {"kind": "action-response", "v": ""}, kind=kind)
    content["body"]["v"] = filler * ((size - len(text_of(content).encode())) // len(text_of(filler)[1:-1].encode()))
    content["body"]["v"] += "y" * (size - len(text_of(content).encode()))
    assert len(text_of(content).encode()) == size
    return content


# Mailboxes


async def test_creating_a_mailbox_again_changes_nothing() -> None:
    async with rest_exchange() as (rest, _):
        worker = agent("first name")
        await rest.create(worker, chain=f"m.One,{BASE}")
        await rest.put(content := message(user(), worker))
        await rest.create(worker | {"name": "second name"}, chain=f"m.Two,{BASE}")
        found = await rest.call("GET", "/discover", {"agent": "m.Two", "allow_subclasses": True})
        assert found.json == {"agent_ids": ""}
        assert await rest.received(worker) == content


async def test_creating_one_mailbox_many_times_at_once_makes_one() -> None:
    async with rest_exchange() as (rest, exchange):
        worker = agent()
        await asyncio.gather(*(rest.create(worker, chain=BASE) for _ in range(20)))
        assert len(exchange.server.service.registry) == 1


async def test_who_a_mailbox_belongs_to_is_told_by_the_uid_alone() -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(worker := agent("name"))
        others = [worker | {"name": "other"}, worker | {"name": None}, {"uid": worker["uid"]}]
        upper = worker | {"uid": worker["uid"].upper()}
        assert [await rest.status(entity) for entity in [*others, upper]] == ["ACTIVE"] * 4
        await rest.put(content := message(user(), others[0]))
        assert await rest.received(worker) == content


async def test_a_terminated_mailbox_stays_terminated_whatever_one_does() -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(worker := agent(), chain=BASE)
        await rest.put(message(user(), worker))
        for _ in range(2):
            assert (await rest.on(worker, "DELETE", "/mailbox")).status == 200
        await rest.create(worker, chain=BASE)
        assert await rest.status(worker) == "TERMINATED"
        assert (await rest.put(message(user(), worker))).status == 419
        for method, path in [
            ("GET", "/message"),
            ("GET", "/mailbox/listen"),
            ("GET", "/mailbox/heartbeat"),
            ("GET", "/mailbox/share"),
        ]:
            answer = await rest.on(worker, method, path)
            assert (answer.status, answer.text) == (419, "Mailbox was closed")
        for method in ("POST", "DELETE"):
            assert (await rest.on(worker, method, "/mailbox/share", group_id=GROUP)).status == 419
        assert (await rest.on(worker, "POST", "/mailbox/heartbeat")).status == 200
        assert await rest.stats(worker) == (0, 0, 0, 0, 0)
        found = await rest.call("GET", "/discover", {"agent": BASE, "allow_subclasses": True})
        assert found.json == {"agent_ids": ""}


async def test_terminating_an_unknown_mailbox_leaves_no_trace() -> None:
    async with rest_exchange() as (rest, _):
        worker = agent()
        assert (await rest.on(worker, "DELETE", "/mailbox")).status == 200
        assert await rest.status(worker) == "MISSING"
        await rest.create(worker)
        assert await rest.status(worker) == "ACTIVE"


async def test_termination_answers_every_pending_request_once_and_drops_the_responses() -> None:
    """Whether delivered or still queued; but not what was answered, and nobody who is gone or unknown."""
    async with rest_exchange() as (rest, _):
        await rest.create(worker := agent(), caller := user(), gone := user())
        requests = [message(caller, worker, label=str(uuid.uuid4())) for _ in range(3)]
        for content in [*requests, message(gone, worker), message(user(), worker), message(caller, worker)]:
            await rest.put(content)
        await rest.put(message(caller, worker, kind="response"))
        await rest.received(worker)
        await rest.put(message(worker, caller, kind="response", tag=requests[1]["header"]["tag"]))
        await rest.received(caller)
        await rest.on(gone, "DELETE", "/mailbox")
        await rest.on(worker, "DELETE", "/mailbox")
        answers = [await rest.received(caller) for _ in range(3)]
        for request, answer in zip([requests[0], requests[2]], answers[:2], strict=True):
            assert answer["header"]["tag"] == request["header"]["tag"]
            assert answer["header"]["label"] == request["header"]["label"]
            assert (answer["header"]["src"], answer["header"]["dest"]) == (worker, caller)
            assert answer["header"]["kind"] == "response"
        body = {"error_code": 0, "mailbox_id": worker, "kind": "academy-error-response"}
        assert [answer["body"] for answer in answers] == [body] * 3
        assert (await rest.get(caller, 0.05)).status == 408


async def test_heartbeats_are_of_mailboxes_that_are_there() -> None:
    async with rest_exchange() as (rest, _):
        worker = agent()
        assert (await rest.on(worker, "POST", "/mailbox/heartbeat")).status == 200
        assert (await rest.on(worker, "GET", "/mailbox/heartbeat")).status == 404
        await rest.create(worker)
        assert (await rest.on(worker, "GET", "/mailbox/heartbeat")).json == {"heartbeat": None}
        await rest.on(worker, "POST", "/mailbox/heartbeat")
        await asyncio.sleep(0.02)
        assert 0.02 <= (await rest.on(worker, "GET", "/mailbox/heartbeat")).json["heartbeat"] < 1


# Messages


@pytest.mark.parametrize("body", [None, 0, "text", [], {}, {"kind": "of another version", "x": [1e-300, True]}])
async def test_the_body_of_a_message_is_opaque(body: Any) -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(dest := user())
        content = message(user(), dest)
        content["body"] = body
        assert (await rest.put(content)).status == 200
        assert await rest.received(dest) == content


async def test_numbers_of_a_body_are_passed_on_as_they_were_written() -> None:
    async with small_exchange() as (rest, _):
        await rest.create(dest := user())
        numbers = "[1.10, 1e400, 123456789012345678901234567890, -0.0]"
        for padding in ("", " " * LIMIT_BYTES):
            text = text_of(message(user(), dest, {"n": 0})).replace('{"n":0}', f'{{"n":{padding}{numbers}}}')
            assert (await rest.put(text)).status == 200
            raw = (await rest.get(dest)).json["message"]
            assert numbers.replace(" ", "") in raw.replace(" ", "")


async def test_a_header_may_leave_out_what_has_a_default() -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(dest := user())
        content = message({"uid": str(uuid.uuid4())}, dest, extra="unknown", protocol_version=None)
        del content["header"]["label"]
        assert (await rest.put(content)).status == 200
        header = (await rest.received(dest))["header"]
        assert (header["label"], header["protocol_version"]) == (None, None)
        content = message(user(), dest)
        for name in ("protocol_version", "academy_version"):
            del content["header"][name]
        await rest.put(content)
        header = (await rest.received(dest))["header"]
        assert (header["protocol_version"], header["academy_version"]) == ("1.1", "0.5.0")


async def test_a_repeated_message_is_delivered_once_and_counted_once() -> None:
    """Any operation can arrive twice, since clients repeat what got no answer."""
    async with rest_exchange() as (rest, _):
        await rest.create(caller := user(), worker := agent())
        request = message(caller, worker)
        response = message(worker, caller, kind="response", tag=request["header"]["tag"])
        for content in (request, request, response, response):
            assert (await rest.put(content)).status == 200
        assert await rest.received(worker) == request
        assert await rest.received(caller) == response
        assert (await rest.put(request)).status == 200
        for entity in (worker, caller):
            assert (await rest.get(entity, 0.05)).status == 408
        assert await rest.stats(worker) == (1, 0, 1, 0, 0)


async def test_a_source_needs_no_mailbox() -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(dest := user())
        await rest.put(content := message(agent(), dest, kind="response"))
        assert await rest.received(dest) == content


@pytest.mark.parametrize("filler", ["x", '"', "é", "😀", "\x01", "\\"])
async def test_the_size_limit_is_of_the_compact_text_in_utf8(filler: str) -> None:
    async with small_exchange() as (rest, _):
        await rest.create(dest := user())
        fits, does_not = sized(user(), dest, LIMIT_BYTES, filler=filler), sized(user(), dest, LIMIT_BYTES + 1)
        assert (await rest.put(fits)).status == 200
        answer = await rest.put(does_not)
        assert answer.status == 413
        assert answer.text == f"Message of size {LIMIT_BYTES + 1} larger than limit {LIMIT_BYTES}."
        assert await rest.received(dest) == fits


async def test_white_space_and_escapes_do_not_count() -> None:
    async with small_exchange() as (rest, _):
        await rest.create(dest := user())
        for filler in ("x", "é", "😀"):
            content = sized(user(), dest, LIMIT_BYTES, filler=filler)
            text = json.dumps(content).replace("{", "{" + " " * 200).replace("}", "\n" * 200 + "}")
            assert (await rest.put(text)).status == 200
            assert await rest.received(dest) == content


async def test_a_body_has_room_for_every_message_within_the_limit() -> None:
    """Text in text may be three times as long as the message that it holds."""
    async with small_exchange() as (rest, _):
        await rest.create(dest := user())
        content = sized(user(), dest, LIMIT_BYTES, filler="é")
        body = json.dumps({"message": text_of(content)}).encode()
        assert len(body) > 2.5 * LIMIT_BYTES
        assert (await rest.call("PUT", "/message", body)).status == 200


async def test_a_refused_message_leaves_no_trace() -> None:
    async with small_exchange() as (rest, exchange):
        await rest.create(dest := agent(), source := user())
        too_large = sized(source, dest, LIMIT_BYTES + 1)
        assert (await rest.put(too_large)).status == 413
        assert await rest.stats(dest) == await rest.stats(source) == (0, 0, 0, 0, 0)
        assert exchange.server.service.registry.stored_bytes == 0
        fits = message(source, dest, tag=too_large["header"]["tag"])
        assert (await rest.put(fits)).status == 200
        assert await rest.received(dest) == fits


async def test_a_response_that_is_too_large_is_told_to_the_requester() -> None:
    """Who asked must not wait for ever: an error that any client reads takes the place of the response."""
    async with small_exchange() as (rest, _):
        await rest.create(caller := user(), worker := agent())
        await rest.put(request := message(caller, worker, label=str(uuid.uuid4())))
        response = sized(worker, caller, LIMIT_BYTES + 1, kind="response")
        response["header"] |= {"tag": request["header"]["tag"], "label": request["header"]["label"]}
        for _ in range(2):
            assert (await rest.put(response)).status == 413
        answer = await rest.received(caller)
        assert {key: answer["header"][key] for key in ("src", "dest", "tag", "label", "kind")} == {
            key: response["header"][key] for key in ("src", "dest", "tag", "label", "kind")
        }
        assert (answer["body"]["kind"], answer["body"]["serialization"]) == ("user-error-response", "json")
        exception = json.loads(answer["body"]["exception"])
        assert exception["__exception__"] is True
        assert f"larger than limit {LIMIT_BYTES}" in exception["exception_str"]
        assert (await rest.get(caller, 0.05)).status == 408
        assert await rest.stats(worker) == (1, 0, 1, 0, 1)


async def test_termination_ends_the_wait_of_a_sender_into_a_full_mailbox() -> None:
    config = ServerConfig(limits=Limits(mailbox_messages=1))
    async with rest_exchange(config) as (rest, exchange):
        await rest.create(dest := agent())
        await rest.put(message(user(), dest))
        sending = asyncio.create_task(rest.put(message(user(), dest)))
        await eventually(lambda: exchange.server.service._waiting)
        await rest.on(dest, "DELETE", "/mailbox")
        assert (await sending).status == 419


# Counters


async def test_the_counters_follow_a_request_from_its_arrival_to_its_answer() -> None:
    async with rest_exchange() as (rest, _):
        await rest.create(caller := agent("caller"), worker := agent())
        requests = [message(caller, worker) for _ in range(3)]
        for content in requests:
            await rest.put(content)
        assert await rest.stats(worker) == (3, 0, 0, 0, 3)
        assert await rest.stats(caller) == (0, 3, 0, 0, 0)
        await rest.received(worker)
        assert await rest.stats(worker) == (3, 0, 0, 1, 2)
        response = message(worker, caller, kind="response", tag=requests[0]["header"]["tag"])
        await rest.put(response)
        assert await rest.stats(worker) == (3, 0, 1, 0, 2)
        assert await rest.stats(caller) == (0, 3, 0, 0, 1)
        # Neither a second response nor one that nobody waits for is counted.
        await rest.put(message(agent(), caller, kind="response", tag=requests[1]["header"]["tag"]))
        await rest.put(message(worker, caller, kind="response"))
        assert await rest.stats(worker) == (3, 0, 1, 0, 2)


async def test_the_counters_of_an_unknown_mailbox_are_zero() -> None:
    async with rest_exchange() as (rest, _):
        assert await rest.stats(user()) == (0, 0, 0, 0, 0)


# Discovery


async def test_discovery_goes_by_whole_names_in_the_order_of_registration() -> None:
    async with rest_exchange() as (rest, _):
        first, second, third, plain = agent("first"), agent("second"), agent("third"), agent("plain")
        await rest.create(first, chain=f"m.Derived,m.Base,{BASE}")
        await rest.create(second, chain=f"m.Base,{BASE}")
        await rest.create(third, chain=f"m.Base2,{BASE}")
        await rest.create(plain)
        await rest.create(user(), chain=f"m.Base,{BASE}")

        async def discover(name: str, subclasses: bool) -> list[str]:
            answer = await rest.call("GET", "/discover", {"agent": name, "allow_subclasses": subclasses})
            return [uid for uid in answer.json["agent_ids"].split(",") if uid]

        uids = [entity["uid"] for entity in (first, second, third)]
        assert await discover("m.Base", True) == uids[:2]
        assert await discover("m.Base", False) == uids[1:2]
        assert await discover(BASE, True) == uids
        for name in (BASE, "m.Bas", "", "Base", "m.Derived,m.Base"):
            assert await discover(name, False) == []
        await rest.on(first, "DELETE", "/mailbox")
        assert await discover(BASE, True) == uids[1:]


# Rights

ROUTES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/mailbox", {}),
    ("GET", "/mailbox", {}),
    ("GET", "/message", {"timeout": 0.01}),
    ("GET", "/mailbox/listen", {"timeout": 0.01}),
    ("POST", "/mailbox/heartbeat", {}),
    ("GET", "/mailbox/heartbeat", {}),
    ("GET", "/mailbox/stats", {}),
    ("DELETE", "/mailbox", {}),
]
SHARE_ROUTES: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/mailbox/share", {"group_id": GROUP}),
    ("GET", "/mailbox/share", {}),
    ("DELETE", "/mailbox/share", {"group_id": GROUP}),
]


async def refused(rest: Rest, entity: Any, routes: list[tuple[str, str, dict[str, Any]]]) -> bool:
    """Whether all routes are refused; otherwise none is."""
    answers = [await rest.on(entity, method, path, **fields) for method, path, fields in routes]
    for answer in answers:
        assert answer.status != 403 or answer.text == "Incorrect permissions"
    statuses = {answer.status for answer in answers}
    assert statuses == {403} or 403 not in statuses, statuses
    return statuses == {403}


async def test_a_stranger_may_do_nothing_with_a_mailbox() -> None:
    async with rest_exchange(callers=CALLERS) as (anyone, _):
        owner, stranger = anyone.as_caller(OWNER), anyone.as_caller(STRANGER)
        await owner.create(worker := agent(), chain=BASE)
        assert await refused(stranger, worker, ROUTES + SHARE_ROUTES)
        assert (await stranger.put(message(user(), worker))).status == 403
        found = await stranger.call("GET", "/discover", {"agent": BASE, "allow_subclasses": True})
        assert found.json == {"agent_ids": ""}
        assert await owner.status(worker) == "ACTIVE"
        assert await owner.stats(worker) == (0, 0, 0, 0, 0)


async def test_a_member_of_a_group_may_do_all_but_share_until_it_is_taken_back() -> None:
    async with rest_exchange(callers=CALLERS) as (anyone, _):
        owner, friend, stranger = (anyone.as_caller(token) for token in CALLERS)
        await owner.create(worker := agent(), chain=BASE)
        assert await refused(friend, worker, ROUTES)
        for _ in range(2):
            assert (await owner.on(worker, "POST", "/mailbox/share", group_id=GROUP)).status == 200
        assert (await owner.on(worker, "GET", "/mailbox/share")).json == {"group_ids": [GROUP]}
        assert await refused(stranger, worker, ROUTES)
        assert await refused(friend, worker, SHARE_ROUTES)
        assert not await refused(friend, worker, ROUTES[:-1])
        assert (await friend.put(message(user(), worker))).status == 200
        found = await friend.call("GET", "/discover", {"agent": BASE, "allow_subclasses": True})
        assert found.json == {"agent_ids": worker["uid"]}
        for _ in range(2):
            assert (await owner.on(worker, "DELETE", "/mailbox/share", group_id=GROUP)).status == 200
        assert await refused(friend, worker, ROUTES)


async def test_a_call_across_users_needs_both_mailboxes_shared() -> None:
    async with rest_exchange(callers=CALLERS) as (anyone, _):
        owner, friend = anyone.as_caller(OWNER), anyone.as_caller(FRIEND)
        await owner.create(worker := agent())
        await friend.create(caller := user())
        await owner.on(worker, "POST", "/mailbox/share", group_id=GROUP)
        request = message(caller, worker)
        assert (await friend.put(request)).status == 200
        response = message(worker, caller, kind="response", tag=request["header"]["tag"])
        assert (await owner.put(response)).status == 403
        await friend.on(caller, "POST", "/mailbox/share", group_id=GROUP)
        assert (await owner.put(response)).status == 200
        assert await friend.received(caller) == response


async def test_termination_answers_requesters_of_other_users_too() -> None:
    async with rest_exchange(callers=CALLERS) as (anyone, _):
        owner, friend = anyone.as_caller(OWNER), anyone.as_caller(FRIEND)
        await owner.create(worker := agent(), own := user())
        await friend.create(caller := user())
        await owner.on(worker, "POST", "/mailbox/share", group_id=GROUP)
        await friend.put(message(caller, worker))
        await owner.put(message(own, worker))
        assert (await owner.on(worker, "DELETE", "/mailbox")).status == 200
        for rest, entity in ((friend, caller), (owner, own)):
            assert (await rest.received(entity))["body"]["error_code"] == 0


@pytest.mark.parametrize(("group", "status"), [("", 400), (OTHER_GROUP, 403), ("nobody's", 403)])
async def test_one_shares_with_a_group_that_one_is_in(group: str, status: int) -> None:
    async with rest_exchange(callers=CALLERS) as (anyone, _):
        owner = anyone.as_caller(OWNER)
        await owner.create(worker := agent())
        assert (await owner.on(worker, "POST", "/mailbox/share", group_id=group)).status == status
        assert (await owner.on(worker, "GET", "/mailbox/share")).json == {"group_ids": []}


async def test_nobody_sends_in_the_name_of_a_mailbox_that_is_not_theirs() -> None:
    async with rest_exchange(callers=CALLERS) as (anyone, _):
        owner, stranger = anyone.as_caller(OWNER), anyone.as_caller(STRANGER)
        await owner.create(worker := agent())
        await stranger.create(own := user())
        assert (await stranger.put(message(worker, own, kind="response"))).status == 403
        assert (await stranger.get(own, 0.05)).status == 408


async def test_headers_from_outside_make_nobody_somebody_else() -> None:
    async with rest_exchange(callers=CALLERS) as (anyone, _):
        owner, stranger = anyone.as_caller(OWNER), anyone.as_caller(STRANGER)
        await owner.create(worker := agent())
        headers = {"client_id": "owner", "client_groups": GROUP, "X-Forwarded-User": "owner"}
        body = {"mailbox": text_of(worker)}
        assert (await stranger.call("GET", "/mailbox", body, headers=headers)).status == 403


async def test_of_a_missing_mailbox_everybody_hears_that_it_is_missing() -> None:
    async with rest_exchange(callers=CALLERS) as (anyone, _):
        for token in CALLERS:
            rest, worker = anyone.as_caller(token), agent()
            assert await rest.status(worker) == "MISSING"
            assert (await rest.get(worker, 0.01)).status == 404
            assert (await rest.put(message(user(), worker))).status == 404


# The order of the checks


async def test_fields_are_checked_before_the_timeout_and_that_before_permission() -> None:
    async with rest_exchange(callers=CALLERS) as (anyone, _):
        owner, stranger = anyone.as_caller(OWNER), anyone.as_caller(STRANGER)
        await owner.create(worker := agent())
        for path in ("/message", "/mailbox/listen"):
            both = await stranger.call("GET", path, {"mailbox": "foo", "timeout": -1})
            assert both.text.startswith("Missing or invalid field: ")
            answer = await stranger.on(worker, "GET", path, timeout=-1)
            assert (answer.status, answer.text[:15]) == (400, "Invalid timeout")
            assert (await stranger.on(agent(), "GET", path, timeout=-1)).status == 400


async def test_permission_is_checked_before_the_size_and_the_mailbox_too() -> None:
    limits = Limits(message_bytes=LIMIT_BYTES)
    async with rest_exchange(ServerConfig(limits=limits), callers=CALLERS) as (anyone, _):
        owner, stranger = anyone.as_caller(OWNER), anyone.as_caller(STRANGER)
        await owner.create(worker := agent(), closed := agent())
        await stranger.create(own := user())
        await owner.on(closed, "DELETE", "/mailbox")
        for kind in ("request", "response"):
            assert (await stranger.put(sized(user(), worker, LIMIT_BYTES + 1, kind=kind))).status == 403
            assert (await owner.put(sized(user(), agent(), LIMIT_BYTES + 1, kind=kind))).status == 404
            assert (await owner.put(sized(user(), closed, LIMIT_BYTES + 1, kind=kind))).status == 419
            assert (await stranger.put(sized(worker, own, LIMIT_BYTES + 1, kind=kind))).status == 403
        assert await owner.stats(worker) == (0, 0, 0, 0, 0)


# Malformed bodies

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
        for method, path, _ in [*ROUTES, *SHARE_ROUTES, ("PUT", "/message", {}), ("GET", "/discover", {})]:
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
