"""The steps of ``academy-hpc launch``: submit, wait, let go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Coroutine
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from academy_hpc.cli.launch_plan import LaunchPlan
from academy_hpc.cli.run_agents import failure_of
from academy_hpc.errors import AcademyError, LaunchError
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.handle import Handle
from academy_hpc.launch.enrol import submit_run
from academy_hpc.launch.manager import Manager
from academy_hpc.launch.progress import LaunchProgress, ProgressLine
from academy_hpc.launch.run import Run
from academy_hpc.launch.spec import AgentReport

__all__ = ["Launch", "Listener", "Outcome", "Until", "Waits"]

Until = Literal["submitted", "ready", "ended"]
POLL_S = 0.5

ResultT = TypeVar("ResultT")


class Outcome(NamedTuple):
    """How a launch went.

    Attributes:
        error: Why not all agents are ready.
        failed: Whether that is because some can't be; if not, they are only late.
    """

    error: LaunchError | None = None
    failed: bool = False


class Waits(NamedTuple):
    """How long a launch took.

    Attributes:
        queue_s: Seconds until its job started.
        start_s: Seconds from then until all agents were ready.
    """

    queue_s: float
    start_s: float


class Listener(Protocol):
    """Who is told how a launch goes on."""

    def submitted(self, run: Run, job_id: str) -> None:
        """The job is submitted."""
        ...

    def ready(self, names: Collection[str], waits: Waits) -> None:
        """All agents are ready."""
        ...

    def ended(self, name: str, report: AgentReport) -> None:
        """One has ended, while the end of all is waited for."""
        ...


class Launch:
    """One launch, of agents that go on without this program."""

    def __init__(self, plan: LaunchPlan, listener: Listener) -> None:
        self._plan = plan
        self._listener = listener

    async def run(self, connection: ConnectionInfo | None, *, until: Until, timeout_s: float | None) -> Outcome:
        """Submit, wait until that has come, and let go.

        Args:
            connection: The exchange; None: it is in the job.
            until: When to return.
            timeout_s: Seconds for the agents to be ready, waiting in the queue included; None: any time.

        Raises:
            LaunchError: Nothing could be submitted. ExchangeError: The exchange can't be used.
        """
        if connection is None:
            return await self._run_with_exchange(until, timeout_s)
        return await self._see_to(await self._submit(connection), until, timeout_s)

    async def _see_to(self, manager: Manager, until: Until, timeout_s: float | None) -> Outcome:
        try:
            return Outcome() if until == "submitted" else await self._wait(manager, until, timeout_s)
        finally:
            await manager.detach()

    async def _submit(self, connection: ConnectionInfo) -> Manager:
        plan = self._plan
        factory = HttpExchangeFactory.from_connection_info(connection)
        manager = await Manager.from_exchange_factory(factory, plan.launcher, name=f"launch {plan.name}")
        try:
            await _to_its_end(manager.submit_many(plan.agents, agents_per_worker=plan.agents_per_worker))
        except AcademyError:
            await manager.close()
            raise
        except BaseException:
            await manager.detach()
            raise
        finally:
            await self._tell_runs()
        return manager

    async def _run_with_exchange(self, until: Until, timeout_s: float | None) -> Outcome:
        plan = self._plan
        submitted = asyncio.to_thread(submit_run, plan.launcher, plan.agents, agents_per_worker=plan.agents_per_worker)
        try:
            run = await _to_its_end(submitted)
        finally:
            await self._tell_runs()
        try:
            if until == "submitted":
                return Outcome()
            async with asyncio.timeout(timeout_s):
                await self._until_exchange(run)
            manager = await Manager.attach(run)
        except TimeoutError:
            return Outcome(LaunchError(f"Not all agents are ready within {timeout_s:g} s: {self._progress()}."))
        except LaunchError as error:  # the run may be over before this program came to hear why
            return Outcome(await asyncio.to_thread(failure_of, run) or error, failed=True)
        finally:
            plan.launcher.release()
        return await self._see_to(manager, until, timeout_s)

    async def _until_exchange(self, run: Run) -> None:
        show = ProgressLine()
        while not await asyncio.to_thread(run.connection_path.exists):
            status = await asyncio.to_thread(run.status)
            if status.state in ("ended", "failed"):
                raise LaunchError(f"The job of {run.id} has ended before its exchange served: {status.reason}")
            show(self._progress())
            await asyncio.sleep(POLL_S)

    def _progress(self) -> LaunchProgress:
        names = tuple(agent.name or "" for agent in self._plan.agents)
        return LaunchProgress(queued=names, waiting=self._plan.launcher.waiting() or "")

    async def _tell_runs(self) -> None:
        for run in self._plan.launcher.runs:
            if jobs := await asyncio.to_thread(run.jobs):
                self._listener.submitted(run, jobs[-1].job_id)

    async def _wait(self, manager: Manager, until: Until, timeout_s: float | None) -> Outcome:
        handles = manager.handles()
        try:
            await manager.wait_ready(timeout=timeout_s, progress=True)
        except LaunchError as error:
            return Outcome(error, failed=any(manager.report(handle) is not None for handle in handles.values()))
        # Who had failed before this program came to hear of it is in the run directory alone.
        if earlier := await asyncio.to_thread(failure_of, self._plan.launcher.runs[-1]):
            return Outcome(earlier, failed=True)
        self._listener.ready(handles, await asyncio.to_thread(_waits, self._plan.launcher.runs[-1]))
        if until == "ended":
            await self._follow(manager, handles)
        return Outcome()

    async def _follow(self, manager: Manager, handles: dict[str, Handle[Any]]) -> None:
        living = dict(handles)
        while living:
            await manager.wait(living.values(), return_when=asyncio.FIRST_COMPLETED)
            for name, handle in list(living.items()):
                if (report := manager.report(handle)) is not None:
                    self._listener.ended(name, report)
                    del living[name]


def _waits(run: Run) -> Waits:
    """The clocks of nodes may differ a little from that of this host."""
    now_s, submitted_s = time.time(), run.jobs()[0].time_s
    started = [float(event["time_s"]) for event in run.events() if event["event"] == "job_started"]
    started_s = min(max(started[0], submitted_s), now_s) if started else submitted_s
    return Waits(round(started_s - submitted_s, 3), round(now_s - started_s, 3))


async def _to_its_end(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Ctrl-C takes effect when it is done: a job must not be submitted without its id being known."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
