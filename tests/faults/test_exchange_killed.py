"""The exchange is killed with its program, and started again with its state directory: nobody notices but a delay."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import psutil
import pytest

from academy_hpc.agent import Agent, action
from academy_hpc.errors import AgentTerminatedError, ExchangeChangedError
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.spawn import spawn_http_exchange
from academy_hpc.exchange.transport import MailboxStatus
from academy_hpc.handle import Handle
from academy_hpc.message import ActionRequest, Message
from academy_hpc.runtime import Runtime
from tests.faults.durable import DurableExchange

pytestmark = pytest.mark.faults


def kill_exchange() -> None:
    """SIGKILL to the exchange process of this test."""
    (child,) = [child for child in psutil.Process().children() if "academy_hpc.exchange.http.serve" in child.cmdline()]
    os.kill(child.pid, signal.SIGKILL)
    child.wait(10)


class Restarts:
    """Exchanges in memory that were started after others were killed; all end with the block."""

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    async def kill_and_start(self) -> None:
        """In a thread: starting a process blocks."""
        await asyncio.to_thread(self._kill_and_start)

    def _kill_and_start(self) -> None:
        kill_exchange()
        self._stack.enter_context(spawn_http_exchange("127.0.0.1", **self._options))


def test_a_restarted_exchange_has_the_same_address_token_mailboxes_messages_and_tombstones(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with spawn_http_exchange("127.0.0.1", 0, state_dir=state) as first:

        async def before() -> tuple[object, object]:
            async with await first.create_transport(name="sender") as sender:
                kept = (await sender.register_agent(Agent, name="kept")).agent_id
                gone = (await sender.register_agent(Agent, name="gone")).agent_id
                await sender.terminate(gone)
                for number in range(100):
                    await sender.send(Message.create(sender.mailbox_id, kept, ActionRequest(str(number), "", "")))
                return kept, gone

        kept, gone = asyncio.run(before())
        kill_exchange()
    with spawn_http_exchange("127.0.0.1", 0, state_dir=state) as second:
        assert second.connection_info == first.connection_info

        async def after() -> list[str]:
            async with await second.create_transport(kept) as agent:
                assert await agent.status(gone) is MailboxStatus.TERMINATED
                got = []
                async for message in agent.listen(5):
                    got.append(message.decoded().action)
                    if len(got) == 100:
                        return got
                return got

        assert asyncio.run(after()) == [str(number) for number in range(100)]


class Adder(Agent):
    def __init__(self) -> None:
        self.runs: list[int] = []

    @action
    async def add(self, number: int) -> int:
        self.runs.append(number)
        await asyncio.sleep(0.001)
        return number + 1


async def restart(exchange: DurableExchange) -> None:
    """Kill the exchange and its program, and start both again."""
    await exchange.kill()
    await exchange.start()


async def call_through_kills(exchange: DurableExchange, kills: int) -> tuple[list[int], list[int]]:
    factory = HttpExchangeFactory.from_connection_info(await exchange.start())
    async with await factory.create_user_client() as user:
        registration = await user.register_agent(Adder)
        agent = Adder()
        runtime = asyncio.create_task(
            Runtime(agent, exchange_factory=factory, registration=registration).run_until_complete()
        )
        handle: Handle[Adder] = Handle(registration.agent_id)
        await handle.ping()
        calls = asyncio.gather(*(call_later(handle, number) for number in range(3_000)))
        for _ in range(kills):
            await asyncio.sleep(0.15)
            await restart(exchange)
        answers = await calls
        await handle.shutdown()
        await runtime
    await exchange.stop()
    return list(answers), agent.runs


async def call_later(handle: Handle[Adder], number: int) -> int:
    await asyncio.sleep(number / 4_000)
    return int(await handle.add(number))


def test_calls_while_the_exchange_is_killed_again_and_again_are_answered_and_executed_once(tmp_path: Path) -> None:
    answers, runs = asyncio.run(call_through_kills(DurableExchange(tmp_path), kills=4))
    assert answers == [number + 1 for number in range(3_000)]
    assert sorted(runs) == list(range(3_000))


def test_without_a_state_directory_a_restart_is_told_to_everybody(tmp_path: Path) -> None:
    with spawn_http_exchange("127.0.0.1", 0) as factory:
        info = factory.connection_info
        port = int(info.urls[0].rsplit(":", 1)[1])
        token = info.headers["Authorization"].split()[1]

        async def use(restarts: Restarts) -> None:
            client = await factory.create_user_client()
            await restarts.kill_and_start()
            with pytest.raises(ExchangeChangedError):
                async with asyncio.timeout(10):
                    await client.discover(Agent)
            await client.close()

        with Restarts(port=port, token=token) as restarts:
            asyncio.run(use(restarts))


def test_a_mailbox_terminated_before_the_kill_stays_terminated(tmp_path: Path) -> None:
    async def run(exchange: DurableExchange) -> None:
        factory = HttpExchangeFactory.from_connection_info(await exchange.start())
        async with await factory.create_user_client() as user:
            agent_id = (await user.register_agent(Agent)).agent_id
            await user.terminate(agent_id)
            await restart(exchange)
            with pytest.raises(AgentTerminatedError):
                await Handle(agent_id).ping(timeout=10)
        await exchange.stop()

    asyncio.run(run(DurableExchange(tmp_path)))


@contextlib.asynccontextmanager
async def in_thread(block: AbstractContextManager[Any]) -> AsyncIterator[Any]:
    """A block whose beginning and end block, beside an event loop."""
    value = await asyncio.to_thread(block.__enter__)
    try:
        yield value
    finally:
        await asyncio.to_thread(block.__exit__, None, None, None)


@pytest.mark.parametrize("tls", [False, True])
def test_a_new_exchange_with_other_secrets_in_the_place_of_the_old_one_is_told_at_once(tls: bool) -> None:
    """To a client it is a stranger, which can't be told from one; but the old one kept nothing to come back with."""
    with spawn_http_exchange("127.0.0.1", 0, tls=tls) as old:
        port = int(old.connection_info.urls[0].rsplit(":", 1)[1])

        async def use() -> None:
            client = await old.create_user_client()
            await asyncio.to_thread(kill_exchange)
            async with in_thread(spawn_http_exchange("127.0.0.1", port, tls=tls)):
                with pytest.raises(ExchangeChangedError):
                    async with asyncio.timeout(10):
                        await client.discover(Agent)
            await client.close()

        asyncio.run(use())
