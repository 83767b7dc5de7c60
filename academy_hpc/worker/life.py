"""The agents of a worker: each from its start to its end, and what is told of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from academy_hpc.agent import Agent
from academy_hpc.checkpoint import CheckpointFiles
from academy_hpc.errors import AcademyError, ExchangeUnavailableError, ListenerSupersededError
from academy_hpc.launch.spec import AgentSpec, EndCause, LaunchSpec
from academy_hpc.runtime import PASSED_ON, Runtime
from academy_hpc.worker.deadline import Ending
from academy_hpc.worker.reports import Reports

__all__ = ["Lives"]


class Lives:
    """Runs agents in one event loop."""

    def __init__(self, spec: LaunchSpec, reports: Reports, ending: Ending) -> None:
        self._spec = spec
        self._reports = reports
        self._ending = ending
        self._runtimes: set[Runtime[Any]] = set()

    def drain(self) -> None:
        """The worker has to end; what its agents have not done waits in their mailboxes."""
        for runtime in self._runtimes:
            runtime.drain(grace_s=self._ending.left_s)

    async def run(self, spec: AgentSpec, agent: Agent) -> None:
        """One agent, until its end has been told."""
        if self._ending.asked:
            await self._put_off(spec)
            return
        ready_told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        async def end(error: BaseException | None) -> None:
            """Report the end while there is a mailbox to send it from: with that, the agent's token is revoked."""
            await self._end(spec, runtime, error, started=await ready_told)

        runtime = self._runtime(spec, agent, end)
        self._runtimes.add(runtime)
        life = asyncio.create_task(_error_of(runtime))
        started = await runtime.wait_started()
        try:
            if started:
                await self._reports.tell_safely(spec, self._reports.note(spec, "ready"))
            ready_told.set_result(started)
            error = await life
        finally:
            self._runtimes.discard(runtime)
        if not self._reports.ended(spec):  # it never had a client, or what runs it failed
            await self._end(spec, runtime, error, started=started)

    def _runtime(self, spec: AgentSpec, agent: Agent, end: Any) -> Runtime[Any]:
        state = None
        if self._spec.state_dir is not None:
            folder = Path(self._spec.state_dir) / str(spec.agent_id.uid)
            state = CheckpointFiles(folder, attempt=self._spec.attempt)
        assert self._reports.factory is not None  # it has arrived
        return Runtime(
            agent,
            exchange_factory=self._reports.factory,
            registration=spec.registration,
            config=spec.config,
            on_end=end,
            state=state,
        )

    async def _put_off(self, spec: AgentSpec, error: BaseException | None = None) -> None:
        """It is to go on in another life, unless the user wants all to end."""
        reason, final = self._ending.reason, await asyncio.to_thread(self._reports.record.asked_to_stop)
        cause: EndCause = "stopped" if final else self._ending.cause or "preempted"
        if error is not None:
            reason += f"; while it ended, {_text(error)}"
        self._reports.end(spec, "stopped", cause, reason=reason, error=error, again=not final)
        await self._reports.tell_end(spec)
        if final and spec.config.terminate_on_success:
            await self._reports.terminate(spec)

    async def _end(self, spec: AgentSpec, runtime: Runtime[Any], error: BaseException | None, *, started: bool) -> None:
        if isinstance(error, ListenerSupersededError):
            self._reports.end(spec, "superseded", "superseded", reason=str(error))
        elif runtime.drained:
            await self._put_off(spec, error)
            return
        elif error is None:
            self._reports.end(spec, "finished", "finished")
        else:
            why: EndCause = "lost" if isinstance(error, ExchangeUnavailableError) else "agent_error"
            self._reports.end(spec, "failed", why, reason=_reason(error, started=started), error=error)
        await self._reports.tell_end(spec)


async def _error_of(runtime: Runtime[Any]) -> BaseException | None:
    """What it ends with; SystemExit, raised by a task, would end the event loop with all other agents."""
    try:
        await runtime.run_until_complete()
    except PASSED_ON:
        raise
    except BaseException as error:  # noqa: BLE001 - whatever the agent's own code raises ends it, and is reported
        return error
    return None


def _text(error: BaseException) -> str:
    """One line for people: errors of this package speak for themselves."""
    return str(error) if isinstance(error, AcademyError) else f"{type(error).__name__}: {error}"


def _reason(error: BaseException, *, started: bool) -> str:
    return _text(error) if started or isinstance(error, AcademyError) else f"its agent_on_startup raised {_text(error)}"
