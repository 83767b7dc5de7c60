"""Values and exceptions as text, by pickle or as JSON."""

from __future__ import annotations

import json
import pickle
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, strategies as st

from academy_hpc import errors
from academy_hpc.errors import AcademyError, AcademyRemoteError
from academy_hpc.identifiers import AgentId
from academy_hpc.serialization import (
    NoPickleMixin,
    Strategy,
    deserialize,
    deserialize_exception,
    serialize,
    serialize_exception,
)

__all__: list[str] = []

WIRE = Path(__file__).parent / "wire"
AGENT = AgentId[Any].new("simulator")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class SensorError(Exception):
    """An ordinary exception of a user."""

    def __init__(self, sensor: str, value: float) -> None:
        super().__init__(sensor, value)
        self.sensor = sensor
        self.value = value


class TwoArgumentsError(Exception):
    """Can be pickled and not read again: __init__ wants more than `args` has."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one}-{two}")


class LockHoldingError(Exception):
    """Can't be pickled."""

    def __init__(self) -> None:
        super().__init__(threading.Lock())


class TurnsIntoTextError(Exception):
    """Is read back as something that can't be raised."""

    def __reduce__(self) -> tuple[Any, ...]:
        return str, ("not an exception",)


class HasNoTextError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("even the text fails")

    def __reduce__(self) -> NoReturn:
        raise RuntimeError("and the pickling")


class UsersOwnAcademyError(AcademyError):
    """A user's subclass of one of our errors."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class StrangeAcademyError(AcademyError):
    """One with a code of its own, and arguments JSON knows nothing of."""

    code = "TEST_STRANGE"

    def __init__(self, value: Any) -> None:
        super().__init__(value)


def raised(error: BaseException) -> BaseException:
    """`error` with a traceback that names this function."""
    try:
        raise error
    except type(error) as caught:
        return caught


def travel(error: BaseException, strategy: Strategy) -> BaseException:
    return deserialize_exception(*serialize_exception(error, strategy))


def notes(error: BaseException) -> str:
    return "".join(getattr(error, "__notes__", []))


# Values


@given(json_values)
def test_a_value_is_the_same_after_json(value: Any) -> None:
    assert deserialize(serialize(value, "json"), "json") == value


@given(st.binary() | st.tuples(json_values, st.complex_numbers(allow_nan=False)) | st.sets(st.integers()))
def test_a_value_is_the_same_after_pickle(value: Any) -> None:
    assert deserialize(serialize(value, "pickle"), "pickle") == value


def test_pickle_is_base64_on_one_line() -> None:
    text = serialize(b"\xff" * 1000, "pickle")
    assert text.isascii()
    assert "\n" not in text


def test_json_is_plain_json() -> None:
    """Any program can read it: `json.dumps` of the value, a tuple as a list."""
    assert json.loads(serialize(("é", {"a": None}), "json")) == ["é", {"a": None}]


@pytest.mark.parametrize("strategy", ["pickle", "json"])
def test_a_value_that_cannot_be_written_is_told_by_its_type(strategy: Strategy) -> None:
    with pytest.raises(errors.SerializationError, match=f"lock can't be sent as {strategy}"):
        serialize(threading.Lock(), strategy)


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        ("{", "json"),
        ("", "json"),
        ("!", "pickle"),
        ("é", "pickle"),
        ("", "pickle"),
        ("gASVBQAAAAAAAAA=", "pickle"),  # cut off
        ("Y25vX3N1Y2hfbW9kdWxlCkNsYXNzCi4=", "pickle"),  # a class of a module that is not here
    ],
)
def test_a_text_that_cannot_be_read_is_told(text: str, strategy: Strategy) -> None:
    with pytest.raises(errors.SerializationError, match=f"A {strategy} value can't be read here"):
        deserialize(text, strategy)


def test_a_value_too_deep_to_be_written_or_read_is_told() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for strategy in ("pickle", "json"):
        with pytest.raises(errors.SerializationError):
            serialize(deep, strategy)
    with pytest.raises(errors.SerializationError):
        deserialize("[" * 100_000 + "]" * 100_000, "json")


def test_a_receiver_of_json_alone_unpickles_nothing() -> None:
    """Where a format is not allowed, nothing of the text is read."""
    bomb = serialize(Bomb(), "pickle")
    with pytest.raises(errors.DeserializationMethodProhibitedError, match="json"):
        deserialize(bomb, "pickle", {"json"})
    answer = deserialize_exception(bomb, "pickle", {"json"})
    assert type(answer) is errors.DeserializationMethodProhibitedError
    assert deserialize("1", "json", {"json"}) == 1


def test_a_strategy_of_another_version_is_refused() -> None:
    with pytest.raises(errors.DeserializationMethodProhibitedError, match="yaml"):
        deserialize("1", "yaml")  # type: ignore[arg-type]


class Bomb:
    """Fails the test when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("was unpickled",)


