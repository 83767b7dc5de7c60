"""What is to be launched: agents, as the user says it, spread over workers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec

from academy_hpc.agent import Agent, RuntimeConfig
from academy_hpc.exchange.transport import AgentRegistration
from academy_hpc.launch.source import AgentSource, source_of

__all__ = ["AgentLaunch", "AgentT", "as_launch", "sources_of", "spread"]

AgentT = TypeVar("AgentT", bound=Agent)


class AgentLaunch(msgspec.Struct, Generic[AgentT], frozen=True):
    """One agent of `Manager.launch_many` or `Manager.make_spec`.

    Attributes:
        agent: A class, constructed on the worker; or an instance, of which a copy with its state runs there.
        args: Of the constructor.
        kwargs: Of the constructor.
        name: For display.
        config: How its Runtime behaves.
        registration: From `Manager.register_agent`; None: a new one.
    """

    agent: AgentT | type[AgentT]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    name: str | None = None
    config: RuntimeConfig | None = None
    registration: AgentRegistration | None = None

    @property
    def agent_class(self) -> type[AgentT]:
        """Of the class or the instance."""
        return self.agent if isinstance(self.agent, type) else type(self.agent)


def as_launch(agent: AgentLaunch[AgentT] | AgentT | type[AgentT]) -> AgentLaunch[AgentT]:
    """An agent or class by itself is launched without arguments or name."""
    return agent if isinstance(agent, AgentLaunch) else AgentLaunch(agent)


def sources_of(items: Sequence[AgentLaunch[Any]]) -> list[AgentSource]:
    """How each gets to the worker. Raises LaunchError, TypeError."""
    return [source_of(item.agent, item.args, item.kwargs) for item in items]


def spread(items: list[AgentLaunch[Any]], agents_per_worker: int) -> list[list[AgentLaunch[Any]]]:
    """The agents of each worker: as few workers as possible, with nearly as many agents each. Raises ValueError."""
    if agents_per_worker < 1:
        raise ValueError(f"agents_per_worker={agents_per_worker}: give 1 or more.")
    count = -(-len(items) // agents_per_worker)
    bounds = [index * len(items) // count for index in range(count + 1)] if count else []
    return [items[start:end] for start, end in itertools.pairwise(bounds)]
