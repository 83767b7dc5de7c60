"""Programs of academy-py use an exchange of ours as they use their own: over REST and event streams, with a token."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import academy.exception
import academy.exchange.cloud.client
import academy.message
import aiohttp
import pytest
from academy.exchange.mailbox_status import MailboxStatus
from academy.handle import Handle
from academy.identifier import AgentId, UserId
from academy.manager import Manager

from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.registry import Limits
from tests.exchange_server import TOKEN, RunningExchange, running_exchange
from tests.interop.agents import ACTIONS, OutOfTuneError, StillbornAgent, TheirAgent, TheirOtherAgent
from tests.interop.conftest import Running, their_factory_for

__all__: list[str] = []

ACADEMY_LIMIT_BYTES = 512 * 1024


async def until(condition: Any, *, within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not await condition():  # noqa: ASYNC110 - only the exchange can tell, and only if asked
            await asyncio.sleep(0.02)


# Operations


async def test_agents_are_registered_discovered_and_terminated(they: Any) -> None:
    first = await they.register_agent(TheirAgent, name="first")
    second = await they.register_agent(TheirOtherAgent)
    third, fourth = await they.register_agents([(TheirAgent, None), (TheirOtherAgent, "fourth")])
    ids = [registration.agent_id for registration in (first, second, third, fourth)]
    assert list(await they.discover(TheirAgent)) == ids
    assert list(await they.discover(TheirAgent, allow_subclasses=False)) == [ids[0], ids[2]]
    assert list(await they.discover(ACTIONS)) == ids
    assert await they.discover("no.such.Class") == ()
    await they.terminate(ids[0])
    await they.terminate(ids[0])
    assert list(await they.discover(TheirAgent, allow_subclasses=False)) == [ids[2]]


async def test_the_status_of_an_agent_is_told(they: Any, theirs: Any, run_theirs: Running) -> None:
    assert await they.status(AgentId.new()) is MailboxStatus.MISSING
    registration = await they.register_agent(TheirAgent)
    agent_id = registration.agent_id
    assert await they.status(agent_id) is MailboxStatus.INACTIVE
    assert await they.heartbeat_status(agent_id) is None
    async with run_theirs(TheirAgent(), theirs, registration):
        await Handle(agent_id).ping()
        assert await they.status(agent_id) is MailboxStatus.ACTIVE
        assert 0 <= await they.heartbeat_status(agent_id) < 5
    assert await they.status(agent_id) is MailboxStatus.TERMINATED
    with pytest.raises(academy.exception.BadEntityIdError):
        await they.heartbeat_status(AgentId.new())
    with pytest.raises(academy.exception.AgentTerminatedError):
        await they.heartbeat_status(agent_id)
    await they.update_heartbeat()
    assert await they.status(they.client_id) is MailboxStatus.ACTIVE


async def test_the_counters_of_an_agent_are_told(they: Any, theirs: Any, run_theirs: Running) -> None:
    registration = await they.register_agent(TheirAgent)
    handle = Handle(registration.agent_id)
    waiting = asyncio.create_task(handle.add(1))

    async def queued() -> bool:
        return bool((await they.agent_stats(registration.agent_id)).queued == 1)

    await until(queued)
    async with run_theirs(TheirAgent(), theirs, registration):
        await waiting
        stats = await they.agent_stats(registration.agent_id)
        assert (stats.incoming, stats.completed, stats.in_progress, stats.queued) == (1, 1, 0, 0)
    assert (await they.agent_stats(they.client_id)).outgoing >= 1


async def test_a_user_who_closes_is_terminated(they: Any, theirs: Any) -> None:
    async with await theirs.create_user_client(name="short") as short:
        # Which of the two depends on whether its first heartbeat has come.
        assert await they.status(short.client_id) in (MailboxStatus.ACTIVE, MailboxStatus.INACTIVE)
    assert await they.status(short.client_id) is MailboxStatus.TERMINATED


async def test_an_agent_that_is_not_registered_gets_no_client(theirs: Any) -> None:
    async def handler(request: Any) -> None:
        pytest.fail("no request can come")

    registration = academy.exchange.cloud.client.HttpAgentRegistration(agent_id=AgentId.new())
    with pytest.raises(academy.exception.BadEntityIdError):
        await theirs.create_agent_client(registration, handler)


async def test_without_the_token_they_are_not_let_in(exchange: RunningExchange) -> None:
    factory = academy.exchange.cloud.client.HttpExchangeFactory(f"http://127.0.0.1:{exchange.port}")
    with pytest.raises(academy.exception.UnauthorizedError):
        await factory.create_user_client()


async def test_a_factory_goes_to_another_process_as_a_pickle(theirs: Any) -> None:
    copy = pickle.loads(pickle.dumps(theirs))  # noqa: S301 - our own bytes
    async with await copy.create_user_client() as client:
        assert await client.discover("no.such.Class") == ()


# Every kind of request and of answer


@pytest.mark.parametrize("result", [None, "pickle", "json"])
@pytest.mark.parametrize("request_format", ["pickle", "json"])
async def test_actions_run_in_every_format(
    request_format: Any, result: Any, they: Any, theirs: Any, run_theirs: Running
) -> None:
    registration = await they.register_agent(TheirAgent)
    handle = Handle(registration.agent_id, request_serializer=request_format, result_serializer=result)
    async with run_theirs(TheirAgent(10), theirs, registration):
        assert await handle.add(1, times=3) == 13
        assert await handle.echo({"a": [1, 2.5, None, "é"]}) == {"a": [1, 2.5, None, "é"]}
        assert await asyncio.gather(*(handle.echo(number) for number in range(30))) == list(range(30))


async def test_errors_of_an_action_arrive(they: Any, theirs: Any, run_theirs: Running) -> None:
    registration = await they.register_agent(TheirAgent)
    by_pickle = Handle(registration.agent_id)
    by_json = Handle(registration.agent_id, request_serializer="json")
    async with run_theirs(TheirAgent(), theirs, registration):
        with pytest.raises(OutOfTuneError) as caught:
            await by_pickle.fail("flat")
        assert (caught.value.note, caught.value.cents) == ("flat", 7)
        with pytest.raises(academy.exception.AcademyRemoteError, match="OutOfTuneError"):
            await by_json.fail("flat")
        with pytest.raises(AttributeError, match="no_such_action"):
            await by_pickle.no_such_action()


async def test_cancelling_a_call_cancels_the_action(they: Any, theirs: Any, run_theirs: Running) -> None:
    registration = await they.register_agent(TheirAgent)
    handle, agent = Handle(registration.agent_id), TheirAgent()
    async with run_theirs(agent, theirs, registration):
        await handle.ping()
        call = asyncio.create_task(handle.sleep(30))
        await asyncio.sleep(0.2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

        async def cancelled() -> bool:
            return agent.cancelled == 1

        await until(cancelled)


@pytest.mark.parametrize(("terminate", "status"), [(True, "TERMINATED"), (False, "ACTIVE"), (None, "TERMINATED")])
async def test_a_shutdown_ends_the_agent(
    terminate: bool | None, status: str, they: Any, theirs: Any, run_theirs: Running
) -> None:
    registration = await they.register_agent(TheirAgent)
    async with run_theirs(TheirAgent(), theirs, registration) as running:
        await Handle(registration.agent_id).shutdown(terminate=terminate)
        await asyncio.wait_for(running, 5)
        assert (await they.status(registration.agent_id)).name == status


async def test_requests_to_an_agent_that_is_terminated_are_answered(they: Any) -> None:
    registration = await they.register_agent(TheirAgent)
    handle = Handle(registration.agent_id)
    call, ping = asyncio.create_task(handle.add(1)), asyncio.create_task(handle.ping())

    async def queued() -> bool:
        return bool((await they.agent_stats(registration.agent_id)).queued == 2)

    await until(queued)
    await they.terminate(registration.agent_id)
    for task in (call, ping):
        with pytest.raises(academy.exception.AgentTerminatedError):
            await asyncio.wait_for(task, 5)
    with pytest.raises(academy.exception.AgentTerminatedError):
        await handle.add(1)


async def test_a_ping_of_an_agent_that_does_not_start_is_answered(they: Any, theirs: Any, run_theirs: Running) -> None:
    registration = await they.register_agent(StillbornAgent)
    async with run_theirs(StillbornAgent(), theirs, registration) as running:
        with pytest.raises((academy.exception.PingCancelledError, academy.exception.AgentTerminatedError)):
            await asyncio.wait_for(Handle(registration.agent_id).ping(), 5)
        with pytest.raises(OutOfTuneError):
            await asyncio.wait_for(running, 5)


async def test_agents_call_and_discover_each_other(they: Any, theirs: Any, run_theirs: Running) -> None:
    one, other = await they.register_agents([(TheirAgent, "one"), (TheirOtherAgent, "other")])
    async with run_theirs(TheirAgent(), theirs, one), run_theirs(TheirOtherAgent(100), theirs, other):
        handle = Handle(one.agent_id)
        assert await handle.ask(Handle(other.agent_id), 5) == 105
        assert await handle.find(ACTIONS) == [str(one.agent_id.uid), str(other.agent_id.uid)]


# Limits and time


async def test_clients_live_through_the_ends_of_their_streams(exchange: RunningExchange, run_theirs: Running) -> None:
    """The exchange ends a stream after the time-out that the client asked for; it opens the next without a pause."""
    factory = their_factory_for(exchange, request_timeout_s=0.2)
    async with await factory.create_user_client() as client:
        registration = await client.register_agent(TheirAgent)
        async with run_theirs(TheirAgent(), factory, registration):
            handle, slowest = Handle(registration.agent_id), 0.0
            for _ in range(20):
                start = time.monotonic()
                await handle.add(1)
                slowest = max(slowest, time.monotonic() - start)
                await asyncio.sleep(0.05)
            assert slowest < 0.8  # they would wait a second for the next stream, were they not told otherwise


@pytest.mark.parametrize("spare", [0, 1, 8, 100, 300_000])
async def test_messages_up_to_the_limit_are_readable_for_them(spare: int) -> None:
    config = ServerConfig(token=TOKEN, limits=Limits(message_bytes=ACADEMY_LIMIT_BYTES))
    async with running_exchange(config) as exchange:
        factory = their_factory_for(exchange)
        transport = await factory._create_transport()
        source, dest = UserId.new(), transport.mailbox_id
        body = academy.message.ActionRequest(action="echo", pargs="", kargs="{}", serialization="json")
        content = academy.message.Message.create(source, dest, body)
        room = ACADEMY_LIMIT_BYTES - spare - len(content.model_dump_json().encode())
        body = academy.message.ActionRequest(action="echo", pargs="x" * room, kargs="{}", serialization="json")
        content = academy.message.Message.create(source, dest, body, tag=content.tag)
        assert len(content.model_dump_json().encode()) == ACADEMY_LIMIT_BYTES - spare
        await transport.send(content)
        listener = transport.listen(timeout=2)
        async with asyncio.timeout(5):
            received = await anext(listener)
        assert received == content
        await listener.aclose()
        await transport.close()


async def test_what_is_too_large_is_told_to_whoever_waits(run_theirs: Running) -> None:
    """A request to its sender; and a result, which academy-py drops, to the caller, who would wait for ever."""
    config = ServerConfig(token=TOKEN, limits=Limits(message_bytes=20_000))
    async with running_exchange(config) as exchange:
        factory = their_factory_for(exchange)
        async with await factory.create_user_client() as client:
            registration = await client.register_agent(TheirAgent)
            async with run_theirs(TheirAgent(), factory, registration):
                handle = Handle(registration.agent_id)
                with pytest.raises(aiohttp.ClientResponseError, match="413"):
                    await handle.echo("x" * 30_000)
                with pytest.raises(academy.exception.AcademyRemoteError, match="larger than limit 20000"):
                    await asyncio.wait_for(handle.repeat("x", 30_000), 5)
                assert await handle.add(1) == 1


async def test_a_repeated_message_does_not_destroy_their_listener(they: Any, theirs: Any, run_theirs: Running) -> None:
    registration = await they.register_agent(TheirAgent)
    async with run_theirs(TheirAgent(), theirs, registration):
        handle = Handle(registration.agent_id)
        await handle.ping()
        transport = await theirs._create_transport()
        body = academy.message.ActionRequest(action="add", pargs="[1]", kargs="{}", serialization="json")
        content = academy.message.Message.create(transport.mailbox_id, registration.agent_id, body, tag=uuid.uuid4())
        for _ in range(3):
            await transport.send(content)
        assert await handle.add(0) == 1
        await transport.close()


# Their Manager


async def use_a_manager(theirs: Any, executor: Any, *, in_this_process: bool) -> None:
    async with await Manager.from_exchange_factory(theirs, executors=executor) as manager:
        one = await manager.launch(TheirAgent, args=(5,), name="one")
        other = await manager.launch(TheirOtherAgent, kwargs={"total": 100})
        async with asyncio.timeout(50):
            assert await one.add(1) == 6
            assert await one.ask(other, 5) == 105
            assert (await one.process() == os.getpid()) is in_this_process
            await manager.shutdown(one, blocking=True)
            await manager.shutdown(other, blocking=True)


async def test_their_manager_runs_agents_in_its_event_loop(theirs: Any) -> None:
    await use_a_manager(theirs, None, in_this_process=True)


async def test_their_manager_runs_agents_in_a_process_pool(theirs: Any, importable: None) -> None:
    executor = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
    await use_a_manager(theirs, executor, in_this_process=False)


@pytest.mark.parsl
# Their Manager asks every executor to cancel what still waits; there is nothing, and Parsl says that it could not.
@pytest.mark.filterwarnings("ignore:Canceling on-going tasks is not supported in Parsl:UserWarning")
async def test_their_manager_runs_agents_on_parsl(theirs: Any, importable: None, tmp_path: Path) -> None:
    import parsl.concurrent
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    worker = HighThroughputExecutor(
        label="local",
        address="127.0.0.1",
        loopback_address="127.0.0.1",
        max_workers_per_node=2,
        cpu_affinity="none",
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    config = Config(executors=[worker], run_dir=str(tmp_path), usage_tracking=0, initialize_logging=False)
    executor = parsl.concurrent.ParslPoolExecutor(config)
    await use_a_manager(theirs, executor, in_this_process=False)
