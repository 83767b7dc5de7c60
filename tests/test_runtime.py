"""How an agent starts, ends, and fails; and what its callers hear of it."""

from __future__ import annotations

import asyncio
import sys

import msgspec
import pytest

from academy_hpc.agent import Agent, RuntimeConfig, action, loop, timer
from academy_hpc.errors import (
    AcademyRemoteError,
    ActionCancelledError,
    AgentLoopError,
    AgentTerminatedError,
    BadEntityIdError,
    ExchangeUnavailableError,
    PingCancelledError,
)
from academy_hpc.exchange.transport import MailboxStatus
from academy_hpc.handle import Handle
from academy_hpc.message import Message
from academy_hpc.runtime import Runtime
from tests.exchange_server import running_exchange
from tests.running_agent import PATIENCE_S, running, running_user, until
from tests.waiting_agent import STAY, WaitingAgent, call

__all__: list[str] = []


# Start


class BadStart(WaitingAgent):
    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def agent_on_startup(self) -> None:
        await self.go.wait()
        raise LookupError("no input file")


@pytest.mark.parametrize("config", [RuntimeConfig(), STAY])
async def test_an_agent_that_fails_to_start_raises_why_and_cancels_pings(config: RuntimeConfig) -> None:
    agent = BadStart()
    async with running_user() as user, running(agent, user, config=config, wait=False) as run:
        pings = [asyncio.create_task(run.handle.ping()) for _ in range(10)]
        action_call = call(run.handle, "quick")
        await asyncio.sleep(0.05)
        agent.go.set()
        with pytest.raises(LookupError, match="no input file"):
            await run.ended()
        assert await run.runtime.wait_started() is False
        for outcome in await asyncio.gather(*pings, return_exceptions=True):
            assert isinstance(outcome, PingCancelledError)
        terminated = config.terminate_on_error
        status = MailboxStatus.TERMINATED if terminated else MailboxStatus.ACTIVE
        assert await run.handle.agent_status() is status
        if terminated:
            with pytest.raises(AgentTerminatedError):
                await action_call
        else:  # its mailbox stays, and so does what was asked
            async with running(WaitingAgent(), user, registration=run.registration):
                assert await action_call == "quick"
    assert not agent.shut_down


@pytest.mark.parametrize("known", [True, False])
async def test_an_agent_that_is_not_registered_or_terminated_does_not_start(known: bool) -> None:
    async with running_user() as user:
        registration = await user.register_agent(WaitingAgent)
        await user.terminate(registration.agent_id)
        async with running_exchange() as other:
            factory = user.factory() if known else other.factory
            runtime = Runtime(WaitingAgent(), exchange_factory=factory, registration=registration)
            waiting = asyncio.create_task(runtime.wait_started())
            with pytest.raises(BadEntityIdError):
                await runtime.run_until_complete()
            assert await waiting is False


class SlowStart(WaitingAgent):
    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.release.set()

    async def agent_on_startup(self) -> None:
        await self.go.wait()


async def test_requests_that_come_while_the_agent_starts_are_carried_out_in_order() -> None:
    """Also the last of them, which comes at the very moment when the agent has started."""
    agent = SlowStart()
    async with running_user() as user, running(agent, user, wait=False) as run:
        client = await until(lambda: run.runtime._requests.client)
        arrived: list[Message] = []
        take_in = client._on_request
        client._on_request = arrived.append  # type: ignore[method-assign]
        calls = [call(run.handle, "run", number) for number in range(6)]
        await until(lambda: len(arrived) == 6)
        for message in arrived[:5]:
            take_in(message)
        await asyncio.sleep(0)
        agent.go.set()
        take_in(arrived[5])
        await asyncio.gather(*calls)
        assert agent.started == list(range(6))


def test_the_configuration_travels_as_json() -> None:
    config = RuntimeConfig(allowed_deserializers=frozenset({"json"}), max_sync_concurrency=3)
    assert msgspec.json.decode(msgspec.json.encode(config), type=RuntimeConfig) == config


# End


@pytest.mark.parametrize("terminate", [True, False, None])
async def test_the_program_that_runs_an_agent_can_end_it(terminate: bool | None) -> None:
    agent = WaitingAgent()
    async with running_user() as user, running(agent, user, config=STAY) as run:
        with pytest.raises(TimeoutError):
            await run.runtime.wait_shutdown(0.01)
        run.runtime.signal_shutdown(terminate=terminate)
        run.runtime.signal_shutdown(terminate=not terminate)  # the first one counts
        await run.runtime.wait_shutdown(1)
        await run.ended()
        assert await run.handle.agent_status() is (MailboxStatus.TERMINATED if terminate else MailboxStatus.ACTIVE)
    assert agent.shut_down


