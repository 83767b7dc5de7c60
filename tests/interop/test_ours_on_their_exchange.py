"""Our clients, handles and agents on an exchange of academy-py, which has no stream: all goes by REST and events."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator

import msgspec
import pytest
from academy.exchange.cloud.client import HttpExchangeFactory as TheirFactory
from academy.handle import Handle as TheirHandle

from academy_hpc import (
    Agent,
    AgentId,
    AgentTerminatedError,
    BadEntityIdError,
    ExchangeError,
    Handle,
    HttpAgentRegistration,
    HttpExchangeFactory,
    MailboxStatus,
    Message,
    MessageTooLargeError,
    PingCancelledError,
    RuntimeConfig,
    UserExchangeClient,
)
from academy_hpc.exchange.http.rest import RestChannel
from academy_hpc.message import ActionRequest, CancelRequest, PingRequest
from tests.interop.agents import ACTIONS, OurAgent, OurOtherAgent, OutOfTuneError, TheirAgent
from tests.interop.conftest import Running

__all__: list[str] = []


@pytest.fixture
def factory(their_exchange: str) -> HttpExchangeFactory:
    return HttpExchangeFactory(their_exchange)


@pytest.fixture
async def user(factory: HttpExchangeFactory) -> AsyncIterator[UserExchangeClient]:
    async with await factory.create_user_client(name="we") as client:
        yield client


async def until_queued(user: UserExchangeClient, agent_id: AgentId, count: int) -> None:
    async with asyncio.timeout(5):
        while (await user.agent_stats(agent_id)).queued < count:  # noqa: ASYNC110 - only the exchange can tell
            await asyncio.sleep(0.02)


async def test_without_a_stream_there_we_speak_rest(user: UserExchangeClient) -> None:
    assert isinstance(user._transport._channel, RestChannel)  # type: ignore[attr-defined]


async def test_agents_are_registered_discovered_and_terminated(user: UserExchangeClient) -> None:
    class Rare(OurAgent):
        pass

    class Rarer(Rare):
        pass

    first = await user.register_agent(Rare, name="first")
    second, third = await user.register_agents([(Rarer, None), (Rare, "third")])
    ids = {registration.agent_id for registration in (first, second, third)}
    assert set(await user.discover(Rare)) == ids
    assert set(await user.discover(Rare, allow_subclasses=False)) == {first.agent_id, third.agent_id}
    assert set(await user.discover(f"{Rare.__module__}.{Rare.__qualname__}")) == ids
    assert ids <= set(await user.discover(Agent))
    assert await user.discover("no.such.Class") == ()
    for _ in range(2):
        await user.terminate(first.agent_id)
    assert set(await user.discover(Rare)) == ids - {first.agent_id}


async def test_the_status_of_an_agent_is_told(
    user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running
) -> None:
    missing: AgentId = AgentId.new()
    assert await user.status(missing) is MailboxStatus.MISSING
    registration = await user.register_agent(OurAgent)
    assert await user.status(registration.agent_id) is MailboxStatus.INACTIVE
    assert await user.heartbeat_status(registration.agent_id) is None
    async with run_ours(OurAgent(), factory, registration):
        await Handle(registration.agent_id).ping()
        assert await user.status(registration.agent_id) is MailboxStatus.ACTIVE
        seen_s = await user.heartbeat_status(registration.agent_id)
        assert seen_s is not None
        assert 0 <= seen_s < 5
    assert await user.status(registration.agent_id) is MailboxStatus.TERMINATED
    with pytest.raises(AgentTerminatedError):
        await user.heartbeat_status(registration.agent_id)
    with pytest.raises(BadEntityIdError):
        await user.heartbeat_status(missing)
    await user.update_heartbeat()


async def test_the_counters_of_an_agent_are_told(
    user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running
) -> None:
    registration = await user.register_agent(OurAgent)
    handle: Handle[OurAgent] = Handle(registration.agent_id)
    waiting = asyncio.create_task(handle.add(1))
    await until_queued(user, registration.agent_id, 1)
    async with run_ours(OurAgent(), factory, registration):
        await waiting
        stats = await handle.agent_stats()
        assert (stats.incoming, stats.completed, stats.in_progress, stats.queued) == (1, 1, 0, 0)


async def test_a_user_who_closes_is_terminated(user: UserExchangeClient, factory: HttpExchangeFactory) -> None:
    async with await factory.create_user_client(name="short") as short:
        pass
    assert await user.status(short.client_id) is MailboxStatus.TERMINATED


async def test_an_agent_that_is_not_registered_or_terminated_gets_no_client(
    user: UserExchangeClient, factory: HttpExchangeFactory
) -> None:
    async def handler(request: Message) -> None:
        pytest.fail("no request can come")

    registration = await user.register_agent(OurAgent)
    await user.terminate(registration.agent_id)
    for wrong in (HttpAgentRegistration(AgentId.new()), registration):
        with pytest.raises(BadEntityIdError):
            await factory.create_agent_client(wrong, handler)


@pytest.mark.parametrize("result", [None, "pickle", "json"])
@pytest.mark.parametrize("request_format", ["pickle", "json"])
async def test_actions_run_in_every_format(
    request_format, result, user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running
) -> None:
    registration = await user.register_agent(OurAgent)
    handle: Handle[OurAgent] = Handle(
        registration.agent_id, request_serializer=request_format, result_serializer=result
    )
    async with run_ours(OurAgent(10), factory, registration):
        assert await handle.add(1, times=3) == 13
        assert await handle.echo({"a": [1, 2.5, None, "é"]}) == {"a": [1, 2.5, None, "é"]}
        assert await asyncio.gather(*(handle.echo(number) for number in range(30))) == list(range(30))


async def test_errors_of_an_action_arrive(
    user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running
) -> None:
    registration = await user.register_agent(OurAgent)
    handle: Handle[OurAgent] = Handle(registration.agent_id)
    async with run_ours(OurAgent(), factory, registration):
        with pytest.raises(OutOfTuneError) as caught:
            await handle.fail("flat")
        assert (caught.value.note, caught.value.cents) == ("flat", 7)
        with pytest.raises(AttributeError, match="no_such_action"):
            await handle.no_such_action()


async def test_messages_to_one_agent_keep_their_order(
    user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running
) -> None:
    registration = await user.register_agent(OurAgent)
    handle: Handle[OurAgent] = Handle(registration.agent_id)
    async with run_ours(OurAgent(), factory, registration):
        totals = await asyncio.gather(*(handle.add(10**number) for number in range(15)))
        assert totals == [int("1" * (number + 1)) for number in range(15)]


async def test_cancelling_a_call_cancels_the_action(
    user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running
) -> None:
    registration = await user.register_agent(OurAgent)
    handle, agent = Handle(registration.agent_id), OurAgent()
    async with run_ours(agent, factory, registration):
        await handle.ping()
        call = asyncio.create_task(handle.sleep(30))
        await asyncio.sleep(0.2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        with pytest.raises(TimeoutError):
            await handle.with_timeout(0.2).sleep(30)
        async with asyncio.timeout(5):
            while agent.cancelled < 2:  # noqa: ASYNC110 - the agent has no event for it
                await asyncio.sleep(0.02)


@pytest.mark.parametrize(("terminate", "status"), [(True, "TERMINATED"), (False, "ACTIVE"), (None, "TERMINATED")])
async def test_a_shutdown_ends_the_agent(
    terminate, status, user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running
) -> None:
    registration = await user.register_agent(OurAgent)
    async with run_ours(OurAgent(), factory, registration) as running:
        await Handle(registration.agent_id).shutdown(terminate=terminate)
        await asyncio.wait_for(running, 5)
        assert (await user.status(registration.agent_id)).name == status


async def test_an_agent_comes_back_under_its_registration(
    user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running
) -> None:
    """Their exchange writes one message into the connection of the agent that was: lost, as with their clients."""
    registration = await user.register_agent(OurAgent)
    handle: Handle[OurAgent] = Handle(registration.agent_id)
    for start in (10, 20):
        async with run_ours(OurAgent(start), factory, registration) as running:
            with contextlib.suppress(TimeoutError):
                await handle.ping(timeout=0.5)
            assert await asyncio.wait_for(handle.add(1), 5) == start + 1
            await handle.shutdown(terminate=False)
            await asyncio.wait_for(running, 5)


async def test_requests_to_an_agent_that_is_terminated_are_answered(user: UserExchangeClient) -> None:
    registration = await user.register_agent(OurAgent)
    handle: Handle[OurAgent] = Handle(registration.agent_id)
    calls = [asyncio.create_task(handle.add(1)), asyncio.create_task(handle.ping())]
    await until_queued(user, registration.agent_id, 2)
    await user.terminate(registration.agent_id)
    for call in calls:
        with pytest.raises(AgentTerminatedError):
            await asyncio.wait_for(call, 5)
    with pytest.raises(AgentTerminatedError):
        await handle.add(1)
    with pytest.raises(BadEntityIdError):
        await Handle(AgentId.new()).add(1)


async def test_a_terminated_agent_stops(
    user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running
) -> None:
    registration = await user.register_agent(OurAgent)
    async with run_ours(OurAgent(), factory, registration) as running:
        await Handle(registration.agent_id).ping()
        await user.terminate(registration.agent_id)
        await asyncio.wait_for(running, 5)


async def test_a_ping_of_an_agent_that_does_not_start_is_answered(
    user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running
) -> None:
    class Stillborn(Agent):
        async def agent_on_startup(self) -> None:
            await asyncio.sleep(0.2)
            raise OutOfTuneError("never started", 0)

    registration = await user.register_agent(Stillborn)
    async with run_ours(Stillborn(), factory, registration) as running:
        with pytest.raises((PingCancelledError, AgentTerminatedError)):
            await asyncio.wait_for(Handle(registration.agent_id).ping(), 5)
        with pytest.raises(OutOfTuneError):
            await asyncio.wait_for(running, 5)


async def test_agents_call_and_discover_each_other(
    user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running
) -> None:
    one, other = await user.register_agents([(OurAgent, "one"), (OurOtherAgent, "other")])
    async with run_ours(OurAgent(), factory, one), run_ours(OurOtherAgent(100), factory, other):
        handle: Handle[OurAgent] = Handle(one.agent_id)
        assert await handle.ask(Handle(other.agent_id), 5) == 105
        assert {str(one.agent_id.uid), str(other.agent_id.uid)} <= set(await handle.find(ACTIONS))


async def test_what_is_too_large_is_told_to_whoever_waits(
    user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running
) -> None:
    """Their exchange only refuses a large result; our agent then answers with the refusal."""
    registration = await user.register_agent(OurAgent)
    handle: Handle[OurAgent] = Handle(registration.agent_id)
    async with run_ours(OurAgent(), factory, registration):
        with pytest.raises(MessageTooLargeError):
            await handle.echo("x" * 600_000)
        with pytest.raises(ExchangeError):
            await asyncio.wait_for(handle.repeat("x", 600_000), 5)
        with pytest.raises(ExchangeError):
            await asyncio.wait_for(handle.repeat("x", 3_000_000), 5)
        assert await handle.add(1) == 1


@pytest.mark.parametrize("size", [250_000, 390_000])
async def test_large_messages_within_their_limits_pass(
    size: int, user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running
) -> None:
    registration = await user.register_agent(OurAgent)
    handle: Handle[OurAgent] = Handle(registration.agent_id)
    async with run_ours(OurAgent(), factory, registration):
        assert await asyncio.wait_for(handle.repeat("x", size), 5) == "x" * size
        assert await asyncio.wait_for(handle.echo("y" * size), 5) == "y" * size


async def test_every_framework_error_is_read(
    user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running
) -> None:
    """Error 2: nothing to cancel; 4: a user serves no requests; 5: another version of the protocol."""
    registration = await user.register_agent(OurAgent)
    async with run_ours(OurAgent(), factory, registration):
        await Handle(registration.agent_id).ping()
        cases = [
            (registration.agent_id, CancelRequest(uuid.uuid4()), "1.1", 2),
            (user.client_id, ActionRequest("x", "", ""), "1.1", 4),
            (registration.agent_id, PingRequest(), "2.0", 5),
        ]
        async with await factory.create_user_client(name="asker") as asker:
            for dest, body, version, code in cases:
                content = Message.create(asker.client_id, dest, body)
                header = msgspec.structs.replace(content.header, protocol_version=version)
                answer = asker.expect(content.tag)
                await asker.send(Message(header, content.body))
                received = (await asyncio.wait_for(answer, 5)).decoded()
                assert getattr(received, "error_code", None) == code


async def test_actions_go_on_when_nobody_closes_the_mailbox(
    user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running
) -> None:
    """An agent that is to outlive its process is started with a configuration; REST has no say in it."""
    from academy_hpc import Runtime

    registration = await user.register_agent(OurAgent)
    config = RuntimeConfig(terminate_on_success=False)
    runtime = Runtime(OurAgent(), exchange_factory=factory, registration=registration, config=config)
    running = asyncio.create_task(runtime.run_until_complete())
    await Handle(registration.agent_id).ping()
    runtime.signal_shutdown()
    await asyncio.wait_for(running, 5)
    assert await user.status(registration.agent_id) is MailboxStatus.ACTIVE


async def test_there_too_each_calls_the_other(
    user: UserExchangeClient, factory: HttpExchangeFactory, run_ours: Running, run_theirs: Running, their_exchange: str
) -> None:
    theirs = TheirFactory(their_exchange)
    async with await theirs.create_user_client(name="they") as they:
        ours = await user.register_agent(OurAgent)
        their = await they.register_agent(TheirAgent)
        async with run_ours(OurAgent(), factory, ours), run_theirs(TheirAgent(), theirs, their):
            [found] = [other for other in await they.discover(OurAgent) if other.uid == ours.agent_id.uid]
            assert await TheirHandle(found, exchange=they, ignore_context=True).add(1) == 1
            [seen] = [other for other in await user.discover(TheirAgent) if other.uid == their.agent_id.uid]
            assert await Handle(seen, exchange=user, ignore_context=True).add(2) == 2
