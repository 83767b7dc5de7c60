"""Clients: what they do with what arrives, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from academy_hpc.agent import Agent, action
from academy_hpc.errors import (
    AgentTerminatedError,
    BadEntityIdError,
    BadRequestError,
    ExchangeUnavailableError,
    InvalidClientError,
    MailboxTerminatedError,
    MessageTooLargeError,
    UserTerminatedError,
)
from academy_hpc.exchange.client import AgentExchangeClient, ExchangeClient, UserExchangeClient, current_client
from academy_hpc.exchange.http.client import HttpAgentRegistration, HttpExchangeFactory
from academy_hpc.exchange.transport import MailboxStatus
from academy_hpc.handle import Handle
from academy_hpc.identifiers import AgentId
from academy_hpc.message import ActionRequest, ActionResponse, Message, PingRequest, SuccessResponse
from academy_hpc.runtime import Runtime
from tests.exchange_server import RunningExchange
from tests.running_agent import running, running_user, until

__all__: list[str] = []


class Sleeper(Agent):
    def __init__(self) -> None:
        self.log: list[str] = []
        self.release = asyncio.Event()

    @action
    async def sleep(self) -> str:
        self.log.append("asleep")
        await self.release.wait()
        self.log.append("awake")
        return "slept"


class OtherSleeper(Sleeper): ...


@contextlib.asynccontextmanager
async def agent_client(
    user: UserExchangeClient, registration: Any, *, answer: bool
) -> AsyncIterator[AgentExchangeClient]:
    """An agent's client by hand, which answers everything with success, or nothing at all."""

    async def handle(request: Message) -> None:
        if answer:
            await client.send(request.create_response(SuccessResponse()))

    client = await user.factory().create_agent_client(registration, handle)
    async with client:
        yield client


# What a user can do


async def test_agents_are_discovered_by_class_or_full_name_in_order_with_their_names() -> None:
    async with running_user() as user:
        made = [await user.register_agent(cls, name=name) for cls, name in [(Sleeper, "a"), (OtherSleeper, "b")]]
        a, b = (registration.agent_id for registration in made)
        found = await user.discover(Sleeper)
        assert (found, [item.name for item in found]) == ((a, b), ["a", "b"])
        assert all(isinstance(item, AgentId) for item in found)
        assert await user.discover(Sleeper, allow_subclasses=False) == (a,)
        assert await user.discover(f"{__name__}.OtherSleeper") == (b,)
        assert await user.discover(Agent) == (a, b)
        await user.terminate(a)
        assert await user.discover(Agent) == (b,)


async def test_many_agents_are_registered_in_the_order_given() -> None:
    async with running_user() as user:
        made = await user.register_agents([(Sleeper, str(number)) for number in range(100)])
        found = await user.discover(Sleeper)
        assert [registration.agent_id for registration in made] == list(found)
        assert [item.name for item in found] == [str(number) for number in range(100)]


async def test_the_status_tells_the_states_of_a_mailbox_apart() -> None:
    async with running_user() as user:
        registration = await user.register_agent(Sleeper)
        uid = registration.agent_id
        assert await user.status(AgentId.new("x")) is MailboxStatus.MISSING
        assert await user.status(uid) is MailboxStatus.INACTIVE
        assert await user.heartbeat_status(uid) is None
        async with agent_client(user, registration, answer=True) as client:
            assert await user.status(uid) is MailboxStatus.ACTIVE
            assert await user.heartbeat_status(uid) == 0
            await client.update_heartbeat()
        await user.terminate(uid)
        assert await user.status(uid) is MailboxStatus.TERMINATED
        with pytest.raises(MailboxTerminatedError):
            await user.heartbeat_status(uid)


async def test_an_agent_client_needs_an_agent_that_is_registered_and_alive() -> None:
    async def handle(request: Message) -> None: ...

    async with running_user() as user:
        unknown: HttpAgentRegistration[Any] = HttpAgentRegistration(AgentId.new("nobody"))
        with pytest.raises(BadEntityIdError, match="nobody"):
            await user.factory().create_agent_client(unknown, handle)
        registration = await user.register_agent(Sleeper)
        await user.terminate(registration.agent_id)
        with pytest.raises(BadEntityIdError) as caught:
            await user.factory().create_agent_client(registration, handle)
        assert isinstance(caught.value.__cause__, AgentTerminatedError)


