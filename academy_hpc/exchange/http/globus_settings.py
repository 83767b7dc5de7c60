"""What both sides of an exchange with Globus Auth share: its names there. globus_sdk is not needed for that."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Self

import msgspec

from academy_hpc.errors import BadRequestError

__all__ = ["GlobusSettings", "exchange_scope", "resource_server"]

# Those of academy-py, so that one environment serves both (docs/protocol.md, section 11).
EXCHANGE_ID_VARIABLE = "ACADEMY_EXCHANGE_CLIENT_ID"
EXCHANGE_SECRET_VARIABLE = "ACADEMY_EXCHANGE_SECRET"  # noqa: S105 - the name of a variable

# The public exchange of Academy.
DEFAULT_RESOURCE_SERVER = "ca1e2fbf-4e73-40a6-b2ab-c9458e5fcf99"


class GlobusSettings(msgspec.Struct, frozen=True):
    """The exchange as Globus Auth knows it. `repr` hides the secret.

    Attributes:
        client_id: Id of the exchange's own confidential client; tokens for other services are refused.
        client_secret: Its secret.
    """

    client_id: str
    client_secret: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """From ``ACADEMY_EXCHANGE_CLIENT_ID`` and ``ACADEMY_EXCHANGE_SECRET``.

        Args:
            environment: Variables to look in; default: those of this process.

        Raises:
            BadRequestError: One of them is not set.
        """
        variables = os.environ if environment is None else environment
        for name in (EXCHANGE_ID_VARIABLE, EXCHANGE_SECRET_VARIABLE):
            if not variables.get(name):
                raise BadRequestError(
                    f"{name} is not set: an exchange with Globus Auth needs its client's id and secret."
                )
        return cls(variables[EXCHANGE_ID_VARIABLE], variables[EXCHANGE_SECRET_VARIABLE])

    def __repr__(self) -> str:
        """The client id."""
        return f"{type(self).__name__}(client_id={self.client_id!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """The same for rich, which would otherwise show all fields of a Struct."""
        return [("client_id", self.client_id)]


def resource_server() -> str:
    """The id of the exchange for which a client asks for tokens: that of the environment, else the public one."""
    return os.environ.get(EXCHANGE_ID_VARIABLE) or DEFAULT_RESOURCE_SERVER


def exchange_scope(server: str) -> str:
    """The scope that lets somebody use the exchange with the id `server`."""
    return f"https://auth.globus.org/scopes/{server}/academy_exchange"
