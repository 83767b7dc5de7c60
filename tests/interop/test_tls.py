"""Programs of academy-py reach an exchange of ours over TLS, if they are told the fingerprint of its certificate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from academy.handle import Handle
from academy.identifier import AgentId

from academy_hpc import ConnectionInfo, HttpExchangeFactory, spawn_http_exchange
from tests.interop.agents import OurAgent, TheirAgent
from tests.interop.conftest import Running, TheirFactory

__all__: list[str] = []

# A client of academy-py that could not connect leaves its sockets to the garbage collector, too.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture
def info() -> Iterator[ConnectionInfo]:
    """How to reach a spawned exchange of ours as other hosts do."""
    with spawn_http_exchange(port=0) as factory:
        yield factory.connection_info


def their_factory(info: ConnectionInfo, fingerprint: str | None) -> TheirFactory:
    """What docs/security.md tells users of academy-py to write; its type hint knows of True and False only."""
    verify: Any = None if fingerprint is None else aiohttp.Fingerprint(bytes.fromhex(fingerprint))
    return TheirFactory(info.urls[0], additional_headers=info.headers, ssl_verify=verify)


async def test_their_agents_and_users_talk_over_tls(info: ConnectionInfo, run_theirs: Running) -> None:
    factory = their_factory(info, info.fingerprint)
    async with await factory.create_user_client() as user:
        registration = await user.register_agent(TheirAgent)
        async with run_theirs(TheirAgent(10), factory, registration):
            assert await Handle(registration.agent_id).add(1, times=3) == 13


async def test_their_users_call_our_agents_over_tls(info: ConnectionInfo, run_ours: Running) -> None:
    ours, theirs = HttpExchangeFactory.from_connection_info(info), their_factory(info, info.fingerprint)
    async with await ours.create_user_client() as we, await theirs.create_user_client():
        registration = await we.register_agent(OurAgent)
        async with run_ours(OurAgent(), ours, registration):
            handle: Any = Handle(AgentId(uid=registration.agent_id.uid))
            assert await handle.echo("over there") == "over there"


async def test_with_a_wrong_fingerprint_they_refuse_our_exchange(info: ConnectionInfo) -> None:
    with pytest.raises(aiohttp.ServerFingerprintMismatch):
        await their_factory(info, "ab" * 32).create_user_client()


async def test_without_a_fingerprint_they_refuse_a_certificate_that_nobody_vouches_for(info: ConnectionInfo) -> None:
    with pytest.raises(aiohttp.ClientConnectorCertificateError):
        await their_factory(info, None).create_user_client()
