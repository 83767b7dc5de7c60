"""Who may do what with a mailbox, over REST, and in which order the exchange checks."""

from __future__ import annotations

from typing import Any

import pytest

from academy_hpc.directory import Caller
from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.registry import Limits
from tests.rest_client import (
    MAILBOX_ROUTES as ROUTES,
    SHARE_ROUTES,
    Rest,
    agent,
    message,
    rest_exchange,
    sized,
    text_of,
    user,
)

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
