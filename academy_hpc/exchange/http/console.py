"""Sharing of mailboxes with groups of people: what only an HTTP exchange that knows its callers has a use for."""

from __future__ import annotations

import uuid
from typing import Any, Protocol, Self

from academy_hpc.identifiers import EntityId

__all__ = ["HttpExchangeConsole"]


class _Channel(Protocol):
    async def call(self, method: str, *arguments: Any) -> Any: ...

    async def close(self) -> None: ...


class HttpExchangeConsole:
    """Lets others use mailboxes of one's own. Make it with ``await factory.console()``, and close it.

    Members of a group with which a mailbox is shared may do with it what its owner may, except sharing. For a call
    across users both mailboxes must be shared, the agent's and the caller's: the answer comes back to the latter.
    """

    def __init__(self, channel: _Channel, factory: Any) -> None:
        self._channel = channel
        self._factory = factory

    def factory(self) -> Any:
        """What makes clients of the same exchange."""
        return self._factory

    async def share_mailbox(self, mailbox_id: EntityId, group_id: uuid.UUID | str) -> None:
        """Share a mailbox of one's own with a group that one is in; a second time changes nothing.

        Raises:
            ForbiddenError: It is somebody else's mailbox, or one is not in that group.
            BadEntityIdError: There is no such mailbox.
            MailboxTerminatedError: It is closed for good.
        """
        await self._channel.call("share", mailbox_id, str(group_id))

    async def get_shared_groups(self, mailbox_id: EntityId) -> list[uuid.UUID]:
        """With which groups the mailbox is shared. Raises as `share_mailbox`."""
        return [uuid.UUID(group) for group in await self._channel.call("groups", mailbox_id)]

    async def remove_shared_group(self, mailbox_id: EntityId, group_id: uuid.UUID | str) -> None:
        """Share it with that group no more. Raises as `share_mailbox`."""
        await self._channel.call("unshare", mailbox_id, str(group_id))

    async def close(self) -> None:
        """Let go."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
