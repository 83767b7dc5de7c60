"""Who takes the port of an exchange, before it starts or after it died, gets no token, and is told from it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import msgspec
import pytest

from academy_hpc import Agent, AgentId, ConnectionInfo, HttpExchangeFactory, UserId
from academy_hpc.errors import AcademyError, ExchangeChangedError, ExchangeUnreachableError, UnauthorizedError
from academy_hpc.exchange.http import dial
from academy_hpc.exchange.http.certificate import make_certificate, server_context
from academy_hpc.exchange.http.challenge import UNPROVED, answer_challenge
from academy_hpc.exchange.http.client import HttpAgentRegistration
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.exchange.http.probe import ask_first, ask_who
from academy_hpc.exchange.http.rest import RestChannel
from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.exchange.http.spawn import spawn_http_exchange
from academy_hpc.exchange.http.tokens import agent_token
from tests.exchange_server import TOKEN, running_exchange
from tests.security.squatter import ANSWERS, Answer, Squatter, relaying_to, saying, squatting

__all__: list[str] = []

OWN, OTHER = make_certificate(), make_certificate()
OPTIONS = ClientOptions(reconnect_s=0.5)
ANOTHER_CERTIFICATE = "its certificate is not the one of this exchange"


@pytest.fixture
def spawned() -> Iterator[HttpExchangeFactory]:
    """A real exchange on loopback, without TLS."""
    with spawn_http_exchange("127.0.0.1", 0) as factory:
        yield factory


def info_for(squatter: Squatter, *, tls: bool = False) -> ConnectionInfo:
    """What leads clients there."""
    url = squatter.url.replace("http:", "https:") if tls else squatter.url
    fingerprint = OWN.fingerprint if tls else None
    return ConnectionInfo((url,), {"Authorization": f"Bearer {TOKEN}", "X-Key": TOKEN[::-1]}, fingerprint, proof=True)


async def failure_at(info: ConnectionInfo) -> str:
    """What a client says of the one URL."""
    with pytest.raises(ExchangeUnreachableError) as caught:
        await HttpExchangeFactory.from_connection_info(info, options=OPTIONS).create_user_client()
    (text,) = caught.value.attempts.values()
    assert len(text.splitlines()) == 1
    return text


def secrets_seen(squatter: Squatter, *others: str) -> list[str]:
    """Which secrets have come, of a squatter that clients have met."""
    assert squatter.received != []
    return [secret for secret in (TOKEN, TOKEN[::-1], *others) if secret.encode() in squatter.everything]


# Plain http


@pytest.mark.parametrize("reply", ANSWERS.values(), ids=ANSWERS)
async def test_a_stranger_gets_a_question_and_no_secret(reply: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "DIAL_S", 0.5)
    async with squatting(saying(reply)) as squatter:
        text = await failure_at(info_for(squatter))
        assert secrets_seen(squatter) == []
        assert squatter.everything.startswith(b"GET /whoami HTTP/1.1")
        assert b"Academy-Challenge: owner " in squatter.everything
    if reply and b"SSH" not in reply and b" 101 " not in reply:
        assert text == UNPROVED


async def test_the_real_exchange_at_another_port_is_of_no_help_to_him() -> None:
    async with running_exchange() as exchange, squatting(relaying_to(exchange.port)) as squatter:
        assert await failure_at(info_for(squatter)) == UNPROVED
        assert secrets_seen(squatter) == []
        assert exchange.port != squatter.port


async def test_an_agent_does_not_show_its_token_to_him() -> None:
    agent_id = AgentId[Agent].new()
    token = agent_token(TOKEN, agent_id.uid)
    registration = HttpAgentRegistration(agent_id, token=token)
    async with running_exchange() as exchange, squatting(relaying_to(exchange.port)) as squatter:
        factory = HttpExchangeFactory.from_connection_info(info_for(squatter), options=OPTIONS)
        with pytest.raises(ExchangeUnreachableError, match="another program answers"):
            await factory.create_transport(agent_id, registration=registration)
        assert secrets_seen(squatter, token) == []
        assert f"Academy-Challenge: {agent_id.uid.hex} ".encode() in squatter.everything


def proving(port: list[int], *, then: bytes) -> Answer:
    """The exchange on the first connection, for one answer; a stranger on all others."""

    async def answer(number: int, head: bytes) -> bytes | None:
        lines = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
        challenge = lines.get("Academy-Challenge")
        if number or challenge is None:
            return None
        proof = answer_challenge(challenge, secret=TOKEN, port=port[0])
        return b"HTTP/1.1 401 No\r\nAcademy-Proof: %s\r\n%s\r\n" % (str(proof).encode(), then)

    return answer


@pytest.mark.parametrize("then", [b"Content-Length: 0\r\nConnection: close\r\n", b"Content-Length: 0\r\n"])
async def test_who_takes_the_port_between_the_proof_and_the_token_gets_no_token(then: bytes) -> None:
    """The token goes over the connection whose other end has proved itself, or nowhere."""
    port = [0]
    async with squatting(proving(port, then=then)) as squatter:
        port[0] = squatter.port
        text = await failure_at(info_for(squatter))
        assert text != UNPROVED
        assert [connection for connection in squatter.received[1:] if TOKEN.encode() in connection] == []


async def test_an_exchange_that_proves_itself_is_used_by_owner_and_agents(spawned: HttpExchangeFactory) -> None:
    assert spawned.connection_info.proof
    async with await spawned.create_user_client() as user:
        registration = await user.register_agent(Agent)
        keyless = HttpExchangeFactory.from_connection_info(spawned.connection_info.without_token())
        transport = await keyless.create_transport(registration.agent_id, registration=registration)
        await transport.update_heartbeat()
        await transport.close()


async def test_who_has_no_token_is_told_that_and_not_that_a_stranger_answers(spawned: HttpExchangeFactory) -> None:
    with pytest.raises(UnauthorizedError):
        await HttpExchangeFactory.from_connection_info(spawned.connection_info.without_token()).create_user_client()


@pytest.mark.faults
async def test_after_the_death_of_an_exchange_its_port_is_worth_nothing(spawned: HttpExchangeFactory) -> None:
    """What an exchange in memory held is gone, so a client that was connected does not wait for it to come back."""
    info = spawned.connection_info
    url, token = info.urls[0], info.headers["Authorization"].removeprefix("Bearer ")
    port = urlsplit(url).port or 0
    client = await HttpExchangeFactory.from_connection_info(info, options=OPTIONS).create_user_client()
    async with aiohttp.ClientSession(headers=info.headers) as session, session.get(f"{url}/whoami") as answer:
        os.kill((await answer.json())["pid"], signal.SIGKILL)
    await _refused(port)
    async with squatting(saying(ANSWERS["401"]), port=port) as squatter:
        error = await asyncio.wait_for(client.wait_ended(), 10)
        assert isinstance(error, ExchangeChangedError)
        assert await failure_at(info) == UNPROVED
        assert secrets_seen(squatter, token) == []
    with contextlib.suppress(AcademyError):
        await client.close()


async def _refused(port: int) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                return
            writer.close()
            await asyncio.sleep(0.02)


@pytest.mark.faults
async def test_a_squatter_between_two_runs_of_a_durable_exchange_does_no_more_than_delay(tmp_path: Path) -> None:
    config = ServerConfig(token=TOKEN, state_dir=str(tmp_path))
    async with running_exchange(config) as exchange:
        port = exchange.port
        info = msgspec.structs.replace(exchange.factory.connection_info, proof=True)
        factory = HttpExchangeFactory.from_connection_info(info, options=ClientOptions(reconnect_s=20))
        client = await factory.create_user_client()
    async with squatting(saying(ANSWERS["404"]), port=port) as squatter:
        call = asyncio.create_task(client.discover("no.such.Class"))
        async with asyncio.timeout(10):
            while len(squatter.received) < 2:  # noqa: ASYNC110 - he can't tell
                await asyncio.sleep(0.02)
        assert secrets_seen(squatter) == []
    async with running_exchange(config, port=port):
        assert await asyncio.wait_for(call, 15) == ()
        await client.close()


# The program that has started an exchange


async def ask(squatter: Squatter, *, tls: bool = False) -> object:
    fingerprint = OWN.fingerprint if tls else None
    return await asyncio.to_thread(
        ask_who, "127.0.0.1", squatter.port, token=TOKEN, fingerprint=fingerprint, timeout_s=5
    )


@pytest.mark.parametrize("reply", ["hanging up", "401", "a wrong proof", "an empty proof", "200", "another protocol"])
async def test_a_program_shows_its_token_to_its_own_exchange_alone(reply: str) -> None:
    async with squatting(saying(ANSWERS[reply])) as squatter:
        with pytest.raises((OSError, http.client.HTTPException)):
            await ask(squatter)
        assert secrets_seen(squatter) == []
    async with squatting(saying(ANSWERS[reply]), tls=server_context(OTHER)) as squatter:
        with pytest.raises(ConnectionRefusedError, match="another one"):
            await ask(squatter, tls=True)
        assert squatter.everything == b""


@pytest.mark.parametrize("then", [b"Content-Length: 0\r\nConnection: close\r\n", b"Content-Length: 0\r\n"])
async def test_a_program_shows_its_token_on_the_connection_that_was_proved_alone(then: bytes) -> None:
    port = [0]
    async with squatting(proving(port, then=then)) as squatter:
        port[0] = squatter.port
        with pytest.raises((OSError, http.client.HTTPException)):
            await ask(squatter)
        assert len(squatter.received) == 1


async def test_who_answers_without_end_is_not_listened_to_without_end() -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            writer.write(b"HTTP/1.1 401 Unauthorized\r\nX: ")
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.05)

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        info = ConnectionInfo((url,), {"Authorization": f"Bearer {TOKEN}"}, proof=True)
        asking = asyncio.to_thread(ask_first, info, timeout_s=0.2)
        with pytest.raises(ExchangeUnreachableError, match="no whole answer"):
            await asyncio.wait_for(asking, 5)


async def test_proxy_variables_do_not_lead_what_is_for_loopback_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would be shown the token in the clear, and has a loopback of its own."""
    async with squatting(saying(ANSWERS["200"])) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        factory = HttpExchangeFactory("http://127.0.0.1:1", additional_headers=headers, reconnect_s=0.1, trust_env=True)
        with pytest.raises(ExchangeUnreachableError):
            await factory.create_user_client()
        assert proxy.received == []


