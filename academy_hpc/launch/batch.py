"""Workers in batch jobs: rendered, submitted, followed, and brought back when their job has ended."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import msgspec

from academy_hpc.errors import LaunchError, TooFewSlotsError
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.launch.follow import RunFollower
from academy_hpc.launch.job import JobRequest
from academy_hpc.launch.rendering import render_job, render_worker
from academy_hpc.launch.run import Run, RunStatus, default_runs
from academy_hpc.launch.schedulers import find_scheduler
from academy_hpc.launch.site import Site
from academy_hpc.launch.spec import LaunchSpec
from academy_hpc.launch.submission import Job, find_lost_job, read_job, submit, write_job
from academy_hpc.launch.watch import watcher

__all__ = ["BatchLauncher"]

logger = logging.getLogger(__name__)

_WRONG_EXCHANGE = {
    "login": "These agents need an exchange inside the job: make the launcher with exchange='job'.",
    "job": "A launcher with exchange='job' runs the exchange inside the job: submit agents to it with submit_run.",
}

NO_RUN = "RUN"
"""Stands for the run directory in a script that is shown before there is one."""


class BatchLauncher:
    """Starts workers by a batch job: one process of a job, or several agents in each, on any number of nodes.

    Each launch makes a run, in a directory of its own, which outlives the program: another one finds it by its id and
    attaches to it. When its walltime ends, the job submits the next one itself, and agents go on where they have saved
    their state; a worker that is killed is started again in its place.

    Inside an allocation of the same scheduler nothing is submitted: the workers are started in it.

        launcher = BatchLauncher("perlmutter", account="m1234", nodes=2, walltime="2:00:00")

    Args:
        site: A site, or a scheduler: what `academy-hpc site list` shows. None: what ``ACADEMY_HPC_SITE`` says, else
            this machine alone.
        inside: Start in the allocation that the program is in (True), or submit a job (False); None: start in it if
            there is one.
        runs: Where run directories are made; None: see `academy_hpc.launch.run.default_runs`.
        options: Of the job: see `academy_hpc.launch.job.JobRequest`.

    Raises:
        LaunchError: There is no such site or option, or the site demands an option that is missing.
    """

    restarts = True

    def __init__(
        self, site: str | None = None, *, inside: bool | None = None, runs: Path | None = None, **options: Any
    ) -> None:
        found = Site.load(site, given=options)
        for concern in found.check():
            logger.warning("%s", concern)
        request = JobRequest.from_options(**{**found.job_options(), **options})
        self._setup(request, found.name, inside, runs)

    def _setup(self, request: JobRequest, label: str, inside: bool | None, runs: Path | None) -> None:
        allocation = find_scheduler(request.scheduler).allocation(os.environ)
        self._inside = allocation is not None if inside is None else inside
        if self._inside and allocation is None:
            raise LaunchError(f"This program is in no allocation of {find_scheduler(request.scheduler).title}.")
        if self._inside and allocation is not None and request.nodes is None:
            request = msgspec.structs.replace(request, nodes=allocation.nodes)
        self._request = request
        self._label = label
        self._runs_folder = runs
        self._connection: ConnectionInfo | None = None
        self._followers: list[RunFollower] = []
        self._runs: list[Run] = []

    @classmethod
    def of_run(cls, run: Run) -> Self:
        """As the run was launched: to attach to it. Raises LaunchError: it is no run of a batch launcher."""
        job = read_job(run)
        launcher = cls.__new__(cls)
        launcher._setup(job.request, job.request.scheduler, job.inside, run.path.parent)
        return launcher

    @property
    def request(self) -> JobRequest:
        """What is asked of the scheduler."""
        return self._request

    # Launcher

    @property
    def label(self) -> str:
        """See `Launcher`."""
        return self._label

    def slots(self) -> int | None:
        """See `Launcher`: only what is there now is limited; of a scheduler, each launch asks for a job of its own."""
        limited = self._inside or self._request.scheduler == "local"
        return self._request.capacity() if limited else None

    def start(self, specs: Sequence[str]) -> list[Future[str]]:
        """See `Launcher`: all in one job."""
        parts = [LaunchSpec.from_json(spec) for spec in specs]
        agents = tuple(agent for part in parts for agent in part.agents)
        spec = msgspec.structs.replace(parts[0], agents=agents, ranks=len(parts))
        shares = [spec.share(rank, len(parts)).agents for rank in range(len(parts))]
        if shares != [part.agents for part in parts]:
            raise LaunchError("The workers of one job have as many agents each, but for one more or less.")
        return self._start(spec, self.new_run()).futures

    def waiting(self) -> str | None:
        """See `Launcher`."""
        texts = [text for follower in self._followers if (text := follower.waiting()) is not None]
        return ", ".join(texts) or None

    def failure(self) -> str | None:
        """See `Launcher`: each run tells by its futures."""
        return None

    def close(self, *, timeout: float) -> None:
        """See `Launcher`: workers whose agents have just ended are not cancelled."""
        until = time.monotonic() + timeout
        for follower in self._taken():
            try:
                follower.close(until)
            except LaunchError as error:
                logger.error("%s: its job %s could not be cancelled: %s", follower.run.id, follower.job_id, error)

    # RunKeeper

    @property
    def runs(self) -> Sequence[Run]:
        """See `RunKeeper`."""
        return self._runs

    def keep_connection(self, connection: ConnectionInfo) -> None:
        """See `RunKeeper`."""
        self._connection = connection

    def attach(self, run: Run) -> list[Future[str]]:
        """See `RunKeeper`."""
        job = read_job(run)
        find_lost_job(run, job)
        if not run.jobs():
            raise LaunchError(f"Nothing was submitted of run {run.id}: {run.status().reason or 'launch it again'}.")
        return self._follow(run, job).futures

    def release(self) -> None:
        """See `RunKeeper`."""
        self._taken()

    # For who does without a manager

    def render(self, spec: LaunchSpec | None = None, *, workers: int = 1) -> str:
        """The script that would be submitted for these workers, but for the name of the run.

        Raises:
            LaunchError: The job can't be as it is asked for, and why.
        """
        ranks = workers if spec is None else spec.ranks or workers
        return self._render_job(self._job(ranks), (self._runs_folder or default_runs()) / NO_RUN)

    def submit(self, spec: LaunchSpec, *, run: Run | None = None) -> Run:
        """Submit a job that runs the agents of `spec`, over ``spec.ranks`` workers.

        Raises:
            LaunchError: The job can't be as it is asked for, or the scheduler would not have it.
        """
        run = run or self.new_run()
        self._start(spec, run)
        return run

    def new_run(self) -> Run:
        """A run directory for `submit`. Raises LaunchError."""
        return Run.create(self._request.name, runs=self._runs_folder)

    def cancel(self, run: Run, *, reason: str = "it was cancelled") -> None:
        """End a run: its job, and all that would come after it. Raises LaunchError: the scheduler would not."""
        followers = [follower for follower in self._followers if follower.run.path == run.path]
        job = read_job(run)
        run.ask_to_stop()
        find_lost_job(run, job)
        follower = followers[0] if followers else RunFollower(run, job)
        watcher().remove(follower)
        follower.cancel(reason)

    # Steps

    def _job(self, workers: int) -> Job:
        capacity = self._request.capacity()
        if capacity is not None and workers > capacity:
            raise TooFewSlotsError(self._label, workers, capacity)
        return Job(self._request, workers, self._inside)

    def _start(self, spec: LaunchSpec, run: Run) -> RunFollower:
        if isinstance(spec.connection, str) != (self._request.exchange == "job"):
            raise LaunchError(_WRONG_EXCHANGE[self._request.exchange])
        try:
            job = self._prepare(spec, run)
            submit(run, job)
        except LaunchError as error:
            run.write_status(RunStatus("failed", reason=str(error)))
            raise
        return self._follow(run, job)

    def _prepare(self, spec: LaunchSpec, run: Run) -> Job:
        """Write all files of the run."""
        job = self._job(spec.ranks or 1)
        script = self._render_job(job, run.path)
        self._runs.append(run)
        run.write_spec(msgspec.structs.replace(spec, grace_s=self._request.grace_s, state_dir=str(run.state_dir)))
        if self._connection is not None and not isinstance(spec.connection, str):
            self._connection.write(run.connection_path)
        write_job(run, job)
        run.write_private("job.sh", script)
        run.write_private("worker.sh", render_worker(job.request, workers=job.workers, run=run.path))
        return job

    def _render_job(self, job: Job, path: Path) -> str:
        scheduler = find_scheduler(job.request.scheduler)
        return render_job(scheduler, job.request, workers=job.workers, run=path, inside=job.inside)

    def _follow(self, run: Run, job: Job) -> RunFollower:
        follower = RunFollower(run, job)
        self._followers.append(follower)
        if run not in self._runs:
            self._runs.append(run)
        watcher().add(follower)
        return follower

    def _taken(self) -> list[RunFollower]:
        """All that are followed, which from now on nobody follows."""
        followers, self._followers = self._followers, []
        for follower in followers:
            watcher().remove(follower)
        return followers
