"""Every error keeps its type, its arguments and its text wherever it goes."""

from __future__ import annotations

import inspect
import json
import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest

from academy_hpc import errors
from academy_hpc.errors import AcademyError, error_class
from academy_hpc.identifiers import AgentId, UserId
from academy_hpc.serialization import deserialize, error_arguments, error_json, make_error

__all__: list[str] = []

AGENT = AgentId[Any].new("simulator")
USER = UserId.new("ada")

# What each error is made with; one entry for each class.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "AcademyError": ("something went wrong",),
    "AcademyRemoteError": ("ValueError: no",),
    "ActionCancelledError": (),
    "ActionInterruptedError": ("step",),
    "ActionInvalidStateError": (),
    "AgentLoopError": ("watch", "ValueError: no"),
    "AgentNotInitializedError": (),
    "AgentTerminatedError": (AGENT,),
    "BadEntityIdError": (AGENT,),
    "BadRequestError": ("group_id is empty",),
    "CheckpointError": ("/run/state/1f0c2d9a", "can't be written: no space left on device"),
    "ConnectionInfoError": ("not JSON",),
    "DeliveryFailedError": (AGENT, 5),
    "AgentAbsentError": (AGENT, 3600.0),
    "DeserializationMethodProhibitedError": ("pickle", "json"),
    "ExceptionSerializationError": ("OddError", "pickle", "can't pickle OddError"),
    "ExchangeChangedError": ("http://node1:5463",),
    "ExchangeClientNotFoundError": (AGENT,),
    "ExchangeError": ("something about an exchange",),
    "ExchangeFullError": ("mailboxes", 100_000),
    "ExchangeStartError": ("port 5463 is in use",),
    "ExchangeUnavailableError": ("no answer for 30 s",),
    "ExchangeUnreachableError": ({"http://a:1": "refused", "http://b:1": "timeout"},),
    "ForbiddenError": ("Incorrect permissions",),
    "IncompatibleProtocolError": ("2.0", "1.1"),
    "InvalidClientError": (USER,),
    "LaunchError": ("the class can't be imported",),
    "ListenerSupersededError": (AGENT,),
    "LoginRequiredError": ("Log in first.",),
    "MailboxFullError": (AGENT, 30.5),
    "MailboxTerminatedError": (AGENT,),
    "MessageTooLargeError": (524289, 524288),
    "PingCancelledError": (),
    "RefusedError": ("no",),
    "RequestError": ("no",),
    "SerializationError": ("a lock can't be sent as pickle",),
    "StoreError": ("the file is on a network file system",),
    "TooFewSlotsError": ("parsl", 9, 8),
    "UnauthorizedError": ("expired",),
    "UserTerminatedError": (USER,),
}
CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, AcademyError)]


def same(one: BaseException, other: BaseException) -> bool:
    return (type(one), one.args, str(one), vars(one)) == (type(other), other.args, str(other), vars(other))


def make(cls: type[AcademyError]) -> AcademyError:
    return cls(*ARGUMENTS[cls.__name__])


def drawn() -> Iterator[tuple[str, str | None, int | None]]:
    """Name, parent and status of each line of the tree in the module's docstring."""
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    (?P<lead>[│ ]*(?:[├└]── )?)(?P<name>\w+Error)\b\s*(?P<status>\d{3})?", line)
        if match:
            depth = len(match["lead"]) // 4
            path[depth:] = [match["name"]]
            yield match["name"], path[depth - 1] if depth else None, int(match["status"]) if match["status"] else None


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    assert sorted((name, parent) for name, parent, _ in drawn()) == sorted(
        (cls.__name__, None if cls is AcademyError else cls.__bases__[0].__name__) for cls in CLASSES
    )
    assert {name: status for name, _, status in drawn() if status} == {
        name: getattr(errors, name).status for name, _, status in drawn() if status
    }


def test_every_error_is_exported_and_tried_here() -> None:
    names = {cls.__name__ for cls in CLASSES}
    assert names == set(ARGUMENTS) == set(errors.__all__) - {"error_class"}


def test_every_error_has_a_code_of_its_own() -> None:
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)
    for cls in CLASSES:
        assert error_class(cls.code) is cls


def test_a_code_of_another_version_is_no_error_here() -> None:
    assert error_class("NOT_YET_INVENTED") is None


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_pickling(cls: type[AcademyError]) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert same(pickle.loads(pickle.dumps(make(cls), protocol)), make(cls))  # noqa: S301 - our own bytes


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_json(cls: type[AcademyError]) -> None:
    """An error that travels as JSON is the same error at its destination: entities in it are entities again."""
    error = make(cls)
    text = json.dumps(error_json(error))
    assert same(deserialize(text, "json"), error)
    assert type(error).__name__ in json.loads(text)["exception_str"]  # all that academy-py shows


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_as_code_and_arguments(cls: type[AcademyError]) -> None:
    assert same(make_error(cls.code, error_arguments(make(cls))), make(cls))


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_says_what_happened_in_one_line(cls: type[AcademyError]) -> None:
    text = str(make(cls))
    assert text.strip() == text != ""
    assert "\n" not in text
    assert "{" not in text  # no field of a template was left open


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_with_missing_arguments_has_a_text_all_the_same(cls: type[AcademyError]) -> None:
    """Whatever arguments another version sends, showing the error never raises."""
    strange: list[list[Any]] = [[], ["one"], ["one", "two"], ["one", "two", "three", "four"], [{}], [None, None]]
    for arguments in strange:
        assert isinstance(str(make_error(cls.code, arguments)), str)


def test_whoever_catches_the_general_error_catches_the_special_one() -> None:
    """A refusal and an exchange that does not answer are different branches."""
    assert not issubclass(errors.ExchangeUnavailableError, errors.RefusedError)
    assert not issubclass(errors.RefusedError, errors.ExchangeUnavailableError)
    assert issubclass(errors.AgentTerminatedError, errors.MailboxTerminatedError)


def test_a_user_may_derive_from_an_error_without_giving_it_a_code() -> None:
    """A user's subclass takes the place of none of ours."""

    class OurSimulationError(errors.RequestError):
        pass

    class OurOtherError(errors.RequestError):
        code = "REMOTE"

    assert str(OurSimulationError("diverged")) == "diverged"
    assert error_class("REQUEST") is errors.RequestError
    assert error_class("REMOTE") is errors.AcademyRemoteError
    assert OurOtherError.status == errors.RequestError.status
