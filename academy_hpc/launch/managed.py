"""Agents that a manager supervises: their handles, how they are, and how they are ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from typing import Any

from academy_hpc.errors import AgentTerminatedError, BadEntityIdError, LaunchError, MailboxTerminatedError
from academy_hpc.exchange.client import ExchangeClient, UserExchangeClient
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.transport import AgentRegistration
from academy_hpc.handle import AgentT, Handle
from academy_hpc.identifiers import AgentId, EntityId, UserId
from academy_hpc.launch.outcome import raise_failure
from academy_hpc.launch.progress import shown_names
from academy_hpc.launch.spec import AgentReport
from academy_hpc.launch.supervised import SupervisedAgent
from academy_hpc.launch.supervisor import Supervisor
from academy_hpc.message import Body
from academy_hpc.serialization import NoPickleMixin

__all__ = ["ManagedAgents", "ManagedHandle"]

logger = logging.getLogger(__name__)


class ManagedHandle(Handle[AgentT]):
    """A handle that knows how its agent ended, and says so to those who call it. It pickles as a plain `Handle`."""

    def __init__(
        self, agent_id: AgentId[AgentT], *, exchange: ExchangeClient, report: Callable[[], AgentReport | None]
    ) -> None:
        super().__init__(agent_id, exchange=exchange)
        self._report = report

    def __reduce__(self) -> Any:
        """Without the manager."""
        restore, (_, *arguments) = super().__reduce__()
        return restore, (Handle, *arguments)

    async def _call(self, body: Body, timeout: float | None) -> Any:
        try:
            return await super()._call(body, timeout)
        except MailboxTerminatedError as error:
            report = self._report()
            if error.uid != self.agent_id or report is None or not report.reason:
                raise
            raise AgentTerminatedError(self.agent_id, report.reason) from error


class ManagedAgents(NoPickleMixin):
    """The part of a `Manager` that is about agents which run."""

    def __init__(self, client: UserExchangeClient) -> None:
        self._client = client
        self._supervisor = Supervisor(client)

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

    def get_handle(self, agent: AgentId[AgentT] | AgentRegistration) -> Handle[AgentT]:
        """A handle of any agent at the exchange."""
        agent_id: AgentId[AgentT] = agent if isinstance(agent, AgentId) else agent.agent_id
        supervised = self._supervisor.get(agent_id)
        return Handle(agent_id, exchange=self._client) if supervised is None else self._handle(supervised)

    def handles(self) -> dict[str, Handle[Any]]:
        """Handles of the agents that were launched here and have not ended, by name."""
        return {agent.name: self._handle(agent) for agent in self._supervisor.living()}

    def running(self) -> set[AgentId[Any]]:
        """The agents that were launched here and have not ended."""
        return {agent.agent_id for agent in self._supervisor.living()}

    def ends(self, agent: AgentId[Any] | Handle[Any]) -> tuple[AgentReport, ...]:
        """How each life of an agent that was launched here ended, and why; of the present one, nothing yet."""
        return tuple(self._supervised(_agent_id(agent)).ends)

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

    # Steps

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


def _agent_id(agent: AgentId[Any] | Handle[Any]) -> AgentId[Any]:
    return agent.agent_id if isinstance(agent, Handle) else agent