async def test_a_user_answers_requests_with_an_error() -> None:
    async with running_user() as user, await user.factory().create_user_client(name="other") as other:
        answer = await user.request(other.client_id, PingRequest(), tag=uuid.uuid4())
        error = answer.decoded().exception()  # type: ignore[union-attr]
        assert isinstance(error, InvalidClientError)
        assert error.args == (other.client_id,)


async def test_the_text_of_a_client_tells_its_entity_and_no_secret(exchange: RunningExchange) -> None:
    async with await exchange.factory.create_user_client(name="me") as client:
        assert str(client.client_id) in repr(client)
        for item in (client, client.factory(), client._transport):
            assert "Bearer" not in repr(item)
            assert "good-for-tests" not in repr(item)


# What refuses to travel


async def test_what_holds_a_connection_can_not_be_pickled_and_says_what_can() -> None:
    async with running_user() as user:
        registration = await user.register_agent(Sleeper)
        runtime = Runtime(Sleeper(), exchange_factory=user.factory(), registration=registration)
        async with agent_client(user, registration, answer=True) as client:
            for item in (user, client, user._transport, runtime):
                with pytest.raises(TypeError, match=r"can't be pickled.*connection_info"):
                    pickle.dumps(item)


async def test_a_factory_and_a_registration_travel_as_pickle_and_as_text() -> None:
    async with running_user() as user:
        registration = await user.register_agent(Sleeper, name="travels")
        twin = pickle.loads(pickle.dumps(registration))  # noqa: S301 - our own bytes
        assert twin == registration == type(registration).from_json(registration.to_json())
        assert twin.agent_id.name == "travels"
        factory = pickle.loads(pickle.dumps(user.factory()))  # noqa: S301 - our own bytes
        assert isinstance(factory, HttpExchangeFactory)
        async with await factory.create_user_client() as other:
            assert await other.discover(Sleeper) == (registration.agent_id,)


# What arrives


async def test_a_repeated_answer_is_noted_at_debug_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "academy_hpc.exchange.client")
    async with running_user() as user, await user.factory().create_user_client() as other:
        tag = uuid.uuid4()
        expected = user.expect(tag)
        for _ in range(3):
            await other.send(Message.create(other.client_id, user.client_id, SuccessResponse(), tag=tag))
        assert (await expected).tag == tag
        stray = uuid.uuid4()
        await other.send(Message.create(other.client_id, user.client_id, SuccessResponse(), tag=stray))
        await until(lambda: str(stray) in caplog.text)
        dropped = [record for record in caplog.records if "dropped" in record.message]
        assert [record.levelno for record in dropped] == [logging.DEBUG]  # the exchange had dropped the repeats itself
        await until(lambda: not user._transport._channel._link._held)  # type: ignore[attr-defined]


async def test_an_answer_that_can_not_come_is_not_waited_for() -> None:
    async with running_user() as user, await user.factory().create_user_client() as other:
        await other.terminate(user.client_id)
        await user.wait_ended()
        with pytest.raises(UserTerminatedError):
            user.expect(uuid.uuid4())


async def test_an_answer_that_was_refused_and_is_sent_again_acknowledges_its_request() -> None:
    async with running_user() as user, await user.factory().create_user_client(start_listener=False) as full:
        registration = await user.register_agent(Sleeper)
        received: asyncio.Queue[Message] = asyncio.Queue()
        async with await user.factory().create_agent_client(registration, received.put) as agent:
            await full.send(Message.create(full.client_id, agent.client_id, PingRequest()))
            request = await received.get()
            with pytest.raises(MessageTooLargeError):
                await agent.send(request.create_response(ActionResponse(("", "x" * (64 << 20)), "json")))
            await agent.send(request.create_response(SuccessResponse()))
            assert not agent._requests
            await until(lambda: not agent._transport._channel._link._held)  # type: ignore[attr-defined]


