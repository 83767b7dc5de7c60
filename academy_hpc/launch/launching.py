"""The steps of a launch: take slots, register, say what to run, start, wait."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from academy_hpc.agent import RuntimeConfig
from academy_hpc.errors import TooFewSlotsError
from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.http.client import HttpAgentRegistration, HttpExchangeFactory
from academy_hpc.launch.launcher import Launcher
from academy_hpc.launch.outcome import late_error, launch_error
from academy_hpc.launch.progress import ProgressCallback, ProgressLine
from academy_hpc.launch.request import AgentLaunch
from academy_hpc.launch.restart import RestartPolicy
from academy_hpc.launch.source import AgentSource
from academy_hpc.launch.spec import AgentSpec, LaunchSpec, import_folders, versions_here
from academy_hpc.launch.supervised import SupervisedAgent, SupervisedWorker
from academy_hpc.launch.supervisor import Supervisor

__all__ = ["Launching"]

# When one agent of a launch has failed, how long others that fail for the same reason may take to say so.
MORE_FAILURES_S = 0.3


class Launching:
    """Launches for one manager."""

    def __init__(self, client: UserExchangeClient, supervisor: Supervisor, state_dir: str | None) -> None:
        self._client = client
        self._supervisor = supervisor
        self._state_dir = state_dir

    def take_slots(self, launcher: Launcher, wanted: int) -> list[SupervisedWorker]:
        """Workers to be. Raises TooFewSlotsError."""
        slots, busy = launcher.slots(), self._supervisor.busy_workers(launcher)
        if slots is not None and busy + wanted > slots:
            label = f"{launcher.label} (where {busy} workers run already)" if busy else launcher.label
            raise TooFewSlotsError(label, busy + wanted, slots)
        return [self._supervisor.new_worker(launcher) for _ in range(wanted)]

    async def make_specs(
        self,
        groups: list[list[AgentLaunch[Any]]],
        sources: list[list[AgentSource]],
        workers: list[SupervisedWorker],
        policy: RestartPolicy,
    ) -> list[LaunchSpec]:
        """`make_spec` for each worker. Raises ExchangeError, once no more are being registered."""
        makes = (self.make_spec(*parts, policy) for parts in zip(groups, sources, workers, strict=True))
        made = await asyncio.gather(*makes, return_exceptions=True)
        for outcome in made:
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in made if isinstance(outcome, LaunchSpec)]

    async def make_spec(
        self,
        items: Sequence[AgentLaunch[Any]],
        sources: Sequence[AgentSource],
        worker: SupervisedWorker,
        policy: RestartPolicy,
    ) -> LaunchSpec:
        """Register the agents of one worker, and listen for them. Raises ExchangeError."""
        registrations = await self._register(items)
        agents = []
        for registration, source, item in zip(registrations, sources, items, strict=True):
            config = item.config or RuntimeConfig()
            close_on_error = config.terminate_on_error
            if policy.on_error:  # closed by the supervisor, when no further life follows
                config = msgspec.structs.replace(config, terminate_on_error=False)
            agent = AgentSpec(registration, source, config, uuid.uuid4())
            own = item.registration is None
            self._supervisor.expect(agent, worker, own_mailbox=own, policy=policy, close_on_error=close_on_error)
            agents.append(agent)
        factory: HttpExchangeFactory = self._client.factory()
        folders = await asyncio.to_thread(import_folders)
        connection = factory.connection_info
        if all(registration.token is not None for registration in registrations):
            connection = connection.without_token()  # what an agent may do, and no more, may its worker
        versions = await asyncio.to_thread(versions_here)
        return LaunchSpec(
            connection,
            factory.options,
            tuple(agents),
            self._client.client_id,
            folders,
            state_dir=self._state_dir,
            versions=versions,
        )

    async def _register(self, items: Sequence[AgentLaunch[Any]]) -> list[HttpAgentRegistration[Any]]:
        """All, or none stays. Raises ExchangeError."""
        made = await asyncio.gather(*map(self._registration, items), return_exceptions=True)
        registrations = [outcome for outcome in made if not isinstance(outcome, BaseException)]
        for error in made:
            if isinstance(error, BaseException):
                given = {item.registration.agent_id for item in items if item.registration is not None}
                new = {registration.agent_id for registration in registrations} - given
                await asyncio.gather(*map(self._client.terminate, new), return_exceptions=True)
                raise error
        return registrations

    async def _registration(self, item: AgentLaunch[Any]) -> HttpAgentRegistration[Any]:
        registration = item.registration or await self._client.register_agent(item.agent_class, name=item.name)
        return HttpAgentRegistration[Any].from_json(registration.to_json())

    @contextlib.contextmanager
    def shown(self, agents: list[SupervisedAgent], progress: bool | ProgressCallback) -> Iterator[None]:
        """Show how far the agents are."""
        if not progress:
            yield
            return
        show = ProgressLine() if progress is True else progress
        with self._supervisor.calling(lambda: show(self._supervisor.progress(agents))):
            yield

    async def until_ready(self, agents: list[SupervisedAgent], timeout: float | None) -> None:
        """Until all are ready. Raises LaunchError: one can't be, or the time is over."""
        waits = [agent.started for agent in agents]
        if waits:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_EXCEPTION)
        if any(agent.report is not None for agent in agents):
            await asyncio.wait(waits, timeout=MORE_FAILURES_S)
        failed = [agent for agent in agents if agent.started.done() and agent.started.exception() is not None]
        if failed:
            raise launch_error(failed, len(agents))
        if not all(wait.done() for wait in waits):
            raise late_error(agents, self._supervisor.progress(agents))
