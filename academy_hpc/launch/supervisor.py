"""What became of the agents that were launched.

An agent reports through the exchange: arrived, ready, ended. The future of its worker is a second source, for workers
that are lost before they can speak; it may lie both ways (`Launcher.start`), so the exchange is asked before an agent
is given up. One whose worker is gone is started again under the same registration, as its `RestartPolicy` says. One
that can't come back gets its mailbox terminated: everybody who waits for it has an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import textwrap
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future as WorkerFuture
from typing import Any

import msgspec

from academy_hpc.errors import AcademyError, LaunchError, TooFewSlotsError
from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.transport import STALE_S, MailboxStatus
from academy_hpc.identifiers import EntityId
from academy_hpc.launch.launcher import Launcher, WorkerEndedError
from academy_hpc.launch.progress import LaunchProgress
from academy_hpc.launch.restart import RestartPolicy
from academy_hpc.launch.spec import AgentReport, AgentSpec, AgentState, EndCause, LaunchSpec, WorkerReport
from academy_hpc.launch.supervised import Phase, SupervisedAgent, SupervisedWorker
from academy_hpc.message import ActionResponse, Message

__all__ = ["Supervisor"]

logger = logging.getLogger(__name__)

# Between looks at the launchers, which cost nothing, and at the mailboxes of agents that are said to be well.
LAUNCHER_CHECK_S = 1.0
MAILBOX_CHECK_S = 30.0
# Between two looks at an agent whose worker is said to be lost: it is, if it gave no sign of life in between.
LOST_CHECK_S = 1.0
# When all agents of a worker have ended, how long its launcher may take to say that the worker has.
WORKER_OVER_S = 10.0
REASON_CHARACTERS = 500
# Blocking code keeps a healthy agent from giving a sign of life.
BLOCKED = "Code of it may block its event loop: have such code called by agent_run_sync"


class Supervisor:
    """Watches the agents of one manager. All methods must be called in its event loop."""

    def __init__(self, client: UserExchangeClient) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._agents: dict[EntityId, SupervisedAgent] = {}
        self._workers: list[SupervisedWorker] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._restarts: set[asyncio.Task[None]] = set()
        self._patrol: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._listeners: set[Callable[[], None]] = set()
        self._telling = False

    # For the manager

    def get(self, agent_id: EntityId) -> SupervisedAgent | None:
        """The agent, if it was launched here."""
        return self._agents.get(agent_id)

    def all(self) -> list[SupervisedAgent]:
        """All agents that were launched here."""
        return list(self._agents.values())

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

    def expect(
        self,
        spec: AgentSpec,
        worker: SupervisedWorker,
        *,
        own_mailbox: bool,
        policy: RestartPolicy,
        close_on_error: bool,
        attempt: int = 1,
    ) -> SupervisedAgent:
        """Listen for the reports of an agent: to be done before anybody can start it.

        Args:
            spec: Which.
            worker: Where.
            own_mailbox: It was registered for this launch.
            policy: When it is started again.
            close_on_error: Close its mailbox when it has ended by an error.
            attempt: Which life is the next to be heard of.
        """
        agent = SupervisedAgent(
            spec,
            worker,
            own_mailbox=own_mailbox,
            policy=policy,
            close_on_error=close_on_error,
            attempt=attempt,
        )
        self._client.hear(spec.tag, functools.partial(self._heard, agent))
        worker.agents.append(agent)
        self._agents[spec.agent_id] = agent
        if self._patrol is None:  # also for those whose worker is started by the program, and never has a future
            self._patrol = self._loop.create_task(self._go_round())
        return agent

    async def start(self, launcher: Launcher, workers: Sequence[SupervisedWorker], specs: Sequence[LaunchSpec]) -> None:
        """Give specs to the launcher. Raises LaunchError."""
        async with self._starting:  # launchers take one call at a time
            futures = await asyncio.to_thread(launcher.start, [spec.to_json() for spec in specs])
        for worker, spec, future in zip(workers, specs, futures, strict=True):
            worker.spec = spec
            self.started(worker, future)

    def started(self, worker: SupervisedWorker, future: WorkerFuture[str]) -> None:
        """The worker was submitted: watch its future, too."""
        worker.future = future
        # Called in whatever thread; the loop may be closed by then.
        future.add_done_callback(lambda done: self._call_soon(self._worker_ended, worker, done))

    def give_up(self, agents: Iterable[SupervisedAgent], reason: str) -> None:
        """These agents are not wanted: take them from the queue, or have them end."""
        for agent in agents:
            agent.worker.cancel()
            submitted = agent.worker.future is not None
            self._end(agent, "stopped", reason, "stopped", terminate=submitted or agent.own_mailbox)

    def progress(self, agents: Iterable[SupervisedAgent]) -> LaunchProgress:
        """How far they are."""
        names: dict[Phase, list[str]] = {"queued": [], "starting": [], "ready": [], "ended": []}
        launchers = []
        for agent in agents:
            names[agent.phase].append(agent.name)
            if agent.phase == "queued" and agent.worker.launcher not in launchers:
                launchers.append(agent.worker.launcher)
        waits = (launcher.waiting() for launcher in launchers if launcher is not None)
        waiting = "; ".join(text for text in waits if text)
        return LaunchProgress(tuple(names["ready"]), tuple(names["starting"]), tuple(names["queued"]), waiting)

    def told_before(self, agent: SupervisedAgent, report: AgentReport) -> None:
        """What an agent had reported before anybody listened here."""
        self._reported(agent, report)

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
        tasks = [*self._restarts, *([self._patrol] if self._patrol is not None else [])]
        for task in tasks:
            task.cancel()
        for agent in self.living():
            self._end(agent, "lost", "its manager was closed", "lost", terminate=False)
        await asyncio.gather(*tasks, *self._tasks, return_exceptions=True)

    async def leave(self) -> None:
        """Watch no more, and leave all as it is."""
        for agent in self.all():
            self._client.ignore(agent.spec.tag)
        tasks = [*self._restarts, *self._tasks, *([self._patrol] if self._patrol is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # What is heard

    def _heard(self, agent: SupervisedAgent, message: Message | AcademyError) -> None:
        if agent.phase == "ended":
            return
        if isinstance(message, AcademyError):  # no more can be heard of anybody
            self._end(agent, "lost", f"its manager has lost the exchange: {message}", "lost", terminate=False)
            return
        try:
            body = message.decoded()
            if not isinstance(body, ActionResponse):  # the label is the agent's secret, so this is no stranger
                raise LaunchError(f"{type(body).__name__} is no report")
            self._reported(agent, AgentReport.from_json(body.result[1]))
        except AcademyError:
            logger.exception("a report of %s can't be read", agent.agent_id)

    def _reported(self, agent: SupervisedAgent, report: AgentReport) -> None:
        if agent.phase == "ended" or report.attempt < agent.attempt:
            return
        if report.attempt > agent.attempt:
            agent.life_begins(report.attempt)
        if report.state == "arrived":
            agent.arrived(report)
        elif report.state == "ready":
            agent.serves()
        elif agent.between_lives:
            return  # known from another source
        else:
            self._life_ended(agent, report)
        self._changed()

    def _worker_ended(self, worker: SupervisedWorker, future: WorkerFuture[str]) -> None:
        """The future is done. What agents have reported themselves stands."""
        if worker.future is not future:
            return
        reports: dict[EntityId, AgentReport] = {}
        cause: EndCause = "lost"
        error: BaseException | None = None
        try:
            result = WorkerReport.from_json(future.result())
            reports = {report.agent_id: report for report in result.agents}
            reason = f"its worker ended without it: {result.error or 'no reason given'} ({result.origin})"
        except WorkerEndedError as ended:
            error, reason, cause = ended, str(ended), ended.cause
        except BaseException as caught:  # noqa: BLE001 - CancelledError, and whatever a launcher has for a lost worker
            error, reason = caught, f"its worker failed: {_one_line(caught)}"
        for agent in worker.agents:
            if agent.phase != "ended" and (report := reports.get(agent.agent_id)) is not None:
                if report.state == "superseded":
                    reason = report.reason
                else:
                    self._reported(agent, report)
        left = [agent for agent in worker.agents if agent.phase != "ended"]
        for agent in left:
            agent.cause = error
        if left:
            self._spawn(self._settle(worker, left, reason, cause), self._restarts)

    def _life_ended(self, agent: SupervisedAgent, report: AgentReport) -> None:
        """A life is over by the agent's own word: does another one follow?"""
        agent.life_ended(report)
        if report.again:  # its worker brings it back, or is brought back when it has ended
            if agent.worker.can_start_again:
                self._spawn(self._worker_over(agent.worker), self._restarts)
            return
        if agent.may_restart and report.cause == "agent_error" and agent.worker.can_start_again:
            self._spawn(self._start_again(agent.worker, [agent]), self._restarts)
        else:
            self._ended(agent, report)

    # Lives that follow

    async def _worker_over(self, worker: SupervisedWorker) -> None:
        """A worker of which no agent is left is over, though its future may not tell: its launcher may be gone, too."""
        await asyncio.sleep(WORKER_OVER_S)
        left = [agent for agent in worker.agents if agent.phase != "ended"]
        if left and worker.running and all(agent.between_lives for agent in left):
            await self._settle(worker, left, "its worker has ended", "lost")

    async def _settle(
        self, worker: SupervisedWorker, agents: list[SupervisedAgent], reason: str, cause: EndCause
    ) -> None:
        """The worker is gone: find out for each of its agents whether it is, too, and start again those that may."""
        await asyncio.gather(*(self._lose(agent, reason, cause) for agent in agents))
        down = [agent for agent in agents if agent.between_lives]
        due = [agent for agent in down if agent.may_restart and worker.can_start_again]
        for agent in down:
            if agent not in due:
                self._ended(agent, self._last_word(agent))
        if due:
            await self._start_again(worker, due)

    async def _start_again(self, worker: SupervisedWorker, agents: list[SupervisedAgent]) -> None:
        planned = all(agent.ends[-1].again for agent in agents)
        await asyncio.sleep(0 if planned else max(agent.policy.pause_s(agent.restarts) for agent in agents))
        agents = [agent for agent in agents if agent.between_lives]
        if not agents:
            return
        assert worker.launcher is not None and worker.spec is not None  # `can_start_again`
        attempt = max(agent.attempt for agent in agents) + 1
        spec = msgspec.structs.replace(worker.spec, agents=tuple(agent.spec for agent in agents), attempt=attempt)
        again = self.new_worker(worker.launcher)
        again.agents = agents
        worker.agents = [agent for agent in worker.agents if agent not in agents]
        if not worker.agents:
            self.forget_worker(worker)
        for agent in agents:
            logger.warning("%s is started again (%s)", agent.agent_id, agent.ends[-1].reason)
            agent.life_begins(attempt)
            agent.worker = again
        try:
            self._check_slot(worker)
            await self.start(worker.launcher, [again], [spec])
        except LaunchError as error:
            for agent in agents:
                reason = f"{agent.ends[-1].reason}. It could not be started again: {error}"
                self._ended(agent, msgspec.structs.replace(agent.ends[-1], reason=reason))
        self._changed()

    def _check_slot(self, worker: SupervisedWorker) -> None:
        """Raises TooFewSlotsError: the worker goes on with other agents, and leaves no slot to those that have left."""
        if worker.launcher is not None and worker.agents and worker.busy:
            slots, busy = worker.launcher.slots(), self.busy_workers(worker.launcher)
            if slots is not None and busy > slots:
                raise TooFewSlotsError(worker.launcher.label, busy, slots)

    def _last_word(self, agent: SupervisedAgent) -> AgentReport:
        """The report of its last life, where there is none to follow."""
        last = agent.ends[-1]
        if last.again and isinstance(agent.cause, WorkerEndedError):  # why it does not come back
            last = msgspec.structs.replace(last, reason=f"{last.reason}; {agent.cause}", cause=agent.cause.cause)
        reason = last.reason
        if agent.restarts and agent.restarts >= agent.policy.max_restarts:
            reason += f"; it had been started again {agent.restarts} times, which is as often as it may be"
        return msgspec.structs.replace(last, again=False, reason=reason)

    # What is looked for

    async def _go_round(self) -> None:
        rounds = 0
        while True:
            await asyncio.sleep(LAUNCHER_CHECK_S)
            rounds += 1
            for worker in self._workers:
                if worker.launcher is not None and worker.busy and not worker.given_up:
                    self._check_launcher(worker, worker.launcher.failure())
            self._changed()  # what a launcher waits for
            if rounds * LAUNCHER_CHECK_S >= MAILBOX_CHECK_S:
                rounds = 0
                await asyncio.gather(*(self._check_mailbox(agent) for agent in self.living()))

    def _check_launcher(self, worker: SupervisedWorker, failure: str | None) -> None:
        if failure is not None:
            worker.given_up = True
            agents = [agent for agent in worker.agents if agent.phase != "ended"]
            self._spawn(self._settle(worker, agents, failure, "lost"), self._restarts)

    async def _check_mailbox(self, agent: SupervisedAgent) -> None:
        """An agent that has served, and has not been heard of for long, is lost, unless its worker is known to run."""
        if not agent.started.done():
            return
        with contextlib.suppress(AcademyError):  # the client tells if the exchange is gone
            status = await self._client.status(agent.agent_id)
            if status is MailboxStatus.INACTIVE and agent.phase == "ready":
                self._silent(agent)
            elif status in (MailboxStatus.TERMINATED, MailboxStatus.MISSING):
                self._end(agent, "stopped", "its mailbox was terminated", "stopped")

    def _silent(self, agent: SupervisedAgent) -> None:
        reason = f"nothing was heard of it for {STALE_S:.0f} s"
        if not agent.worker.running:
            self._end(agent, "lost", f"{reason}. {BLOCKED}", "lost")
        elif not agent.warned:
            agent.warned = True
            logger.warning("%s: %s, but its worker has not ended. %s.", agent.agent_id, reason, BLOCKED)

    async def _lose(self, agent: SupervisedAgent, reason: str, cause: EndCause) -> None:
        """See its life ended as soon as it is seen to be gone; while it lives in spite of all, it is left alone."""
        before, attempt = 0.0, agent.attempt
        while agent.lives(attempt):
            try:
                seen = await self._client.heartbeat_status(agent.agent_id)
            except AcademyError:
                seen = None
            if seen is None or (0 < before < seen):
                if agent.lives(attempt):
                    agent.life_ended(AgentReport(agent.agent_id, "lost", reason, attempt=attempt, cause=cause))
                return
            before = seen
            await asyncio.sleep(LOST_CHECK_S if seen == 0 else 0.1)

    # Ends

    def _end(
        self, agent: SupervisedAgent, state: AgentState, reason: str, cause: EndCause, *, terminate: bool | None = None
    ) -> None:
        report = AgentReport(agent.agent_id, state, reason, attempt=agent.attempt, cause=cause)
        self._ended(agent, report, terminate=terminate)

    def _ended(self, agent: SupervisedAgent, report: AgentReport, *, terminate: bool | None = None) -> None:
        if agent.phase == "ended":
            return
        agent.phase = "ended"
        agent.ended.set_result(report)
        served = agent.started.done()
        if not served:
            agent.started.set_exception(LaunchError(report.reason or "it ended before it was ready"))
        self._client.ignore(agent.spec.tag)
        if terminate is None:  # an agent that ended by itself has done as it is configured
            terminate = report.state != "finished" and (agent.close_on_error or (agent.own_mailbox and not served))
        if terminate:
            self._spawn(self._terminate(agent), self._tasks)
        self._changed()

    async def _terminate(self, agent: SupervisedAgent) -> None:
        try:
            await self._client.terminate(agent.agent_id)
        except AcademyError as error:
            logger.warning("could not terminate the mailbox of %s: %s", agent.agent_id, error)

    # Plumbing

    def _changed(self) -> None:
        """Tell the listeners, once for all that happens in this turn of the event loop."""
        if self._listeners and not self._telling:
            self._telling = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        for listener in list(self._listeners):
            listener()

    def _call_soon(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = self._loop.create_task(coroutine)
        tasks.add(task)
        task.add_done_callback(tasks.discard)


def _one_line(error: BaseException) -> str:
    """Parsl's errors hold whole logs; all of it is in the cause of the LaunchError."""
    return textwrap.shorten(f"{type(error).__name__}: {error}", REASON_CHARACTERS, placeholder=" ...")