# TLS


@pytest.mark.parametrize("reply", [ANSWERS["401"], ANSWERS["404"], ANSWERS["101"]])
async def test_who_has_another_certificate_is_sent_nothing_at_all(reply: bytes) -> None:
    async with squatting(saying(reply), tls=server_context(OTHER)) as squatter:
        text = await failure_at(info_for(squatter, tls=True))
        assert text == f"another server answers there: {ANOTHER_CERTIFICATE}"
        assert squatter.everything == b""


async def test_who_speaks_no_tls_is_sent_no_secret() -> None:
    async with squatting(saying(ANSWERS["200"])) as squatter:
        assert "SSL" in (await failure_at(info_for(squatter, tls=True))).upper()
        assert secrets_seen(squatter) == []


async def test_the_way_by_rest_sends_nothing_either() -> None:
    """For exchanges without a stream; the certificate is checked all the same, for events, too."""
    async with squatting(saying(ANSWERS["200"]), tls=server_context(OTHER)) as squatter:
        info = info_for(squatter, tls=True)
        channel = RestChannel(info, OPTIONS, UserId.new(), url=info.urls[0])
        with pytest.raises(ExchangeUnreachableError, match=ANOTHER_CERTIFICATE):
            await channel.call("discover", "no.such.Class", True)
        with pytest.raises(AcademyError, match=ANOTHER_CERTIFICATE):
            await channel._read_stream(lambda message: None)
        await channel.close()
        assert squatter.everything == b""


