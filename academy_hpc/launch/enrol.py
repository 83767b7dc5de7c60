"""A run whose exchange is inside the job: ids and tokens are made before there is an exchange.

All secrets of an exchange are derived from its token, so whoever chooses the token can register agents offline. The
exchange opens their mailboxes when it starts, on the first node of the job (see `academy_hpc.launch.hosting`).
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec

from academy_hpc.agent import Agent, RuntimeConfig
from academy_hpc.errors import LaunchError
from academy_hpc.exchange.http.client import HttpAgentRegistration
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.exchange.http.identity import Identity
from academy_hpc.exchange.http.tokens import agent_token
from academy_hpc.exchange.transport import class_chain
from academy_hpc.identifiers import AgentId, EntityId, UserId
from academy_hpc.launch.request import AgentLaunch, as_launch, sources_of
from academy_hpc.launch.run import Run
from academy_hpc.launch.source import AgentSource
from academy_hpc.launch.spec import AgentSpec, LaunchSpec, import_folders, versions_here

__all__ = ["EnrolledMailbox", "enrol", "enrolled_mailboxes", "submit_run"]

MAILBOXES = "exchange/mailboxes.json"


class EnrolledMailbox(msgspec.Struct, frozen=True):
    """A mailbox to be opened.

    Attributes:
        entity: Whose.
        classes: Of an agent, by which it is discovered.
    """

    entity: EntityId
    classes: tuple[str, ...] = ()


class _Submitter(Protocol):
    """A `BatchLauncher`."""

    def new_run(self) -> Run: ...

    def submit(self, spec: LaunchSpec, *, run: Run) -> Run: ...


def submit_run(
    launcher: _Submitter,
    agents: Iterable[AgentLaunch[Any] | Agent | type[Agent]],
    *,
    agents_per_worker: int = 1,
) -> Run:
    """Submit agents together with the exchange that they speak through; `Manager.attach` finds them when the job runs.

    The exchange is on the first node of the job, and needs none on a login node. With an exchange that runs already,
    launch agents by a `Manager` instead. Blocks for a moment.

        launcher = BatchLauncher("stampede3", account="PHY1234", nodes=2, exchange="job")
        run = submit_run(launcher, [AgentLaunch(Simulator, name="sim-1")])
        async with await Manager.attach(run, timeout=None) as manager:
            await manager.handles()["sim-1"].step()

    Args:
        launcher: With ``exchange="job"``.
        agents: Classes or instances of agents; `AgentLaunch` for one with arguments, a name and so on.
        agents_per_worker: How many share a process and its event loop, at the most.

    Raises:
        LaunchError: An agent can't be sent, the run directory can't be written, or nothing could be submitted.
        ValueError: There are no agents, or one has a registration, which belongs to another exchange.
    """
    items = [as_launch(agent) for agent in agents]
    if agents_per_worker < 1:
        raise ValueError(f"agents_per_worker={agents_per_worker}: give 1 or more.")
    sources = sources_of(items)
    run = launcher.new_run()
    spec = enrol(run, items, sources=sources, workers=-(-len(items) // agents_per_worker))
    return launcher.submit(spec, run=run)


def enrol(run: Run, agents: Sequence[AgentLaunch[Any]], *, sources: Sequence[AgentSource], workers: int) -> LaunchSpec:
    """Choose ids and tokens, and keep in the run directory what the exchange of its job starts with.

    Args:
        run: Whose job has the exchange.
        agents: To be registered.
        sources: How each gets to its worker.
        workers: Over how many the agents are spread.

    Raises:
        LaunchError: The run directory can't be written.
        ValueError: There are no agents, or one has a registration already.
    """
    if not agents:
        raise ValueError("A run needs at least one agent.")
    if any(item.registration is not None for item in agents):
        raise ValueError("An agent with a registration belongs to an exchange that there is already.")
    token = secrets.token_urlsafe(32)
    user = UserId.new("run")
    registrations = [_registration(item, token) for item in agents]
    chains = [tuple(class_chain(item.agent_class)) for item in agents]
    mailboxes = [EnrolledMailbox(user)] + [
        EnrolledMailbox(registration.agent_id, chain) for registration, chain in zip(registrations, chains, strict=True)
    ]
    run.write_private(MAILBOXES, msgspec.json.encode(mailboxes).decode())
    run.write_private("exchange/identity.json", msgspec.json.encode(Identity(0, token)).decode())
    specs = tuple(
        AgentSpec(registration, source, item.config or RuntimeConfig(), uuid.uuid4())
        for registration, source, item in zip(registrations, sources, agents, strict=True)
    )
    place = str(run.connection_path)
    return LaunchSpec(place, ClientOptions(), specs, user, import_folders(), ranks=workers, versions=versions_here())


def enrolled_mailboxes(run: Run) -> list[EnrolledMailbox]:
    """Those that the exchange of this run opens. Raises LaunchError: the run has no exchange of its own."""
    if not run.exchange_dir.is_dir():
        raise LaunchError(f"Run {run.id} has no exchange of its own: it uses one that was there before it.")
    try:
        return msgspec.json.decode(run.read_private(MAILBOXES), type=list[EnrolledMailbox])
    except msgspec.DecodeError as error:
        raise LaunchError(f"{run.path / MAILBOXES} can't be read: {error}.") from None


def _registration(item: AgentLaunch[Any], token: str) -> HttpAgentRegistration[Any]:
    agent_id: AgentId[Any] = AgentId.new(item.name)
    return HttpAgentRegistration(agent_id, token=agent_token(token, agent_id.uid))
