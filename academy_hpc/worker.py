"""What runs on the node: ``run(spec)`` builds the agents of a launch spec and runs them until they end.

Launchers call it. To start agents in a Parsl app of your own:

    @python_app
    def run_agents(spec: str) -> str:
        from academy_hpc.worker import run
        return run(spec)

    spec = await manager.make_spec([AgentLaunch(Simulator, name="sim-1")])
    [simulator] = await manager.adopt(spec, run_agents(spec.to_json()))
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from academy_hpc.agent import Agent
from academy_hpc.errors import (
    AcademyError,
    BadEntityIdError,
    ExchangeError,
    LaunchError,
    ListenerSupersededError,
    MailboxTerminatedError,
)
from academy_hpc.exchange.http.client import HttpExchangeFactory, HttpExchangeTransport
from academy_hpc.identifiers import EntityId
from academy_hpc.launch.spec import AgentReport, AgentSpec, AgentState, ImportFolders, LaunchSpec, Origin, WorkerReport
from academy_hpc.message import ActionResponse, Message
from academy_hpc.runtime import PASSED_ON, Runtime

__all__ = ["event_runner", "run"]

logger = logging.getLogger(__name__)

# How long the end of an agent may take to tell; it is in the worker's own report, too.
LAST_REPORT_S = 10.0
END_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run(spec: str) -> str:
    """Run the agents of a launch spec until all have ended; return the JSON of a `WorkerReport`.

    What goes wrong is reported, to the manager through the exchange and in the result, and not raised. Constructors run
    one after another in the calling thread, before the event loop: they may block.

    In the main thread SIGTERM and SIGINT end the agents in order, and leave their mailboxes open for another worker.

    Args:
        spec: The text of a `LaunchSpec`.

    Raises:
        RuntimeError: An event loop is running in this thread already.
    """
    _check_no_event_loop()
    origin = Origin.here()
    try:
        worker = _Worker(LaunchSpec.from_json(spec), origin)
    except LaunchError as error:
        return WorkerReport(origin, error=str(error)).to_json()
    return WorkerReport(origin, worker.run()).to_json()


def _check_no_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("run() has an event loop of its own: call it in another thread, or with asyncio.to_thread.")


class _Worker:
    """One call of `run`."""

    def __init__(self, spec: LaunchSpec, origin: Origin) -> None:
        self._spec = spec
        self._origin = origin
        self._factory = HttpExchangeFactory.from_connection_info(spec.connection, options=spec.options)
        self._ends: dict[EntityId, AgentReport] = {}
        self._runtimes: set[Runtime[Any]] = set()
        self._stop_reason = ""

    def run(self) -> tuple[AgentReport, ...]:
        """Until all have ended."""
        if not self._spec.agents:
            return ()
        with event_runner() as runner:
            # Seen before constructors, which may take minutes to load their data.
            if runner.run(self._arrive()):
                agents = self._build()
                runner.run(self._run_all(agents))
        return tuple(self._ends.values())

    # Start

    async def _arrive(self) -> bool:
        """Whether the exchange can be used from here; if so, it tells the manager that the worker runs."""
        try:
            async with await self._transport(self._spec.agents[0]):
                await asyncio.gather(*(self._tell(spec, self._report(spec, "arrived")) for spec in self._spec.agents))
        except ExchangeError as error:
            for spec in self._spec.agents:
                self._end(spec, "failed", str(error))
            return False
        return True

    def _build(self) -> list[tuple[AgentSpec, Agent]]:
        """The agents that could be built; of the others, why not."""
        _extend_path(self._spec.folders)
        built = []
        for spec in self._spec.agents:
            try:
                built.append((spec, spec.source.build()))
            except LaunchError as error:
                self._end(spec, "failed", str(error), error.__cause__ or error)
        return built

    # Life

    async def _run_all(self, agents: list[tuple[AgentSpec, Agent]]) -> None:
        unbuilt = [self._tell_end(spec) for spec in self._spec.agents if spec.agent_id in self._ends]
        with _end_signals(self._stop):
            await asyncio.gather(*unbuilt, *(self._run_agent(spec, agent) for spec, agent in agents))

    async def _run_agent(self, spec: AgentSpec, agent: Agent) -> None:
        ready_told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def end(error: BaseException | None) -> None:
            """Report the end while there is a mailbox to send it from: with that, the agent's token is revoked."""
            self._end_with(spec, error, started=await ready_told)
            await self._tell_end(spec)

        runtime = Runtime(
            agent, exchange_factory=self._factory, registration=spec.registration, config=spec.config, on_end=end
        )
        self._runtimes.add(runtime)
        if self._stop_reason:
            runtime.signal_shutdown(terminate=False)
        life = asyncio.create_task(_error_of(runtime))
        started = await runtime.wait_started()
        try:
            if started:
                await self._tell_safely(spec, self._report(spec, "ready"))
            ready_told.set_result(started)
            error = await life
        finally:
            self._runtimes.discard(runtime)
        if spec.agent_id not in self._ends:  # it never had a client, or what runs it failed
            await end(error)

    def _end_with(self, spec: AgentSpec, error: BaseException | None, *, started: bool) -> None:
        if error is None:
            self._end(spec, "stopped" if self._stop_reason else "finished", self._stop_reason)
        elif isinstance(error, ListenerSupersededError):
            self._end(spec, "superseded", str(error))
        else:
            self._end(spec, "failed", _reason(error, started=started), error)

    def _stop(self, name: str) -> None:
        """The worker must end; what its agents have not done waits in their mailboxes."""
        self._stop_reason = f"its worker was told to end by {name}"
        for runtime in self._runtimes:
            runtime.signal_shutdown(terminate=False)

    # Reports

    def _report(self, spec: AgentSpec, state: AgentState, reason: str = "", remote_traceback: str = "") -> AgentReport:
        return AgentReport(spec.agent_id, state, reason, remote_traceback, self._origin)

    def _end(self, spec: AgentSpec, state: AgentState, reason: str = "", error: BaseException | None = None) -> None:
        text = "" if error is None else "".join(traceback.format_exception(error))
        self._ends[spec.agent_id] = self._report(spec, state, reason, text)
        if reason:
            own_code = error is not None and not isinstance(error, AcademyError)
            logger.error("%s has ended: %s", spec.agent_id, reason, exc_info=error if own_code else None)

    async def _tell_end(self, spec: AgentSpec) -> None:
        report = self._ends[spec.agent_id]
        if report.state == "superseded":  # the agent lives on elsewhere: not its end
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_REPORT_S):
                await self._tell_safely(spec, report)

    async def _tell_safely(self, spec: AgentSpec, report: AgentReport) -> None:
        """An exchange that is gone ends the agent by itself."""
        try:
            await self._tell(spec, report)
        except ExchangeError as error:
            logger.warning("%r of %s could not be told: %s", report.state, spec.agent_id, error)

    async def _tell(self, spec: AgentSpec, report: AgentReport) -> None:
        """Send a report to the manager; that it is not there any more is no error. Raises ExchangeError."""
        body = ActionResponse(("__serialized__", report.to_json()), "json")
        message = Message.create(spec.agent_id, self._spec.manager, body, tag=spec.report_tag(report.state))
        async with await self._transport(spec) as transport:
            try:
                await transport.send(message)
            except (BadEntityIdError, MailboxTerminatedError):
                logger.info("nobody is there to hear that %s is %s", spec.agent_id, report.state)

    async def _transport(self, spec: AgentSpec) -> HttpExchangeTransport:
        """One that sends and does not listen: the mailbox may still have a listener elsewhere. Raises ExchangeError."""
        return await self._factory.create_transport(spec.agent_id, registration=spec.registration)


