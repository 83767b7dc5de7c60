"""Programs of academy-py that log in with Globus Auth use an exchange of ours, side by side with ours."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from academy_hpc import GlobusSettings, HttpExchangeFactory
from academy_hpc.exchange.http.server import ServerConfig
from tests.exchange_server import TOKEN, running_exchange
from tests.globus_stand_in import EXCHANGE, EXCHANGE_SECRET, GlobusStandIn

__all__: list[str] = []

# In a process of its own: academy-py may look at the environment when it is imported.
PROGRAM = """
import asyncio, sys, time
from academy.exchange.cloud.client import HttpExchangeFactory
from academy.handle import Handle
from academy.runtime import Runtime
from tests.interop.agents import TheirAgent

async def main():
    factory = HttpExchangeFactory(sys.argv[1], auth_method="globus")
    async with await factory.create_user_client() as client:
        registration = await client.register_agent(TheirAgent)
        runtime = Runtime(TheirAgent(), exchange_factory=factory, registration=registration)
        running = asyncio.create_task(runtime.run_until_complete())
        handle, until, number = Handle(registration.agent_id), time.monotonic() + 6, 0
        while time.monotonic() < until:
            number += 1
            assert await handle.echo(number) == number
        runtime.signal_shutdown()
        await running
        print(registration.agent_id.uid, number)

asyncio.run(main())
"""


@pytest.mark.usefixtures("importable")
async def test_a_run_of_theirs_lasts_longer_than_its_tokens_and_we_are_the_same_caller(
    globus: GlobusStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    globus.life_s = 2
    for name, value in globus.new_client().items():
        monkeypatch.setenv(name, value)
    config = ServerConfig(token=TOKEN, globus=GlobusSettings(EXCHANGE, EXCHANGE_SECRET))
    async with running_exchange(config) as exchange:
        url = f"http://127.0.0.1:{exchange.port}"
        theirs = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, url, env=dict(os.environ), stdout=asyncio.subprocess.PIPE
        )
        async with await HttpExchangeFactory(url, auth_method="globus").create_user_client() as client:
            async with asyncio.timeout(20):
                while not (found := await client.discover("tests.interop.agents.TheirAgent")):  # noqa: ASYNC110 - only the exchange can tell
                    await asyncio.sleep(0.1)
        output, _ = await theirs.communicate()
        uid, calls = output.decode().split()
        assert theirs.returncode == 0
        assert [str(agent_id.uid) for agent_id in found] == [uid]
        assert int(calls) > 50
        assert globus.asked["client_credentials"] > 3
