"""The two packages under test behind one set of names.

The public names of academy_hpc are those of Academy, so a workload is written once and gets a `Side`.
Nothing is imported before `load`: a measuring process must pay for one package only.
"""

import asyncio
import importlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["MODULES", "SIDES", "VARIANTS", "Side", "load"]

SIDES = ("academy", "academy_hpc")

#: academy_hpc with other options of `spawn_http_exchange`; ``durable`` becomes a state directory on a disk.
VARIANTS: dict[str, dict[str, Any]] = {
    "academy_hpc+tls": {"tls": True},
    "academy_hpc+durable": {"durable": True},
    "academy_hpc+durable+tls": {"durable": True, "tls": True},
}

#: Where each name lives; also what the import-time workload imports.
MODULES: dict[str, dict[str, str]] = {
    "academy": {
        "Agent": "academy.agent",
        "action": "academy.agent",
        "Handle": "academy.handle",
        "Runtime": "academy.runtime",
        "Message": "academy.message",
        "PingRequest": "academy.message",
        "HttpExchangeFactory": "academy.exchange",
        "spawn_http_exchange": "academy.exchange.cloud.client",
    },
    "academy_hpc": {
        "Agent": "academy_hpc.agent",
        "action": "academy_hpc.agent",
        "Handle": "academy_hpc.handle",
        "Runtime": "academy_hpc.runtime",
        "Message": "academy_hpc.message",
        "PingRequest": "academy_hpc.message",
        "HttpExchangeFactory": "academy_hpc.exchange.http.client",
        "spawn_http_exchange": "academy_hpc.exchange.http.spawn",
    },
}

MANAGERS = {"academy": "academy.manager", "academy_hpc": "academy_hpc.launch.manager"}


@dataclass(frozen=True, slots=True)
class Side:
    """One package: its classes and functions by their common names."""

    name: str
    options: Mapping[str, Any]
    """What makes it a variant."""
    Agent: Any
    action: Any
    Handle: Any
    Runtime: Any
    Message: Any
    PingRequest: Any
    HttpExchangeFactory: Any
    spawn_http_exchange: Any
    event_runner: Callable[[], asyncio.Runner]
    Echo: Any
    """The agent class under test: one action that returns the bytes it was given."""
    Rare: Any
    """A class of which discovery finds a few among many."""

    def run_agents(self, main: Coroutine[Any, Any, None]) -> None:
        """Run an agent process as the package's own launcher does."""
        with self.event_runner() as runner:
            runner.run(main)

    @property
    def manager(self) -> Any:
        """The class of managers; imported by what launches, and not by workers."""
        return importlib.import_module(MANAGERS[self.name]).Manager

    async def launch(self, manager: Any, agents: Sequence[Any], agents_per_worker: int) -> list[Any]:
        """Return the handles of agents that were launched at once."""
        if hasattr(manager, "launch_many"):
            return list(await manager.launch_many(agents, agents_per_worker=agents_per_worker))
        return await asyncio.gather(*map(manager.launch, agents))

    async def open_transport(self, factory: Any, registration: Any) -> Any:
        """Return a transport for a registered agent, below the agent client."""
        if hasattr(factory, "create_transport"):
            return await factory.create_transport(registration.agent_id, registration=registration)
        return await factory._create_transport(registration.agent_id, registration=registration)

    @staticmethod
    def read_body(message: Any) -> Any:
        """Return the typed body of a received message."""
        return message.decoded() if hasattr(message, "decoded") else message.get_body()


def load(name: str) -> Side:
    """Import one side. Raises KeyError for an unknown name and ImportError where the package is missing."""
    package = name if name in MODULES else "academy_hpc"
    options = {} if name == package else VARIANTS[name]
    modules = MODULES[package]
    found = {key: getattr(importlib.import_module(modules[key]), key) for key in modules}
    runner = importlib.import_module("academy_hpc.worker").event_runner if package == "academy_hpc" else asyncio.Runner
    classes = _agent_classes(found["Agent"], found["action"])
    return Side(name=name, options=options, event_runner=runner, **found, **classes)


def _agent_classes(agent: Any, action: Any) -> dict[str, Any]:
    class Echo(agent):  # type: ignore[misc]
        @action  # type: ignore[untyped-decorator]
        async def echo(self, payload: bytes) -> bytes:
            return payload

    class Rare(agent):  # type: ignore[misc]
        pass

    for kind in (Echo, Rare):  # academy-py does not find classes whose qualified name has dots
        kind.__qualname__ = kind.__name__
    return {"Echo": Echo, "Rare": Rare}