async def test_an_expected_answer_that_nobody_wants_any_more_is_forgotten() -> None:
    async with running_user() as user:
        expected = user.expect(uuid.uuid4())
        expected.cancel()
        await asyncio.sleep(0)
        assert not user._pending


async def test_a_handler_that_fails_is_logged_and_its_request_stays(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: Message) -> None:
        raise LookupError("in the handler")

    async with running_user() as user:
        registration = await user.register_agent(Sleeper)
        handle: Handle[Sleeper] = Handle(registration.agent_id, exchange=user, ignore_context=True)
        async with await user.factory().create_agent_client(registration, fail):
            asking = asyncio.create_task(handle.ping())
            await until(lambda: "in the handler" in caplog.text)
            assert not asking.done()
        async with agent_client(user, registration, answer=True):
            await asking


# The context


async def test_inside_a_client_it_is_the_current_one() -> None:
    async with running_user() as user:
        assert current_client() is user
        async with await user.factory().create_user_client() as other:
            assert current_client() is other
        assert current_client() is user
    assert current_client() is None


async def test_a_client_that_is_left_in_another_context_than_entered_is_closed_all_the_same() -> None:
    """As happens to an asynchronous generator that is not exhausted."""
    async with running_user() as user:
        other = await user.factory().create_user_client()
        await asyncio.create_task(other.__aenter__())
        await asyncio.create_task(other.__aexit__(None, None, None))
        with pytest.raises(ExchangeUnavailableError, match="closed"):
            await other.discover(Agent)
        assert await user.status(other.client_id) is MailboxStatus.TERMINATED


async def test_handlers_see_their_own_client_whoever_opened_the_connection() -> None:
    seen: list[ExchangeClient | None] = []

    async def handle(request: Message) -> None:
        seen.append(current_client())

    async with running_user() as user:
        made = [await user.register_agent(Sleeper) for _ in range(2)]
        clients = [await user.factory().create_agent_client(registration, handle) for registration in made]
        for registration in made:
            await user.send(Message.create(user.client_id, registration.agent_id, PingRequest()))
        await until(lambda: len(seen) == 2)
        assert seen == clients
        for client in clients:
            await client.close()


# Ending


async def test_a_user_that_leaves_takes_its_mailbox_along_and_an_agent_does_not() -> None:
    async with running_user() as user:
        other = await user.factory().create_user_client()
        await other.close()
        await other.close()
        assert await user.status(other.client_id) is MailboxStatus.TERMINATED
        registration = await user.register_agent(Sleeper)
        async with agent_client(user, registration, answer=True):
            pass
        assert await user.status(registration.agent_id) is not MailboxStatus.TERMINATED


async def test_a_user_that_leaves_with_calls_under_way_ends_them_and_the_agent_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sleeper = Sleeper()
    async with running_user() as user, running(sleeper, user) as agent:
        other = await user.factory().create_user_client()
        handle: Handle[Sleeper] = Handle(agent.registration.agent_id, exchange=other, ignore_context=True)
        calls = [asyncio.create_task(handle.sleep()) for _ in range(20)]
        await until(lambda: len(sleeper.log) == 20)
        await other.close()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, ExchangeUnavailableError)
            assert "client was closed" in str(outcome)
        sleeper.release.set()
        await until(lambda: sleeper.log.count("awake") == 20)
        assert await agent.handle.sleep() == "slept"
        assert not agent.runtime._requests.client._requests  # type: ignore[union-attr]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_user_that_is_terminated_by_somebody_else_is_told() -> None:
    async with running_user() as user, running(Sleeper(), user) as agent:
        other = await user.factory().create_user_client()
        handle: Handle[Sleeper] = Handle(agent.registration.agent_id, exchange=other, ignore_context=True)
        call = asyncio.create_task(handle.sleep())
        await asyncio.sleep(0.02)
        await user.terminate(other.client_id)
        assert isinstance(await other.wait_ended(), UserTerminatedError)
        for waiting in (call, handle.sleep()):
            with pytest.raises(UserTerminatedError):
                await waiting
        await other.close()


