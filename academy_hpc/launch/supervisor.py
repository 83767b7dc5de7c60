"""What became of the agents that were launched.

An agent reports through the exchange: arrived, ready, ended. The future of its worker is a second source, for workers
that are lost before they can speak; it may lie both ways (`Launcher.start`), so the exchange is asked before an agent
is given up. One that can't come back gets its mailbox terminated: everybody who waits for it has an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import textwrap
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future as WorkerFuture
from typing import Any, Literal

from academy_hpc.errors import AcademyError, LaunchError
from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.transport import STALE_S, MailboxStatus
from academy_hpc.identifiers import AgentId, EntityId
from academy_hpc.launch.launcher import Launcher
from academy_hpc.launch.progress import LaunchProgress
from academy_hpc.launch.spec import AgentReport, AgentSpec, AgentState, WorkerReport
from academy_hpc.message import ActionResponse, Message

__all__ = ["SupervisedAgent", "SupervisedWorker", "Supervisor"]

logger = logging.getLogger(__name__)

# Between looks at the launchers, which cost nothing, and at the mailboxes of agents that are said to be well.
LAUNCHER_CHECK_S = 1.0
MAILBOX_CHECK_S = 30.0
# Between two looks at an agent whose worker is said to be lost: it is, if it gave no sign of life in between.
LOST_CHECK_S = 1.0
REASON_CHARACTERS = 500
# Blocking code keeps a healthy agent from giving a sign of life.
BLOCKED = "Code of it may block its event loop: have such code called by agent_run_sync"

Phase = Literal["queued", "starting", "ready", "ended"]


class SupervisedWorker:
    """One worker: the agents that share a process, and what is known of it."""

    def __init__(self, launcher: Launcher | None) -> None:
        self.launcher = launcher
        self.agents: list[SupervisedAgent] = []
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

    def cancel(self) -> None:
        """Take it from the queue, if it still waits there."""
        if self.future is not None:
            with contextlib.suppress(NotImplementedError):  # Parsl's futures can't
                self.future.cancel()


class SupervisedAgent:
    """One agent."""

    def __init__(self, spec: AgentSpec, worker: SupervisedWorker, *, own_mailbox: bool) -> None:
        self.spec = spec
        self.worker = worker
        self.own_mailbox = own_mailbox
        self.warned = False
        self.phase: Phase = "queued"
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[AgentReport] = asyncio.get_running_loop().create_future()
        self.cause: BaseException | None = None
        self.expected: list[asyncio.Future[Message]] = []
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


class Supervisor:
    """Watches the agents of one manager. All methods must be called in its event loop."""

    def __init__(self, client: UserExchangeClient) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._agents: dict[EntityId, SupervisedAgent] = {}
        self._workers: list[SupervisedWorker] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._patrol: asyncio.Task[None] | None = None
        self._listeners: set[Callable[[], None]] = set()

    # For the manager

    def get(self, agent_id: EntityId) -> SupervisedAgent | None:
        """The agent, if it was launched here."""
        return self._agents.get(agent_id)

    def living(self) -> list[SupervisedAgent]:
        """All that have not ended."""
        return [agent for agent in self._agents.values() if agent.phase != "ended"]

    def busy_workers(self, launcher: Launcher) -> int:
        """How many slots of `launcher` are taken."""
        return sum(worker.busy for worker in self._workers if worker.launcher is launcher)

    def new_worker(self, launcher: Launcher | None) -> SupervisedWorker:
        """A worker that is going to be started; it takes a slot from now on."""
        worker = SupervisedWorker(launcher)
        self._workers = [*(known for known in self._workers if known.busy), worker]
        return worker

    def forget_worker(self, worker: SupervisedWorker) -> None:
        """It was not started after all."""
        self._workers = [known for known in self._workers if known is not worker]

    def expect(self, spec: AgentSpec, worker: SupervisedWorker, *, own_mailbox: bool) -> SupervisedAgent:
        """Listen for the reports of an agent: to be done before anybody can start it."""
        agent = SupervisedAgent(spec, worker, own_mailbox=own_mailbox)
        states: tuple[AgentState, ...] = ("arrived", "ready", "finished")
        for state in states:
            future = self._client.expect(spec.report_tag(state))
            future.add_done_callback(functools.partial(self._heard, agent))
            agent.expected.append(future)
        worker.agents.append(agent)
        self._agents[spec.agent_id] = agent
        if self._patrol is None:  # also for those whose worker is started by the program, and never has a future
            self._patrol = self._loop.create_task(self._go_round())
        return agent

    def started(self, worker: SupervisedWorker, future: WorkerFuture[str]) -> None:
        """The worker was submitted: watch its future, too."""
        worker.future = future
        # Called in whatever thread; the loop may be closed by then.
        future.add_done_callback(lambda _: self._call_soon(self._worker_ended, worker))

    def give_up(self, agents: Iterable[SupervisedAgent], reason: str) -> None:
        """These agents are not wanted: take them from the queue, or have them end."""
        for agent in agents:
            agent.worker.cancel()
            submitted = agent.worker.future is not None
            self._end(agent, "stopped", reason, terminate=submitted or agent.own_mailbox)

    def progress(self, agents: Iterable[SupervisedAgent]) -> LaunchProgress:
        """How far they are."""
        names: dict[Phase, list[str]] = {"queued": [], "starting": [], "ready": [], "ended": []}
        for agent in agents:
            names[agent.phase].append(agent.name)
        return LaunchProgress(tuple(names["ready"]), tuple(names["starting"]), tuple(names["queued"]))

    @contextlib.contextmanager
    def calling(self, listener: Callable[[], None]) -> Iterator[None]:
        """Call `listener` now and whenever something changed."""
        self._listeners.add(listener)
        try:
            listener()
            yield
        finally:
            self._listeners.discard(listener)

    async def close(self) -> None:
        """Wait for mailboxes that are being terminated; watch no more."""
        if self._patrol is not None:
            self._patrol.cancel()
        for agent in self.living():
            self._end(agent, "lost", "its manager was closed", terminate=False)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What is heard

    def _heard(self, agent: SupervisedAgent, future: asyncio.Future[Message]) -> None:
        if future.cancelled() or agent.phase == "ended":
            return
        if (error := future.exception()) is not None:  # no more can be heard of anybody
            self._end(agent, "lost", f"its manager has lost the exchange: {error}", terminate=False)
            return
        try:
            body = future.result().decoded()
            assert isinstance(body, ActionResponse)  # nobody else knows the tag
            self._reported(agent, AgentReport.from_json(body.result[1]))
        except (AcademyError, AssertionError):
            logger.exception("a report of %s can't be read", agent.agent_id)

    def _reported(self, agent: SupervisedAgent, report: AgentReport) -> None:
        if report.state == "arrived":
            if agent.phase == "queued":
                agent.phase = "starting"
                self._changed()
        elif report.state == "ready":
            if not agent.started.done():
                agent.phase = "ready"
                agent.started.set_result(None)
                self._changed()
        else:
            self._ended(agent, report)

    def _worker_ended(self, worker: SupervisedWorker) -> None:
        """The future is done. What agents have reported themselves stands."""
        assert worker.future is not None  # it has called
        reports: dict[EntityId, AgentReport] = {}
        error: BaseException | None = None
        try:
            result = WorkerReport.from_json(worker.future.result())
            reports = {report.agent_id: report for report in result.agents}
            reason = f"its worker ended without it: {result.error or 'no reason given'} ({result.origin})"
        except BaseException as caught:  # noqa: BLE001 - CancelledError, and whatever a launcher has for a lost worker
            error, reason = caught, f"its worker failed: {_one_line(caught)}"
        for agent in worker.agents:
            report = reports.get(agent.agent_id)
            if agent.phase == "ended":
                continue
            if report is not None and report.state != "superseded":
                self._ended(agent, report)
            else:
                agent.cause = error
                self._spawn(self._lose(agent, report.reason if report is not None else reason))

    # What is looked for

    async def _go_round(self) -> None:
        rounds = 0
        while True:
            await asyncio.sleep(LAUNCHER_CHECK_S)
            rounds += 1
            for worker in self._workers:
                if worker.launcher is not None and worker.busy and not worker.given_up:
                    self._check_launcher(worker, worker.launcher.failure())
            if rounds * LAUNCHER_CHECK_S >= MAILBOX_CHECK_S:
                rounds = 0
                await asyncio.gather(*(self._check_mailbox(agent) for agent in self.living()))

    def _check_launcher(self, worker: SupervisedWorker, failure: str | None) -> None:
        if failure is not None:
            worker.given_up = True
            for agent in worker.agents:
                self._spawn(self._lose(agent, failure))

    async def _check_mailbox(self, agent: SupervisedAgent) -> None:
        """An agent that has served, and has not been heard of for long, is lost, unless its worker is known to run."""
        if agent.phase != "ready":
            return
        with contextlib.suppress(AcademyError):  # the client tells if the exchange is gone
            status = await self._client.status(agent.agent_id)
            if status is MailboxStatus.INACTIVE:
                self._silent(agent)
            elif status is not MailboxStatus.ACTIVE:
                self._end(agent, "stopped", "its mailbox was terminated")

    def _silent(self, agent: SupervisedAgent) -> None:
        reason = f"nothing was heard of it for {STALE_S:.0f} s"
        if not agent.worker.running:
            self._end(agent, "lost", f"{reason}. {BLOCKED}")
        elif not agent.warned:
            agent.warned = True
            logger.warning("%s: %s, but its worker has not ended. %s.", agent.agent_id, reason, BLOCKED)

    async def _lose(self, agent: SupervisedAgent, reason: str) -> None:
        """Give the agent up as soon as it is seen to be gone; while it lives in spite of all, it is left alone."""
        before = 0.0
        while agent.phase != "ended":
            try:
                seen = await self._client.heartbeat_status(agent.agent_id)
            except AcademyError:
                seen = None
            if seen is None or (0 < before < seen):
                self._end(agent, "lost", reason)
                return
            before = seen
            await asyncio.sleep(LOST_CHECK_S if seen == 0 else 0.1)

    # Ends

    def _end(self, agent: SupervisedAgent, state: AgentState, reason: str, *, terminate: bool | None = None) -> None:
        self._ended(agent, AgentReport(agent.agent_id, state, reason), terminate=terminate)

    def _ended(self, agent: SupervisedAgent, report: AgentReport, *, terminate: bool | None = None) -> None:
        if agent.phase == "ended":
            return
        served, agent.phase = agent.phase == "ready", "ended"
        agent.ended.set_result(report)
        if not agent.started.done():
            agent.started.set_exception(LaunchError(report.reason or "it ended before it was ready"))
        for future in agent.expected:
            future.cancel()
        if terminate is None:  # an agent that ended by itself has done as it is configured
            terminate = report.state != "finished" and (
                agent.spec.config.terminate_on_error or (agent.own_mailbox and not served)
            )
        if terminate:
            self._spawn(self._terminate(agent))
        self._changed()

    async def _terminate(self, agent: SupervisedAgent) -> None:
        try:
            await self._client.terminate(agent.agent_id)
        except AcademyError as error:
            logger.warning("could not terminate the mailbox of %s: %s", agent.agent_id, error)

    # Plumbing

    def _changed(self) -> None:
        for listener in list(self._listeners):
            listener()

    def _call_soon(self, function: Callable[[SupervisedWorker], None], worker: SupervisedWorker) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, worker)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _one_line(error: BaseException) -> str:
    """Parsl's errors hold whole logs; all of it is in the cause of the LaunchError."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", REASON_CHARACTERS, placeholder=" ...")
