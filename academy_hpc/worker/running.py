"""One worker from start to end."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from academy_hpc.agent import Agent
from academy_hpc.checkpoint import has_state
from academy_hpc.errors import ExchangeError, LaunchError
from academy_hpc.launch.spec import AgentSpec, ImportFolders, LaunchSpec, Origin, WorkerReport
from academy_hpc.worker.arrival import arrive, look_around
from academy_hpc.worker.checks import STATE
from academy_hpc.worker.deadline import ATTEMPT_VARIABLE, Ending, ToldToEndError, with_environment
from academy_hpc.worker.life import Lives
from academy_hpc.worker.ranks import share_here
from academy_hpc.worker.record import RUN_VARIABLE, run_here
from academy_hpc.worker.reports import Reports

__all__ = ["AGAIN", "FAILED", "event_runner", "exit_code", "run", "run_spec"]

AGAIN, FAILED = 75, 1
"""Exit codes of the process: its agents want to go on in another life (EX_TEMPFAIL of sysexits.h); one has failed."""


def run(spec: str) -> str:
    """Run the agents of a launch spec until all have ended; return the JSON of a `WorkerReport`.

    What goes wrong is reported, to the manager through the exchange and in the result, and not raised. Constructors run
    one after another in the calling thread, before the event loop: they may block.

    In the main thread SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 end the agents in order; so does the deadline of the spec,
    in any thread. What they have not done then, and their state, is left to their next life.

    Args:
        spec: The text of a `LaunchSpec`.

    Raises:
        RuntimeError: An event loop is running in this thread already.
    """
    # An agent may launch others: its own run, and which life of it this is, do not concern them.
    own = (RUN_VARIABLE, ATTEMPT_VARIABLE)
    return run_spec(spec, {name: value for name, value in os.environ.items() if name not in own}).to_json()


def run_spec(text: str, environment: Mapping[str, str], *, overdue: Callable[[], object] | None = None) -> WorkerReport:
    """The same for a worker that a job script has started: `environment` says what it exports. Raises RuntimeError.

    `overdue`: see `Ending`.
    """
    _check_no_event_loop()
    origin, run_directory = Origin.here(), run_here(environment)
    try:
        spec = with_environment(LaunchSpec.from_json(text), environment)
    except LaunchError as error:
        return WorkerReport(origin, error=str(error))
    refusal, rank = None, 0
    try:
        spec, rank = share_here(spec, environment)
    except LaunchError as error:
        refusal = error
    reports = Reports(spec, origin, rank=rank, run=run_directory)
    reports.recall(run_directory)
    with reports.record, Ending(deadline_s=spec.deadline_s, grace_s=spec.grace_s, overdue=overdue) as ending:
        if not all(map(reports.ended, spec.agents)):
            _Worker(spec, reports, ending, refusal).run()
    return reports.worker_report()


def exit_code(report: WorkerReport) -> int:
    """What the process says to whoever started it: 0, `FAILED` or `AGAIN`."""
    if any(agent.again for agent in report.agents):
        return AGAIN
    failed = report.error or any(agent.state == "failed" for agent in report.agents)
    return FAILED if failed else 0


def _check_no_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("run() has an event loop of its own: call it in another thread, or with asyncio.to_thread.")


class _Worker:
    """One call of `run`."""

    def __init__(self, spec: LaunchSpec, reports: Reports, ending: Ending, refusal: LaunchError | None) -> None:
        self._spec = spec
        self._reports = reports
        self._ending = ending
        self._refusal = refusal

    def run(self) -> None:
        """Until all have ended."""
        self._reports.record.event("worker_started", attempt=self._spec.attempt)
        look_around(self._spec, self._reports)
        with event_runner() as runner:
            # Seen before constructors, which may take minutes to load their data.
            if runner.run(self._arrive()):
                built = self._build()
                runner.run(self._live(built))
        self._reports.record.event("worker_ends", cause=self._ending.cause, reason=self._ending.reason)

    async def _arrive(self) -> bool:
        """Whether the exchange can be used from here; if so, the manager knows that the worker runs."""
        try:
            await self._unless_told(arrive(self._spec, self._reports))
        except ExchangeError as error:
            for spec in self._left():
                self._reports.end(spec, "failed", "lost", reason=str(error))
        except ToldToEndError:
            self._put_off()
        return bool(self._left())

    def _left(self) -> list[AgentSpec]:
        """The agents that have not ended."""
        return [spec for spec in self._spec.agents if not self._reports.ended(spec)]

    async def _unless_told(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Do it, unless the worker has to end meanwhile. Raises ToldToEndError."""
        task = asyncio.ensure_future(coroutine)
        watch = asyncio.ensure_future(self._ending.watch_deadline())
        self._ending.listen(task.cancel)
        try:
            await task
        except asyncio.CancelledError:
            if not self._ending.asked:
                raise
            raise ToldToEndError from None
        finally:
            self._ending.ignore()
            watch.cancel()

    def _put_off(self) -> None:
        assert self._ending.cause is not None
        for spec in self._left():
            self._reports.end(spec, "stopped", self._ending.cause, reason=self._ending.reason, again=True)

    def _build(self) -> list[tuple[AgentSpec, Agent]]:
        """The agents that could be built; of the others, why not."""
        _extend_path(self._spec.folders)
        built: list[tuple[AgentSpec, Agent]] = []
        for spec in self._left():
            try:
                built.append((spec, self._build_one(spec)))
            except LaunchError as error:
                cause = error.__cause__ or error
                self._reports.end(spec, "failed", "agent_error", reason=str(error), error=cause)
            except ToldToEndError:
                self._put_off()
                return []
        return built

    def _build_one(self, spec: AgentSpec) -> Agent:
        if self._refusal is not None:
            raise self._refusal
        try:
            self._ending.constructing = True
            if self._ending.asked:
                raise ToldToEndError
            agent = spec.source.build()
        finally:
            self._ending.constructing = False
        self._check_state(agent)
        return agent

    def _check_state(self, agent: Agent) -> None:
        """Raises LaunchError: the agent has a state that could not be saved, or restored."""
        try:
            kept = has_state(agent)
        except TypeError as error:
            raise LaunchError(str(error)) from None
        for finding in self._reports.findings:
            if kept and finding.subject == STATE and finding.state == "failed":
                raise LaunchError(f"The state of {type(agent).__name__} can't be kept: {finding.text}")

    async def _live(self, built: list[tuple[AgentSpec, Agent]]) -> None:
        unbuilt = [self._reports.tell_end(spec) for spec in self._spec.agents if self._reports.ended_here(spec)]
        lives = Lives(self._spec, self._reports, self._ending)
        watch = asyncio.ensure_future(self._ending.watch_deadline())
        self._ending.listen(lives.drain)
        try:
            await asyncio.gather(*unbuilt, *(lives.run(spec, agent) for spec, agent in built))
        finally:
            self._ending.ignore()
            watch.cancel()


def event_runner() -> asyncio.Runner:
    """What a worker process runs its agents with: uvloop where there is one."""
    return asyncio.Runner(loop_factory=_new_event_loop)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not made for every platform
        loop = asyncio.new_event_loop()
    else:
        loop = uvloop.new_event_loop()
    loop.set_default_executor(_Threads(thread_name_prefix="asyncio"))
    return loop


class _Threads(ThreadPoolExecutor):
    """Those of `asyncio.to_thread`, for which the end of an event loop would wait for minutes."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        super().shutdown(wait=False, cancel_futures=cancel_futures)


def _extend_path(folders: ImportFolders) -> None:
    """Import what the program imports from beside itself, in the same order of preference."""
    first = [folder for folder in folders.first if Path(folder).is_dir()]
    last = [folder for folder in folders.last if Path(folder).is_dir() and folder not in sys.path]
    sys.path[:] = [*first, *(entry for entry in sys.path if entry not in first), *last]
