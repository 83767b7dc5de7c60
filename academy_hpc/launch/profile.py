"""The values that the profile of a site may have: ``launchers/sites/schema.json`` is made from these classes."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from academy_hpc.launch.job import JobRequest, SchedulerName
from academy_hpc.launch.walltime import clock_text, walltime_s

__all__ = ["JOB_OPTIONS", "Profile", "Queue", "SizedWalltime", "profile_schema"]

Walltime = Annotated[str, Meta(description="2:00:00, 1-12:00:00, 90m or 2h")]
Count = Annotated[int, Meta(ge=1)]
# In Python, `$` alone would let a line break at the end through.
OneLine = Annotated[str, Meta(pattern=r"^[^\r\n]*$(?!\n)")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.@:/+-]+$(?!\n)")]
Lines = tuple[OneLine, ...]


class SizedWalltime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The longest walltime of jobs up to a number of nodes."""

    up_to_nodes: Count
    max_walltime: Walltime


class Queue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a queue (Slurm: partition or QOS) takes, as its site says. Limits change: they are told, not enforced."""

    min_nodes: Count = 1
    max_nodes: Count | None = None
    max_walltime: Walltime | None = None
    by_nodes: Annotated[
        tuple[SizedWalltime, ...], Meta(description="Where small jobs may not run as long as large ones")
    ] = ()
    max_jobs: Annotated[
        Count | None, Meta(description="How many jobs of it a run may have, where jobs must not submit further ones")
    ] = None
    preemptable: Annotated[bool, Meta(description="Its jobs may be ended at any time for others")] = False
    note: OneLine = ""

    def check(self) -> None:
        """Raises ValueError: a walltime can't be read."""
        for text in (self.max_walltime, *(sized.max_walltime for sized in self.by_nodes)):
            if text is not None:
                walltime_s(text)

    def longest_s(self, nodes: int) -> int | None:
        """Seconds of the longest walltime of a job of `nodes` nodes; None: not known."""
        sized = [one for one in self.by_nodes if nodes <= one.up_to_nodes]
        text = min(sized, key=lambda one: one.up_to_nodes).max_walltime if sized else self.max_walltime
        return None if text is None else walltime_s(text)

    def concerns(self, name: str, nodes: int, walltime: str | None) -> list[str]:
        """What speaks against a job, a sentence each."""
        concerns = []
        if nodes < self.min_nodes:
            concerns.append(f"{name} takes jobs of {self.min_nodes} nodes or more; this one has {nodes}")
        if self.max_nodes is not None and nodes > self.max_nodes:
            concerns.append(f"{name} takes jobs of up to {self.max_nodes} nodes; this one has {nodes}")
        longest = self.longest_s(nodes)
        if walltime is not None and longest is not None and walltime_s(walltime) > longest:
            size = f"{nodes} nodes" if nodes > 1 else "1 node"
            concerns.append(
                f"{name} takes jobs of {size} for up to {clock_text(longest)}; this one asks for {walltime}"
            )
        return concerns


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a profile can say. All of it is optional; what is missing comes from the profile that it extends."""

    extends: Annotated[str | None, Meta(description="The profile with the values that are not here")] = None
    title: Annotated[OneLine, Meta(description="What people call the machine")] = ""
    documentation: Annotated[OneLine, Meta(description="Where its own documentation is")] = ""

    scheduler: SchedulerName = "local"
    starter: Annotated[
        Name | None, Meta(description="What starts one worker a rank; missing: what the scheduler has for it")
    ] = None
    starter_options: Annotated[Lines, Meta(description="Its options, one word each")] = ()

    account: Name | None = None
    queue: Annotated[Name | None, Meta(description="Slurm calls it partition")] = None
    qos: Name | None = None
    constraint: OneLine | None = None
    gres: OneLine | None = None
    reservation: Name | None = None
    filesystems: Annotated[Name | None, Meta(description="home:eagle, where the site asks for them")] = None
    parallel_environment: Annotated[Name | None, Meta(description="Of Grid Engine: its -pe")] = None
    nodes: Annotated[Count | None, Meta(description="Missing: as many as the workers need")] = None
    workers_per_node: Count | None = None
    cpus_per_worker: Count | None = None
    walltime: Walltime | None = None
    directives: Annotated[Lines, Meta(description="Further lines for the scheduler, without #SBATCH or #PBS")] = ()
    prelude: Annotated[Lines, Meta(description="Lines of shell that set up the environment of a job")] = ()
    env: Annotated[dict[str, OneLine], Meta(description="Environment variables for the workers")] = {}
    unset_proxies: Annotated[
        bool | None, Meta(description="Take the proxy variables out of the workers' environment")
    ] = None
    python: Annotated[OneLine | None, Meta(description="The interpreter on the nodes; missing: the one here")] = None
    grace_s: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="Seconds before its end in which a job's agents stop")
    ] = None
    max_jobs: Annotated[Count | None, Meta(description="How many jobs a run may have, one after the other")] = None
    max_restarts: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="How often a worker that was killed is started again in one job"),
    ] = None

    required: Annotated[tuple[Name, ...], Meta(description="Options without which the site takes no job")] = ()
    queues: dict[str, Queue] = {}

    interfaces: Annotated[
        tuple[Name, ...], Meta(description="Networks that compute nodes may reach login nodes by: tried, not trusted")
    ] = ()
    exchange: Annotated[
        Literal["login", "job"], Meta(description="Where the exchange runs: a login node, or the job's first node")
    ] = "login"
    exchange_note: Annotated[OneLine, Meta(description="Why there")] = ""
    runs_note: Annotated[
        OneLine, Meta(description="Where run directories belong, if the home directory is no place")
    ] = ""
    login_processes: Annotated[
        Count | None, Meta(description="How many processes and threads a user may have on a login node")
    ] = None
    login_note: OneLine = ""
    proxy: Annotated[OneLine | None, Meta(description="The site's way to the internet: never to the exchange")] = None


JOB_OPTIONS = tuple(
    name for name in Profile.__struct_fields__ if name in JobRequest.__struct_fields__ and name != "exchange"
)
"""The values that are options of a job. Where the exchange runs is for whoever starts it."""


def profile_schema() -> dict[str, Any]:
    """The JSON schema of a profile."""
    schema = msgspec.json.schema(Profile)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A site of academy_hpc", **schema}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(profile_schema(), indent=2) + "\n")
