"""Programs that log in by Globus Auth at an exchange that checks them there: both sides and all that lies between."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from academy_hpc import Agent, GlobusSettings, Handle, HttpExchangeFactory, Runtime, action, spawn_http_exchange
from academy_hpc.errors import (
    BadRequestError,
    ConnectionInfoError,
    ExchangeUnavailableError,
    ForbiddenError,
    LoginRequiredError,
    UnauthorizedError,
)
from academy_hpc.exchange.http import globus_auth
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.dial import NoStreamError
from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.exchange.http.stream import Stream
from tests.exchange_server import TOKEN, RunningExchange, running_exchange
from tests.globus_stand_in import EXCHANGE, EXCHANGE_SECRET, GlobusStandIn

__all__: list[str] = []

SETTINGS = GlobusSettings(EXCHANGE, EXCHANGE_SECRET)
INTROSPECT = "/v2/oauth2/token/introspect"
GROUP = str(uuid.uuid4())

FactoryMaker = Callable[..., HttpExchangeFactory]


class Worker(Agent):
    @action
    async def double(self, number: int) -> int:
        await asyncio.sleep(0.01)
        return 2 * number


@pytest.fixture
async def exchange(globus: GlobusStandIn) -> AsyncIterator[RunningExchange]:
    async with running_exchange(ServerConfig(token=TOKEN, globus=SETTINGS)) as running:
        yield running


@pytest.fixture
def new_account(globus: GlobusStandIn, exchange: RunningExchange, monkeypatch: pytest.MonkeyPatch) -> FactoryMaker:
    """Makes the factory of a new service account, which is in the groups that are given."""

    def make(*groups: str) -> HttpExchangeFactory:
        for name, value in globus.new_client(*groups).items():
            monkeypatch.setenv(name, value)
        return HttpExchangeFactory(f"http://127.0.0.1:{exchange.port}", auth_method="globus", reconnect_s=20)

    return make


@contextlib.asynccontextmanager
async def running_agent(factory: HttpExchangeFactory, registration: Any) -> AsyncIterator[None]:
    runtime = Runtime(Worker(), exchange_factory=factory, registration=registration)
    task = asyncio.create_task(runtime.run_until_complete())
    try:
        yield
    finally:
        runtime.signal_shutdown()
        await task


async def calls_for(handle: Handle[Worker], seconds: float) -> int:
    """Four calls at a time; how many, all of them answered right."""
    until, done = asyncio.get_running_loop().time() + seconds, 0
    while asyncio.get_running_loop().time() < until:
        numbers = range(done, done + 4)
        assert await asyncio.gather(*(handle.double(number) for number in numbers)) == [2 * n for n in numbers]
        done += 4
    return done


@pytest.mark.parametrize("agent_tokens", [True, False])
async def test_a_run_lasts_longer_than_its_tokens(
    globus: GlobusStandIn, monkeypatch: pytest.MonkeyPatch, agent_tokens: bool
) -> None:
    """Streams are ended when their token is, and come again with another; no call fails, is lost or is doubled.

    Whether agents have tokens of the exchange, or act with the Globus token of their user.
    """
    globus.life_s = 2
    config = ServerConfig(token=TOKEN if agent_tokens else None, globus=SETTINGS)
    for name, value in globus.new_client().items():
        monkeypatch.setenv(name, value)
    async with running_exchange(config) as exchange:
        factory = HttpExchangeFactory(f"http://127.0.0.1:{exchange.port}", auth_method="globus")
        async with await factory.create_user_client() as client:
            registration: Any = await client.register_agent(Worker)
            assert (registration.token is not None) == agent_tokens
            async with running_agent(factory, registration):
                handle = Handle[Worker](registration.agent_id)
                assert await calls_for(handle, 7) > 50
                stats = await client.agent_stats(registration.agent_id)
                assert stats.in_progress == stats.queued == 0
    assert globus.asked["client_credentials"] >= 4


async def test_a_mailbox_is_its_owners_until_shared_with_a_group_that_both_are_in(new_account: FactoryMaker) -> None:
    owner, friend, stranger = new_account(GROUP), new_account(GROUP), new_account()
    async with await owner.create_user_client() as client, await owner.console() as console:
        registration: Any = await client.register_agent(Worker)
        agent_id = registration.agent_id
        async with running_agent(owner, registration), await friend.create_user_client() as other:
            handle = Handle[Worker](agent_id)
            with pytest.raises(ForbiddenError):
                await handle.double(1)
            assert await other.discover(Worker) == ()
            await console.share_mailbox(agent_id, GROUP)
            assert await console.get_shared_groups(agent_id) == [uuid.UUID(GROUP)]
            async with await friend.console() as friends:
                with pytest.raises(ForbiddenError):
                    await friends.share_mailbox(agent_id, GROUP)
                await friends.share_mailbox(other.client_id, GROUP)  # for the answer
            assert await handle.double(2) == 4
            assert await other.discover(Worker) == (agent_id,)
            async with await stranger.create_user_client() as third:
                with pytest.raises(ForbiddenError):
                    await third.status(agent_id)
            await console.remove_shared_group(agent_id, GROUP)
            with pytest.raises(ForbiddenError):
                await handle.double(3)


async def test_groups_that_change_are_seen_on_open_streams(
    globus: GlobusStandIn, new_account: FactoryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(globus_auth, "KNOWN_S", 0.3)
    factory = new_account()
    async with await factory.create_user_client() as client, await factory.console() as console:
        with pytest.raises(ForbiddenError):
            await console.share_mailbox(client.client_id, GROUP)
        globus.join(os.environ["ACADEMY_GLOBUS_CLIENT_ID"], GROUP)
        await asyncio.sleep(1.5)
        await console.share_mailbox(client.client_id, GROUP)


@pytest.mark.parametrize("rest", [False, True])
async def test_a_token_that_is_revoked_is_replaced_once(
    globus: GlobusStandIn, new_account: FactoryMaker, monkeypatch: pytest.MonkeyPatch, rest: bool
) -> None:
    """A client whose token still looks good, as after a revocation or with a wrong clock, shows another."""
    monkeypatch.setattr(globus_auth, "KNOWN_S", 0.3)
    if rest:
        monkeypatch.setattr(Stream, "acquire", no_stream)
    factory = new_account()
    async with await factory.create_user_client() as client:
        registration: Any = await client.register_agent(Worker)
        async with running_agent(factory, registration):
            handle = Handle[Worker](registration.agent_id)
            assert await handle.double(1) == 2
            globus.revoke_all()
            await asyncio.sleep(1.5)
            assert await handle.double(2) == 4
            assert globus.asked["client_credentials"] == 2


async def test_a_client_that_only_asks_gets_another_token_too(
    globus: GlobusStandIn, new_account: FactoryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(globus_auth, "KNOWN_S", 0.1)
    monkeypatch.setattr(Stream, "acquire", no_stream)
    async with await new_account().create_user_client(start_listener=False) as client:
        globus.revoke_all()
        await asyncio.sleep(0.2)
        await client.status(client.client_id)
    assert globus.asked["client_credentials"] == 2


async def test_a_client_whose_every_token_is_refused_gives_up(globus: GlobusStandIn, new_account: FactoryMaker) -> None:
    globus.life_s = -1
    factory = new_account()
    for channel in (Stream.acquire, no_stream):
        with pytest.MonkeyPatch.context() as changed:
            changed.setattr(Stream, "acquire", channel)
            with pytest.raises((UnauthorizedError, ForbiddenError)):
                await factory.create_user_client()
    assert globus.asked["client_credentials"] < 6


async def no_stream(info: ConnectionInfo, *_: Any, **options: Any) -> Any:
    raise NoStreamError(info.urls[0])


async def test_a_client_waits_while_globus_is_down_and_goes_on(
    globus: GlobusStandIn, new_account: FactoryMaker
) -> None:
    globus.life_s = 1
    factory = new_account()
    async with await factory.create_user_client() as client:
        globus.failing.add("auth")
        await asyncio.sleep(2.5)  # the token and the stream have ended meanwhile
        asking = asyncio.create_task(client.status(client.client_id))
        await asyncio.sleep(0.5)
        assert not asking.done()
        globus.failing.clear()
        async with asyncio.timeout(15):
            await asking


async def test_who_can_get_no_token_is_told_at_once(
    globus: GlobusStandIn, new_account: FactoryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = new_account()
    globus.failing.add("auth")
    with pytest.raises(ExchangeUnavailableError, match="Globus Auth can't be asked"):
        await factory.create_user_client()
    globus.failing.clear()
    globus.clients.pop(os.environ["ACADEMY_GLOBUS_CLIENT_ID"])
    with pytest.raises(LoginRequiredError, match="Check ACADEMY_GLOBUS_CLIENT_ID"):
        await factory.create_user_client()


async def test_an_exchange_that_is_another_service_at_globus_is_not_entered(
    new_account: FactoryMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACADEMY_EXCHANGE_CLIENT_ID", str(uuid.uuid4()))
    factory = new_account()
    with pytest.raises(UnauthorizedError):
        await factory.create_user_client()


async def test_the_factory_crosses_to_other_processes_without_a_secret(
    globus: GlobusStandIn, new_account: FactoryMaker
) -> None:
    factory = new_account()
    async with await factory.create_user_client():
        tokens = list(globus.tokens)
        data = pickle.dumps(factory)
        text = factory.connection_info.to_json()
    for secret in (*globus.clients.values(), *tokens):
        assert secret.encode() not in data
        assert secret not in text + repr(factory) + repr(factory.connection_info)
    for copy in (pickle.loads(data), HttpExchangeFactory.from_connection_info(ConnectionInfo.from_json(text))):  # noqa: S301 - of this test
        async with await copy.create_user_client() as client:
            await client.status(client.client_id)


def test_a_globus_token_goes_to_nobody_in_the_clear() -> None:
    with pytest.raises(ConnectionInfoError, match="https://"):
        HttpExchangeFactory("http://exchange.example.org:5463", auth_method="globus")
    HttpExchangeFactory("https://exchange.example.org:5463", auth_method="globus")
    HttpExchangeFactory("http://exchange.example.org:5463")
    with pytest.raises(BadRequestError, match="auth_method='kerberos'"):
        HttpExchangeFactory("https://exchange.example.org", auth_method="kerberos")  # type: ignore[arg-type]


@pytest.mark.parametrize("tls", [True, False])
def test_a_spawned_exchange_lets_in_its_owner_and_who_has_a_token_of_globus(
    globus: GlobusStandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tls: bool
) -> None:
    """The others know its certificate, where it has one, from the connection info that its owner gave them."""
    for name, value in globus.new_client().items():
        monkeypatch.setenv(name, value)
    log = tmp_path / "logs" / "log"
    log.parent.mkdir()
    with spawn_http_exchange("127.0.0.1", 0, tls=tls, globus=SETTINGS, level="DEBUG", log_path=log) as owners:
        text = owners.connection_info.for_globus().to_json()
        others = HttpExchangeFactory.from_connection_info(ConnectionInfo.from_json(text))
        asyncio.run(_cannot_use_each_others(owners, others))
        secret = owners.connection_info.headers["Authorization"].removeprefix("Bearer ")
        shown = text + repr(owners) + Path(f"/proc/{_child(owners)}/cmdline").read_text()
    assert globus.asked[INTROSPECT] == 1
    shown += log.read_text()
    assert "introspect" in shown
    for hidden in (secret, EXCHANGE_SECRET, *globus.tokens, *globus.clients.values()):
        assert hidden not in shown


def test_an_exchange_with_globus_speaks_tls_on_loopback_too() -> None:
    """For no server has to prove anything else before it is shown a token of Globus."""
    with spawn_http_exchange("127.0.0.1", 0, globus=SETTINGS) as owners:
        others = owners.connection_info.for_globus()
    assert others.fingerprint is not None
    assert [url.partition(":")[0] for url in others.urls] == ["https"]


def _child(factory: HttpExchangeFactory) -> int:
    async def ask() -> int:
        pinned = True if info.fingerprint is None else aiohttp.Fingerprint(bytes.fromhex(info.fingerprint))
        connector = aiohttp.TCPConnector(ssl=pinned)
        async with aiohttp.ClientSession(headers=info.headers, connector=connector) as session:
            async with session.get(f"{info.urls[0]}/whoami") as answer:
                return int((await answer.json())["pid"])

    info = factory.connection_info
    return asyncio.run(ask())


async def _cannot_use_each_others(owners: HttpExchangeFactory, others: HttpExchangeFactory) -> None:
    async with await owners.create_user_client() as one, await others.create_user_client() as other:
        for client, own, foreign in ((one, one.client_id, other.client_id), (other, other.client_id, one.client_id)):
            await client.status(own)
            with pytest.raises(ForbiddenError):
                await client.status(foreign)
