"""What a manager knows of one agent, and of the worker that it shares with others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import Future as WorkerFuture
from typing import Any, Literal

from academy_hpc.identifiers import AgentId
from academy_hpc.launch.launcher import Launcher
from academy_hpc.launch.restart import STEADY_S, RestartPolicy
from academy_hpc.launch.spec import AgentReport, AgentSpec, LaunchSpec, Origin

__all__ = ["Phase", "SupervisedAgent", "SupervisedWorker"]

Phase = Literal["queued", "starting", "ready", "ended"]
"""Waits for a worker, for its first life or another one; is imported and constructed; serves; has no further life."""


class SupervisedWorker:
    """One worker: the agents that share a process, and what is known of it."""

    def __init__(self, launcher: Launcher | None) -> None:
        self.launcher = launcher
        self.agents: list[SupervisedAgent] = []
        self.spec: LaunchSpec | None = None
        self.future: WorkerFuture[str] | None = None
        self.given_up = False

    @property
    def running(self) -> bool:
        """Whether its future and its launcher know of no end."""
        return self.future is not None and not self.future.done() and not self.given_up

    @property
    def busy(self) -> bool:
        """Whether it needs a slot."""
        return any(agent.phase != "ended" for agent in self.agents) or not self.agents

    @property
    def can_start_again(self) -> bool:
        """Whether a manager can start it again."""
        return not (self.given_up or self.launcher is None or self.spec is None or self.launcher.restarts)

    def cancel(self) -> None:
        """Take it from the queue, if a launcher has put it there and it still waits."""
        # A program's own future is left to it: an executor of Globus Compute never ends once one was cancelled.
        if self.future is not None and self.launcher is not None:
            with contextlib.suppress(NotImplementedError):  # Parsl's futures can't
                self.future.cancel()


class SupervisedAgent:
    """One agent."""

    def __init__(
        self,
        spec: AgentSpec,
        worker: SupervisedWorker,
        *,
        own_mailbox: bool,
        policy: RestartPolicy,
        close_on_error: bool,
        attempt: int = 1,
    ) -> None:
        self.spec = spec
        self.worker = worker
        self.own_mailbox = own_mailbox
        self.policy = policy
        self.close_on_error = close_on_error
        self.attempt = attempt
        self.restarts = 0
        self.ends: list[AgentReport] = []
        self.origin: Origin | None = None
        self.warned = False
        self.phase: Phase = "queued"
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[AgentReport] = asyncio.get_running_loop().create_future()
        self.cause: BaseException | None = None
        self._ready_at = time.monotonic()
        # Read it, so that asyncio does not complain where nobody waits any more.
        self.started.add_done_callback(lambda future: future.cancelled() or future.exception())

    @property
    def agent_id(self) -> AgentId[Any]:
        """Which entity."""
        return self.spec.agent_id

    @property
    def name(self) -> str:
        """For people."""
        return self.agent_id.name or str(self.agent_id.uid)[:8]

    @property
    def report(self) -> AgentReport | None:
        """How it ended, if it did."""
        return self.ended.result() if self.ended.done() else None

    @property
    def between_lives(self) -> bool:
        """Whether its last life has ended, and none has begun."""
        return bool(self.ends) and self.ends[-1].attempt >= self.attempt and self.phase != "ended"

    def lives(self, attempt: int) -> bool:
        """Whether this life of it is not known to have ended."""
        return self.phase != "ended" and self.attempt == attempt and not self.between_lives

    @property
    def may_restart(self) -> bool:
        """Whether another life is due, when the last one has ended."""
        last = self.ends[-1]
        if last.again:
            return True
        if not self.started.done() or (last.cause == "agent_error" and not self.policy.on_error):
            return False
        return self.restarts < self.policy.max_restarts

    def arrived(self, report: AgentReport) -> None:
        """A worker has it."""
        self.origin = report.origin
        if self.phase == "queued":
            self.phase = "starting"

    def serves(self) -> None:
        """It is ready."""
        self.phase, self.warned, self._ready_at = "ready", False, time.monotonic()
        if not self.started.done():
            self.started.set_result(None)

    def life_ended(self, report: AgentReport) -> None:
        """This life is over, and what comes next has to be seen."""
        if self.phase == "ready" and time.monotonic() - self._ready_at >= STEADY_S:
            self.restarts = 0
        self.ends.append(report)
        self.phase = "queued"

    def life_begins(self, attempt: int) -> None:
        """Another worker has been asked for, or has spoken."""
        if not self.between_lives:
            reason = "its worker was gone, and another one was started in its place"
            self.life_ended(AgentReport(self.agent_id, "lost", reason, attempt=self.attempt, cause="lost"))
        self.restarts += not self.ends[-1].again
        self.attempt, self.phase = attempt, "queued"