# Exceptions


@pytest.mark.parametrize(
    "error",
    [SensorError("t1", 451.0), KeyError("x"), OSError(2, "no such file", "/x"), ExceptionGroup("two", [OSError()])],
)
def test_an_exception_arrives_with_its_type_and_the_remote_traceback(error: Exception) -> None:
    """An exception raised in an action arrives as the same type with the remote traceback attached."""
    arrived = travel(raised(error), "pickle")
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert "Remote traceback:" in notes(arrived)
    assert "in raised" in notes(arrived)
    assert "in raised" in "".join(traceback.format_exception(arrived))


def test_an_exceptions_attributes_arrive_with_it() -> None:
    arrived = travel(raised(SensorError("t1", 451.0)), "pickle")
    assert isinstance(arrived, SensorError)
    assert (arrived.sensor, arrived.value) == ("t1", 451.0)


def test_the_traceback_shows_the_cause_too() -> None:
    error = RuntimeError("step failed")
    error.__cause__ = raised(SensorError("t1", 451.0))
    assert "SensorError" in notes(travel(raised(error), "pickle"))


@pytest.mark.parametrize("strategy", ["pickle", "json"])
def test_sending_an_exception_leaves_it_as_it_was(strategy: Strategy) -> None:
    """The agent can still log what it raised, and raise the same object twice."""
    error = raised(SensorError("t1", 451.0))
    error.add_note("its own note")
    first = serialize_exception(error, strategy)
    assert error.__notes__ == ["its own note"]
    assert error.__traceback__ is not None
    assert serialize_exception(error, strategy) == first


def test_json_carries_an_exception_as_its_traceback() -> None:
    arrived = travel(raised(SensorError("t1", 451.0)), "json")
    assert type(arrived) is AcademyRemoteError
    assert "in raised" in str(arrived)
    assert "SensorError: ('t1', 451.0)" in str(arrived)


@pytest.mark.parametrize(
    "error", [TwoArgumentsError("a", "b"), LockHoldingError(), TurnsIntoTextError("x"), HasNoTextError()]
)
def test_an_exception_that_cannot_travel_is_told_with_its_name_and_traceback(error: Exception) -> None:
    """An exception that can't be written, or not be read again, becomes an ExceptionSerializationError."""
    text, strategy = serialize_exception(raised(error), "pickle")
    arrived = deserialize_exception(text, strategy)
    assert type(arrived) is errors.ExceptionSerializationError
    assert type(error).__name__ in str(arrived)
    assert "in raised" in str(arrived)
    assert type(error).__name__ in json.loads(text)["exception_str"]  # all that academy-py shows


@pytest.mark.parametrize("strategy", ["pickle", "json"])
def test_our_own_errors_travel_as_json(strategy: Strategy) -> None:
    """A program that has not installed this package can read our errors, and ours gets the same error."""
    text, used = serialize_exception(raised(errors.AgentTerminatedError(AGENT)), strategy)
    assert used == "json"
    assert "AgentTerminatedError" in json.loads(text)["exception_str"]
    arrived = deserialize_exception(text, used)
    assert isinstance(arrived, errors.AgentTerminatedError)
    assert arrived.uid == AGENT
    assert isinstance(arrived.uid, AgentId)
    assert "in raised" in notes(arrived)


