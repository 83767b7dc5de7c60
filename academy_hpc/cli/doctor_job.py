"""The job of ``academy-hpc doctor --site``: agents that look at the compute nodes they run on."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from academy_hpc.errors import AcademyError
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.spawn import spawn_http_exchange
from academy_hpc.handle import Handle
from academy_hpc.launch.batch import BatchLauncher
from academy_hpc.launch.enrol import submit_run
from academy_hpc.launch.manager import Manager
from academy_hpc.launch.request import AgentLaunch
from academy_hpc.launch.site import Site
from academy_hpc.launch.spec import versions_here
from academy_hpc.worker.checks import Finding
from academy_hpc.worker.probe import NodeProbe, reach_findings

__all__ = ["job_findings"]

# Some sites take no job of less than five minutes.
JOB: dict[str, Any] = {
    "name": "doctor",
    "walltime": "5m",
    "grace_s": 30.0,
    "max_jobs": 1,
    "max_restarts": 0,
    "workers_per_node": 1,
}
CLOSE_S = 30.0


def job_findings(name: str, options: dict[str, Any], *, timeout_s: float) -> list[Finding]:
    """Run a job on the site, and report what its nodes are like, and whether they and this machine reach each other.

    Where the exchange may be on a login node, the nodes try its addresses; else this machine tries those of the job.

    Raises:
        LaunchError: An option is missing or wrong.
    """
    site = Site.load(name, given=options)
    place = {"exchange": "job"} if site.exchange == "job" else {}
    launcher = BatchLauncher(name, **JOB | place | options)
    nodes = launcher.request.nodes or 1
    try:
        if site.exchange == "job":
            return asyncio.run(_with_exchange_in_job(launcher, nodes, timeout_s))
        with spawn_http_exchange("0.0.0.0", 0) as factory:  # noqa: S104 - a token and TLS guard it
            return asyncio.run(_with_exchange_here(factory, launcher, nodes, timeout_s))
    except AcademyError as error:
        return _failed(launcher, error)


async def _with_exchange_here(
    factory: HttpExchangeFactory, launcher: BatchLauncher, nodes: int, timeout_s: float
) -> list[Finding]:
    async with await Manager.from_exchange_factory(factory, launcher) as manager:
        probes = await manager.launch_many(_probes(nodes, factory.connection_info), timeout=timeout_s, progress=True)
        return [_job(launcher), *await _look(probes)]


async def _with_exchange_in_job(launcher: BatchLauncher, nodes: int, timeout_s: float) -> list[Finding]:
    run = await asyncio.to_thread(submit_run, launcher, _probes(nodes, None))
    try:
        async with await Manager.attach(run, timeout=timeout_s) as manager:
            info = manager.exchange_factory.connection_info
            probes = await manager.wait_ready(timeout=timeout_s, progress=True)
            reached = await reach_findings(info.candidates(), info.fingerprint)
            return [_job(launcher), *reached, *await _look(list(probes.values()))]
    finally:
        await asyncio.to_thread(launcher.close, timeout=CLOSE_S)


def _probes(nodes: int, info: ConnectionInfo | None) -> list[AgentLaunch[NodeProbe]]:
    connection = None if info is None else info.without_token().to_json()
    arguments = (connection, versions_here())
    return [AgentLaunch(NodeProbe, args=arguments, name=f"node-{number}") for number in range(1, nodes + 1)]


async def _look(probes: list[Handle[NodeProbe]]) -> list[Finding]:
    seen = await asyncio.gather(*(probe.look() for probe in probes))
    return [msgspec.convert(finding, Finding) for findings in seen for finding in findings]


def _job(launcher: BatchLauncher) -> Finding:
    run = launcher.runs[-1]
    return Finding("job", "ok", f"{run.jobs()[-1].job_id} has run; its logs are in {run.path}")


def _failed(launcher: BatchLauncher, error: AcademyError) -> list[Finding]:
    """What is known of a job whose agents did not come to work."""
    logs = f" The logs are in {launcher.runs[-1].path}." if launcher.runs else ""
    notes = [line for note in getattr(error, "__notes__", ()) for line in note.splitlines()]
    return [Finding("job", "failed", f"{error}{logs}"), *(Finding("node", "warning", line) for line in notes)]
