"""Both packages on one exchange of ours: their handle calls our agent, ours calls theirs, each finds the other."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import academy.agent
import academy.exception
import pytest
from academy.exchange.mailbox_status import MailboxStatus as TheirStatus
from academy.handle import Handle as TheirHandle
from academy.identifier import AgentId as TheirAgentId

import academy_hpc
from academy_hpc import AcademyRemoteError, Handle, MailboxStatus, Message
from academy_hpc.message import (
    AcademyErrorResponse,
    ActionRequest,
    ActionResponse,
    Body,
    CancelRequest,
    PingRequest,
    ShutdownRequest,
    SuccessResponse,
    UserErrorResponse,
)
from tests.interop.agents import ACTIONS, OurAgent, OurOtherAgent, OutOfTuneError, TheirAgent, TheirOtherAgent
from tests.interop.conftest import Running

__all__: list[str] = []

FORMATS = [("pickle", None), ("json", None), ("pickle", "json"), ("json", "pickle")]
SHUTDOWNS = [(True, "TERMINATED"), (False, "ACTIVE"), (None, "TERMINATED")]


class Pair:
    """One running agent, and a handle of the other package for it."""

    def __init__(self, agent: Any, running: Any, handle: Any, json_handle: Any, status: Any) -> None:
        self.agent = agent
        self.running = running
        self.handle = handle
        self.json_handle = json_handle
        self.status = status


@pytest.fixture(params=["their handle, our agent", "our handle, their agent"])
async def pair(
    request: pytest.FixtureRequest, exchange, theirs, they, we, run_theirs: Running, run_ours: Running
) -> Any:
    """Every test below is played in both directions."""
    agent: Any
    if request.param.startswith("their handle"):
        registration, agent = await we.register_agent(OurAgent, name="ours"), OurAgent()
        agent_id: Any = TheirAgentId(uid=registration.agent_id.uid, name="ours")

        def handle(**formats: Any) -> Any:
            return TheirHandle(agent_id, exchange=they, ignore_context=True, **formats)

        run, client = run_ours(agent, exchange.factory, registration), they
    else:
        registration, agent = await they.register_agent(TheirAgent, name="theirs"), TheirAgent()
        agent_id = academy_hpc.AgentId(registration.agent_id.uid, "theirs")

        def handle(**formats: Any) -> Any:
            return Handle(agent_id, exchange=we, ignore_context=True, **formats)

        run, client = run_theirs(agent, theirs, registration), we

    async def status() -> str:
        return str((await client.status(agent_id)).name)

    async with run as running:
        yield Pair(agent, running, handle(), handle(request_serializer="json"), status)


async def test_ping(pair: Pair) -> None:
    assert 0 < await pair.handle.ping() < 5


async def test_actions_by_pickle_and_by_json(pair: Pair) -> None:
    for handle in (pair.handle, pair.json_handle):
        assert await handle.echo({"a": [1, 2.5, None, "é"]}) == {"a": [1, 2.5, None, "é"]}
        assert await handle.action("echo", "by name") == "by name"
    assert [await pair.handle.add(1), await pair.json_handle.add(2, times=2)] == [1, 5]
    assert await pair.handle.echo((1, {2})) == (1, {2})
    assert await asyncio.gather(*(pair.handle.echo(number) for number in range(100))) == list(range(100))


async def test_an_exception_of_the_user_arrives(pair: Pair) -> None:
    with pytest.raises(OutOfTuneError) as caught:
        await pair.handle.fail("flat")
    assert (caught.value.note, caught.value.cents) == ("flat", 7)
    remote = (AcademyRemoteError, academy.exception.AcademyRemoteError)
    with pytest.raises(remote, match="OutOfTuneError"):
        await pair.json_handle.fail("flat")


async def test_an_unknown_action_is_an_attribute_error(pair: Pair) -> None:
    with pytest.raises(AttributeError, match='does not have an action named "no_such_action"'):
        await pair.handle.no_such_action()
    remote = (AcademyRemoteError, academy.exception.AcademyRemoteError)
    with pytest.raises(remote, match='does not have an action named "no_such_action"'):
        await pair.json_handle.no_such_action()
    with pytest.raises(TypeError, match="echo"):
        await pair.handle.echo()


async def test_cancelling_the_call_cancels_the_action(pair: Pair) -> None:
    await pair.handle.ping()
    call = asyncio.create_task(pair.handle.sleep(30))
    await asyncio.sleep(0.2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(5):
        while pair.agent.cancelled < 1:  # noqa: ASYNC110 - the agent has no event for it
            await asyncio.sleep(0.02)
    assert await pair.handle.add(1) == 1


@pytest.mark.parametrize(("terminate", "status"), SHUTDOWNS)
async def test_a_shutdown_ends_the_agent(pair: Pair, terminate: bool | None, status: str) -> None:
    await pair.handle.ping()
    await pair.handle.shutdown(terminate=terminate)
    await asyncio.wait_for(pair.running, 5)
    assert await pair.status() == status


async def test_a_terminated_agent_is_told_of(pair: Pair) -> None:
    await pair.handle.shutdown(terminate=True)
    await asyncio.wait_for(pair.running, 5)
    terminated = (academy_hpc.AgentTerminatedError, academy.exception.AgentTerminatedError)
    with pytest.raises(terminated):
        await pair.handle.add(1)


async def test_large_results_pass(pair: Pair) -> None:
    assert await pair.handle.repeat("x", 350_000) == "x" * 350_000
    assert await pair.json_handle.repeat("é", 70_000) == "é" * 70_000


async def test_what_their_reader_can_not_read_is_told_to_the_caller(
    exchange, theirs, they, we, run_theirs: Running, run_ours: Running
) -> None:
    """Our exchange takes larger messages than theirs. One that would end their reader is answered with an error."""
    ours, their = await we.register_agent(OurAgent), await they.register_agent(TheirAgent)
    async with (
        run_ours(OurAgent(), exchange.factory, ours),
        run_theirs(TheirAgent(), theirs, their),
        asyncio.timeout(20),
    ):
        to_ours = TheirHandle(TheirAgentId(uid=ours.agent_id.uid), exchange=they, ignore_context=True)
        to_theirs: Handle[Any] = Handle(academy_hpc.AgentId(their.agent_id.uid), exchange=we, ignore_context=True)
        for size in (600_000, 5_000_000):
            with pytest.raises(academy.exception.AcademyRemoteError, match="larger than limit"):
                await to_ours.repeat("x", size)
            with pytest.raises(academy_hpc.MessageTooLargeError):
                await to_theirs.echo("x" * size)
            assert await Handle(ours.agent_id, exchange=we).repeat("x", size) == "x" * size
        # Both still listen.
        assert [await to_ours.add(1), await to_theirs.add(1)] == [1, 1]
        assert (await we.agent_stats(to_theirs.agent_id)).in_progress == 0


# What the answers look like


@pytest.fixture(params=["ours", "theirs"])
async def answering(
    request: pytest.FixtureRequest, exchange, theirs, they, we, run_theirs: Running, run_ours: Running
) -> Any:
    """An agent of either package, with which `we` exchange single messages."""
    if request.param == "ours":
        registration = await we.register_agent(OurAgent)
        run = run_ours(OurAgent(), exchange.factory, registration)
    else:
        registration = await they.register_agent(TheirAgent)
        run = run_theirs(TheirAgent(), theirs, registration)
    async with run:
        agent_id = academy_hpc.AgentId(registration.agent_id.uid)
        await Handle(agent_id, exchange=we).ping()
        yield agent_id


async def answer_to(we: Any, dest: Any, body: Body, *, tag: uuid.UUID | None = None) -> tuple[Message, Message]:
    content = Message.create(we.client_id, dest, body, label=uuid.uuid4(), tag=tag)
    future = we.expect(content.tag)
    await we.send(content)
    return content, await asyncio.wait_for(future, 5)


def action(name: str, *args: Any, result: Any = None, exception: Any = None) -> ActionRequest:
    return ActionRequest(name, json.dumps(args), "{}", "json", result, exception)


async def test_every_kind_of_request_is_answered_alike_by_both(answering: Any, we: Any) -> None:
    """Kind, format and header of each answer, whoever gives it."""
    nothing = CancelRequest(uuid.uuid4())
    cases: list[tuple[Body, type, str | int | None]] = [
        (PingRequest(), SuccessResponse, None),
        (action("echo", 1), ActionResponse, "json"),
        (action("echo", 1, result="pickle"), ActionResponse, "pickle"),
        (action("fail", "x"), UserErrorResponse, "json"),
        (action("fail", "x", result="pickle"), UserErrorResponse, "pickle"),
        (action("fail", "x", result="pickle", exception="json"), UserErrorResponse, "json"),
        (action("no_such_action", exception="pickle"), UserErrorResponse, "pickle"),
        (nothing, AcademyErrorResponse, 2),
        (ShutdownRequest(False), SuccessResponse, None),
    ]
    for body, kind, detail in cases:
        sent, received = await answer_to(we, answering, body)
        answer = received.decoded()
        assert type(answer) is kind, body
        assert getattr(answer, "serialization", getattr(answer, "error_code", None)) == detail, body
        header = received.header
        assert (header.src, header.dest, header.label) == (answering, we.client_id, sent.header.label)
        assert (header.kind, header.protocol_version, header.academy_version) == ("response", "1.1", "1.0.0")
        if isinstance(answer, ActionResponse):
            assert answer.result[0] == "__serialized__"
        if isinstance(answer, UserErrorResponse) and answer.serialization == "json":
            exception = json.loads(answer.exception)
            assert exception["__exception__"] is True
            assert "Traceback" in exception["exception_str"]


async def test_a_cancelled_action_is_answered_with_error_three(answering: Any, we: Any) -> None:
    tag = uuid.uuid4()
    running = asyncio.create_task(answer_to(we, answering, action("sleep", 30), tag=tag))
    await asyncio.sleep(0.2)
    _, cancelled = await answer_to(we, answering, CancelRequest(tag))
    assert isinstance(cancelled.decoded(), SuccessResponse)
    _, received = await running
    assert received.decoded() == AcademyErrorResponse(3)


async def test_a_request_to_a_user_is_answered_with_error_four(they: Any, we: Any, exchange: Any) -> None:
    async with await exchange.factory.create_user_client() as other:
        for user in (academy_hpc.UserId(they.client_id.uid), other.client_id):
            _, received = await answer_to(we, user, PingRequest())
            answer = received.decoded()
            assert isinstance(answer, AcademyErrorResponse)
            assert (answer.error_code, answer.mailbox_id) == (4, user)


@pytest.mark.parametrize(
    ("version", "compatible"),
    [("1", True), ("1.0", True), ("1.7", True), ("2.0", False), ("1.1+fork", False), (None, False)],
)
async def test_both_take_the_same_versions_for_compatible(
    version: str | None, compatible: bool, answering: Any, we: Any
) -> None:
    import msgspec

    content = Message.create(we.client_id, answering, PingRequest())
    future = we.expect(content.tag)
    await we.send(Message(msgspec.structs.replace(content.header, protocol_version=version), content.body))
    answer = (await asyncio.wait_for(future, 5)).decoded()
    if compatible:
        assert isinstance(answer, SuccessResponse)
    else:
        assert isinstance(answer, AcademyErrorResponse)
        assert (answer.error_code, answer.mailbox_id) == (5, answering)


# Finding each other


async def test_each_discovers_the_other(they: Any, we: Any) -> None:
    ours = [(await we.register_agent(cls)).agent_id.uid for cls in (OurAgent, OurOtherAgent)]
    theirs = [(await they.register_agent(cls)).agent_id.uid for cls in (TheirAgent, TheirOtherAgent)]

    async def found(client: Any, what: Any, **options: Any) -> list[uuid.UUID]:
        return [agent_id.uid for agent_id in await client.discover(what, **options)]

    for client, base in ((they, academy.agent.Agent), (we, academy_hpc.Agent)):
        assert await found(client, base) == ours + theirs
        assert await found(client, base, allow_subclasses=False) == []
        assert await found(client, ACTIONS) == ours + theirs
        assert await found(client, "tests.interop.agents.OurAgent") == ours
        assert await found(client, "tests.interop.agents.OurAgent", allow_subclasses=False) == ours[:1]
        assert await found(client, "tests.interop.agents.TheirAgent") == theirs
    assert await found(they, OurAgent) == await found(we, OurAgent) == ours
    assert await found(we, TheirOtherAgent) == theirs[1:]


async def test_each_sees_how_the_other_is(exchange, theirs, they, we, run_theirs: Running, run_ours: Running) -> None:
    """Ours beats by listening, theirs by its heartbeats: both are active for both while they run."""
    ours, their = await we.register_agent(OurAgent), await they.register_agent(TheirAgent)
    for_us = academy_hpc.AgentId(their.agent_id.uid)
    for_them = TheirAgentId(uid=ours.agent_id.uid)
    assert await they.status(for_them) is TheirStatus.INACTIVE
    assert await we.status(for_us) is MailboxStatus.INACTIVE
    async with (
        run_ours(OurAgent(), exchange.factory, ours),
        run_theirs(TheirAgent(), theirs, their),
    ):
        await TheirHandle(for_them, exchange=they, ignore_context=True).ping()
        await Handle(for_us, exchange=we, ignore_context=True).ping()
        assert await they.status(for_them) is TheirStatus.ACTIVE
        assert await we.status(for_us) is MailboxStatus.ACTIVE
        assert (await they.agent_stats(for_them)).completed == (await we.agent_stats(for_us)).completed == 1
    assert await they.status(for_them) is TheirStatus.TERMINATED
    assert await we.status(for_us) is MailboxStatus.TERMINATED


async def test_a_pending_call_is_answered_when_the_other_side_terminates_the_agent(they: Any, we: Any) -> None:
    ours, their = await we.register_agent(OurAgent), await they.register_agent(TheirAgent)
    for_them, for_us = TheirAgentId(uid=ours.agent_id.uid), academy_hpc.AgentId(their.agent_id.uid)
    calls = [
        asyncio.create_task(TheirHandle(for_them, exchange=they, ignore_context=True).add(1)),
        asyncio.create_task(Handle(for_us, exchange=we, ignore_context=True).add(1)),
    ]
    async with asyncio.timeout(5):
        while (await we.agent_stats(ours.agent_id)).queued + (await we.agent_stats(for_us)).queued < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await we.terminate(for_us)
    await they.terminate(for_them)
    with pytest.raises(academy.exception.AgentTerminatedError):
        await asyncio.wait_for(calls[0], 5)
    with pytest.raises(academy_hpc.AgentTerminatedError):
        await asyncio.wait_for(calls[1], 5)


async def test_an_agent_of_ours_calls_one_of_theirs(
    exchange, theirs, they, we, run_theirs: Running, run_ours: Running
) -> None:
    """Our handle travels to our agent as an argument; whom it calls may be of either package."""
    ours, their = await we.register_agent(OurAgent), await they.register_agent(TheirAgent)
    async with (
        run_ours(OurAgent(), exchange.factory, ours),
        run_theirs(TheirAgent(100), theirs, their),
    ):
        handle: Handle[Any] = Handle(ours.agent_id, exchange=we, ignore_context=True)
        other: Handle[Any] = Handle(academy_hpc.AgentId(their.agent_id.uid))
        assert await handle.ask(other, 5) == 105
        back = TheirHandle(their.agent_id, exchange=they, ignore_context=True)
        assert await back.ask(TheirHandle(TheirAgentId(uid=ours.agent_id.uid)), 7) == 7
