"""Calling an agent: what goes there, what comes back, and how to stop waiting for it."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
from typing import Any

import pytest

from academy_hpc.agent import Agent, RuntimeConfig, action
from academy_hpc.errors import (
    ActionCancelledError,
    AgentTerminatedError,
    BadEntityIdError,
    ExchangeClientNotFoundError,
    ExchangeUnavailableError,
)
from academy_hpc.exchange.transport import MailboxStatus
from academy_hpc.handle import Handle
from academy_hpc.identifiers import AgentId
from tests.running_agent import running, running_user, until

__all__: list[str] = []


class Worker(Agent):
    def __init__(self) -> None:
        self.log: list[str] = []
        self.started = 0
        self.release = asyncio.Event()
        self.lock = asyncio.Lock()

    @action
    async def echo(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    @action
    async def give(self, value: Any) -> Any:
        return value

    @action
    async def nothing(self) -> None: ...

    @action
    async def fail_deeply(self) -> None:
        try:
            {}["missing"]
        except KeyError as error:
            raise LookupError("from below") from error

    @action
    async def wait(self) -> str:
        self.started += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.log.append("cancelled")
            raise
        return "released"

    @action
    async def wait_stubbornly(self) -> str:
        self.started += 1
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.log.append("ignored")
        return "went on"

    @action
    async def in_turn(self) -> None:
        self.started += 1
        async with self.lock:
            self.log.append("in turn")
            await self.release.wait()

    @action
    async def await_something_cancelled(self) -> None:
        inner = asyncio.ensure_future(asyncio.sleep(60))
        inner.cancel()
        await inner


# Calling


async def test_an_action_is_called_as_an_attribute_or_by_its_name() -> None:
    async with running_user() as user, running(Worker(), user) as agent:
        assert await agent.handle.echo(1, "two", three=[3]) == ((1, "two"), {"three": [3]})
        assert await agent.handle.action("echo", 1, name="self") == ((1,), {"name": "self"})
        assert await agent.handle.nothing() is None
        assert agent.handle.echo.__name__ == "echo"


async def test_calls_run_side_by_side() -> None:
    worker = Worker()
    async with running_user() as user, running(worker, user) as agent:
        waiting = [asyncio.create_task(agent.handle.wait()) for _ in range(50)]
        await until(lambda: worker.started == 50)
        worker.release.set()
        assert await asyncio.gather(*waiting) == ["released"] * 50


async def test_calls_of_one_caller_start_in_order() -> None:
    seen: list[int] = []

    class Numbers(Agent):
        @action
        async def note(self, number: int) -> None:
            seen.append(number)

    async with running_user() as user, running(Numbers(), user) as agent:
        await asyncio.gather(*(agent.handle.note(number) for number in range(500)))
    assert seen == list(range(500))


async def test_an_unknown_action_is_an_attribute_error_that_names_it() -> None:
    async with running_user() as user, running(Worker(), user) as agent:
        with pytest.raises(AttributeError, match=r'Agent<Worker> does not have an action named "ecco"'):
            await agent.handle.ecco()
        with pytest.raises(AttributeError, match="agent_on_startup"):
            await agent.handle.agent_on_startup()


async def test_wrong_arguments_are_a_type_error_of_the_caller() -> None:
    async with running_user() as user, running(Worker(), user) as agent:
        with pytest.raises(TypeError, match="takes 2 positional arguments"):
            await agent.handle.give(1, 2)


async def test_ping_is_the_time_of_a_round_trip_and_status_and_counters_can_be_asked_for() -> None:
    async with running_user() as user, running(Worker(), user) as agent:
        assert 0 < await agent.handle.ping(timeout=5) < 5
        await agent.handle.nothing()
        assert await agent.handle.agent_status() is MailboxStatus.ACTIVE
        counters = await agent.handle.agent_stats()
        assert (counters.incoming, counters.completed) == (2, 2)


async def test_ping_times_out_where_nobody_listens() -> None:
    async with running_user() as user:
        handle: Handle[Worker] = Handle((await user.register_agent(Worker)).agent_id)
        with pytest.raises(TimeoutError):
            await handle.ping(timeout=0.05)
        with pytest.raises(TimeoutError):
            await handle.with_timeout(0.05).shutdown()


@pytest.mark.parametrize(
    ("terminate", "configured", "status"),
    [
        (True, False, MailboxStatus.TERMINATED),
        (False, True, MailboxStatus.ACTIVE),
        (None, True, MailboxStatus.TERMINATED),
        (None, False, MailboxStatus.ACTIVE),
    ],
)
async def test_shutdown_ends_the_agent_and_its_mailbox_if_wished(
    terminate: bool | None, configured: bool, status: MailboxStatus
) -> None:
    config = RuntimeConfig(terminate_on_success=configured)
    async with running_user() as user, running(Worker(), user, config=config) as agent:
        await agent.handle.shutdown(terminate=terminate)
        await agent.ended()
        assert await agent.handle.agent_status() is status


async def test_an_agent_that_is_not_there_is_an_error_at_once() -> None:
    async with running_user() as user:
        with pytest.raises(BadEntityIdError):
            await Handle(AgentId.new("nobody")).anything()
        registration = await user.register_agent(Worker)
        await user.terminate(registration.agent_id)
        with pytest.raises(AgentTerminatedError):
            await Handle(registration.agent_id).anything()


async def test_a_call_under_way_fails_when_its_agent_is_terminated() -> None:
    async with running_user() as user:
        registration = await user.register_agent(Worker)
        waiting = asyncio.create_task(Handle(registration.agent_id).wait())
        await asyncio.sleep(0.02)
        await user.terminate(registration.agent_id)
        with pytest.raises(AgentTerminatedError):
            await waiting


# Not waiting any longer


async def cancelled_by_task(handle: Handle[Worker], worker: Worker) -> None:
    task = asyncio.create_task(handle.wait())
    await until(lambda: worker.started)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def cancelled_by_timeout(handle: Handle[Worker], worker: Worker) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await handle.wait()


async def cancelled_by_with_timeout(handle: Handle[Worker], worker: Worker) -> None:
    with pytest.raises(TimeoutError):
        await handle.with_timeout(0.1).wait()


async def cancelled_by_timeout_of_handle(handle: Handle[Worker], worker: Worker) -> None:
    with pytest.raises(TimeoutError):
        await Handle(handle.agent_id, timeout=0.1).wait()


async def cancelled_by_task_group(handle: Handle[Worker], worker: Worker) -> None:
    async def fail() -> None:
        await until(lambda: worker.started)
        raise KeyError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(handle.wait())
            group.create_task(fail())


@pytest.mark.parametrize(
    "give_up",
    [
        cancelled_by_task,
        cancelled_by_timeout,
        cancelled_by_with_timeout,
        cancelled_by_timeout_of_handle,
        cancelled_by_task_group,
    ],
)
async def test_giving_up_a_call_cancels_the_action(give_up: Any) -> None:
    worker = Worker()
    async with running_user() as user, running(worker, user) as agent:
        await give_up(agent.handle, worker)
        await until(lambda: worker.log)
        assert worker.log == ["cancelled"]
        assert worker.started == 1
        assert await agent.handle.give("still here") == "still here"
        assert not user._pending


async def test_a_timeout_cancels_the_action_even_if_the_client_is_closed_right_after() -> None:
    worker = Worker()
    async with running_user() as user, running(worker, user) as agent:
        other = await user.factory().create_user_client()
        with pytest.raises(TimeoutError):
            async with other:
                await Handle(agent.handle.agent_id, timeout=0.1).wait()
        await until(lambda: worker.log)
        assert worker.log == ["cancelled"]


async def test_giving_up_a_call_that_waits_its_turn_keeps_it_from_running() -> None:
    worker = Worker()
    async with running_user() as user, running(worker, user) as agent:
        first = asyncio.create_task(agent.handle.in_turn())
        await until(lambda: worker.log)
        with pytest.raises(TimeoutError):
            await agent.handle.with_timeout(0.05).in_turn()
        await agent.handle.ping()  # the cancellation came before
        worker.release.set()
        await first
        await agent.handle.ping()
        assert (worker.started, worker.log) == (2, ["in turn"])


async def test_a_late_answer_is_noted_at_debug_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker()
    caplog.set_level(logging.DEBUG, "academy_hpc")
    async with running_user() as user, running(worker, user) as agent:
        with pytest.raises(TimeoutError):
            await agent.handle.with_timeout(0.05).wait_stubbornly()
        await until(lambda: "dropped a late" in caplog.text)
        assert worker.log == ["ignored"]
        assert await agent.handle.give(1) == 1
    assert all(record.levelno == logging.DEBUG for record in caplog.records if "dropped a late" in record.message)


async def test_an_action_that_is_cancelled_from_inside_is_told_as_such() -> None:
    """Something that the action awaits was cancelled; nobody cancelled the action itself."""
    async with running_user() as user, running(Worker(), user) as agent:
        with pytest.raises(ActionCancelledError):
            await agent.handle.with_timeout(5).await_something_cancelled()


# Where the exchange comes from


def _pickled(handle: Handle[Any]) -> Handle[Any]:
    twin = pickle.loads(pickle.dumps(handle))  # noqa: S301 - our own bytes
    assert isinstance(twin, Handle)
    return twin


async def test_a_handle_finds_the_exchange_around_it_and_says_so_when_there_is_none() -> None:
    async with running_user() as user, running(Worker(), user) as agent:
        other = await user.factory().create_user_client()
        handle: Handle[Worker] = Handle(agent.handle.agent_id)
        assert handle.exchange is user
        async with other:
            assert handle.exchange is other
            assert agent.handle.exchange is other
            assert Handle(handle.agent_id, exchange=user, ignore_context=True).exchange is user
            assert await handle.give(1) == 1
        assert handle.exchange is user
    with pytest.raises(ExchangeClientNotFoundError, match="inside `async with` of a client or give it `exchange=`"):
        await handle.give(1)


async def test_a_copy_speaks_through_the_same_exchange_and_a_pickle_through_any() -> None:
    async with running_user() as user, running(Worker(), user) as agent:
        handle: Handle[Worker] = Handle(agent.handle.agent_id, exchange=user, ignore_context=True, timeout=7)
        assert copy.copy(handle) == handle
        assert copy.copy(handle).exchange is user
        assert handle.with_timeout(1).exchange is user
        for twin in (_pickled(handle), copy.deepcopy(handle)):
            assert (twin, hash(twin), twin._timeout) == (handle, hash(handle), 7)
            assert twin._exchange is None
            assert twin.agent_id.name == handle.agent_id.name
            assert await twin.give("twin") == "twin"


def test_a_handle_keeps_its_formats_when_pickled() -> None:
    handle: Handle[Worker] = Handle(
        AgentId.new("a"), request_serializer="json", result_serializer="pickle", exception_serializer="json"
    )
    twin = _pickled(handle)
    assert (twin._formats, twin._allowed) == (handle._formats, handle._allowed)
    strict: Handle[Worker] = Handle(AgentId.new("a"), allowed_deserializers={"json"})
    twin = _pickled(strict)
    assert (twin._formats, twin._allowed) == (("json", "json", None), {"json"})


async def test_a_closed_client_and_a_closed_exchange_are_errors_and_no_waiting() -> None:
    async with running_user() as user:
        registration = await user.register_agent(Worker)
        other = await user.factory().create_user_client()
        handle: Handle[Worker] = Handle(registration.agent_id, exchange=other, ignore_context=True)
        waiting = asyncio.create_task(handle.wait())
        await asyncio.sleep(0.02)
        await other.close()
        with pytest.raises(ExchangeUnavailableError, match="client was closed"):
            await waiting
        for use in (handle.wait, handle.ping, handle.shutdown, handle.agent_status, handle.agent_stats):
            with pytest.raises(ExchangeUnavailableError, match="client was closed"):
                await use()
        last: Handle[Worker] = Handle(registration.agent_id, exchange=user)
    with pytest.raises(ExchangeUnavailableError):
        await last.wait()


# Agents among themselves


class Relay(Agent):
    """Calls others, itself, and those it finds."""

    @action
    async def through(self, handle: Handle[Any], value: Any) -> Any:
        assert handle.exchange is self.agent_exchange_client
        return await handle.give(value), handle.exchange.client_id

    @action
    async def down(self, number: int) -> int:
        if not number:
            return 0
        return 1 + int(await Handle(self.agent_id).down(number - 1))

    @action
    async def find(self) -> list[Any]:
        found = await self.agent_exchange_client.discover(Worker)
        return [await Handle(agent_id).give(agent_id.name) for agent_id in found]

    @action
    async def forward_failure(self, handle: Handle[Any]) -> None:
        await handle.fail_deeply()

    @action
    async def wait_for(self, handle: Handle[Any]) -> Any:
        return await handle.wait()


async def test_a_handle_given_to_an_agent_speaks_as_that_agent() -> None:
    """However many clients share the process, and its connection."""
    async with (
        running_user() as user,
        running(Worker(), user) as worker,
        running(Relay(), user) as one,
        running(Relay(), user) as two,
    ):
        for relay in (one, two, one):
            value, speaker = await relay.handle.through(worker.handle, "value")
            assert (value, speaker) == ("value", relay.registration.agent_id)


async def test_an_agent_calls_itself() -> None:
    async with running_user() as user, running(Relay(), user) as relay:
        assert await relay.handle.down(20) == 20


async def test_an_agent_discovers_others_and_calls_them() -> None:
    async with running_user() as user, running(Relay(), user) as relay:
        one, two = [await user.register_agent(Worker, name=name) for name in ("one", "two")]
        async with running(Worker(), user, registration=one), running(Worker(), user, registration=two):
            assert await relay.handle.find() == ["one", "two"]


async def test_a_failure_two_agents_away_shows_both_tracebacks() -> None:
    async with running_user() as user, running(Worker(), user) as worker, running(Relay(), user) as relay:
        with pytest.raises(LookupError) as caught:
            await relay.handle.forward_failure(worker.handle)
        notes = "".join(caught.value.__notes__)
        assert "in fail_deeply" in notes
        assert "in forward_failure" in notes


async def test_cancellation_goes_on_to_the_agent_behind_the_agent() -> None:
    worker = Worker()
    async with running_user() as user, running(worker, user) as behind, running(Relay(), user) as relay:
        with pytest.raises(TimeoutError):
            await relay.handle.with_timeout(0.1).wait_for(behind.handle)
        await until(lambda: worker.log)
        assert worker.log == ["cancelled"]
