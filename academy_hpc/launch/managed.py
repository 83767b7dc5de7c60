"""Handles of agents that a manager supervises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from academy_hpc.errors import AgentTerminatedError, MailboxTerminatedError
from academy_hpc.exchange.client import ExchangeClient
from academy_hpc.handle import AgentT, Handle
from academy_hpc.identifiers import AgentId
from academy_hpc.launch.spec import AgentReport
from academy_hpc.message import Body

__all__ = ["ManagedHandle"]


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
