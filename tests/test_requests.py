"""How a Runtime answers requests: odd ones, late ones, repeated ones, and those that another copy has taken over."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from typing import Any

import pytest

from academy_hpc import runtime as runtime_module
from academy_hpc.agent import Agent, RuntimeConfig, action
from academy_hpc.errors import (
    ActionInterruptedError,
    ActionInvalidStateError,
    BadRequestError,
    DeliveryFailedError,
    IncompatibleProtocolError,
    ListenerSupersededError,
)
from academy_hpc.exchange.client import AgentExchangeClient, UserExchangeClient
from academy_hpc.exchange.transport import MailboxStatus
from academy_hpc.handle import Handle
from academy_hpc.message import (
    AcademyErrorResponse,
    ActionRequest,
    ActionResponse,
    CancelRequest,
    Header,
    Message,
    PingRequest,
    SuccessResponse,
    UserErrorResponse,
    encode_body,
)
from academy_hpc.serialization import deserialize, deserialize_exception, serialize
from tests.running_agent import PATIENCE_S, running, running_user, until
from tests.waiting_agent import WaitingAgent, call

__all__: list[str] = []


# Requests


async def ask(user: UserExchangeClient, run: Any, body: Any, **header: Any) -> Any:
    """The body of the answer to a request made by hand."""
    tag = uuid.uuid4()
    answer = user.expect(tag)
    fields = {"src": user.client_id, "dest": run.registration.agent_id, "tag": tag, "kind": "request"}
    await user.send(Message(Header(**(fields | header)), body if isinstance(body, bytes) else encode_body(body)))
    async with asyncio.timeout(PATIENCE_S):
        return (await answer).decoded()


async def test_a_request_of_another_protocol_is_refused_and_one_of_ours_in_a_later_minor_served() -> None:
    async with running_user() as user, running(WaitingAgent(), user) as run:
        refused = await ask(user, run, PingRequest(), protocol_version="2.0")
        assert isinstance(refused.exception(), IncompatibleProtocolError)
        assert await ask(user, run, PingRequest(), protocol_version="1.99") == SuccessResponse()


@pytest.mark.parametrize("body", [b'{"kind": "no-such-kind"}', b"[]", encode_body(SuccessResponse())])
async def test_a_request_that_can_not_be_read_is_answered_with_an_error(body: bytes) -> None:
    async with running_user() as user, running(WaitingAgent(), user) as run:
        answer = await ask(user, run, body)
        assert isinstance(answer, UserErrorResponse)
        assert isinstance(deserialize_exception(answer.exception, answer.serialization), BadRequestError)


async def test_a_request_without_formats_is_answered_in_its_own() -> None:
    async with running_user() as user, running(WaitingAgent(), user) as run:
        body = ActionRequest("quick", serialize((), "json"), serialize({}, "json"), "json")
        answer = await ask(user, run, body)
        assert isinstance(answer, ActionResponse)
        assert (answer.serialization, deserialize(answer.result[1], "json")) == ("json", "quick")


async def test_cancelling_what_does_not_run_is_an_invalid_state() -> None:
    async with running_user() as user, running(WaitingAgent(), user) as run:
        answer = await ask(user, run, CancelRequest(uuid.uuid4()))
        assert isinstance(answer, AcademyErrorResponse)
        assert isinstance(answer.exception(), ActionInvalidStateError)


async def test_a_cancellation_while_the_answer_waits_to_be_sent_does_not_take_it_along() -> None:
    agent = WaitingAgent()
    agent.release.set()
    async with running_user() as user, running(agent, user) as run:
        client = run.runtime._requests.client
        assert client is not None
        respond, held = client.respond, asyncio.Event()
        tags: list[uuid.UUID] = []

        async def slow_respond(request: Message, *args: Any) -> None:
            if isinstance(request.decoded(), ActionRequest):
                tags.append(request.tag)
                await held.wait()
            await respond(request, *args)

        client.respond = slow_respond  # type: ignore[method-assign]
        running_call = call(run.handle, "run", 3)
        await until(lambda: tags)
        cancelled = await ask(user, run, CancelRequest(tags[0]))
        assert isinstance(cancelled.exception(), ActionInvalidStateError)
        held.set()
        async with asyncio.timeout(2):
            assert await running_call == 3


async def test_a_caller_that_is_gone_when_the_answer_comes_does_no_harm(caplog: pytest.LogCaptureFixture) -> None:
    agent = WaitingAgent()
    async with running_user() as user, running(agent, user) as run:
        other = await user.factory().create_user_client()
        calling = call(Handle(run.registration.agent_id, exchange=other, ignore_context=True), "run", 1)
        await until(lambda: agent.started)
        await user.terminate(other.client_id)
        await asyncio.gather(calling, return_exceptions=True)
        agent.release.set()
        await until(lambda: agent.ended == ["finished"])
        assert await run.handle.run(2) == 2
        await other.close()
        assert run.runtime._requests.client is not None
        assert not run.runtime._requests.client._requests
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_an_answer_waits_for_room_in_the_mailbox_of_its_caller(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(runtime_module, "FULL_PAUSE_S", 0.02)
    agent = WaitingAgent()
    agent.release.set()
    async with running_user(mailbox_messages=2, full_wait_s=0.05) as user, running(agent, user) as run:
        async with await user.factory().create_transport(name="slow reader") as caller:
            for number in range(4):
                arguments = serialize((number,), "json"), serialize({}, "json"), "json"
                body = ActionRequest("run", *arguments)
                await caller.send(Message.create(caller.mailbox_id, run.registration.agent_id, body))
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.3)  # the fourth answer is refused several times
            assert agent.started == [0, 1, 2, 3]
            results = [message.decoded().result[1] async for message in caller.listen(1)]
        assert sorted(results) == ["0", "1", "2", "3"]
        assert await run.handle.quick() == "quick"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class Delegating(Agent):
    """Does what it is asked by asking another."""

    def __init__(self, other: Handle[WaitingAgent]) -> None:
        self._other = other

    @action
    async def run(self, number: int) -> int:
        await asyncio.sleep(0.1)
        return int(await self._other.run(number))


async def test_answers_reach_an_agent_whose_mailbox_is_full_of_the_requests_that_wait_for_them() -> None:
    other = WaitingAgent()
    other.release.set()
    async with running_user(mailbox_messages=4) as user, running(other, user) as helper:
        async with running(Delegating(Handle(helper.registration.agent_id)), user) as run, asyncio.timeout(PATIENCE_S):
            calls = [run.handle.run(number) for number in range(12)]  # most of them wait for room
            assert await asyncio.gather(*calls) == list(range(12))


# Again


async def take(user: UserExchangeClient, registration: Any, *, requests: int) -> AgentExchangeClient:
    """Be an agent that takes that many requests, and does not answer."""
    got: list[Message] = []

    async def keep(request: Message) -> None:
        got.append(request)

    client = await user.factory().create_agent_client(registration, keep)
    await until(lambda: len(got) == requests)
    return client


async def test_a_request_that_was_not_answered_is_run_again_unless_declared_otherwise() -> None:
    agent = WaitingAgent()
    agent.release.set()
    async with running_user() as user:
        registration = await user.register_agent(WaitingAgent)
        handle: Handle[WaitingAgent] = Handle(registration.agent_id)
        again, once = call(handle, "run", 1), call(handle, "run_once", 2)
        await (await take(user, registration, requests=2)).close()
        async with running(agent, user, registration=registration):
            assert await again == 1
            with pytest.raises(ActionInterruptedError, match="'run_once' was interrupted") as caught:
                await once
            assert caught.value.action == "run_once"
            assert await handle.run_once(3) == 3  # a new request is a new try
    assert agent.started == [1, 3]


async def test_a_request_that_kills_its_agent_each_time_is_given_up() -> None:
    """Agents that end in order, as at their walltime, have not died of it."""
    async with running_user(max_attempts=3) as user, contextlib.AsyncExitStack() as dead:
        registration = await user.register_agent(WaitingAgent)
        deadly = call(Handle(registration.agent_id), "run", 1)
        for _ in range(5):
            await (await take(user, registration, requests=1)).close()
        for _ in range(3):  # the next one comes before they could say good-bye
            dead.push_async_callback((await take(user, registration, requests=1)).close)
        async with running(WaitingAgent(), user, registration=registration) as run:
            with pytest.raises(DeliveryFailedError) as caught:
                await deadly
            assert caught.value.attempts == 8
            assert await run.handle.quick() == "quick"


async def test_of_two_copies_of_an_agent_the_older_ends_and_each_request_is_run_once() -> None:
    older, newer = WaitingAgent(), WaitingAgent()
    older.release.set()
    newer.release.set()
    config = RuntimeConfig(cancel_actions_on_shutdown=False)
    async with running_user() as user, running(older, user, config=config) as first:
        before = await asyncio.gather(*(first.handle.run(number) for number in range(50)))
        older.release.clear()
        under_way = [call(first.handle, "run", number) for number in range(50, 60)]
        await until(lambda: len(older.started) == 60)
        async with running(newer, user, registration=first.registration):
            with pytest.raises(ListenerSupersededError):
                await first.ended()
            after = await asyncio.gather(*(first.handle.run(number) for number in range(60, 100)))
            assert before + await asyncio.gather(*under_way) + after == list(range(100))
        assert older.started == list(range(60))
        assert older.ended == ["finished"] * 50 + ["cancelled"] * 10
        assert newer.started == list(range(50, 100))
        assert older.shut_down


async def test_a_copy_that_is_ending_when_the_next_takes_over_does_not_terminate_its_mailbox() -> None:
    older, newer = WaitingAgent(), WaitingAgent()
    config = RuntimeConfig(cancel_actions_on_shutdown=False)
    async with running_user() as user, running(older, user, config=config) as first:
        under_way = call(first.handle, "run", 1)
        await until(lambda: older.started)
        await first.handle.shutdown(terminate=True)
        async with running(newer, user, registration=first.registration) as second:
            await first.ended()
            assert older.ended == ["cancelled"]
            newer.release.set()
            assert await under_way == 1
            assert await second.handle.agent_status() is MailboxStatus.ACTIVE


async def test_a_late_answer_of_a_superseded_copy_does_no_harm() -> None:
    class Stubborn(WaitingAgent):
        @action
        async def run(self, number: int = 0) -> int:
            self.started.append(number)
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0.02)
            return number

    older, newer = Stubborn(), WaitingAgent()
    async with running_user() as user, running(older, user) as first:
        under_way = call(first.handle, "run", 4)
        await until(lambda: older.started)
        async with running(newer, user, registration=first.registration) as second:
            with pytest.raises(ListenerSupersededError):
                await first.ended()
            assert await under_way == 4
            newer.release.set()
            assert await second.handle.run(5) == 5
