"""How a manager comes to a run that another program has launched.

The reports of the agents wait in the mailbox of the user who launched them, which stays open when that program dies or
lets go. What that program has heard already is known from what the workers wrote into the run directory.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from typing import Any, Self

import msgspec

from academy_hpc.errors import ConnectionInfoError, LaunchError
from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.identifiers import EntityId
from academy_hpc.launch.launcher import RunKeeper
from academy_hpc.launch.restart import RestartPolicy
from academy_hpc.launch.run import Run
from academy_hpc.launch.spec import AgentReport, LaunchSpec
from academy_hpc.launch.supervised import SupervisedWorker
from academy_hpc.launch.supervisor import Supervisor

__all__ = ["Attaching"]

CONNECTION_CHECK_S = 0.5
FIRST_CONNECTION_S = 30.0
"""A durable exchange is started again when it dies."""
LONGEST_QUEUE_S = 30 * 86400.0


class Attaching:
    """The steps: read the run, find the exchange, listen, watch the jobs."""

    def __init__(self, run: Run, spec: LaunchSpec, client: UserExchangeClient, launcher: RunKeeper) -> None:
        self._run = run
        self._spec = spec
        self.client = client
        self.launcher = launcher

    @classmethod
    async def begin(
        cls, run: Run | str | os.PathLike[str], *, launcher: RunKeeper | None, timeout: float | None
    ) -> Self:
        """With a client that does not listen yet. Raises as `Manager.attach`."""
        found = run if isinstance(run, Run) else await asyncio.to_thread(Run.find, run)
        spec = await asyncio.to_thread(found.spec)
        inside = isinstance(spec.connection, str)
        info = await _connection(found, wait=inside, timeout=timeout)
        options = msgspec.structs.replace(spec.options, first_connection_s=FIRST_CONNECTION_S if info.durable else 0)
        if inside:  # it moves from job to job, however long the next one waits in the queue
            place = str(found.connection_path)
            options = msgspec.structs.replace(options, reconnect_s=LONGEST_QUEUE_S, follow=place)
        factory = HttpExchangeFactory.from_connection_info(info, options=options)
        client = await factory.create_user_client(user_id=spec.manager, start_listener=False)
        keeper = await asyncio.to_thread(_batch_launcher, found) if launcher is None else launcher
        return cls(found, spec, client, keeper)

    async def finish(self, supervisor: Supervisor) -> None:
        """Know what was known, hear what was not, and watch. Raises as `Manager.attach`."""
        futures = await asyncio.to_thread(self.launcher.attach, self._run)
        reports = await asyncio.to_thread(self._reports, len(futures))
        workers = []
        for rank, future in enumerate(futures):
            worker = supervisor.new_worker(self.launcher)
            workers.append((worker, future))
            self._expect(supervisor, worker, self._spec.share(rank, len(futures)), reports)
        await self.client.start()
        for worker, future in workers:
            supervisor.started(worker, future)

    def _expect(
        self,
        supervisor: Supervisor,
        worker: SupervisedWorker,
        share: LaunchSpec,
        reports: dict[EntityId, AgentReport],
    ) -> None:
        for spec in share.agents:
            report = reports.get(spec.agent_id)
            agent = supervisor.expect(
                spec,
                worker,
                own_mailbox=True,
                policy=RestartPolicy(),
                close_on_error=spec.config.terminate_on_error,
                attempt=1 if report is None else report.attempt,
            )
            if report is not None:
                supervisor.told_before(agent, report)

    def _reports(self, ranks: int) -> dict[EntityId, AgentReport]:
        """The last words of all agents, as their workers wrote them."""
        known = [status for status in map(self._run.worker, range(ranks)) if status is not None]
        return {report.agent_id: report for status in known for report in status.agents}


async def _connection(run: Run, *, wait: bool, timeout: float | None) -> ConnectionInfo:
    """What is in the connection file of the run, once it is there. Raises ConnectionInfoError, LaunchError."""
    until = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        status = await asyncio.to_thread(run.status)
        job = f"its job {status.job_id or ''} is {status.job_state or status.state}"
        if wait and status.state in ("ended", "failed"):  # an exchange that was killed has left its connection file
            raise LaunchError(f"Run {run.id} is over, and its exchange with it: {status.reason or job}.")
        try:
            return await asyncio.to_thread(ConnectionInfo.read, run.connection_path)
        except ConnectionInfoError:  # of an exchange in the job there is none yet, or that of one that was killed
            if not wait:
                raise
        if time.monotonic() > until:
            raise LaunchError(
                f"The exchange of run {run.id} has not said where it is within {timeout:.0f} s: {job}. "
                f"Try again when the job runs; if it does, {run.path}/job.*.log says why there is no exchange."
            )
        await asyncio.sleep(CONNECTION_CHECK_S)


def _batch_launcher(run: Run) -> RunKeeper:
    from academy_hpc.launch.batch import BatchLauncher

    launcher: Any = BatchLauncher.of_run(run)
    keeper: RunKeeper = launcher
    return keeper
