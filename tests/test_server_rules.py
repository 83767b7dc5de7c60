"""The rules of the Academy protocol, over REST: mailboxes, messages, sizes, counters, discovery, rights."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import pytest

from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.registry import Limits
from tests.exchange_server import TOKEN
from tests.rest_client import agent, eventually, message, rest_exchange, sized, text_of, user

__all__: list[str] = []

LIMIT_BYTES = 4096
BASE = "academy.agent.Agent"


def small_exchange() -> Any:
    return rest_exchange(ServerConfig(limits=Limits(message_bytes=LIMIT_BYTES)))


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
            assert (await rest.on(worker, method, "/mailbox/share", group_id="a-group")).status == 419
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
    limit = 500_000
    async with rest_exchange(ServerConfig(token=TOKEN, limits=Limits(message_bytes=limit))) as (rest, _):
        await rest.create(dest := user())
        content = sized(user(), dest, limit, filler="é")
        body = json.dumps({"message": text_of(content)}).encode()
        assert len(body) > 2.9 * limit
        assert (await rest.call("PUT", "/message", body)).status == 200
        assert await rest.received(dest) == content


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
        first, second, again, third, plain = (agent(name) for name in ("first", "second", "again", "third", "plain"))
        await rest.create(first, chain=f"m.Derived,m.Base,{BASE}")
        await rest.create(second, chain=f"m.Base,{BASE}")
        await rest.create(again, chain=f"m.Derived,m.Base,{BASE}")
        await rest.create(third, chain=f"m.Base2,{BASE}")
        await rest.create(plain)
        await rest.create(user(), chain=f"m.Base,{BASE}")

        async def discover(name: str, subclasses: bool) -> list[str]:
            answer = await rest.call("GET", "/discover", {"agent": name, "allow_subclasses": subclasses})
            return [uid for uid in answer.json["agent_ids"].split(",") if uid]

        uids = [entity["uid"] for entity in (first, second, again, third)]
        assert await discover("m.Base", True) == uids[:3]
        assert await discover("m.Base", False) == uids[1:2]
        assert await discover(BASE, True) == uids
        for name in (BASE, "m.Bas", "", "Base", "m.Derived,m.Base"):
            assert await discover(name, False) == []
        await rest.on(first, "DELETE", "/mailbox")
        assert await discover(BASE, True) == uids[1:]
