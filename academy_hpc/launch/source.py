"""How an agent gets to a worker: by reference, as an instance, or by value.

By reference is the first choice: the worker imports ``package.module:Class`` and constructs it there. An instance
carries its state and, as a rule, finds its class by import, too. Only what can't be imported, because it was defined in
``__main__``, a notebook or a function, travels by value: as bytecode, which another Python version can't read.
"""

from __future__ import annotations

import binascii
import importlib
import inspect
import platform
import sys
from typing import Any, TypeAlias

import cloudpickle
import msgspec

from academy_hpc.agent import Agent
from academy_hpc.errors import LaunchError

__all__ = ["AgentSource", "ByInstance", "ByReference", "ByValue", "Payload", "python_minor", "source_of"]

# The names of the functions with which cloudpickle builds code again; a pickle without them has references only.
_CODE_BY_VALUE = b"cloudpickle.cloudpickle"


def python_minor() -> str:
    """The version that bytecode depends on, such as ``"3.11"``."""
    return "{}.{}".format(*sys.version_info)


class Payload(msgspec.Struct, frozen=True):
    """A pickled value as text.

    Attributes:
        data: Base64.
        python: The Python minor version it needs, where it holds code by value.
    """

    data: str
    python: str | None = None

    def __repr__(self) -> str:
        """Size alone: it may hold anything."""
        return f"Payload({len(self.data)} characters, python={self.python})"

    def __rich_repr__(self) -> list[Any]:
        """The same for rich."""
        return [f"{len(self.data)} characters", ("python", self.python)]

    @classmethod
    def pack(cls, value: Any, what: str) -> Payload:
        """`value`, which is called `what` in errors, as text. Raises LaunchError: it can't be pickled."""
        try:
            data = cloudpickle.dumps(value)
        except Exception as error:
            raise LaunchError(
                f"{what} can't be sent to a worker: {error}. "
                "Pass plain values, and let the agent make the rest in its constructor or agent_on_startup."
            ) from error
        text = binascii.b2a_base64(data, newline=False).decode("ascii")
        return cls(text, python_minor() if _CODE_BY_VALUE in data else None)

    def unpack(self, what: str) -> Any:
        """The value. Raises LaunchError: this Python can't read it, or something it needs can't be imported."""
        if self.python not in (None, python_minor()):
            raise LaunchError(
                f"{what} travels by value, as code of Python {self.python}, and the worker has Python "
                f"{platform.python_version()} ({sys.executable}). Use the same minor version on both sides, or move "
                "the class into a module that the worker can import."
            )
        try:
            return cloudpickle.loads(binascii.a2b_base64(self.data))
        except Exception as error:
            raise LaunchError(
                f"{what} can't be read on the worker: {type(error).__name__}: {error}. {_WORKER_PYTHON.format(sys)}"
            ) from error


_WORKER_PYTHON = "The worker runs {0.executable} and imports from {0.path}."


class ByReference(msgspec.Struct, frozen=True, tag_field="how", tag="reference"):
    """Import the class and construct it. ``path`` is ``"package.module:Class"``."""

    path: str
    arguments: Payload | None = None

    @property
    def name(self) -> str:
        """The class, for people."""
        return self.path.replace(":", ".")

    def build(self) -> Agent:
        """The agent. Raises LaunchError."""
        return _construct(_imported(self.path), self.arguments, self.name)


class ByInstance(msgspec.Struct, frozen=True, tag_field="how", tag="instance"):
    """An agent that was constructed by the program; a copy of it, with its state, runs on the worker."""

    name: str
    instance: Payload

    def build(self) -> Agent:
        """The agent. Raises LaunchError."""
        return _checked(self.instance.unpack(f"The agent of {self.name}"), self.name)


class ByValue(msgspec.Struct, frozen=True, tag_field="how", tag="value"):
    """A class that can't be imported, as code."""

    name: str
    code: Payload
    arguments: Payload | None = None

    def build(self) -> Agent:
        """The agent. Raises LaunchError."""
        return _construct(self.code.unpack(f"The class {self.name}"), self.arguments, self.name)


AgentSource: TypeAlias = ByReference | ByInstance | ByValue


def source_of(
    agent: Agent | type[Agent], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> AgentSource:
    """How `agent`, a class or an instance, gets to a worker.

    Raises:
        LaunchError: It, or an argument of its constructor, can't be sent.
        TypeError: It is no agent, or an instance with arguments.
    """
    if isinstance(agent, Agent):
        if args or kwargs:
            raise TypeError("args and kwargs are for the constructor of a class; an instance has been constructed.")
        name = _full_name(type(agent))
        return ByInstance(name, Payload.pack(agent, f"The agent of {name}"))
    if not (isinstance(agent, type) and issubclass(agent, Agent)):
        raise TypeError(f"{agent!r} is neither an agent nor a class of agents.")
    name = _full_name(agent)
    _check_arguments(agent, args, kwargs or {}, name)
    arguments = Payload.pack((args, kwargs or {}), f"An argument of {name}") if args or kwargs else None
    if _is_importable(agent):
        return ByReference(f"{agent.__module__}:{agent.__qualname__}", arguments)
    return ByValue(name, Payload.pack(agent, f"The class {name}"), arguments)


def _check_arguments(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> None:
    """A wrong call is told here, before a node is waited for."""
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError):  # some classes have none that Python can tell
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}: {error}. Its constructor is {name}{signature}.") from None


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_importable(cls: type) -> bool:
    """Whether another process finds the class by its name. `__main__` is another module there."""
    found: Any = None if cls.__module__ == "__main__" else sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is cls


def _imported(path: str) -> Any:
    module_name, _, qualified_name = path.partition(":")
    try:
        found = importlib.import_module(module_name)
        for name in qualified_name.split("."):
            found = getattr(found, name)
    except (Exception, SystemExit) as error:
        raise LaunchError(
            f"The class {path} can't be imported on the worker: {type(error).__name__}: {error}. "
            f"{_WORKER_PYTHON.format(sys)} Install its package there, or set PYTHONPATH for the worker."
        ) from error
    return found


def _construct(cls: Any, arguments: Payload | None, name: str) -> Agent:
    args, kwargs = ((), {}) if arguments is None else arguments.unpack(f"An argument of {name}")
    try:
        agent = cls(*args, **kwargs)
    except (Exception, SystemExit) as error:
        raise LaunchError(f"The constructor of {name} raised {type(error).__name__}: {error}") from error
    return _checked(agent, name)


def _checked(agent: Any, name: str) -> Agent:
    if not isinstance(agent, Agent):
        raise LaunchError(f"{name} gave {type(agent).__name__}, which is no agent of academy_hpc.")
    return agent
