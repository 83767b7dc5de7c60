"""The manager: launches agents, knows how they are, and ends them. What users hold."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any, Self

from academy_hpc.agent import Agent, RuntimeConfig
from academy_hpc.errors import (
    BadEntityIdError,
    LaunchError,
    MailboxTerminatedError,
)
from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.transport import AgentRegistration
from academy_hpc.handle import Handle
from academy_hpc.identifiers import AgentId, EntityId, UserId
from academy_hpc.launch.executor import ExecutorLauncher
from academy_hpc.launch.launcher import Launcher
from academy_hpc.launch.launching import Launching
from academy_hpc.launch.managed import ManagedHandle
from academy_hpc.launch.outcome import raise_failure
from academy_hpc.launch.progress import ProgressCallback, shown_names
from academy_hpc.launch.request import AgentLaunch, AgentT, as_launch, sources_of, spread
from academy_hpc.launch.spec import AgentReport, LaunchSpec
from academy_hpc.launch.supervisor import SupervisedAgent, Supervisor
from academy_hpc.serialization import NoPickleMixin

__all__ = ["Manager"]

logger = logging.getLogger(__name__)

DEFAULT_LAUNCHER = "default"
# At the end: how long agents may take to end, and those whose mailboxes had to be closed for it.
CLOSE_S = 15.0
FORCED_S = 3.0


AnyLauncher = Launcher | Executor


class Manager(NoPickleMixin):
    """Launches agents and supervises them; make one with `from_exchange_factory`.

        async with await Manager.from_exchange_factory(factory, launcher) as manager:
            simulator = await manager.launch(Simulator, args=("input.nc",))
            await simulator.run(10)

    At the end of the block all agents are ended and all launchers closed. Inside it, handles find the exchange by
    themselves.

    Args:
        exchange_client: A listening client of the user; it is closed with the manager.
        launchers: Where agents run: a `ParslLauncher`, any `concurrent.futures.Executor`, or several by name.
        default_launcher: The one that is meant where none is named; default: the first.
    """

    def __init__(
        self,
        exchange_client: UserExchangeClient,
        launchers: AnyLauncher | Mapping[str, AnyLauncher],
        *,
        default_launcher: str | None = None,
    ) -> None:
        named = launchers if isinstance(launchers, Mapping) else {DEFAULT_LAUNCHER: launchers}
        if not named:
            raise ValueError("A manager needs at least one launcher.")
        self._client = exchange_client
        self._launchers = {name: _as_launcher(launcher) for name, launcher in named.items()}
        self._default = default_launcher or next(iter(self._launchers))
        self._launcher(None)  # an unknown name is told at once
        self._supervisor = Supervisor(exchange_client)
        self._launching = Launching(exchange_client, self._supervisor)
        self._closed = False

    @classmethod
    async def from_exchange_factory(
        cls,
        factory: HttpExchangeFactory,
        launchers: AnyLauncher | Mapping[str, AnyLauncher],
        *,
        default_launcher: str | None = None,
        name: str | None = None,
    ) -> Self:
        """A manager with a client of its own, a user called `name`.

        Raises:
            ExchangeUnavailableError, UnauthorizedError: The exchange can't be used.
        """
        client = await factory.create_user_client(name=name)
        try:
            return cls(client, launchers, default_launcher=default_launcher)
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

    @property
    def exchange_client(self) -> UserExchangeClient:
        """The client of the manager."""
        return self._client

    @property
    def exchange_factory(self) -> HttpExchangeFactory:
        """What makes further clients of the same exchange."""
        factory: HttpExchangeFactory = self._client.factory()
        return factory

    @property
    def user_id(self) -> UserId:
        """Who launches."""
        return UserId(self._client.client_id.uid, self._client.client_id.name)

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

        Raises:
            LaunchError: It could not be started, and why; or the time is over.
            TooFewSlotsError: There is no slot for another worker.
            ExchangeError: It could not be registered.
        """
        item = AgentLaunch(
            agent=agent, args=args or (), kwargs=kwargs or {}, name=name, config=config, registration=registration
        )
        [handle] = await self.launch_many([item], launcher=launcher or executor, timeout=timeout)
        return handle

    async def launch_many(
        self,
        agents: Iterable[AgentLaunch[AgentT] | AgentT | type[AgentT]],
        *,
        agents_per_worker: int = 1,
        launcher: str | None = None,
        timeout: float | None = None,
        progress: bool | ProgressCallback = False,
    ) -> list[Handle[AgentT]]:
        """Launch several agents; return their handles when all are ready. All start, or none stays.

        Args:
            agents: Classes or instances of agents; `AgentLaunch` for one with arguments, a name and so on.
            agents_per_worker: How many share a process and its event loop, at the most.
            launcher: Name of the launcher; None: the default one.
            timeout: Seconds for all together; None: any time.
            progress: Show on standard error who is ready and who is waited for; or call this with it.

        Raises:
            LaunchError: Some could not be started, each with its reason; or the time is over, and who is missing.
            TooFewSlotsError: There are fewer slots than workers would be needed.
            ExchangeError: They could not be registered.
        """
        if self._closed:
            raise LaunchError("The manager is closed.")
        items = [as_launch(agent) for agent in agents]
        chosen = self._launchers[self._launcher(launcher)]
        groups = spread(items, agents_per_worker)
        sources = [sources_of(group) for group in groups]
        workers = self._launching.take_slots(chosen, len(groups))
        launched: list[SupervisedAgent] = []
        until = time.monotonic() + (timeout or 0)
        try:
            specs = await self._launching.make_specs(groups, sources, workers)
            launched = [agent for worker in workers for agent in worker.agents]
            with self._launching.shown(launched, progress):
                await self._launching.start(chosen, workers, specs)
                await self._launching.until_ready(launched, None if timeout is None else until - time.monotonic())
        except BaseException:
            self._supervisor.give_up((agent for worker in workers for agent in worker.agents), "its launch failed")
            for worker in workers:
                self._supervisor.forget_worker(worker)
            raise
        return [self._handle(agent) for agent in launched]

    async def make_spec(self, agents: Sequence[AgentLaunch[Any] | Agent | type[Agent]]) -> LaunchSpec:
        """Register agents, and say what a worker needs to run them in one process.

        For programs that start workers themselves. Give the worker's future to `adopt`.

        Raises:
            LaunchError: One can't be sent. ExchangeError: They could not be registered.
        """
        items = [as_launch(agent) for agent in agents]
        if not items:
            raise ValueError("A worker needs at least one agent.")
        return await self._launching.make_spec(items, sources_of(items), self._supervisor.new_worker(None))

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

    # Agents that run

    def get_handle(self, agent: AgentId[AgentT] | AgentRegistration) -> Handle[AgentT]:
        """A handle of any agent at the exchange."""
        agent_id: AgentId[AgentT] = agent if isinstance(agent, AgentId) else agent.agent_id
        supervised = self._supervisor.get(agent_id)
        return Handle(agent_id, exchange=self._client) if supervised is None else self._handle(supervised)

    def running(self) -> set[AgentId[Any]]:
        """The agents that were launched here and have not ended."""
        return {agent.agent_id for agent in self._supervisor.living()}

    def report(self, agent: AgentId[Any] | Handle[Any]) -> AgentReport | None:
        """How an agent that was launched here ended; None while it lives."""
        return self._supervised(_agent_id(agent)).report

    async def shutdown(
        self,
        agent: AgentId[Any] | Handle[Any],
        *,
        blocking: bool = True,
        raise_error: bool = True,
        terminate: bool | None = None,
        timeout: float | None = None,
    ) -> None:
        """Ask an agent that was launched here to end. One that has ended already is left alone.

        Args:
            agent: Which.
            blocking: Return when it has ended, not when it has agreed.
            raise_error: Raise what it failed with.
            terminate: Close its mailbox for good; None: as it is configured.
            timeout: Seconds for all of it.

        Raises:
            AgentTerminatedError: It failed, and why.
            TimeoutError: It did not agree, or end, in time.
            LaunchError: It was not launched here.
        """
        supervised = self._supervised(_agent_id(agent))
        async with asyncio.timeout(timeout):
            with contextlib.suppress(MailboxTerminatedError, BadEntityIdError):  # it has ended meanwhile
                if supervised.report is None:
                    await self._handle(supervised).shutdown(terminate=terminate)
            if blocking:
                await asyncio.wait([supervised.ended])
        if raise_error:
            raise_failure(supervised)

    async def wait(
        self,
        agents: Iterable[AgentId[Any] | Handle[Any]],
        *,
        raise_error: bool = False,
        return_when: str = asyncio.ALL_COMPLETED,
        timeout: float | None = None,
    ) -> None:
        """Until agents that were launched here have ended.

        Args:
            agents: Which.
            raise_error: Raise what one of them failed with.
            return_when: As for `asyncio.wait`.
            timeout: Seconds; None: any time.

        Raises:
            AgentTerminatedError: One failed, and why.
            TimeoutError: The time is over.
        """
        supervised = [self._supervised(_agent_id(agent)) for agent in agents]
        if supervised:
            waits = [agent.ended for agent in supervised]
            done, left = await asyncio.wait(waits, timeout=timeout, return_when=return_when)
            if not done or (left and return_when == asyncio.ALL_COMPLETED):
                raise TimeoutError(f"{len(left)} of {len(supervised)} agents have not ended within {timeout} s.")
        if raise_error:
            for agent in supervised:
                raise_failure(agent)

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
            closes = [asyncio.to_thread(launcher.close, timeout=left) for launcher in self._launchers.values()]
            for outcome in await asyncio.gather(*closes, return_exceptions=True):
                if isinstance(outcome, BaseException):
                    logger.error("a launcher could not be closed", exc_info=outcome)
            await self._supervisor.close()
            await self._client.close()

    # Steps

    def _launcher(self, name: str | None) -> str:
        """The name itself, or the default one's. Raises ValueError."""
        name = self._default if name is None else name
        if name not in self._launchers:
            raise ValueError(f"There is no launcher {name!r}; there are: {', '.join(map(repr, self._launchers))}.")
        return name

    async def _end_all(self, timeout: float) -> None:
        agents = self._supervisor.living()
        self._supervisor.give_up((agent for agent in agents if agent.phase != "ready"), "its manager was closed")
        requests = [asyncio.create_task(self._handle(agent).shutdown()) for agent in agents if agent.phase == "ready"]
        waits = [agent.ended for agent in agents]
        try:
            if waits:
                await asyncio.wait(waits, timeout=timeout)
        finally:
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
        late = [agent for agent in agents if agent.report is None]
        if late:
            names = shown_names(tuple(agent.name for agent in late))
            logger.warning("after %s s these agents have not ended, and are terminated: %s", timeout, names)
            self._supervisor.give_up(late, "it did not end when it was asked to")

    def _handle(self, agent: SupervisedAgent) -> Handle[Any]:
        return ManagedHandle(agent.agent_id, exchange=self._client, report=lambda: agent.report)

    def _supervised(self, agent_id: EntityId) -> SupervisedAgent:
        agent = self._supervisor.get(agent_id)
        if agent is None:
            raise LaunchError(f"{agent_id} was not launched by this manager.")
        return agent


def _as_launcher(launcher: AnyLauncher) -> Launcher:
    return ExecutorLauncher(launcher) if isinstance(launcher, Executor) else launcher


def _agent_id(agent: AgentId[Any] | Handle[Any]) -> AgentId[Any]:
    return agent.agent_id if isinstance(agent, Handle) else agent
