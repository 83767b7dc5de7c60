"""Who calls: from the Authorization header to a `Caller`, before anything else of a request is read."""

from __future__ import annotations

import hmac
from typing import Protocol

from academy_hpc.errors import ForbiddenError, UnauthorizedError
from academy_hpc.registry import Caller

__all__ = ["Authenticator", "OpenAuthenticator", "TokenAuthenticator", "bearer_token"]

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
    """One secret token; who has it is the owner."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    async def authenticate(self, authorization: str | None) -> Caller:
        """The owner. See `Authenticator`."""
        # compare_digest takes the same time for every wrong token.
        if not hmac.compare_digest(bearer_token(authorization).encode(errors="surrogateescape"), self._token):
            raise ForbiddenError("Token expired or revoked.")
        return _OWNER


def bearer_token(authorization: str | None) -> str:
    """The token of an Authorization header. Raises UnauthorizedError."""
    words = (authorization or "").split(" ")
    if len(words) != 2 or words[0] != "Bearer" or not words[1]:
        raise UnauthorizedError("Missing required headers.")
    return words[1]