async def test_nothing_works_after_closing_and_nothing_waits() -> None:
    async with running_user() as user:
        registration = await user.register_agent(Sleeper)
        other = await user.factory().create_user_client()
        await other.close()
        uid = registration.agent_id
        ping = Message.create(other.client_id, uid, PingRequest())
        async with asyncio.timeout(2):
            for use in (
                other.request(uid, PingRequest(), tag=uuid.uuid4()),
                other.send(ping),
                other.discover(Agent),
                other.register_agent(Agent),
                other.status(uid),
                other.terminate(uid),
                other.agent_stats(uid),
                other.heartbeat_status(uid),
                other.update_heartbeat(),
            ):
                with pytest.raises(ExchangeUnavailableError, match="client was closed"):
                    await use
        other.cast(uid, PingRequest())
        assert await user.status(uid) is MailboxStatus.INACTIVE


async def test_a_client_that_does_not_listen_sends_and_refuses_to_wait_for_an_answer() -> None:
    async with running_user() as user, await user.factory().create_user_client(start_listener=False) as deaf:
        registration = await user.register_agent(Sleeper)
        await deaf.send(Message.create(deaf.client_id, registration.agent_id, PingRequest()))
        assert await deaf.discover(Sleeper) == (registration.agent_id,)
        with pytest.raises(BadRequestError, match="start_listener=True"):
            await Handle(registration.agent_id).ping()


async def test_closing_sends_what_was_cast_and_cancels_handlers() -> None:
    got: list[str] = []
    cancelled: list[str] = []

    async def take(request: Message) -> None:
        body = request.decoded()
        got.append(body.action if isinstance(body, ActionRequest) else "")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(got[-1])
            raise

    async with running_user() as user:
        registration = await user.register_agent(Sleeper)
        client = await user.factory().create_agent_client(registration, take)
        other = await user.factory().create_user_client()
        for number in range(20):
            other.cast(registration.agent_id, ActionRequest(str(number), "", ""))
        await other.close()
        await until(lambda: len(got) == 20)
        await client.close()
        assert len(cancelled) == 20


async def test_an_agent_client_that_closes_sends_what_was_cast_before(
    exchange: RunningExchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last client on a connection, which goes with it."""
    got: list[Message] = []

    async def take(request: Message) -> None:
        got.append(request)

    async with await exchange.factory.create_user_client() as user:
        one, two = await user.register_agents([(Sleeper, None), (Sleeper, None)])
        alone = exchange.factory_at(exchange.port, reconnect_s=1.0)  # other options, so a connection of its own
        receiver = await user.factory().create_agent_client(one, take)
        async with await alone.create_agent_client(two, take) as sender:
            post = sender._transport.post

            async def wait_and_post(*arguments: Any) -> None:  # as when there is no room yet
                await asyncio.sleep(0.05)
                await post(*arguments)

            monkeypatch.setattr(sender._transport, "post", wait_and_post)
            sender.cast(one.agent_id, PingRequest())
        await until(lambda: got)
        await receiver.close()
        assert got[0].src == two.agent_id
        with pytest.raises(ExchangeUnavailableError, match="client was closed"):
            await sender.request(one.agent_id, PingRequest(), tag=uuid.uuid4())


async def test_a_cast_to_nobody_is_noted_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "academy_hpc.exchange.client")
    async with running_user() as user:
        user.cast(AgentId.new("nobody"), PingRequest())
        await until(lambda: "was not sent" in caplog.text)
    assert all(record.levelno == logging.DEBUG for record in caplog.records)


async def test_when_the_exchange_ends_calls_casts_and_closing_do_not_wait(caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(5):
        async with running_user() as user:
            registration = await user.register_agent(Sleeper)
            other = await user.factory().create_user_client()
            handle: Handle[Sleeper] = Handle(registration.agent_id, exchange=other, ignore_context=True)
            call = asyncio.create_task(handle.sleep())
            await asyncio.sleep(0.02)
        with pytest.raises(ExchangeUnavailableError):
            await call
        with pytest.raises(ExchangeUnavailableError):
            await handle.sleep()
        other.cast(registration.agent_id, PingRequest())
        await other.close()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
