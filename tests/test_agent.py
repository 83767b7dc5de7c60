"""What one writes into an agent class, and when each part of it runs."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from datetime import timedelta
from typing import Any

import pytest

from academy_hpc.agent import ActionContext, Agent, RuntimeConfig, action, actions_of, event, loop, loops_of, timer
from academy_hpc.errors import AgentLoopError, AgentNotInitializedError
from academy_hpc.handle import Handle
from academy_hpc.identifiers import AgentId, UserId
from tests.running_agent import running, running_user, until

__all__: list[str] = []

setting: contextvars.ContextVar[str] = contextvars.ContextVar("setting", default="unset")


# Declaring


class Base(Agent):
    @property
    def trap(self) -> None:
        raise AssertionError("properties are not to be evaluated")

    @action
    async def inherited(self) -> str:
        return "base"

    @action
    async def overridden(self) -> str:
        return "base"

    @action
    async def hidden(self) -> str:
        return "base"

    async def private(self) -> None: ...


class Derived(Base):
    @action
    async def overridden(self) -> str:
        return "derived"

    async def hidden(self) -> str:
        """Overrides an action and is not marked as one."""
        return "derived"

    @loop
    async def run(self, shutdown: asyncio.Event) -> None: ...


def test_actions_are_the_marked_methods_of_the_class_and_its_bases() -> None:
    assert set(actions_of(Derived())) == {"inherited", "overridden"}
    assert set(loops_of(Derived())) == {"run"}


@pytest.mark.parametrize("decorator", [action, action(idempotent=False), loop, timer(1), event("name")])
def test_only_coroutine_methods_can_be_marked(decorator: Any) -> None:
    def blocking(self: Any) -> None: ...

    with pytest.raises(TypeError, match=r"blocking is none.*agent_run_sync"):
        decorator(blocking)


@pytest.mark.parametrize("name", ["action", "ping", "shutdown", "agent_id", "exchange", "with_timeout", "agent_stats"])
def test_an_action_can_not_have_a_name_that_handles_use(name: str) -> None:
    async def method(self: Any) -> None: ...

    method.__name__ = name
    with pytest.raises(TypeError, match=f"can't be called '{name}'"):
        action(method)
    assert action(allow_protected_name=True)(method) is method


class Pinger(Agent):
    @action(allow_protected_name=True)
    async def ping(self) -> str:
        return "the action"


async def test_an_action_with_a_protected_name_is_called_by_its_name_as_text() -> None:
    async with running_user() as user, running(Pinger(), user) as agent:
        assert await agent.handle.action("ping") == "the action"
        assert isinstance(await agent.handle.ping(), float)


def test_an_agent_that_does_not_run_knows_no_exchange() -> None:
    agent = Agent()
    for use in (lambda: agent.agent_id, lambda: agent.agent_exchange_client, agent.agent_shutdown):
        with pytest.raises(AgentNotInitializedError, match="not running"):
            use()


# Life


class Diary(Agent):
    """Writes down what happens to it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    async def agent_on_startup(self) -> None:
        self.lines.append(f"starting as {self.agent_id.name}")
        await asyncio.sleep(0.02)
        self.lines.append("started")

    @loop
    async def run(self, shutdown: asyncio.Event) -> None:
        self.lines.append("loop")
        await shutdown.wait()
        self.lines.append("loop ended")

    @action
    async def write(self) -> None:
        self.lines.append("action")

    @action
    async def write_slowly(self) -> None:
        self.lines.append("slow action")
        try:
            await asyncio.sleep(60)
        finally:
            self.lines.append("slow action ended")

    @action
    async def leave(self) -> str:
        self.agent_shutdown()
        return "bye"

    async def agent_on_shutdown(self) -> None:
        self.lines.append(f"ended as {self.agent_id.name}")


async def test_start_up_comes_before_the_first_request_and_shut_down_after_the_last() -> None:
    diary = Diary()
    async with running_user() as user:
        registration = await user.register_agent(Diary, name="d")
        early = asyncio.create_task(Handle(registration.agent_id).write())
        await asyncio.sleep(0.02)
        async with running(diary, user, registration=registration) as agent:
            await early
            slow = asyncio.create_task(agent.handle.write_slowly())
            await until(lambda: "slow action" in diary.lines)
            await agent.handle.shutdown()
            await agent.ended()
            await asyncio.gather(slow, return_exceptions=True)
    assert diary.lines[:2] == ["starting as d", "started"]
    assert set(diary.lines[2:4]) == {"loop", "action"}
    assert diary.lines[4:] == ["slow action", "loop ended", "slow action ended", "ended as d"]
    with pytest.raises(AgentNotInitializedError):
        _ = diary.agent_id


async def test_an_agent_ends_itself_and_the_action_that_did_it_is_answered() -> None:
    async with running_user() as user, running(Diary(), user) as agent:
        assert await agent.handle.leave() == "bye"
        await agent.ended()


# Loops


class Clock(Agent):
    def __init__(self) -> None:
        self.ticks: list[float] = []
        self.rings = 0
        self.bell = asyncio.Event()
        self.is_cleared = True

    @timer(0.02)
    async def tick(self) -> None:
        self.ticks.append(time.monotonic())

    @timer(timedelta(hours=1))
    async def never(self) -> None:
        raise AssertionError("an hour has not passed")

    @event("bell")
    async def ring(self) -> None:
        self.rings += 1

    @action
    async def pull(self) -> None:
        self.bell.set()


