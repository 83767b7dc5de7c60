"""The proof that a server at an http:// URL gives before it is shown a token."""

from __future__ import annotations

import secrets
import uuid

import aiohttp
import pytest

from academy_hpc.exchange.http.challenge import CHALLENGE_HEADER, PROOF_HEADER, Challenge, answer_challenge
from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.exchange.http.tokens import agent_token, server_proof
from tests.exchange_server import TOKEN, running_exchange

__all__: list[str] = []

UID = uuid.uuid4()
URL = "http://127.0.0.1:5463"
NONCE = secrets.token_hex(32)


@pytest.mark.parametrize("token", [TOKEN, agent_token(TOKEN, UID)], ids=["owner", "agent"])
def test_who_knows_the_token_can_answer(token: str) -> None:
    challenge = Challenge.new(token, URL)
    assert token not in challenge.text
    assert challenge.is_met_by(answer_challenge(challenge.text, secret=TOKEN, port=5463))


@pytest.mark.parametrize("token", [TOKEN, agent_token(TOKEN, UID)], ids=["owner", "agent"])
def test_the_answer_of_another_exchange_port_or_question_is_none(token: str) -> None:
    challenge = Challenge.new(token, URL)
    other = Challenge.new(token, URL)
    assert challenge.text != other.text
    for answer in (
        answer_challenge(challenge.text, secret="x" * 43, port=5463),
        answer_challenge(challenge.text, secret=TOKEN, port=5464),
        answer_challenge(other.text, secret=TOKEN, port=5463),
        "",
        "é",
        None,
    ):
        assert not challenge.is_met_by(answer)


def test_the_answer_for_an_agent_is_of_no_use_against_the_owner() -> None:
    challenge = Challenge.new(TOKEN, URL)
    nonce = challenge.text.split()[1]
    assert not challenge.is_met_by(answer_challenge(f"{UID.hex} {nonce}", secret=TOKEN, port=5463))


@pytest.mark.parametrize(("url", "port"), [("http://host", 80), ("http://host:81/path", 81), ("http://[::1]:82", 82)])
def test_the_port_is_that_of_the_url(url: str, port: int) -> None:
    challenge = Challenge.new(TOKEN, url)
    assert challenge.is_met_by(answer_challenge(challenge.text, secret=TOKEN, port=port))


def test_no_form_for_people_shows_the_proof() -> None:
    challenge = Challenge.new(TOKEN, URL)
    for text in (repr(challenge), str(challenge), repr(challenge.__rich_repr__())):
        assert challenge.proof not in text


NO_CHALLENGES = [
    "",
    "owner",
    NONCE,
    f"owner  {NONCE}",
    f"owner {NONCE} ",
    f"owner {NONCE[:31]}",
    f"owner {NONCE * 3}",
    f"owner {NONCE.replace(NONCE[0], 'z')}",
    f"somebody {NONCE}",
    f"{UID} {NONCE}",
    f"owner\t{NONCE}",
    f"owner {NONCE} owner {NONCE}",
]


@pytest.mark.parametrize("text", NO_CHALLENGES)
def test_what_is_no_challenge_has_no_answer(text: str) -> None:
    assert answer_challenge(text, secret=TOKEN, port=5463) is None


@pytest.mark.parametrize("path", ["/whoami", "/mailbox", "/stream", "/no-such-path"])
async def test_every_401_to_a_challenge_carries_the_proof(path: str) -> None:
    async with running_exchange() as exchange, aiohttp.ClientSession(f"http://127.0.0.1:{exchange.port}") as session:
        for name, token in (("owner", TOKEN), (UID.hex, agent_token(TOKEN, UID))):
            async with session.get(path, headers={CHALLENGE_HEADER: f"{name} {NONCE}"}) as response:
                assert response.status == 401
                assert response.headers[PROOF_HEADER] == server_proof(token, NONCE, exchange.port)


async def test_no_other_answer_carries_one() -> None:
    question = {CHALLENGE_HEADER: f"owner {NONCE}"}
    async with running_exchange() as exchange, aiohttp.ClientSession(f"http://127.0.0.1:{exchange.port}") as session:
        for headers, status in (
            ({}, 401),
            ({CHALLENGE_HEADER: "owner"}, 401),
            (question | {"Authorization": f"Bearer {TOKEN}"}, 200),
            (question | {"Authorization": f"Bearer {'x' * 43}"}, 403),
        ):
            async with session.get("/whoami", headers=headers) as response:
                assert (response.status, response.headers.get(PROOF_HEADER)) == (status, None)


async def test_an_exchange_without_a_token_has_nothing_to_prove() -> None:
    async with running_exchange(ServerConfig()) as exchange, aiohttp.ClientSession() as session:
        url, question = f"http://127.0.0.1:{exchange.port}/whoami", {CHALLENGE_HEADER: f"owner {NONCE}"}
        async with session.get(url, headers=question) as response:
            assert (response.status, response.headers.get(PROOF_HEADER)) == (200, None)