def test_an_error_that_nobody_raised_has_no_remote_traceback() -> None:
    assert notes(travel(errors.ActionInterruptedError("step"), "json")) == ""


def test_a_users_subclass_of_an_error_keeps_its_type() -> None:
    arrived = travel(raised(UsersOwnAcademyError(7)), "pickle")
    assert type(arrived) is UsersOwnAcademyError
    assert arrived.step == 7
    assert "UsersOwnAcademyError" in str(travel(raised(UsersOwnAcademyError(7)), "json"))


@pytest.mark.parametrize(
    "value", [object(), {"a": object()}, {(1, 2): 3}, {1, 2}, b"\xff", float("nan"), "\ud800", 1 << 70]
)
@pytest.mark.parametrize("strategy", ["pickle", "json"])
def test_an_error_with_any_arguments_can_be_answered(value: Any, strategy: Strategy) -> None:
    """Whatever is raised, there is an answer: the caller never waits for ever."""
    arrived = travel(raised(StrangeAcademyError(value)), strategy)
    assert isinstance(arrived, AcademyError)
    assert "StrangeAcademyError" in f"{type(arrived).__name__} {arrived}"


def test_an_error_of_another_version_arrives_as_its_text() -> None:
    """A code or arguments that this version does not know make a remote error with the sender's text."""
    for changed in ({"code": "OF_TOMORROW"}, {"args": [1, 2, 3, 4]}, {"args": [{"uid": 1, "name": 2, "role": 3}]}):
        known = {"__exception__": True, "exception_str": "SomeError: why", "code": "BAD_ENTITY_ID", "args": ["x"]}
        arrived = deserialize_exception(json.dumps(known | changed), "json")
        assert type(arrived) is AcademyRemoteError
        assert str(arrived) == "SomeError: why"


def test_an_exception_inside_a_value_is_one_there_too() -> None:
    value = deserialize('{"failed": [{"__exception__": true, "exception_str": "no"}]}', "json")
    assert isinstance(value["failed"][0], AcademyRemoteError)
    assert deserialize('{"__exception__": false}', "json") == {"__exception__": False}


@pytest.mark.parametrize("text", ['"just text"', "{}", "not json"])
def test_an_answer_that_is_no_exception_can_be_raised_all_the_same(text: str) -> None:
    assert isinstance(deserialize_exception(text, "json"), AcademyError)


@pytest.mark.parametrize("strategy", ["json", "pickle"])
def test_an_exception_of_academy_py_is_read(strategy: Strategy) -> None:
    captured = json.loads((WIRE / f"message_user_error_response_{strategy}.json").read_text())
    body = captured["message"]["body"]
    arrived = deserialize_exception(body["exception"], body["serialization"])
    assert type(arrived) is {"json": AcademyRemoteError, "pickle": AttributeError}[strategy]
    assert "does not have an action named" in str(arrived)


@pytest.mark.parametrize("strategy", ["json", "pickle"])
def test_values_of_academy_py_are_read(strategy: Strategy) -> None:
    request = json.loads((WIRE / f"message_action_request_{strategy}.json").read_text())["message"]["body"]
    response = json.loads((WIRE / f"message_action_response_{strategy}.json").read_text())["message"]["body"]
    assert list(deserialize(request["pargs"], request["serialization"])) != []
    assert isinstance(deserialize(request["kargs"], request["serialization"]), dict)
    deserialize(response["result"][1], response["serialization"])


# What must not be pickled


def test_what_holds_a_connection_says_so_when_pickled() -> None:
    class Connection(NoPickleMixin):
        pass

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="Connection holds a connection and can't be pickled"):
            pickle.dumps(Connection(), protocol)
    with pytest.raises(errors.SerializationError, match="holds a connection"):
        serialize([Connection()], "pickle")