async def test_running_actions_are_cancelled_at_the_end_and_their_callers_told() -> None:
    agent = WaitingAgent()
    async with running_user() as user, running(agent, user) as run:
        calls = [call(run.handle, "run", 1), call(run.handle, "tidy_up")]
        await until(lambda: len(agent.started) == 2)
        await run.handle.shutdown()
        await run.ended()
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, ActionCancelledError)
    assert agent.ended == ["cancelled", "tidied up"]


async def test_running_actions_are_finished_first_if_configured_and_late_ones_refused() -> None:
    agent = WaitingAgent()
    config = RuntimeConfig(cancel_actions_on_shutdown=False)
    async with running_user() as user, running(agent, user, config=config) as run:
        running_call = call(run.handle, "run", 7)
        await until(lambda: agent.started)
        await run.handle.shutdown()
        with pytest.raises(AgentTerminatedError):  # at once, not when the other is finished
            await run.handle.with_timeout(5).quick()
        assert not run.task.done()
        assert not agent.shut_down
        agent.release.set()
        assert await running_call == 7
        await run.ended()
    assert agent.shut_down


async def test_an_action_that_is_finished_at_the_end_may_still_call_its_own_agent() -> None:
    agent = WaitingAgent()
    config = RuntimeConfig(cancel_actions_on_shutdown=False)
    async with running_user() as user, running(agent, user, config=config) as run:
        calling = call(run.handle, "finish_through_itself")
        await until(lambda: agent.started)
        await run.handle.shutdown()
        agent.release.set()
        assert await calling == "quick"
        await run.ended()


@pytest.mark.parametrize("cancel", [True, False])
async def test_what_an_ending_agent_leaves_in_an_open_mailbox_is_done_in_its_next_life(cancel: bool) -> None:
    """Walltime: callers notice nothing but the delay."""
    first, second = WaitingAgent(), WaitingAgent()
    second.release.set()
    config = msgspec.structs.replace(STAY, cancel_actions_on_shutdown=cancel)
    async with running_user() as user:
        async with running(first, user, config=config) as run:
            under_way = call(run.handle, "run", 1)
            await until(lambda: first.started)
            await run.handle.shutdown()
            late = call(run.handle, "run", 2)
            await asyncio.sleep(0.05)
            first.release.set()
            await run.ended()
        async with running(second, user, registration=run.registration):
            assert await asyncio.gather(under_way, late) == [1, 2]
    assert first.started == [1]
    assert second.started == ([1, 2] if cancel else [2])


async def test_cancelling_the_runtime_stops_loops_and_actions_and_still_shuts_down_in_order() -> None:
    class Looping(WaitingAgent):
        @loop
        async def forever(self, shutdown: asyncio.Event) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                self.ended.append("loop")

    agent, second = Looping(), WaitingAgent()
    second.release.set()
    config = msgspec.structs.replace(STAY, cancel_actions_on_shutdown=False, terminate_on_success=True)
    async with running_user() as user, running(agent, user, config=config) as run:
        under_way = call(run.handle, "run", 5)
        await until(lambda: agent.started)
        run.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run.task
        assert sorted(agent.ended) == ["cancelled", "loop"]
        assert agent.shut_down
        async with running(second, user, registration=run.registration):  # cancelled is no success
            assert await under_way == 5


async def test_cancelling_the_runtime_while_it_starts_is_no_success() -> None:
    config = RuntimeConfig(terminate_on_error=False)
    agent = BadStart()
    async with running_user() as user, running(agent, user, config=config, wait=False) as run:
        waiting = call(run.handle, "quick")
        await until(lambda: run.runtime._requests.client)
        await asyncio.sleep(0.02)
        run.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run.task
        assert await run.runtime.wait_started() is False
        async with running(WaitingAgent(), user, registration=run.registration):
            assert await waiting == "quick"


async def test_an_error_while_shutting_down_is_raised_and_counts_as_one() -> None:
    class BadEnd(WaitingAgent):
        async def agent_on_shutdown(self) -> None:
            raise LookupError("nowhere to save to")

    config = RuntimeConfig(terminate_on_error=False)
    async with running_user() as user, running(BadEnd(), user, config=config) as run:
        await run.handle.shutdown()
        with pytest.raises(LookupError, match="nowhere to save to"):
            await run.ended()
        assert await run.handle.agent_status() is MailboxStatus.ACTIVE


async def test_an_agent_ends_well_when_somebody_terminates_it() -> None:
    agent = WaitingAgent()
    async with running_user() as user, running(agent, user) as run:
        under_way = call(run.handle, "run", 1)
        await until(lambda: agent.started)
        await user.terminate(run.registration.agent_id)
        await run.ended()
        with pytest.raises(AgentTerminatedError):
            await under_way
    assert agent.shut_down


