"""What became of each agent of a worker: told to the manager through the exchange, and kept for the worker's result."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from typing import Any

from academy_hpc.errors import AcademyError, BadEntityIdError, ExchangeError, LaunchError, MailboxTerminatedError
from academy_hpc.exchange.http.client import HttpExchangeFactory, HttpExchangeTransport
from academy_hpc.identifiers import EntityId
from academy_hpc.launch.run import Run, WorkerStatus
from academy_hpc.launch.spec import AgentReport, AgentSpec, AgentState, EndCause, LaunchSpec, Origin, WorkerReport
from academy_hpc.message import ActionResponse, Message
from academy_hpc.worker.checks import Finding, findings_text
from academy_hpc.worker.record import WorkerRecord

__all__ = ["Reports"]

logger = logging.getLogger(__name__)

# How long the end of an agent may take to tell; it is in the worker's own report, too.
LAST_REPORT_S = 10.0


class Reports:
    """The reports of one worker.

    Attributes:
        findings: What was looked at where the worker started.
        factory: How the exchange is reached; None: it was not, yet.
        record: Where the worker writes of itself.
        error: Why nothing can be run at all.
    """

    def __init__(self, spec: LaunchSpec, origin: Origin, *, rank: int, run: Run | None) -> None:
        self._spec = spec
        self._origin = origin
        self._rank = rank
        self._last: dict[EntityId, AgentReport] = {}
        self._ends: dict[EntityId, AgentReport] = {}
        self.findings: list[Finding] = []
        self.factory: HttpExchangeFactory | None = None
        self.record = WorkerRecord(run, rank, self._status)

    def worker_report(self) -> WorkerReport:
        """How all agents ended."""
        return WorkerReport(self._origin, tuple(self._ends.values()))

    def ended(self, spec: AgentSpec) -> bool:
        """Whether the end of this agent is known."""
        return spec.agent_id in self._ends

    def ended_here(self, spec: AgentSpec) -> bool:
        """Whether it has ended in this life of the worker."""
        return self.ended(spec) and self._ends[spec.agent_id].attempt == self._spec.attempt

    def recall(self, run: Run | None) -> None:
        """Take over what an earlier life of this worker has written of agents that are not to run again."""
        try:
            before = None if run is None or self._spec.attempt == 1 else run.worker(self._rank)
        except LaunchError as error:
            logger.warning("what the last life of this worker has written is not known: %s", error)
            return
        ids = {spec.agent_id for spec in self._spec.agents}
        for report in () if before is None else before.agents:
            over = report.state in ("finished", "failed", "stopped") and not report.again
            if over and report.agent_id in ids:
                self._ends[report.agent_id] = self._last[report.agent_id] = report

    # What became of an agent

    def note(self, spec: AgentSpec, state: AgentState, **fields: Any) -> AgentReport:
        """A report on an agent, kept as its last one."""
        report = AgentReport(spec.agent_id, state, origin=self._origin, attempt=self._spec.attempt, **fields)
        self._last[spec.agent_id] = report
        self.record.changed()
        return report

    def end(
        self,
        spec: AgentSpec,
        state: AgentState,
        cause: EndCause,
        *,
        reason: str = "",
        error: BaseException | None = None,
        again: bool = False,
    ) -> None:
        """The life of an agent is over."""
        text = "" if error is None else "".join(traceback.format_exception(error))
        checks = findings_text(self.findings) if state == "failed" else ""
        fields = {"reason": reason, "remote_traceback": text, "cause": cause, "again": again, "checks": checks}
        self._ends[spec.agent_id] = self.note(spec, state, **fields)
        if not again:  # when all are to go on, time is short, and the end of the worker says it
            agent = {"uid": str(spec.agent_id.uid), "name": spec.agent_id.name}
            self.record.event("agent_ended", agent=agent, state=state, cause=cause, reason=reason)
        if reason:
            own_code = error is not None and not isinstance(error, AcademyError)
            logger.error("%s has ended: %s", spec.agent_id, reason, exc_info=error if own_code else None)

    # Telling the manager

    async def tell_arrived(self, spec: AgentSpec) -> None:
        """Report that an agent has a worker. One whose mailbox was closed is not going to run. Raises ExchangeError."""
        try:
            await self.tell(spec, self.note(spec, "arrived"))
        except (BadEntityIdError, MailboxTerminatedError):
            if self._spec.attempt > 1:
                self.end(spec, "finished", "finished", reason="its mailbox was closed since its last life")
            else:
                self.end(spec, "failed", "stopped", reason=str(BadEntityIdError(spec.agent_id)))

    async def tell_end(self, spec: AgentSpec) -> None:
        """Report the end of an agent, unless it lives on elsewhere."""
        report = self._ends[spec.agent_id]
        if report.state == "superseded" or self.factory is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_REPORT_S):
                await self.tell_safely(spec, report)

    async def tell_safely(self, spec: AgentSpec, report: AgentReport) -> None:
        """An exchange that is gone ends the agent by itself."""
        try:
            await self.tell(spec, report)
        except ExchangeError as error:
            logger.warning("%r of %s could not be told: %s", report.state, spec.agent_id, error)

    async def tell(self, spec: AgentSpec, report: AgentReport) -> None:
        """Send a report to the manager; that it is not there any more is no error.

        Raises:
            BadEntityIdError, MailboxTerminatedError: The agent itself has no mailbox any more.
            ExchangeError: It could not be sent.
        """
        body = ActionResponse(("__serialized__", report.to_json()), "json")
        message = Message.create(spec.agent_id, self._spec.manager, body, label=spec.tag)
        async with await self._transport(spec) as transport:
            try:
                await transport.send(message)
            except (BadEntityIdError, MailboxTerminatedError) as error:
                if error.uid == spec.agent_id:
                    raise
                logger.info("nobody is there to hear that %s is %s", spec.agent_id, report.state)

    async def terminate(self, spec: AgentSpec) -> None:
        """Close the mailbox of an agent for good, by its own right: nobody is to wait for it any more."""
        try:
            async with asyncio.timeout(LAST_REPORT_S), await self._transport(spec) as transport:
                await transport.terminate(spec.agent_id)
        except (ExchangeError, TimeoutError) as error:
            logger.warning(
                "could not terminate the mailbox of %s: %s", spec.agent_id, str(error) or "no answer in time"
            )

    async def _transport(self, spec: AgentSpec) -> HttpExchangeTransport:
        """One that sends and does not listen: the mailbox may still have a listener elsewhere. Raises ExchangeError."""
        assert self.factory is not None  # nobody asks before the exchange was reached
        return await self.factory.create_transport(spec.agent_id, registration=spec.registration)

    def _status(self) -> WorkerStatus:
        reports = tuple(self._last.values())
        return WorkerStatus(
            self._rank,
            self._spec.attempt,
            self._origin,
            reports,
            checks=findings_text(self.findings),
            again=any(report.again for report in reports),
            time_s=time.time(),
        )
