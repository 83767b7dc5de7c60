"""The exchange asks Globus Auth who calls: rarely, never in its event loop, and it says no only when Globus does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from academy_hpc.directory import Caller
from academy_hpc.errors import BadRequestError, ExchangeUnavailableError, ForbiddenError, UnauthorizedError
from academy_hpc.exchange.http import globus_auth
from academy_hpc.exchange.http.globus_auth import GlobusAuthenticator
from academy_hpc.exchange.http.globus_settings import GlobusSettings
from academy_hpc.exchange.http.server import ServerConfig
from tests.exchange_server import TOKEN
from tests.globus_stand_in import DEPENDENT, EXCHANGE, EXCHANGE_SECRET, GlobusStandIn
from tests.rest_client import Rest, agent, message, rest_exchange, user

__all__: list[str] = []

INTROSPECT, MY_GROUPS = "/v2/oauth2/token/introspect", "/v2/groups/my_groups"
SETTINGS = GlobusSettings(EXCHANGE, EXCHANGE_SECRET)
ADA, BEN = "ada00000-0000-4000-8000-000000000000", "be100000-0000-4000-8000-000000000000"


@pytest.fixture
async def who(globus: GlobusStandIn) -> GlobusAuthenticator:
    return GlobusAuthenticator(SETTINGS)


async def caller_of(who: GlobusAuthenticator, token: str) -> Caller:
    return await who.authenticate(f"Bearer {token}")


async def test_a_caller_is_the_identity_of_the_token_with_the_groups_it_is_active_in(
    globus: GlobusStandIn, who: GlobusAuthenticator
) -> None:
    globus.join(ADA, "a", "b")
    globus.join(ADA, "c", status="invited")
    globus.join(BEN, "d")
    caller = await caller_of(who, globus.token(ADA))
    assert (caller.user, caller.groups, caller.entity) == (ADA, frozenset({"a", "b"}), None)


async def test_a_caller_is_told_until_when_it_holds(globus: GlobusStandIn, who: GlobusAuthenticator) -> None:
    """The end of the token if that is near, else when it is to be looked at again."""
    short, long = globus.token(life_s=100), globus.token()
    for token, most in ((short, 101.0), (long, globus_auth.KNOWN_S)):
        expires_s = (await caller_of(who, token)).expires_s
        assert expires_s is not None
        assert most - 5 < expires_s - time.monotonic() <= most


async def test_a_known_token_is_not_asked_for_again_until_then(
    globus: GlobusStandIn, who: GlobusAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(globus_auth, "KNOWN_S", 0.3)
    token = globus.token()
    first = await caller_of(who, token)
    assert await caller_of(who, token) is first
    assert globus.asked[INTROSPECT] == globus.asked[DEPENDENT] == globus.asked[MY_GROUPS] == 1
    await asyncio.sleep(0.35)
    assert (await caller_of(who, token)).user == first.user
    assert globus.asked[INTROSPECT] == 2


async def test_requests_that_come_together_share_one_question(globus: GlobusStandIn, who: GlobusAuthenticator) -> None:
    globus.delay_s = 0.1
    token = globus.token()
    impatient = asyncio.create_task(caller_of(who, token))
    others = [asyncio.create_task(caller_of(who, token)) for _ in range(20)]
    await asyncio.sleep(0.05)
    impatient.cancel()  # whoever asked first may go
    assert len({caller.user for caller in await asyncio.gather(*others)}) == 1
    assert globus.asked[INTROSPECT] == 1


async def test_the_event_loop_goes_on_while_globus_is_slow(globus: GlobusStandIn, who: GlobusAuthenticator) -> None:
    globus.delay_s = 0.3
    asking = asyncio.create_task(caller_of(who, globus.token()))
    longest = 0.0
    while not asking.done():
        before = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - before)
    assert longest < 0.25


async def test_a_revoked_token_is_forgotten_when_it_is_looked_at_again(
    globus: GlobusStandIn, who: GlobusAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(globus_auth, "KNOWN_S", 0.2)
    token = globus.token()
    await caller_of(who, token)
    globus.revoke_all()
    await caller_of(who, token)
    await asyncio.sleep(0.25)
    with pytest.raises(ForbiddenError, match=r"^Token expired or revoked\.$"):
        await caller_of(who, token)


@pytest.mark.parametrize("kind", ["expired", "unknown", "for another service"])
async def test_a_token_that_opens_nothing_here_is_refused_and_not_asked_for_again_at_once(
    globus: GlobusStandIn, who: GlobusAuthenticator, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(globus_auth, "REFUSED_S", 0.3)
    tokens = {
        "expired": lambda: globus.token(life_s=-1),
        "unknown": lambda: "made-up",
        "for another service": lambda: globus.token(server="another-service"),
    }
    token = tokens[kind]()
    for _ in range(3):
        with pytest.raises(ForbiddenError, match=r"^Token expired or revoked\.$"):
            await caller_of(who, token)
    assert (globus.asked[INTROSPECT], globus.asked[MY_GROUPS]) == (1, 0)
    await asyncio.sleep(0.35)
    with pytest.raises(ForbiddenError):
        await caller_of(who, token)
    assert globus.asked[INTROSPECT] == 2


async def test_without_a_token_globus_is_not_asked(globus: GlobusStandIn, who: GlobusAuthenticator) -> None:
    for authorization in (None, "", "Bearer", "Basic eA=="):
        with pytest.raises(UnauthorizedError):
            await who.authenticate(authorization)
    assert not globus.asked


@pytest.mark.parametrize("service", ["auth", "groups"])
async def test_while_globus_is_down_a_new_token_is_not_refused_but_put_off(
    globus: GlobusStandIn, who: GlobusAuthenticator, service: str
) -> None:
    token = globus.token(ADA)
    globus.failing.add(service)
    with pytest.raises(ExchangeUnavailableError, match=r"Globus (Auth|Groups) can't be asked .*503") as raised:
        await caller_of(who, token)
    assert raised.value.status == 503
    assert token not in str(raised.value)
    globus.failing.clear()
    assert (await caller_of(who, token)).user == ADA


async def test_while_globus_is_down_a_known_token_goes_on_until_it_expires(
    globus: GlobusStandIn, who: GlobusAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(globus_auth, "RETRY_S", 0.1)
    monkeypatch.setattr(globus_auth, "KNOWN_S", 0.1)
    globus.join(ADA, "a")
    token = globus.token(ADA, life_s=2)
    await caller_of(who, token)
    globus.failing.add("auth")
    for _ in range(3):
        await asyncio.sleep(0.12)
        assert (await caller_of(who, token)).groups == {"a"}
    await asyncio.sleep(2.7)
    with pytest.raises(ExchangeUnavailableError):
        await caller_of(who, token)


async def test_an_unreachable_globus_is_no_refusal(
    globus: GlobusStandIn, who: GlobusAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOBUS_SDK_SERVICE_URL_AUTH", "http://127.0.0.1:9/")
    with pytest.raises(ExchangeUnavailableError, match="GlobusConnectionError"):
        await caller_of(who, globus.token())


async def test_an_exchange_with_a_wrong_secret_says_that_globus_refuses_and_refuses_nobody(
    globus: GlobusStandIn,
) -> None:
    who = GlobusAuthenticator(GlobusSettings(EXCHANGE, "wrong"))
    with pytest.raises(ExchangeUnavailableError, match="answered 401"):
        await caller_of(who, globus.token())


async def test_who_does_not_let_the_exchange_look_at_groups_has_none(
    globus: GlobusStandIn, who: GlobusAuthenticator
) -> None:
    globus.join(ADA, "a")
    globus.without_consent = True
    assert await caller_of(who, globus.token(ADA)) == Caller(ADA, frozenset(), expires_s=pytest.approx(0, abs=1e9))


async def test_made_up_tokens_fill_no_memory_and_push_out_no_good_one(
    globus: GlobusStandIn, who: GlobusAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(globus_auth, "REFUSED_TOKENS", 10)
    monkeypatch.setattr(globus_auth, "KNOWN_TOKENS", 5)
    good = globus.token()
    for number in range(30):
        await caller_of(who, good)
        with pytest.raises(ForbiddenError):
            await caller_of(who, f"made-up-{number}")
    assert (len(who._refused), len(who._known)) == (10, 1)
    for _ in range(10):
        await caller_of(who, globus.token())
    assert len(who._known) == 5
    assert globus.asked[MY_GROUPS] == 11


async def test_tokens_that_wait_to_be_checked_are_bounded(
    globus: GlobusStandIn, who: GlobusAuthenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(globus_auth, "MAX_CHECKS", 4)
    known = globus.token()
    await caller_of(who, known)
    globus.delay_s = 0.2
    outcomes = await asyncio.gather(*(caller_of(who, f"made-up-{n}") for n in range(20)), return_exceptions=True)
    assert sum(isinstance(outcome, ForbiddenError) for outcome in outcomes) == 4
    assert sum(isinstance(outcome, ExchangeUnavailableError) for outcome in outcomes) == 16
    assert await caller_of(who, known)


async def test_no_token_and_no_secret_is_logged_or_shown(
    globus: GlobusStandIn, who: GlobusAuthenticator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    globus.join(ADA, "a")
    tokens = [globus.token(ADA), globus.token(server="another-service"), "made-up-token"]
    for token in tokens:
        with contextlib.suppress(ForbiddenError):
            await caller_of(who, token)
    globus.failing.add("auth")
    with pytest.raises(ExchangeUnavailableError):
        await caller_of(who, "another-made-up-token")
    config = ServerConfig(token=TOKEN, globus=SETTINGS)
    text = caplog.text + repr(vars(who)) + repr(SETTINGS) + repr(list(SETTINGS.__rich_repr__())) + repr(config)
    assert "introspect" in text
    assert EXCHANGE in text
    for secret in (*globus.tokens, *tokens, "another-made-up-token", EXCHANGE_SECRET, TOKEN):
        assert secret not in text


def test_settings_come_from_the_environment_or_say_what_is_missing() -> None:
    variables = {"ACADEMY_EXCHANGE_CLIENT_ID": "id", "ACADEMY_EXCHANGE_SECRET": "secret"}
    assert GlobusSettings.from_environment(variables) == GlobusSettings("id", "secret")
    for name in variables:
        with pytest.raises(BadRequestError, match=f"{name} is not set"):
            GlobusSettings.from_environment(variables | {name: ""})


def test_an_exchange_without_globus_does_not_load_its_sdk() -> None:
    code = (
        "import asyncio, sys, academy_hpc.exchange.http.server as s, academy_hpc.exchange.http.serve\n"
        "async def main(): s.ExchangeServer(s.ServerConfig(token='x'))\n"
        "asyncio.run(main())\n"
        "sys.exit('globus_sdk' in sys.modules or 'requests' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# The exchange


@contextlib.asynccontextmanager
async def globus_exchange() -> AsyncIterator[Rest]:
    async with rest_exchange(ServerConfig(token=TOKEN, globus=SETTINGS)) as (rest, _):
        yield rest


async def test_a_mailbox_is_its_identitys_until_it_is_shared_with_a_group_of_the_other(globus: GlobusStandIn) -> None:
    group = "a-group-of-both"
    globus.join(ADA, group)
    globus.join(BEN, group)
    async with globus_exchange() as rest:
        ada, ben, stranger = (rest.as_caller(globus.token(identity)) for identity in (ADA, BEN, None))
        await ada.create(worker := agent())
        await ben.create(caller := user())
        assert (await ben.put(message(caller, worker))).status == 403
        assert (await ben.on(worker, "GET", "/mailbox")).status == 403
        assert (await ada.on(worker, "POST", "/mailbox/share", group_id=group)).status == 200
        assert (await ben.put(message(caller, worker))).status == 200
        assert (await stranger.put(message(caller, worker))).status == 403
        # Another token of the same identity is the same caller.
        again = rest.as_caller(globus.token(ADA))
        assert (await again.received(worker))["body"] == {"kind": "ping-request"}


async def test_one_can_share_only_with_a_group_that_one_is_an_active_member_of(globus: GlobusStandIn) -> None:
    globus.join(BEN, "bens")
    globus.join(ADA, "invited", status="invited")
    async with globus_exchange() as rest:
        ada = rest.as_caller(globus.token(ADA))
        await ada.create(worker := agent())
        for group in ("bens", "invited", "nobody's"):
            assert (await ada.on(worker, "POST", "/mailbox/share", group_id=group)).status == 403


async def test_answers_are_those_of_the_protocol(globus: GlobusStandIn) -> None:
    async with globus_exchange() as rest:
        for token in ("made-up", globus.token(life_s=-1), globus.token(server="another-service")):
            answer = await rest.as_caller(token).on(agent(), "GET", "/mailbox")
            assert (answer.status, answer.text) == (403, "Token expired or revoked.")
        globus.failing.add("auth")
        answer = await rest.as_caller(globus.token()).on(agent(), "GET", "/mailbox")
        assert answer.status == 503


async def test_the_owner_of_the_exchange_needs_no_globus(globus: GlobusStandIn) -> None:
    async with globus_exchange() as rest:
        owner: Any = rest.as_caller(TOKEN)
        await owner.create(worker := agent())
        assert await owner.status(worker) == "ACTIVE"
        assert not globus.asked
        assert (await rest.as_caller(globus.token()).on(worker, "GET", "/mailbox")).status == 403


async def keep_sending(rest: Rest, dest: Any) -> None:
    while True:
        await rest.put(message(user(), dest))
        await asyncio.sleep(0.01)


async def test_an_event_stream_is_ended_in_order_when_its_token_is(globus: GlobusStandIn) -> None:
    """The next one, which clients open at once, is asked for its token."""
    async with globus_exchange() as rest:
        sender = rest.as_caller(globus.token(ADA))
        await sender.create(worker := agent())
        for traffic in (False, True):  # whatever comes, or does not
            ada = rest.as_caller(globus.token(ADA, life_s=1))
            async with ada.listen(worker, 30) as events:
                sending = asyncio.create_task(keep_sending(sender, worker if traffic else agent()))
                await events.read_to_end(timeout_s=5)
                sending.cancel()
                assert bool(events.messages) == traffic
        assert (await ada.on(worker, "GET", "/mailbox")).status == 403