async def _error_of(runtime: Runtime[Any]) -> BaseException | None:
    """What it ends with; SystemExit, raised by a task, would end the event loop with all other agents."""
    try:
        await runtime.run_until_complete()
    except PASSED_ON:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever the agent's own code raises ends it, and is reported
        return error
    return None


class _end_signals:  # noqa: N801 - used as a function
    """While entered, `stop(name)` is called for SIGTERM and SIGINT, where Python lets a thread have them."""

    def __init__(self, stop: Callable[[str], None]) -> None:
        self._stop = stop
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in END_SIGNALS:
            self._before[number] = signal.getsignal(number)
            loop.add_signal_handler(number, self._stop, number.name)

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def event_runner() -> asyncio.Runner:
    """What a worker process runs its agents with: uvloop where there is one."""
    try:
        import uvloop
    except ImportError:  # not made for every platform
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def _extend_path(folders: ImportFolders) -> None:
    """Import what the program imports from beside itself, in the same order of preference."""
    first = [folder for folder in folders.first if Path(folder).is_dir()]
    last = [folder for folder in folders.last if Path(folder).is_dir() and folder not in sys.path]
    sys.path[:] = [*first, *(entry for entry in sys.path if entry not in first), *last]


def _reason(error: BaseException, *, started: bool) -> str:
    """One line for people: errors of this package speak for themselves."""
    text = str(error) if isinstance(error, AcademyError) else f"{type(error).__name__}: {error}"
    return text if started or isinstance(error, AcademyError) else f"its agent_on_startup raised {text}"
