"""What a client shows to an exchange, where that is not one of the headers of the connection info."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Credential", "TokenCredential"]


class Credential(Protocol):
    """Gives the value of the Authorization header. Hashable: clients with the same credential share one stream."""

    async def authorization(self, *, refused: str | None = None) -> str:
        """A value that is good now; asked for before each connection and each REST request.

        Args:
            refused: What the exchange has just refused. If no other value can be had, it is given again.

        Raises:
            UnauthorizedError: There is none to be had, and why.
        """
        ...


class TokenCredential:
    """A token that does not change."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def authorization(self, *, refused: str | None = None) -> str:
        """See `Credential`."""
        return f"Bearer {self._token}"
