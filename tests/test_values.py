"""What travels between caller and agent: arguments, results and exceptions, as pickle or JSON."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from typing import Any

import pytest

from academy_hpc.agent import Agent, RuntimeConfig, action
from academy_hpc.errors import (
    AcademyRemoteError,
    ActionCancelledError,
    BadEntityIdError,
    DeserializationMethodProhibitedError,
    ExceptionSerializationError,
    MessageTooLargeError,
    SerializationError,
)
from academy_hpc.handle import Handle
from academy_hpc.identifiers import AgentId
from tests.running_agent import RunningAgent, running, running_user

__all__: list[str] = []


class TroubleError(ValueError):
    """Made from two arguments, as its pickle says."""

    def __init__(self, what: str, where: int) -> None:
        super().__init__(what, where)
        self.where = where


class UnreadableError(Exception):
    """Pickles, and can't be made again: its __init__ wants more than its args hold."""

    def __init__(self, what: str, where: int) -> None:
        super().__init__(what)
        self.where = where


class HolderError(Exception):
    """Holds something that does not pickle."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())


class Worker(Agent):
    @action
    async def echo(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    @action
    async def give(self, value: Any) -> Any:
        return value

    @action
    async def size(self, text: str) -> int:
        return len(text)

    @action
    async def many(self, size: int) -> str:
        return "x" * size

    @action
    async def unpicklable(self) -> Any:
        return threading.Lock()

    @action
    async def fail(self, error: BaseException) -> None:
        raise error

    @action
    async def fail_deeply(self) -> None:
        try:
            {}["missing"]
        except KeyError as error:
            raise TroubleError("from below", 3) from error

    @action
    async def fail_unpicklably(self) -> None:
        raise HolderError

    @action
    async def fail_unreadably(self) -> None:
        raise UnreadableError("it", 5)


# Exceptions


@pytest.mark.parametrize("exception_serializer", ["pickle", None])
async def test_an_exception_arrives_with_its_type_and_the_remote_traceback(exception_serializer: Any) -> None:
    async with running_user() as user, running(Worker(), user) as agent:
        handle: Handle[Worker] = Handle(agent.handle.agent_id, exception_serializer=exception_serializer)
        with pytest.raises(TroubleError) as caught:
            await handle.fail_deeply()
        assert (caught.value.args, caught.value.where) == (("from below", 3), 3)
        (note,) = caught.value.__notes__
        assert "Remote traceback" in note
        assert "in fail_deeply" in note
        assert "KeyError: 'missing'" in note
        error = KeyError("its own note stays")
        error.add_note("first")
        with pytest.raises(KeyError) as other:
            await handle.fail(error)
        assert other.value.__notes__[0] == "first"


async def test_an_exception_as_json_is_its_traceback_as_text() -> None:
    async with running_user() as user, running(Worker(), user) as agent:
        handle: Handle[Worker] = Handle(agent.handle.agent_id, exception_serializer="json")
        with pytest.raises(AcademyRemoteError, match=r"in fail_deeply[\s\S]*TroubleError: \('from below', 3\)"):
            await handle.fail_deeply()


@pytest.mark.parametrize(
    "error", [MessageTooLargeError(2, 1), BadEntityIdError(AgentId.new("x")), ActionCancelledError()]
)
@pytest.mark.parametrize("exception_serializer", ["pickle", "json"])
async def test_errors_of_the_package_arrive_as_they_were_in_either_format(
    error: Any, exception_serializer: Any
) -> None:
    async with running_user() as user, running(Worker(), user) as agent:
        handle: Handle[Worker] = Handle(agent.handle.agent_id, exception_serializer=exception_serializer)
        with pytest.raises(type(error)) as caught:
            await handle.fail(error)
        assert caught.value.args == error.args
        assert "in fail" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("name", ["fail_unpicklably", "fail_unreadably"])
async def test_an_exception_that_can_not_travel_is_told_by_name_with_its_traceback(name: str) -> None:
    async with running_user() as user, running(Worker(), user) as agent:
        with pytest.raises(ExceptionSerializationError, match=rf"(HolderError|UnreadableError)[\s\S]*in {name}"):
            await agent.handle.action(name)


@pytest.fixture
def vanishing_error(monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    """An exception class that can be imported where it is pickled, and is gone when the caller reads it."""
    module = types.ModuleType("only_on_the_node")
    cls = type("NodeError", (Exception,), {"__module__": module.__name__})
    module.NodeError = cls  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return cls


async def test_an_exception_whose_class_is_not_here_is_an_error_that_says_so(
    vanishing_error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_user() as user, running(Worker(), user) as agent:

        async def fail() -> None:
            try:
                raise vanishing_error("on the node")
            finally:
                asyncio.get_running_loop().call_later(0.0, sys.modules.pop, "only_on_the_node")

        monkeypatch.setitem(agent.runtime._requests._actions, "give", fail)
        with pytest.raises(SerializationError, match="only_on_the_node") as caught:
            await agent.handle.give()
        (note,) = caught.value.__notes__
        assert "in fail" in note
        assert "NodeError: on the node" in note


# Values


async def test_a_value_that_can_not_be_pickled_is_told_on_the_side_where_it_is() -> None:
    async with running_user() as user, running(Worker(), user) as agent:
        with pytest.raises(SerializationError, match="can't be sent as pickle") as here:
            await agent.handle.give(threading.Lock())
        assert not hasattr(here.value, "__notes__")
        with pytest.raises(SerializationError, match="lock can't be sent as pickle") as there:
            await agent.handle.unpicklable()
        assert "Remote traceback" in "".join(there.value.__notes__)


async def test_values_travel_as_json_when_asked_for() -> None:
    async with running_user() as user, running(Worker(), user) as agent:
        as_json: Handle[Worker] = Handle(agent.handle.agent_id, request_serializer="json")
        assert await as_json.echo((1, 2), key=None) == [[[1, 2]], {"key": None}]  # JSON has no tuples
        with pytest.raises(SerializationError, match="can't be sent as json"):
            await as_json.give({1})
        mixed: Handle[Worker] = Handle(agent.handle.agent_id, request_serializer="json", result_serializer="pickle")
        assert await mixed.echo((1, 2)) == (([1, 2],), {})


async def test_a_result_is_in_the_format_the_agent_prefers_unless_the_caller_says() -> None:
    config = RuntimeConfig(default_serializer="json")
    async with running_user() as user, running(Worker(), user, config=config) as agent:
        assert await agent.handle.give((1,)) == [1]
        handle: Handle[Worker] = Handle(agent.handle.agent_id, result_serializer="pickle")
        assert await handle.give((1,)) == (1,)


class Bomb:
    """Explodes when it is unpickled."""

    exploded = 0

    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> None:
    Bomb.exploded += 1


async def test_an_agent_that_reads_json_only_never_unpickles() -> None:
    Bomb.exploded = 0
    config = RuntimeConfig(allowed_deserializers=frozenset({"json"}))
    async with running_user() as user, running(Worker(), user, config=config) as agent:
        with pytest.raises(DeserializationMethodProhibitedError, match="request_serializer='json'"):
            await agent.handle.give(Bomb())
        assert Bomb.exploded == 0
        as_json: Handle[Worker] = Handle(agent.handle.agent_id, request_serializer="json")
        assert await as_json.give([1]) == [1]


async def test_an_agent_that_is_allowed_no_format_reads_none() -> None:
    config = RuntimeConfig(allowed_deserializers=frozenset())
    async with running_user() as user, running(Worker(), user, config=config) as agent:
        with pytest.raises(DeserializationMethodProhibitedError):
            await agent.handle.give(1)


async def test_a_handle_that_reads_json_only_asks_for_json_and_never_unpickles() -> None:
    Bomb.exploded = 0
    strict = {"allowed_deserializers": {"json"}}
    config = RuntimeConfig(default_serializer="pickle")  # what a caller asks for goes before
    async with running_user() as user, running(Worker(), user, config=config) as agent:
        handle: Handle[Worker] = Handle(agent.handle.agent_id, **strict)  # type: ignore[arg-type]
        assert await handle.give((1,)) == [1]
        with pytest.raises(AcademyRemoteError, match="in fail_deeply"):
            await handle.fail_deeply()
        hostile: Handle[Worker] = Handle(agent.handle.agent_id, exception_serializer="pickle", **strict)  # type: ignore[arg-type]
        hostile._formats = ("pickle", "pickle", "pickle")  # an agent that answers in pickle all the same
        with pytest.raises(DeserializationMethodProhibitedError):
            await hostile.give(1)
        with pytest.raises(DeserializationMethodProhibitedError):
            await hostile.fail_deeply()
        assert Bomb.exploded == 0


async def test_what_is_larger_than_the_exchange_allows_is_an_error_of_the_caller() -> None:
    async with running_user(message_bytes=10_000) as user, running(Worker(), user) as agent:
        with pytest.raises(MessageTooLargeError) as here:
            await agent.handle.size("x" * 20_000)
        assert here.value.limit == 10_000
        with pytest.raises(MessageTooLargeError) as there:
            await agent.handle.many(20_000)
        assert there.value.size > 20_000
        with pytest.raises(MessageTooLargeError):
            await agent.handle.fail(ValueError("x" * 4_000))  # three times: itself, and in its traceback
        assert await agent.handle.size("x" * 5_000) == 5_000
        assert _unanswered(agent) == 0


def _unanswered(agent: RunningAgent) -> int:
    return len(agent.runtime._requests.client._requests)  # type: ignore[union-attr]
