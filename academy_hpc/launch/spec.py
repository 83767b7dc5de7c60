"""What crosses to a worker, and what comes back: versioned JSON text, never a pickled factory."""

from __future__ import annotations

import os
import platform
import socket
import sys
import uuid
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import msgspec

from academy_hpc.agent import RuntimeConfig
from academy_hpc.errors import ConnectionInfoError, LaunchError
from academy_hpc.exchange.http.client import HttpAgentRegistration
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.identifiers import AgentId, EntityId
from academy_hpc.launch.source import AgentSource

__all__ = [
    "AgentReport",
    "AgentSpec",
    "AgentState",
    "ImportFolders",
    "LaunchSpec",
    "Origin",
    "WorkerReport",
    "import_folders",
]

VERSION = 1

AgentState = Literal["arrived", "ready", "finished", "failed", "stopped", "superseded", "lost"]
"""What is reported of an agent: on a worker; serving; ended as it was meant to; ended by an error, or never started;
ended because its worker had to; another copy has taken over; and, said of it by others only: gone without a word."""

DocumentT = TypeVar("DocumentT", bound=msgspec.Struct)


class AgentSpec(msgspec.Struct, frozen=True):
    """One agent of a launch.

    Attributes:
        registration: What it needs to become one entity of the exchange.
        source: How to build it.
        config: How its Runtime behaves.
        tag: Its reports have tags made from this one: see `report_tag`.
    """

    registration: HttpAgentRegistration[Any]
    source: AgentSource
    config: RuntimeConfig
    tag: uuid.UUID

    @property
    def agent_id(self) -> AgentId[Any]:
        """Which entity."""
        return self.registration.agent_id

    def report_tag(self, state: AgentState) -> uuid.UUID:
        """The tag of the message that reports `state`; all ends of an agent have one."""
        return uuid.uuid5(self.tag, state if state in ("arrived", "ready") else "ended")

    def __repr__(self) -> str:
        """Which agent of which class: the rest may be secret."""
        return f"AgentSpec({self.agent_id}, {self.source.name})"

    def __rich_repr__(self) -> list[Any]:
        """The same for rich."""
        return [str(self.agent_id), self.source.name]


class ImportFolders(msgspec.Struct, frozen=True):
    """Folders of modules that are not part of a Python installation: where they come on ``sys.path``.

    Attributes:
        first: Before the installation, such as the folder of the script, and those of PYTHONPATH.
        last: After it, such as packages that are installed to be edited.
    """

    first: tuple[str, ...] = ()
    last: tuple[str, ...] = ()


class LaunchSpec(msgspec.Struct, frozen=True):
    """All that one worker needs to run its agents. Its text holds the key of the exchange: keep it private.

    Give ``spec.to_json()`` to `academy_hpc.worker.run` on the node, by whatever means: a launcher does, and so can a
    Parsl app of your own, a Globus Compute function, or a file that a job script reads.

    Attributes:
        connection: Where the exchange is.
        options: How its clients behave.
        agents: What to run, all in one process and event loop.
        manager: The mailbox to which the agents' reports are sent.
        folders: Where the program has its own modules; the worker looks there, too, if it has such folders.
    """

    connection: ConnectionInfo
    options: ClientOptions
    agents: tuple[AgentSpec, ...]
    manager: EntityId
    folders: ImportFolders = ImportFolders()

    def __repr__(self) -> str:
        """The agents, no secrets."""
        return f"LaunchSpec({', '.join(map(repr, self.agents))}, at {', '.join(self.connection.urls)})"

    def __rich_repr__(self) -> list[Any]:
        """The same for rich."""
        return [*self.agents, ("urls", self.connection.urls)]

    def to_json(self) -> str:
        """Versioned JSON text, with the secrets."""
        return _to_json(self, "academy-hpc-launch")

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The spec that `to_json` wrote. Raises LaunchError: other text, or of another version."""
        return _from_json(text, cls, "academy-hpc-launch", "launch spec")


class Origin(msgspec.Struct, frozen=True):
    """Where a report was written."""

    host: str
    pid: int
    python: str

    @classmethod
    def here(cls) -> Self:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), platform.python_version())

    def __str__(self) -> str:
        """Host, process and Python."""
        return f"host {self.host}, process {self.pid}, Python {self.python}"


class AgentReport(msgspec.Struct, frozen=True):
    """What became of one agent.

    Attributes:
        reason: Why, where it failed: a sentence for people.
        remote_traceback: Where in the agent's code it failed.
        origin: The worker that reports.
    """

    agent_id: AgentId[Any]
    state: AgentState
    reason: str = ""
    remote_traceback: str = ""
    origin: Origin | None = None

    def to_json(self) -> str:
        """Versioned JSON text."""
        return _to_json(self, "academy-hpc-agent-report")

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The report that `to_json` wrote. Raises LaunchError."""
        return _from_json(text, cls, "academy-hpc-agent-report", "report of an agent")


class WorkerReport(msgspec.Struct, frozen=True):
    """What `academy_hpc.worker.run` returns when its agents have ended.

    Attributes:
        agents: One report for each agent of the spec; none where the spec could not be read.
        error: Why nothing could be run at all.
    """

    origin: Origin
    agents: tuple[AgentReport, ...] = ()
    error: str = ""

    def to_json(self) -> str:
        """Versioned JSON text."""
        return _to_json(self, "academy-hpc-worker-report")

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The report that `to_json` wrote. Raises LaunchError."""
        return _from_json(text, cls, "academy-hpc-worker-report", "report of a worker")


def import_folders() -> ImportFolders:
    """Where this program finds its own modules."""
    installed = {Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    folders = [Path(entry).resolve() for entry in sys.path]  # "" is where the program was started
    own = [installed.isdisjoint((folder, *folder.parents)) for folder in folders]
    start = own.index(False) if False in own else len(own)
    first, last = folders[:start], [folder for folder, is_own in zip(folders, own, strict=True) if is_own]
    return ImportFolders(*(tuple(dict.fromkeys(str(f) for f in part if f.is_dir())) for part in (first, last[start:])))


def _to_json(document: msgspec.Struct, kind: str) -> str:
    fields = {name: getattr(document, name) for name in document.__struct_fields__}
    return msgspec.json.encode({"kind": kind, "version": VERSION, **fields}).decode()


def _from_json(text: str | bytes, cls: type[DocumentT], kind: str, what: str) -> DocumentT:
    """Fields unknown here are ignored: what must not be ignored raises the version."""
    try:
        heading = msgspec.json.decode(text, type=_Heading)
        if heading.kind == kind and heading.version == VERSION:
            return msgspec.json.decode(text, type=cls)
    # msgspec names the place and the type, never a value; UnicodeError would quote the text.
    except (msgspec.DecodeError, ConnectionInfoError, UnicodeError, RecursionError) as error:
        reason = "it is not UTF-8" if isinstance(error, UnicodeError) else str(error)
        raise LaunchError(f"This text is no {what}: {reason}.") from None
    if heading.kind != kind:
        raise LaunchError(f"This text is no {what}: its kind is {heading.kind!r}.")
    raise LaunchError(
        f"This {what} has version {heading.version}, and this academy_hpc reads version {VERSION}: "
        "install the same academy_hpc on both sides."
    )


class _Heading(msgspec.Struct):
    kind: str
    version: int