async def test_a_timer_fires_after_each_interval_and_ends_at_once_on_shutdown() -> None:
    clock = Clock()
    async with running_user() as user:
        async with running(clock, user):
            started = time.monotonic()
            await until(lambda: len(clock.ticks) >= 4)
        pauses = [after - before for before, after in zip([started, *clock.ticks], clock.ticks, strict=False)]
        assert min(pauses) > 0.01
        seen = len(clock.ticks)
        await asyncio.sleep(0.05)
        assert len(clock.ticks) == seen


async def test_an_event_runs_its_method_once_each_time_it_is_set() -> None:
    clock = Clock()
    async with running_user() as user, running(clock, user) as agent:
        for number in range(1, 4):
            await agent.handle.pull()
            await until(lambda number=number: clock.rings == number)
            await until(lambda: not clock.bell.is_set())
        await asyncio.sleep(0.02)
        assert clock.rings == 3


class Slow(Agent):
    def __init__(self) -> None:
        self.bell = asyncio.Event()
        self.go_on = asyncio.Event()
        self.rings = 0

    @event("bell")
    async def ring(self) -> None:
        self.rings += 1
        await self.go_on.wait()


async def test_an_event_that_is_set_while_its_method_runs_runs_it_again() -> None:
    slow = Slow()
    async with running_user() as user, running(slow, user) as agent:
        await agent.handle.ping()
        slow.bell.set()
        await until(lambda: slow.rings == 1)
        slow.bell.set()
        slow.go_on.set()
        await until(lambda: slow.rings == 2)


class Deaf(Agent):
    @event("bell")
    async def ring(self) -> None: ...


async def test_an_event_that_is_not_there_ends_the_agent_and_says_which() -> None:
    async with running_user() as user, running(Deaf(), user) as agent:
        with pytest.raises(AgentLoopError, match=r"Deaf\.bell is not an asyncio\.Event"):
            await agent.ended()


# Blocking code


class Blocking(Agent):
    def __init__(self) -> None:
        self.release = threading.Event()
        self.most = self.now = 0
        self.lock = threading.Lock()

    @action
    async def thread(self) -> str:
        return await self.agent_run_sync(lambda: threading.current_thread().name)

    @action
    async def work(self, seconds: float, *, fail: bool = False) -> float:
        return await self.agent_run_sync(self._work, seconds, fail=fail)

    def _work(self, seconds: float, *, fail: bool) -> float:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(seconds)
        with self.lock:
            self.now -= 1
        if fail:
            raise ArithmeticError(seconds)
        return seconds

    @action
    async def stuck(self) -> None:
        await self.agent_run_sync(self.release.wait)

    @action
    async def setting(self) -> str:
        setting.set("of this action")
        return await self.agent_run_sync(setting.get)


async def test_blocking_code_runs_in_threads_and_the_agent_goes_on() -> None:
    async with running_user() as user, running(Blocking(), user) as agent:
        assert str(agent.runtime.agent_id) in await agent.handle.thread()
        slow = asyncio.create_task(agent.handle.work(0.3))
        await asyncio.sleep(0.05)
        assert await agent.handle.ping() < 0.2
        assert not slow.done()
        assert await slow == 0.3
        with pytest.raises(ArithmeticError):
            await agent.handle.work(0, fail=True)


async def test_threads_are_as_many_as_configured() -> None:
    blocking = Blocking()
    config = RuntimeConfig(max_sync_concurrency=2)
    async with running_user() as user, running(blocking, user, config=config) as agent:
        await asyncio.gather(*(agent.handle.work(0.03) for _ in range(6)))
    assert blocking.most == 2


async def test_blocking_code_sees_the_context_of_the_action() -> None:
    async with running_user() as user, running(Blocking(), user) as agent:
        assert await agent.handle.setting() == "of this action"


async def test_a_thread_that_hangs_holds_up_neither_the_end_of_its_agent_nor_the_event_loop() -> None:
    blocking = Blocking()
    async with running_user() as user:
        try:
            async with running(blocking, user) as agent:
                with pytest.raises(TimeoutError):
                    await agent.handle.with_timeout(0.1).stuck()
                started = time.monotonic()
                await agent.handle.shutdown()
                await agent.ended()
                assert time.monotonic() - started < 1
        finally:
            blocking.release.set()


# Who calls


class Host(Agent):
    @action(context=True)
    async def who(self, greeting: str, *, context: ActionContext) -> tuple[str, Any, bool, bool]:
        return greeting, context.source_id, context.is_agent_source(), context.is_user_source()

    @action(context=True)
    async def call_back(self, *, context: ActionContext) -> Any:
        return await context.source_handle.name()


class Guest(Agent):
    @action
    async def name(self) -> str:
        return f"I am {self.agent_id.name}"

    @action
    async def visit(self, host: Handle[Host]) -> Any:
        return [await host.who("hi"), await host.call_back()]


async def test_an_action_can_ask_who_calls() -> None:
    async with running_user() as user, running(Host(), user) as host:
        greeting, source, is_agent, is_user = await host.handle.who("hello")
        assert (greeting, source, is_agent, is_user) == ("hello", user.client_id, False, True)
        assert isinstance(source, UserId)
        with pytest.raises(TypeError, match="is a user and can't be called"):
            await host.handle.call_back()


async def test_an_action_can_call_back_the_agent_that_calls() -> None:
    async with running_user() as user, running(Host(), user) as host:
        registration = await user.register_agent(Guest, name="guest")
        async with running(Guest(), user, registration=registration) as guest:
            who, name = await guest.handle.visit(host.handle)
    assert who == ("hi", registration.agent_id, True, False)
    assert isinstance(who[1], AgentId)
    assert name == "I am guest"
