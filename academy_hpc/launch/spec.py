"""What crosses to a worker, and what comes back: versioned JSON text, never a pickled factory."""

from __future__ import annotations

import functools
import importlib.metadata
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
    "EndCause",
    "ImportFolders",
    "LaunchSpec",
    "Origin",
    "WorkerReport",
    "import_folders",
    "versions_here",
]

VERSION = 1

AgentState = Literal["arrived", "ready", "finished", "failed", "stopped", "superseded", "lost"]
"""What is reported of an agent: on a worker; serving; ended as it was meant to; ended by an error, or never started;
ended because its worker had to; another copy has taken over; and, said of it by others only: gone without a word."""

EndCause = Literal[
    "finished",
    "stopped",
    "walltime",
    "preempted",
    "node_failure",
    "out_of_memory",
    "lost",
    "agent_error",
    "superseded",
]
"""Why a life of an agent ended: as it was meant to; somebody wanted it to; its job was near its walltime; its worker
was told to end before that, by the scheduler or whoever cancelled the job; its node failed; its job had no memory left;
it was gone without a word; by an error of its own; another copy has taken over."""

# What has to fit together for agents that travel by value; others only have to be there.
COMPARED_PACKAGES = ("academy_hpc", "cloudpickle", "msgspec", "aiohttp")

DocumentT = TypeVar("DocumentT", bound=msgspec.Struct)


class AgentSpec(msgspec.Struct, frozen=True):
    """One agent of a launch.

    Attributes:
        registration: What it needs to become one entity of the exchange.
        source: How to build it.
        config: How its Runtime behaves.
        tag: The label of its reports, by which the manager knows them.
    """

    registration: HttpAgentRegistration[Any]
    source: AgentSource
    config: RuntimeConfig
    tag: uuid.UUID

    @property
    def agent_id(self) -> AgentId[Any]:
        """Which entity."""
        return self.registration.agent_id

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
    """All that workers need to run agents. Its text holds keys of the exchange: keep it private.

    Give ``spec.to_json()`` to `academy_hpc.worker.run` on the node, by whatever means: a launcher does, and so can a
    Parsl app of your own, a Globus Compute function, or a file that a job script reads.

    Attributes:
        connection: Where the exchange is; a text: the path of the connection file that an exchange inside the job is
            going to write, to be waited for.
        options: How its clients behave.
        agents: What to run, those of one worker all in one process and event loop.
        manager: The mailbox to which the agents' reports are sent.
        folders: Where the program has its own modules; the worker looks there, too, if it has such folders.
        ranks: 1: a worker runs all agents, and looks at no rank. Otherwise over how many ranks the agents are spread:
            see `share`; None: over as many as there are.
        attempt: Which life of the agents this is, from 1.
        deadline_s: Unix time at which the job ends; None: not known.
        grace_s: How many seconds before the deadline the agents are told to end.
        state_dir: Where checkpoints of the agents are kept, in a directory for each.
        versions: Of Python and of packages, where the agents are launched from: see `versions_here`.
    """

    connection: ConnectionInfo | str
    options: ClientOptions
    agents: tuple[AgentSpec, ...]
    manager: EntityId
    folders: ImportFolders = ImportFolders()
    ranks: int | None = 1
    attempt: int = 1
    deadline_s: float | None = None
    grace_s: float = 90.0
    state_dir: str | None = None
    versions: dict[str, str] = {}

    def share(self, rank: int, ranks: int) -> Self:
        """The spec of one of `ranks` workers, numbered from 0: contiguous shares, as even as possible."""
        start, end = (number * len(self.agents) // ranks for number in (rank, rank + 1))
        return msgspec.structs.replace(self, agents=self.agents[start:end], ranks=1)

    def __repr__(self) -> str:
        """The agents, no secrets."""
        return f"LaunchSpec({', '.join(map(repr, self.agents))}, at {', '.join(self._places)})"

    def __rich_repr__(self) -> list[Any]:
        """The same for rich."""
        return [*self.agents, ("at", self._places)]

    @property
    def _places(self) -> tuple[str, ...]:
        return (self.connection,) if isinstance(self.connection, str) else self.connection.urls

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
        attempt: Which life of the agent, from 1.
        cause: Why that life ended; None: it has not.
        again: It has ended because its worker had to, and is to go on in another life: its mailbox stays open.
        checks: What the worker found where it started, where that may explain the failure.
    """

    agent_id: AgentId[Any]
    state: AgentState
    reason: str = ""
    remote_traceback: str = ""
    origin: Origin | None = None
    attempt: int = 1
    cause: EndCause | None = None
    again: bool = False
    checks: str = ""

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


def versions_here() -> dict[str, str]:
    """Python and the packages that both sides of a launch should have alike, with their versions."""
    return {"python": platform.python_version()} | {name: _version(name) for name in COMPARED_PACKAGES}


@functools.cache  # read from files; a launch of many workers asks for each of them
def _version(package: str) -> str:
    return importlib.metadata.version(package)


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
