"""What a user asks of a scheduler, in the words that schedulers share."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from academy_hpc.errors import LaunchError, TooFewSlotsError
from academy_hpc.launch.walltime import walltime_s

__all__ = ["ALIASES", "JobRequest", "Layout", "SchedulerName"]

SchedulerName = Literal["slurm", "pbs", "torque", "lsf", "flux", "gridengine", "local"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ALIASES = {"partition": "queue", "pe": "parallel_environment", "project": "account"}
"""Options as some schedulers call them."""


class Layout(NamedTuple):
    """How the workers of a job are spread over its nodes, some of which may have none: agents use nodes, too."""

    workers: int
    nodes: int
    workers_per_node: int


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One job, or rather each job of a chain: when its walltime ends, a run goes on in another one.

    Attributes:
        scheduler: Whose job.
        name: What runs and jobs are called.
        account: Who pays.
        queue: The queue or partition.
        qos: The quality of service.
        nodes: How many; None: as many as the workers need, or all of the allocation where the program is in one.
        walltime: Such as ``"2:00:00"``, ``"90m"``, or seconds; None: what the queue gives.
        constraint: Features of the nodes.
        gres: Generic resources of each node, such as ``"gpu:4"``; PBS: further words of the ``select`` statement.
        filesystems: Those that must be up, as some sites demand.
        reservation: To be used.
        parallel_environment: Grid Engine's ``-pe``.
        directives: Further lines for the scheduler, without ``#SBATCH`` or ``#PBS``.
        workers_per_node: At the most; None: spread evenly over the nodes.
        cpus_per_worker: To be reserved; None: workers share what the job has.
        starter: What starts the workers on the nodes; None: what the scheduler has for it. ``"processes"``: plain
            processes, on one node.
        starter_options: Further words of its command.
        prelude: Lines of shell that set up the environment, in the job and in each worker.
        env: Environment variables for the workers.
        unset_proxies: Take the proxy variables out of the workers' environment. Traffic with the exchange never goes
            by a proxy; this is for what agents do.
        python: The interpreter on the nodes.
        directory: Where workers run.
        exchange: ``"job"``: the job runs the exchange on its first node.
        grace_s: Seconds before the end of the job in which its agents stop.
        max_jobs: How many jobs a run may have, one after the other.
        max_restarts: How often a worker that was killed is started again within one job.
    """

    scheduler: SchedulerName
    name: str = "academy"
    account: str | None = None
    queue: str | None = None
    qos: str | None = None
    nodes: int | None = None
    walltime: str | float | None = None
    constraint: str | None = None
    gres: str | None = None
    filesystems: str | None = None
    reservation: str | None = None
    parallel_environment: str | None = None
    directives: tuple[str, ...] = ()
    workers_per_node: int | None = None
    cpus_per_worker: int | None = None
    starter: str | None = None
    starter_options: tuple[str, ...] = ()
    prelude: tuple[str, ...] = ()
    env: dict[str, str] = {}
    unset_proxies: bool = False
    python: str = sys.executable
    directory: str = ""
    exchange: Literal["login", "job"] = "login"
    grace_s: float = 90.0
    max_jobs: int = 10
    max_restarts: int = 3

    def __post_init__(self) -> None:
        """Raises ValueError."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name!r}: use up to 64 letters, digits, '.', '_' and '-'.")
        for field in ("nodes", "workers_per_node", "cpus_per_worker", "max_jobs"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"{field}={value}: give 1 or more.")
        if wrong := [name for name in self.env if not _VARIABLE.fullmatch(name)]:
            raise ValueError(f"env: {', '.join(wrong)} can't name a variable.")
        if self.grace_s < 0 or self.max_restarts < 0:
            raise ValueError("grace_s and max_restarts can't be negative.")
        seconds = self.walltime_s
        if seconds is not None and seconds <= self.grace_s:
            raise ValueError(f"walltime={self.walltime!r} is no longer than grace_s={self.grace_s:g}: ask for more.")

    @classmethod
    def from_options(cls, **options: Any) -> JobRequest:
        """From what a user gives: None means not given, ``partition`` the queue. Raises LaunchError: it is wrong."""
        given = {ALIASES.get(key, key): value for key, value in options.items() if value is not None}
        given["directory"] = str(Path(given.get("directory") or ".").expanduser().absolute())
        if unknown := given.keys() - set(cls.__struct_fields__):
            known = ", ".join(cls.__struct_fields__)
            raise LaunchError(f"{', '.join(sorted(unknown))}: a job has no such option; it has: {known}.")
        try:
            return msgspec.convert(given, cls)
        except msgspec.ValidationError as error:
            raise LaunchError(f"The job can't be as it is asked for: {error}") from None

    @property
    def walltime_s(self) -> int | None:
        """Seconds; None: not given. Raises ValueError."""
        if self.walltime is None:
            return None
        return walltime_s(self.walltime) if isinstance(self.walltime, str) else math.ceil(self.walltime)

    def capacity(self) -> int | None:
        """How many workers a job can have; None: as many as there are."""
        return None if self.workers_per_node is None or self.nodes is None else self.nodes * self.workers_per_node

    def layout(self, workers: int) -> Layout:
        """How so many workers are spread. Raises TooFewSlotsError."""
        capacity = self.capacity()
        if capacity is not None and workers > capacity:
            raise TooFewSlotsError(f"A job of {self.nodes} nodes", workers, capacity)
        nodes = self.nodes or math.ceil(workers / (self.workers_per_node or workers))
        return Layout(workers, nodes, math.ceil(workers / nodes))
