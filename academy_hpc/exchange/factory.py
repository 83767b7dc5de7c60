"""What makes clients of one exchange: the port that launchers and agents are written against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from academy_hpc.exchange.client import AgentExchangeClient, RequestHandler, UserExchangeClient
from academy_hpc.exchange.transport import AgentRegistration, ExchangeTransport
from academy_hpc.identifiers import AgentId, EntityId, UserId

__all__ = ["ExchangeFactory"]


class ExchangeFactory(ABC):
    """Makes clients. Holds no connection itself, and may be pickled."""

    @abstractmethod
    async def create_transport(
        self,
        mailbox_id: EntityId | None = None,
        *,
        name: str | None = None,
        registration: AgentRegistration | None = None,
    ) -> ExchangeTransport:
        """A transport for an entity that has a mailbox, or for a new user called `name`."""

    async def create_agent_client(
        self, registration: AgentRegistration, request_handler: RequestHandler
    ) -> AgentExchangeClient:
        """A client for the agent of `registration`, which listens at once.

        Args:
            registration: From `ExchangeClient.register_agent`.
            request_handler: Called in a task of its own with each request; it answers with
                ``client.send(request.create_response(body))``, which also acknowledges the request.

        Raises:
            BadEntityIdError: The agent is not registered, or was terminated.
            ExchangeUnavailableError, UnauthorizedError: The exchange can't be used.
        """
        agent_id: AgentId[Any] = registration.agent_id
        transport = await self.create_transport(agent_id, registration=registration)
        client = AgentExchangeClient(agent_id, transport, request_handler, factory=self)
        await client.start()
        return client

    async def create_user_client(
        self, *, name: str | None = None, start_listener: bool = True, user_id: EntityId | None = None
    ) -> UserExchangeClient:
        """A client for a new user, or for one that has a mailbox.

        Args:
            name: For display.
            start_listener: False for a client that only registers, discovers and sends: it hears no answers.
            user_id: A user whose earlier client was left open: what arrived since then is heard. A client that
                listens for the same user elsewhere ends with `ListenerSupersededError`.

        Raises:
            ExchangeUnavailableError, UnauthorizedError: The exchange can't be used.
            BadEntityIdError, MailboxTerminatedError: The user has no mailbox any more.
        """
        transport = await self.create_transport(user_id, name=name)
        user_id = UserId(transport.mailbox_id.uid, transport.mailbox_id.name)
        client = UserExchangeClient(user_id, transport, factory=self)
        if start_listener:
            await client.start()
        return client