async def test_an_agent_ends_with_an_error_when_its_exchange_does() -> None:
    agent = WaitingAgent()
    async with running_user() as user:
        registration = await user.register_agent(WaitingAgent)
        task = asyncio.create_task(
            Runtime(agent, exchange_factory=user.factory(), registration=registration).run_until_complete()
        )
        await Handle(registration.agent_id).ping()
    with pytest.raises(ExchangeUnavailableError, match="was shut down"):
        async with asyncio.timeout(PATIENCE_S):
            await task
    assert agent.shut_down


# What is no Exception


class Alarm(BaseException):
    pass


class Abrupt(WaitingAgent):
    @action
    async def fail(self, error: BaseException) -> None:
        raise error

    @action
    async def leave(self) -> None:
        sys.exit(3)


async def test_an_action_that_raises_what_is_no_exception_is_answered_with_it() -> None:
    async with running_user() as user, running(Abrupt(), user) as run:
        with pytest.raises(Alarm, match="fire"):
            await run.handle.with_timeout(PATIENCE_S).fail(Alarm("fire"))
        assert await run.handle.quick() == "quick"


async def test_an_action_that_exits_ends_its_agent_in_order_and_not_its_caller() -> None:
    agent, codes = Abrupt(), []
    async with running_user() as user:
        registration = await user.register_agent(Abrupt)
        runtime = Runtime(agent, exchange_factory=user.factory(), registration=registration)

        async def live() -> None:
            try:
                await runtime.run_until_complete()
            except SystemExit as error:  # a task that raises it ends the event loop of the test
                codes.append(error.code)

        task = asyncio.create_task(live())
        handle = Handle(registration.agent_id, exchange=user, timeout=PATIENCE_S)
        other = call(handle, "run", 1)
        await until(lambda: agent.started)
        with pytest.raises(AcademyRemoteError, match="SystemExit: 3"):
            await handle.leave()
        with pytest.raises(ActionCancelledError):
            await other
        await task
    assert codes == [3]
    assert agent.shut_down


# Loops that fail


class Loops(Agent):
    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.saw_shutdown = asyncio.Event()
        self.ticks = 0

    @loop
    async def one(self, shutdown: asyncio.Event) -> None:
        if "one" in self.failing:
            raise LookupError("in one")

    @loop
    async def two(self, shutdown: asyncio.Event) -> None:
        if "two" in self.failing:
            raise ArithmeticError("in two")
        await shutdown.wait()
        self.saw_shutdown.set()

    @timer(0.005)
    async def three(self) -> None:
        self.ticks += 1
        if "three" in self.failing:
            raise ArithmeticError("in three")

    @loop
    async def deaf(self, shutdown: asyncio.Event) -> None:
        if "deaf" in self.failing:
            await asyncio.sleep(60)

    @action
    async def serve(self) -> str:
        return "served"


@pytest.mark.parametrize("name", ["one", "three"])
async def test_a_loop_that_fails_ends_the_agent_and_is_raised_with_its_cause(name: str) -> None:
    agent = Loops(name)
    async with running_user() as user, running(agent, user, wait=False) as run:
        with pytest.raises(AgentLoopError, match=f"'{name}' of the agent failed: .*in {name}") as caught:
            await run.ended()
        assert isinstance(caught.value.__cause__, (LookupError, ArithmeticError))
        assert await run.handle.agent_status() is MailboxStatus.TERMINATED
    assert agent.saw_shutdown.is_set()


async def test_several_loops_that_fail_are_raised_together() -> None:
    async with running_user() as user, running(Loops("one", "two"), user, wait=False) as run:
        with pytest.raises(ExceptionGroup, match="ended with 2 errors") as caught:
            await run.ended()
    assert {error.args[0] for error in caught.value.exceptions} == {"one", "two"}


async def test_a_loop_error_can_be_kept_from_ending_the_agent_and_is_raised_at_the_end() -> None:
    config = RuntimeConfig(shutdown_on_loop_error=False)
    async with running_user() as user, running(Loops("one"), user, config=config) as run:
        await asyncio.sleep(0.02)
        assert await run.handle.serve() == "served"
        await run.handle.shutdown()
        with pytest.raises(AgentLoopError):
            await run.ended()


async def test_a_loop_error_can_be_logged_only(caplog: pytest.LogCaptureFixture) -> None:
    config = RuntimeConfig(raise_loop_errors_on_shutdown=False, terminate_on_error=False)
    async with running_user() as user, running(Loops("one"), user, config=config, wait=False) as run:
        await run.ended()
        assert await run.handle.agent_status() is MailboxStatus.ACTIVE  # it was an error all the same
    assert "LookupError: in one" in caplog.text


async def test_a_loop_that_does_not_return_is_cancelled_after_a_while(caplog: pytest.LogCaptureFixture) -> None:
    config = RuntimeConfig(loop_grace_s=0.1)
    async with running_user() as user, running(Loops("deaf"), user, config=config) as run:
        await run.handle.shutdown()
        await run.ended()
    assert "deaf is cancelled" in caplog.text
