"""Who calls: from the Authorization header to a `Caller`, before anything else of a request is read."""

from __future__ import annotations

import hmac
import uuid
from typing import Protocol

from academy_hpc.directory import Caller
from academy_hpc.errors import ForbiddenError, UnauthorizedError
from academy_hpc.exchange.http.tokens import agent_token, agent_uid, is_agent_token
from academy_hpc.registry import Registry

__all__ = ["AgentTokens", "Authenticator", "OpenAuthenticator", "TokenAuthenticator", "bearer_token"]

_OWNER = Caller("owner")


class Authenticator(Protocol):
    """Tells on whose behalf a request comes, from its Authorization header alone."""

    async def authenticate(self, authorization: str | None) -> Caller:
        """The caller.

        Raises:
            UnauthorizedError: No token, or not in the form ``Bearer TOKEN``.
            ForbiddenError: A token that is not, or no longer, valid.
        """


class OpenAuthenticator:
    """No authentication: everybody is the owner. For loopback and tests."""

    async def authenticate(self, authorization: str | None) -> Caller:
        """The owner, whoever asks."""
        return _OWNER


class TokenAuthenticator:
    """One secret token; who has it is the owner. Everybody else is left to `others`, where that is given."""

    def __init__(self, token: str, *, others: Authenticator | None = None) -> None:
        self._token = token.encode()
        self._others = others

    async def authenticate(self, authorization: str | None) -> Caller:
        """The owner. See `Authenticator`."""
        # compare_digest takes the same time for every wrong token.
        if not hmac.compare_digest(bearer_token(authorization).encode(errors="surrogateescape"), self._token):
            if self._others is not None:
                return await self._others.authenticate(authorization)
            raise ForbiddenError("Token expired or revoked.")
        return _OWNER


class AgentTokens:
    """The tokens of agents, each good for one mailbox while that is open.

    Args:
        secret: From which they are derived; None: this exchange lets everybody in, and has no use for them.
        registry: Which mailboxes there are.
    """

    def __init__(self, secret: str | None, registry: Registry) -> None:
        self._secret = secret
        self._registry = registry

    def issue(self, uid: uuid.UUID) -> str | None:
        """The token of the agent `uid`."""
        return None if self._secret is None else agent_token(self._secret, uid)

    def is_good(self, token: str, uid: uuid.UUID) -> bool:
        """Whether `token` was issued for `uid`, be its mailbox open or not."""
        return self._secret is not None and is_agent_token(self._secret, token, uid)

    def caller(self, authorization: str | None) -> Caller | None:
        """The agent whose token this is; None where it is none of an agent.

        Raises:
            UnauthorizedError: No token at all. ForbiddenError: A false one.
        """
        token = bearer_token(authorization)
        uid = agent_uid(token)
        if uid is None:
            return None
        if not self.is_good(token, uid):
            raise ForbiddenError("Token expired or revoked.")
        return self._registry.agent_caller(uid)


def bearer_token(authorization: str | None) -> str:
    """The token of an Authorization header. Raises UnauthorizedError."""
    words = (authorization or "").split(" ")
    if len(words) != 2 or words[0] != "Bearer" or not words[1]:
        raise UnauthorizedError("Missing required headers.")
    return words[1]
