"""The manager: launches agents, knows how they are, and ends them. What users hold."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, Self

from academy_hpc.agent import Agent, RuntimeConfig
from academy_hpc.errors import (
    LaunchError,
)
from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.transport import AgentRegistration
from academy_hpc.handle import Handle
from academy_hpc.launch.attaching import Attaching
from academy_hpc.launch.executor import ExecutorLauncher
from academy_hpc.launch.launcher import Launcher, RunKeeper
from academy_hpc.launch.launching import Launching
from academy_hpc.launch.managed import ManagedAgents
from academy_hpc.launch.progress import ProgressCallback, shown_names
from academy_hpc.launch.request import AgentLaunch, AgentT, as_launch, sources_of, spread
from academy_hpc.launch.restart import RestartPolicy
from academy_hpc.launch.run import Run
from academy_hpc.launch.spec import LaunchSpec
from academy_hpc.launch.supervised import SupervisedWorker

__all__ = ["Manager"]

logger = logging.getLogger(__name__)

DEFAULT_LAUNCHER = "default"
# At the end: how long agents may take to end, and those whose mailboxes had to be closed for it.
CLOSE_S = 15.0
FORCED_S = 3.0


AnyLauncher = Launcher | Executor


class Manager(ManagedAgents):
    """Launches agents and supervises them; make one with `from_exchange_factory`.

        async with await Manager.from_exchange_factory(factory, launcher) as manager:
            simulator = await manager.launch(Simulator, args=("input.nc",))
            await simulator.run(10)

    At the end of the block all agents are ended and all launchers closed. Inside it, handles find the exchange by
    themselves.

    Args:
        exchange_client: A listening client of the user; it is closed with the manager.
        launchers: Where agents run: a `ParslLauncher`, any `concurrent.futures.Executor`, or several by name. None: the
            program starts workers itself, see `make_spec`.
        default_launcher: The one that is meant where none is named; default: the first.
        restarts: When agents are started again whose worker was lost; see `RestartPolicy`. Launchers of batch jobs have
            a limit of their own.
        state_dir: Where agents that have a state keep their checkpoints: a directory that all nodes share, for next
            lives elsewhere. Launchers of batch jobs use the run directory. None: no checkpoints are kept.
    """

    def __init__(
        self,
        exchange_client: UserExchangeClient,
        launchers: AnyLauncher | Mapping[str, AnyLauncher] | None = None,
        *,
        default_launcher: str | None = None,
        restarts: RestartPolicy | None = None,
        state_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(exchange_client)
        self._launchers = _by_name(launchers)
        self._default = default_launcher or next(iter(self._launchers), None)
        if self._default is not None:
            self._launcher(None)  # an unknown name is told at once
        self._restarts = restarts or RestartPolicy()
        folder = None if state_dir is None else str(Path(state_dir).expanduser().absolute())
        self._launching = Launching(exchange_client, self._supervisor, folder)
        self._closed = False
        for keeper in self._keepers():
            keeper.keep_connection(self.exchange_factory.connection_info)

    @classmethod
    async def from_exchange_factory(
        cls,
        factory: HttpExchangeFactory,
        launchers: AnyLauncher | Mapping[str, AnyLauncher] | None = None,
        *,
        default_launcher: str | None = None,
        name: str | None = None,
        restarts: RestartPolicy | None = None,
        state_dir: str | os.PathLike[str] | None = None,
    ) -> Self:
        """A manager with a client of its own, a user called `name`.

        Raises:
            ExchangeUnavailableError, UnauthorizedError: The exchange can't be used.
        """
        client = await factory.create_user_client(name=name)
        try:
            return cls(client, launchers, default_launcher=default_launcher, restarts=restarts, state_dir=state_dir)
        except BaseException:
            await client.close()
            raise

    async def __aenter__(self) -> Self:
        """Handles used inside find the exchange."""
        await self._client.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close."""
        try:
            await self.close()
        finally:
            await self._client.__aexit__(*exc_info)

    def __repr__(self) -> str:
        """The user and the launchers."""
        return f"Manager({self.user_id}, launchers={', '.join(self._launchers)})"

    @classmethod
    async def attach(
        cls,
        run: Run | str | os.PathLike[str],
        *,
        launcher: RunKeeper | None = None,
        timeout: float | None = 60.0,
    ) -> Self:
        """A manager of the agents of a run that another program has launched, and which goes on without it.

        It knows of them what that program knew, and what has happened since. A program that still watches the run ends
        with `ListenerSupersededError`, and its agents do not.

        Args:
            run: The run, its id, or its directory.
            launcher: What watches its jobs; None: a `BatchLauncher` as it was launched with.
            timeout: Seconds for which an exchange inside the job may take to say where it is; None: any time.

        Raises:
            LaunchError: There is no such run, or it can't be used.
            ConnectionInfoError: The connection file of the run can't be used.
            ExchangeUnavailableError, UnauthorizedError: The exchange can't be used.
            MailboxTerminatedError: The run was closed in order, and nothing is left of it.
        """
        attaching = await Attaching.begin(run, launcher=launcher, timeout=timeout)
        try:
            manager = cls(attaching.client, attaching.launcher)
            await attaching.finish(manager._supervisor)
        except BaseException:
            await asyncio.to_thread(attaching.launcher.release)
            await attaching.client.leave()
            raise
        return manager

    async def detach(self) -> None:
        """Let go of all agents, and leave them running: `attach` finds them again.

        Raises:
            LaunchError: Some would end with this program, since their launcher keeps no runs, or since this program has
                spawned the exchange: nothing was done.
        """
        server = self.exchange_factory.connection_info.server
        if server is not None and server.pid == os.getpid() and await asyncio.to_thread(lambda: server.runs_here):
            raise LaunchError(
                "The exchange would end with this program, and with it all agents. Use one that stays: "
                "`academy-hpc exchange start` prints the connection file to use."
            )
        keepers = self._keepers()
        bound = [agent for agent in self._supervisor.living() if agent.worker.launcher not in keepers]
        if bound:
            names = shown_names(tuple(agent.name for agent in bound))
            raise LaunchError(f"These agents would end with this program: {names}. Launch them with a BatchLauncher.")
        if not self._closed:
            self._closed = True
            await asyncio.gather(*(asyncio.to_thread(keeper.release) for keeper in keepers))
            await self._supervisor.leave()
            await self._client.leave()

    # Launching

    async def launch(
        self,
        agent: AgentT | type[AgentT],
        *,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        name: str | None = None,
        config: RuntimeConfig | None = None,
        launcher: str | None = None,
        executor: str | None = None,
        registration: AgentRegistration | None = None,
        timeout: float | None = None,
        restarts: RestartPolicy | None = None,
    ) -> Handle[AgentT]:
        """Launch one agent in a worker of its own; return when it is ready.

        Args:
            agent: A class, constructed on the worker; or an instance, of which a copy with its state runs there.
            args: Of the constructor.
            kwargs: Of the constructor.
            name: For display.
            config: How its Runtime behaves.
            launcher: Name of the launcher; None: the default one.
            executor: The same, as academy-py calls it.
            registration: From `register_agent`; None: a new one.
            timeout: Seconds it may take to be ready, waiting for a worker included; None: any time.
            restarts: When it is started again; None: as the manager's other agents.

        Raises:
            LaunchError: It could not be started, and why; or the time is over.
            TooFewSlotsError: There is no slot for another worker.
            ExchangeError: It could not be registered.
        """
        item = AgentLaunch(
            agent=agent, args=args or (), kwargs=kwargs or {}, name=name, config=config, registration=registration
        )
        [handle] = await self.launch_many([item], launcher=launcher or executor, timeout=timeout, restarts=restarts)
        return handle

    async def launch_many(
        self,
        agents: Iterable[AgentLaunch[AgentT] | AgentT | type[AgentT]],
        *,
        agents_per_worker: int = 1,
        launcher: str | None = None,
        timeout: float | None = None,
        progress: bool | ProgressCallback = False,
        restarts: RestartPolicy | None = None,
    ) -> list[Handle[AgentT]]:
        """Launch several agents; return their handles when all are ready. All start, or none stays.

        Args:
            agents: Classes or instances of agents; `AgentLaunch` for one with arguments, a name and so on.
            agents_per_worker: How many share a process and its event loop, at the most.
            launcher: Name of the launcher; None: the default one.
            timeout: Seconds for all together; None: any time.
            progress: Show on standard error who is ready and who is waited for; or call this with it.
            restarts: When they are started again; None: as the manager's other agents.

        Raises:
            LaunchError: Some could not be started, each with its reason; or the time is over, and who is missing.
            TooFewSlotsError: There are fewer slots than workers would be needed.
            ExchangeError: They could not be registered.
        """
        until = time.monotonic() + (timeout or 0)
        chosen, workers, specs = await self._prepare(agents, agents_per_worker, launcher, restarts)
        launched = [agent for worker in workers for agent in worker.agents]
        try:
            with self._launching.shown(launched, progress):
                await self._supervisor.start(chosen, workers, specs)
                await self._launching.until_ready(launched, None if timeout is None else until - time.monotonic())
        except BaseException:
            self._give_up(workers)
            raise
        return [self._handle(agent) for agent in launched]

    async def submit_many(
        self,
        agents: Iterable[AgentLaunch[AgentT] | AgentT | type[AgentT]],
        *,
        agents_per_worker: int = 1,
        launcher: str | None = None,
        restarts: RestartPolicy | None = None,
    ) -> list[Handle[AgentT]]:
        """Launch several agents; return their handles at once, before they are ready: see `wait_ready`.

        Arguments and errors are those of `launch_many`.
        """
        chosen, workers, specs = await self._prepare(agents, agents_per_worker, launcher, restarts)
        try:
            await self._supervisor.start(chosen, workers, specs)
        except BaseException:
            self._give_up(workers)
            raise
        return [self._handle(agent) for worker in workers for agent in worker.agents]

    async def make_spec(self, agents: Sequence[AgentLaunch[Any] | Agent | type[Agent]]) -> LaunchSpec:
        """Register agents, and say what a worker needs to run them in one process.

        For programs that start workers themselves. Give the worker's future to `adopt`.

        Raises:
            LaunchError: One can't be sent. ExchangeError: They could not be registered.
        """
        items = [as_launch(agent) for agent in agents]
        if not items:
            raise ValueError("A worker needs at least one agent.")
        worker = self._supervisor.new_worker(None)
        return await self._launching.make_spec(items, sources_of(items), worker, self._restarts)

    async def adopt(
        self,
        spec: LaunchSpec,
        future: Future[str] | None = None,
        *,
        timeout: float | None = None,
        progress: bool | ProgressCallback = False,
    ) -> list[Handle[Any]]:
        """Wait until the agents of `spec`, which the program has started itself, are ready; supervise them from then.

        Args:
            spec: From `make_spec` of this manager.
            future: Of the call of `academy_hpc.worker.run`; without it, a worker that dies before it can speak is
                noticed by `timeout` only, and an agent that blocks its event loop for 90 s counts as lost.
            timeout: Seconds; None: any time.
            progress: As for `launch_many`.

        Raises:
            LaunchError: As for `launch_many`.
        """
        agents = [self._supervised(agent.agent_id) for agent in spec.agents]
        if future is not None:
            self._supervisor.started(agents[0].worker, future)
        try:
            with self._launching.shown(agents, progress):
                await self._launching.until_ready(agents, timeout)
        except BaseException:
            self._supervisor.give_up(agents, "its launch failed")
            raise
        return [self._handle(agent) for agent in agents]

    async def register_agent(self, agent: type[Agent], *, name: str | None = None) -> AgentRegistration:
        """A registration, for `launch`: the agent has an id, and may be called, before it runs."""
        return await self._client.register_agent(agent, name=name)

    async def register_agents(self, agents: Sequence[tuple[type[Agent], str | None]]) -> list[AgentRegistration]:
        """Several at once: pairs of class and name."""
        return await self._client.register_agents(list(agents))

    async def wait_ready(
        self, *, timeout: float | None = None, progress: bool | ProgressCallback = False
    ) -> dict[str, Handle[Any]]:
        """Until all agents that were launched here, and have not ended, have been ready once; `handles` of them.

        Args:
            timeout: Seconds; None: any time.
            progress: As for `launch_many`.

        Raises:
            LaunchError: One can't be ready, or the time is over. The agents are left as they are.
        """
        agents = self._supervisor.living()
        with self._launching.shown(agents, progress):
            await self._launching.until_ready(agents, timeout)
        return self.handles()

    async def close(self, *, timeout: float = CLOSE_S) -> None:
        """End all agents that were launched here, close the launchers and the client.

        Args:
            timeout: Seconds that agents may take to end; then their mailboxes are closed, and their workers killed
                where that is possible.
        """
        if self._closed:
            return
        self._closed = True
        until = time.monotonic() + timeout
        try:
            await self._end_all(timeout)
        finally:
            left = max(FORCED_S, until - time.monotonic())  # for what agents still run in threads
            closes = [asyncio.to_thread(self._let_go, launcher, left) for launcher in self._launchers.values()]
            for outcome in await asyncio.gather(*closes, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    logger.error("a launcher could not be closed", exc_info=outcome)
            await self._supervisor.close()
            await self._client.close()

    # Steps

    async def _prepare(
        self,
        agents: Iterable[AgentLaunch[Any] | Agent | type[Agent]],
        agents_per_worker: int,
        launcher: str | None,
        restarts: RestartPolicy | None,
    ) -> tuple[Launcher, list[SupervisedWorker], list[LaunchSpec]]:
        if self._closed:
            raise LaunchError("The manager is closed.")
        chosen = self._launchers[self._launcher(launcher)]
        groups = spread([as_launch(agent) for agent in agents], agents_per_worker)
        sources = [sources_of(group) for group in groups]
        workers = self._launching.take_slots(chosen, len(groups))
        try:
            specs = await self._launching.make_specs(groups, sources, workers, restarts or self._restarts)
        except BaseException:
            self._give_up(workers)
            raise
        return chosen, workers, specs

    def _give_up(self, workers: Sequence[SupervisedWorker]) -> None:
        self._supervisor.give_up((agent for worker in workers for agent in worker.agents), "its launch failed")
        for worker in workers:
            self._supervisor.forget_worker(worker)

    def _let_go(self, launcher: Launcher, timeout: float) -> None:
        if self._client.superseded and isinstance(launcher, RunKeeper):
            launcher.release()  # its runs are those of the program that has attached to them
        else:
            launcher.close(timeout=timeout)

    def _keepers(self) -> list[RunKeeper]:
        return [launcher for launcher in self._launchers.values() if isinstance(launcher, RunKeeper)]

    def _launcher(self, name: str | None) -> str:
        """The name itself, or the default one's. Raises ValueError."""
        name = self._default if name is None else name
        if name is None:
            raise ValueError("The manager has no launcher: give it one, or start the workers of `make_spec` yourself.")
        if name not in self._launchers:
            raise ValueError(f"There is no launcher {name!r}; there are: {', '.join(map(repr, self._launchers))}.")
        return name


def _by_name(launchers: AnyLauncher | Mapping[str, AnyLauncher] | None) -> dict[str, Launcher]:
    if launchers is None:
        return {}
    named = launchers if isinstance(launchers, Mapping) else {DEFAULT_LAUNCHER: launchers}
    if not named:
        raise ValueError("A manager needs at least one launcher, or None.")
    return {name: _as_launcher(launcher) for name, launcher in named.items()}


def _as_launcher(launcher: AnyLauncher) -> Launcher:
    return ExecutorLauncher(launcher) if isinstance(launcher, Executor) else launcher
