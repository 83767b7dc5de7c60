"""The steps of a launch: take slots, register, say what to run, start, wait."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from academy_hpc.agent import RuntimeConfig
from academy_hpc.errors import LaunchError, TooFewSlotsError
from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.http.client import HttpAgentRegistration, HttpExchangeFactory
from academy_hpc.launch.launcher import Launcher
from academy_hpc.launch.outcome import launch_error
from academy_hpc.launch.progress import ProgressCallback, ProgressLine
from academy_hpc.launch.request import AgentLaunch
from academy_hpc.launch.source import AgentSource
from academy_hpc.launch.spec import AgentSpec, LaunchSpec, import_folders
from academy_hpc.launch.supervisor import SupervisedAgent, SupervisedWorker, Supervisor

__all__ = ["Launching"]

# When one agent of a launch has failed, how long others that fail for the same reason may take to say so.
MORE_FAILURES_S = 0.3


class Launching:
    """Launches for one manager."""

    def __init__(self, client: UserExchangeClient, supervisor: Supervisor) -> None:
        self._client = client
        self._supervisor = supervisor
        self._starting = asyncio.Lock()

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
    ) -> list[LaunchSpec]:
        """`make_spec` for each worker. Raises ExchangeError, once no more are being registered."""
        made = await asyncio.gather(*map(self.make_spec, groups, sources, workers), return_exceptions=True)
        for outcome in made:
            if isinstance(outcome, BaseException):
                raise outcome
        return [outcome for outcome in made if isinstance(outcome, LaunchSpec)]

    async def make_spec(
        self, items: Sequence[AgentLaunch[Any]], sources: Sequence[AgentSource], worker: SupervisedWorker
    ) -> LaunchSpec:
        """Register the agents of one worker, and listen for them. Raises ExchangeError."""
        registrations = await self._register(items)
        agents = tuple(
            AgentSpec(registration, source, item.config or RuntimeConfig(), uuid.uuid4())
            for registration, source, item in zip(registrations, sources, items, strict=True)
        )
        for agent, item in zip(agents, items, strict=True):
            self._supervisor.expect(agent, worker, own_mailbox=item.registration is None)
        factory: HttpExchangeFactory = self._client.factory()
        folders = await asyncio.to_thread(import_folders)
        connection = factory.connection_info
        if all(registration.token is not None for registration in registrations):
            connection = connection.without_token()  # what an agent may do, and no more, may its worker
        return LaunchSpec(connection, factory.options, agents, self._client.client_id, folders)

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

    async def start(self, launcher: Launcher, workers: list[SupervisedWorker], specs: list[LaunchSpec]) -> None:
        """Give the specs to the launcher. Raises LaunchError."""
        texts = [spec.to_json() for spec in specs]
        async with self._starting:  # launchers take one call at a time
            futures = await asyncio.to_thread(launcher.start, texts)
        for worker, future in zip(workers, futures, strict=True):
            self._supervisor.started(worker, future)

    @contextlib.contextmanager
    def shown(self, agents: list[SupervisedAgent], progress: bool | ProgressCallback) -> Iterator[None]:
        """Show how far the agents are."""
        show = ProgressLine() if progress is True else progress or (lambda _: None)
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
            raise LaunchError(f"Not all agents are ready in time: {self._supervisor.progress(agents)}.")
