"""Mailboxes, agents and exchanges end while messages are under way: nobody waits for ever, and all are told why."""

from __future__ import annotations

import asyncio
import base64
import json
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from academy_hpc.agent import Agent, action
from academy_hpc.errors import (
    AgentTerminatedError,
    ExchangeChangedError,
    ExchangeUnavailableError,
    MailboxFullError,
    UnauthorizedError,
)
from academy_hpc.exchange.http import dial
from academy_hpc.exchange.http.client import HttpExchangeFactory, HttpExchangeTransport
from academy_hpc.handle import Handle
from academy_hpc.launch.executor import ExecutorLauncher
from academy_hpc.launch.manager import Manager
from academy_hpc.message import ActionRequest, Message
from tests.exchange_server import RunningExchange, running_exchange
from tests.faults.durable import ROOT, DurableExchange, through
from tests.faults.proxy import running_proxy
from tests.faults.scene import PATIENCE_S, acting, apart

__all__: list[str] = []

pytestmark = pytest.mark.faults


@pytest.fixture
async def exchange() -> AsyncIterator[RunningExchange]:
    async with running_exchange() as running:
        yield running


# Mailboxes


@pytest.mark.parametrize("cut", [False, True])
async def test_when_a_mailbox_is_terminated_everything_under_way_to_it_is_answered(
    cut: bool, exchange: RunningExchange
) -> None:
    async with running_proxy(exchange.port) as proxy:
        proxied = exchange.factory_at(proxy.port)
        async with await apart(proxied).create_user_client() as user:
            registration = await user.register_agent(Agent)
            handle: Handle[Agent] = Handle(registration.agent_id, exchange=user)
            # Some are read and not answered, some wait, some are on their way, some are sent later.
            async with await apart(proxied, 2).create_transport(registration.agent_id) as agent:
                await agent.subscribe(lambda message: None, lambda error: None)
                calls = [asyncio.create_task(handle.ping()) for _ in range(2_000)]
                await asyncio.sleep(0)
                ending = asyncio.create_task(user.terminate(registration.agent_id))
                if cut:
                    await asyncio.sleep(0.02)
                    proxy.cut()
                calls += [asyncio.create_task(handle.ping()) for _ in range(10)]
                async with asyncio.timeout(PATIENCE_S):
                    outcomes = await asyncio.gather(*calls, return_exceptions=True)
                    await ending
        assert [type(outcome) for outcome in outcomes] == [AgentTerminatedError] * 2_010


# Agents that do not come back


class Sleeper(Agent):
    @action
    async def pid(self) -> int:
        return os.getpid()

    @action
    async def sleep(self) -> None:
        await asyncio.Event().wait()


async def test_of_an_agent_under_a_manager_that_is_lost_every_caller_hears_within_seconds(tmp_path: Path) -> None:
    exchange = DurableExchange(tmp_path)
    factory = HttpExchangeFactory.from_connection_info(await exchange.start())
    try:
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        async with await Manager.from_exchange_factory(factory, ExecutorLauncher(pool)) as manager:
            handle = await manager.launch(Sleeper)
            pid = await handle.pid()
            calls = [asyncio.create_task(handle.sleep()) for _ in range(20)]
            await handle.ping()
            os.kill(pid, signal.SIGKILL)
            started = time.monotonic()
            async with asyncio.timeout(PATIENCE_S):
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
            took_s = time.monotonic() - started
        assert {type(outcome) for outcome in outcomes} == {AgentTerminatedError}
        sys.stdout.write(f"told after {took_s:.2f} s\n")
        assert took_s < 5
    finally:
        await exchange.stop()


