"""Names of entities: agents and users.

An entity is its ``uid``: two ids with the same uid are equal, whatever they are called. The name is for people.
"""

from __future__ import annotations

import uuid
from typing import Any, Generic, Literal, Self, TypeVar

import msgspec

from academy_hpc.errors import AgentTerminatedError, MailboxTerminatedError, UserTerminatedError

__all__ = ["AgentId", "EntityId", "UserId", "terminated_error", "typed"]

AgentT = TypeVar("AgentT")


class EntityId(msgspec.Struct, frozen=True, eq=False, forbid_unknown_fields=True, gc=False):
    """One agent or user, as written on the wire."""

    uid: uuid.UUID
    name: str | None = None
    role: Literal["agent", "user"] = "agent"

    def __eq__(self, other: object) -> bool:
        """Equal is who has the same uid."""
        return isinstance(other, EntityId) and self.uid == other.uid

    def __ne__(self, other: object) -> bool:
        """The opposite: Struct has an ``!=`` of its own, which Python would take."""
        return not self == other

    def __hash__(self) -> int:
        """Hash of the uid alone."""
        return hash(self.uid)

    def __str__(self) -> str:
        """Role, name and the start of the uid: ``agent simulator (1f0c2d9a)``."""
        short = str(self.uid)[:8]
        return f"{self.role} {self.name} ({short})" if self.name else f"{self.role} {short}"

    @classmethod
    def new(cls, name: str | None = None) -> Self:
        """A new, random id."""
        return cls(uuid.uuid4(), name)


class AgentId(EntityId, Generic[AgentT], frozen=True, eq=False, forbid_unknown_fields=True, gc=False):
    """The id of an agent of class `AgentT`."""

    role: Literal["agent", "user"] = "agent"


class UserId(EntityId, frozen=True, eq=False, forbid_unknown_fields=True, gc=False):
    """The id of a user."""

    role: Literal["agent", "user"] = "user"


def typed(entity: EntityId) -> AgentId[Any] | UserId:
    """The same entity as an `AgentId` or a `UserId`."""
    cls = AgentId if entity.role == "agent" else UserId
    return cls(entity.uid, entity.name)


def terminated_error(entity: EntityId) -> MailboxTerminatedError:
    """The error that says that the mailbox of `entity` was terminated."""
    return AgentTerminatedError(typed(entity)) if entity.role == "agent" else UserTerminatedError(typed(entity))