async def test_the_way_by_rest_works_with_the_right_certificate() -> None:
    async with running_exchange(ServerConfig(token=TOKEN, certificate=OWN)) as exchange:
        info = exchange.factory.connection_info
        channel = RestChannel(info, OPTIONS, UserId.new(), url=info.urls[0])
        assert await channel.call("discover", "no.such.Class", True) == []
        await channel.close()


async def test_turning_verification_off_does_not_turn_the_pin_off() -> None:
    async with squatting(saying(ANSWERS["200"]), tls=server_context(OTHER)) as squatter:
        options = ClientOptions(ssl_verify=False, reconnect_s=0.5)
        factory = HttpExchangeFactory.from_connection_info(info_for(squatter, tls=True), options=options)
        with pytest.raises(ExchangeUnreachableError, match=ANOTHER_CERTIFICATE):
            await factory.create_user_client()
        assert squatter.everything == b""


async def test_the_right_one_is_found_among_strangers() -> None:
    async with (
        running_exchange(ServerConfig(token=TOKEN, certificate=OWN)) as exchange,
        squatting(saying(ANSWERS["200"]), tls=server_context(OTHER)) as squatter,
        squatting(saying(ANSWERS["nothing"])) as mute,
    ):
        factory = exchange.factory_at(squatter.port, mute.port, exchange.port)
        async with await factory.create_user_client() as client:
            assert await client.discover("no.such.Class") == ()
        assert TOKEN.encode() not in squatter.everything + mute.everything
