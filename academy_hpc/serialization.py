"""Values as text: pickle (base64) or JSON. Only clients use this; the exchange never reads a value."""

from __future__ import annotations

import json
import pickle
import traceback
from collections.abc import Collection, Sequence
from typing import Any, Literal, NoReturn

import msgspec
import pybase64

from academy_hpc.errors import (
    AcademyError,
    AcademyRemoteError,
    DeserializationMethodProhibitedError,
    ExceptionSerializationError,
    SerializationError,
    error_class,
)
from academy_hpc.identifiers import EntityId, typed

__all__ = [
    "ALL_STRATEGIES",
    "NoPickleMixin",
    "Strategy",
    "deserialize",
    "deserialize_exception",
    "error_arguments",
    "error_json",
    "make_error",
    "serialize",
    "serialize_exception",
]

Strategy = Literal["pickle", "json"]
ALL_STRATEGIES: frozenset[Strategy] = frozenset({"pickle", "json"})

_NOTE = "\nRemote traceback:\n"


class NoPickleMixin:
    """For objects that hold a connection: pickling one is a mistake that should be told at once."""

    def __reduce__(self) -> NoReturn:
        """Refuse."""
        raise TypeError(
            f"{type(self).__name__} holds a connection and can't be pickled. "
            "Send the factory's connection_info and a registration instead."
        )


def serialize(value: Any, strategy: Strategy) -> str:
    """`value` as text.

    Raises:
        SerializationError: The value can't be written this way.
    """
    try:
        if strategy == "pickle":
            return pybase64.b64encode_as_string(pickle.dumps(value, pickle.HIGHEST_PROTOCOL))
        return json.dumps(value)
    except Exception as error:
        raise SerializationError(f"{type(value).__name__} can't be sent as {strategy}: {error}") from error


def deserialize(text: str, strategy: Strategy, allowed: Collection[str] = ALL_STRATEGIES) -> Any:
    """The value that `text` holds.

    Raises:
        DeserializationMethodProhibitedError: `strategy` is not in `allowed`; nothing was read.
        SerializationError: The text can't be read.
    """
    if strategy not in allowed:
        raise DeserializationMethodProhibitedError(strategy, ", ".join(sorted(allowed)))
    try:
        if strategy == "pickle":
            return pickle.loads(pybase64.b64decode(text, validate=True))  # noqa: S301 - allowed by the receiver, see docs
        return json.loads(text, object_hook=_exception_hook)
    except Exception as error:
        raise SerializationError(f"A {strategy} value can't be read here: {type(error).__name__}: {error}") from error


def error_arguments(error: AcademyError) -> list[Any]:
    """The arguments of `error` as JSON values; entities as on the wire, anything else unknown as text."""
    return [msgspec.to_builtins(item, enc_hook=str) for item in error.args]


def make_error(code: str, arguments: Sequence[Any]) -> AcademyError:
    """The error that `error_arguments` was given, or an `AcademyError` with its code and arguments as text."""
    error = _known_error(code, arguments)
    return error or AcademyError(f"{code}: {', '.join(str(item) for item in arguments)}")


def error_json(error: AcademyError) -> dict[str, Any]:
    """`error` as JSON that academy-py reads as a remote error with our text, and we as the same error again."""
    text = f"{type(error).__name__}: {error}"
    return {"__exception__": True, "exception_str": text, "code": error.code, "args": error_arguments(error)}


def serialize_exception(error: BaseException, strategy: Strategy) -> tuple[str, Strategy]:
    """An exception as text, and the strategy it is in.

    Errors of this package travel as JSON always, so that a program that has not installed it can read them. An
    exception that can't be pickled *and* read again becomes an `ExceptionSerializationError` with its text.
    """
    remote = "".join(traceback.format_exception(error))
    try:
        if isinstance(error, AcademyError) and error_class(error.code) is type(error):
            raised = {"traceback": remote} if error.__traceback__ is not None else {}
            return json.dumps(error_json(error) | raised), "json"
        if strategy == "pickle":
            return _pickled(error, remote), "pickle"
    except Exception:  # noqa: BLE001 - noqa: BLE001 - whatever the exception's own pickling or text raises
        return json.dumps(error_json(ExceptionSerializationError(type(error).__name__, strategy, remote))), "json"
    return json.dumps({"__exception__": True, "exception_str": remote}), "json"


def deserialize_exception(text: str, strategy: Strategy, allowed: Collection[str] = ALL_STRATEGIES) -> BaseException:
    """The exception that `text` holds; where it can't be had, an error that says so, with the remote traceback."""
    try:
        value = deserialize(text, strategy, allowed)
    except DeserializationMethodProhibitedError as error:
        return error
    except SerializationError as error:
        for note in _notes_in(text) if strategy == "pickle" else ():
            error.add_note(note)
        return error
    return value if isinstance(value, BaseException) else AcademyRemoteError(str(value))


def _exception_hook(value: dict[str, Any]) -> Any:
    if value.get("__exception__") is not True:
        return value
    code, arguments = value.get("code"), value.get("args")
    error = _known_error(code, arguments) if isinstance(code, str) and isinstance(arguments, list) else None
    if error is None:
        return AcademyRemoteError(str(value.get("exception_str")))
    if "traceback" in value:
        error.add_note(_note(value["traceback"]))
    return error


def _known_error(code: str, arguments: Sequence[Any]) -> AcademyError | None:
    cls = error_class(code)
    try:
        return cls(*[_entity_or_value(item) for item in arguments]) if cls is not None else None
    except (TypeError, ValueError, msgspec.ValidationError):  # another version's arguments
        return None


def _pickled(error: BaseException, remote: str) -> str:
    """`error` with its traceback as a note, as base64. The agent's own exception stays as it is."""
    notes = list(getattr(error, "__notes__", ()))
    error.add_note(_note(remote))
    try:
        data = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
    finally:
        error.__notes__ = notes
    # An __init__ that asks for more than args shows up only here.
    if not isinstance(pickle.loads(data), BaseException):  # noqa: S301 - our own bytes
        raise TypeError(f"{type(error).__name__} is read back as something else")
    return pybase64.b64encode_as_string(data)


def _note(remote: Any) -> str:
    return f"{_NOTE}{remote}"


def _notes_in(text: str) -> list[str]:
    """The remote tracebacks in a pickle that can't be loaded: read over, nothing in it is run."""
    import pickletools  # rarely needed

    try:
        operations = pickletools.genops(pybase64.b64decode(text, validate=True))
        return [value for _, value, _ in operations if isinstance(value, str) and value.startswith(_NOTE)]
    except ValueError:
        return []


def _entity_or_value(item: Any) -> Any:
    if isinstance(item, dict) and item.keys() == {"uid", "name", "role"}:
        return typed(msgspec.convert(item, EntityId))
    return item