async def test_of_an_agent_that_nobody_watches_callers_hear_when_it_is_terminated_or_by_their_own_timeout(
    exchange: RunningExchange,
) -> None:
    """No clock takes a slow agent for a dead one: the calls of an agent that may come back wait for it."""
    async with await exchange.factory.create_user_client() as user:
        registration = await user.register_agent(Agent)
        handle: Handle[Agent] = Handle(registration.agent_id, exchange=user)
        patient = [asyncio.create_task(handle.ping()) for _ in range(20)]
        with pytest.raises(TimeoutError):
            await handle.ping(timeout=0.1)
        assert not any(call.done() for call in patient)
        await user.terminate(registration.agent_id)
        async with asyncio.timeout(2):
            outcomes = await asyncio.gather(*patient, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {AgentTerminatedError}


# The exchange ends in order


async def test_a_durable_exchange_that_is_stopped_and_started_in_order_is_only_a_delay(tmp_path: Path) -> None:
    exchange = DurableExchange(tmp_path)
    factory = HttpExchangeFactory.from_connection_info(await exchange.start())
    try:
        async with acting(factory, factory) as scene:
            for _ in range(2):
                calls = [scene.call(pause_s=0.1) for _ in range(200)]
                await asyncio.sleep(0.05)
                stopping = asyncio.create_task(exchange.stop())
                calls += [scene.call(pause_s=0.1) for _ in range(200)]
                await stopping
                calls += [scene.call() for _ in range(200)]
                await exchange.start()
                async with asyncio.timeout(PATIENCE_S):
                    await asyncio.gather(*calls)
    finally:
        await exchange.stop()


@pytest.mark.parametrize("seconds", [0.2, 2.0])
async def test_an_exchange_that_stands_still_is_only_a_delay(
    seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For less and for longer than the pings of its clients allow."""
    monkeypatch.setattr(dial, "HEARTBEAT_S", 0.4)
    monkeypatch.setattr(dial, "DIAL_S", 0.5)
    exchange = DurableExchange(tmp_path)
    factory = HttpExchangeFactory.from_connection_info(await exchange.start())
    try:
        async with acting(factory, factory) as scene:
            await scene.calls(5)
            async with exchange.stopped():
                calls = [scene.call(pause_s=0.05) for _ in range(50)]
                await asyncio.sleep(seconds)
            calls += [scene.call() for _ in range(50)]
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*calls)
    finally:
        await exchange.stop()


@pytest.mark.parametrize("order", ["stop", "kill"])
async def test_without_a_state_directory_the_end_of_the_exchange_is_told_to_everybody_at_once(
    order: str, tmp_path: Path
) -> None:
    exchange = DurableExchange(tmp_path, durable=False)
    info = await exchange.start()
    async with running_proxy(int(info.urls[0].rsplit(":", 1)[1])) as proxy:
        user = await HttpExchangeFactory.from_connection_info(through(info, proxy.port)).create_user_client()
        registration = await user.register_agent(Agent)
        calls = [asyncio.create_task(Handle(registration.agent_id, exchange=user).ping()) for _ in range(20)]
        await user.discover(Agent)
        await (exchange.stop() if order == "stop" else exchange.kill())
        if order == "kill":  # it may come back, so this takes another one in its place
            proxy.target_port = int((await exchange.start()).urls[0].rsplit(":", 1)[1])
        async with asyncio.timeout(10):
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
        # Another exchange has another token, unless it was given the same.
        expected = ExchangeUnavailableError if order == "stop" else (ExchangeChangedError, UnauthorizedError)
        assert all(isinstance(outcome, expected) for outcome in outcomes), outcomes[0]
        await user.close()
    await exchange.stop()


# Handles in other processes

BORROWER = """
import asyncio, base64, json, pickle, sys
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo

async def main():
    given = json.loads(sys.stdin.read())
    factory = HttpExchangeFactory.from_connection_info(ConnectionInfo.from_json(given["connection"]))
    handle = pickle.loads(base64.b64decode(given["handle"]))
    async with await factory.create_user_client(name="borrower"):
        for number in range(3):
            print(await handle.work("borrower", number, 0.0, b"x" * number))

asyncio.run(main())
"""


async def test_a_pickled_handle_works_in_a_process_that_has_a_client(exchange: RunningExchange) -> None:
    async with acting(exchange.factory, exchange.factory) as scene:
        text = base64.b64encode(pickle.dumps(scene.handle)).decode()
        given = json.dumps({"connection": exchange.factory.connection_info.to_json(), "handle": text})
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-W", "error", "-c", BORROWER),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(PATIENCE_S):
            output, _ = await process.communicate(given.encode())
        assert output.decode().splitlines() == [str((str(os.getpid()), number)) for number in range(3)]
        scene.notes.events.clear()  # its calls are not those of the scene's user


# Slow consumers

MIB = 1024 * 1024


@pytest.mark.parametrize("durable", [False, True])
async def test_a_slow_consumer_bounds_its_fast_producers_and_the_memory_of_the_exchange(
    durable: bool, tmp_path: Path
) -> None:
    """They wait, then are told; what was accepted arrives once and in order."""
    exchange = DurableExchange(
        tmp_path, durable=durable, limits={"mailbox_bytes": 16 * MIB, "total_bytes": 64 * MIB}, full_wait_s=1.0
    )
    factory = HttpExchangeFactory.from_connection_info(await exchange.start())
    try:
        async with await factory.create_transport(name="receiver") as receiver:
            senders = [await apart(factory, number).create_transport(name="sender") for number in range(1, 5)]
            assert await anext(receiver.listen(0.01), None) is None  # from now on it is handed what its window holds
            before = (await exchange.process()).memory_info().rss
            accepted = await asyncio.gather(*(send_until_full(sender, receiver) for sender in senders))
            grown = (await exchange.process()).memory_info().rss - before
            sys.stdout.write(f"durable {durable}: {sum(map(len, accepted))} accepted, grown by {grown / MIB:.0f} MiB\n")
            assert grown < 96 * MIB
            assert 800 <= sum(map(len, accepted)) <= 5_000
            got = [message async for message in receiver.listen(1.0)]
            for sender, sent in zip(senders, accepted, strict=True):
                assert [message.tag for message in got if message.src == sender.mailbox_id] == sent
                await sender.close()
    finally:
        await exchange.stop()


async def send_until_full(sender: HttpExchangeTransport, receiver: HttpExchangeTransport) -> list[object]:
    """Tags of the messages that were accepted."""
    accepted: list[object] = []
    while True:
        message = Message.create(sender.mailbox_id, receiver.mailbox_id, ActionRequest("x" * 20_000, "", ""))
        try:
            async with asyncio.timeout(PATIENCE_S):
                await sender.send(message)
        except MailboxFullError:
            return accepted
        accepted.append(message.tag)
