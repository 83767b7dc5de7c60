"""The agent of ``academy-hpc doctor --site``: it looks at the compute node that it runs on."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from academy_hpc.agent import Agent, action
from academy_hpc.exchange.http.connection import ConnectionInfo, is_loopback
from academy_hpc.exchange.http.probe import reach
from academy_hpc.worker.checks import Finding, check_files, check_proxies, check_versions

__all__ = ["NodeProbe", "reach_findings"]

CONNECT_S = 5.0


class NodeProbe(Agent):
    """Reports what its node is like, and which addresses of an exchange it reaches.

    Args:
        connection: JSON of the exchange's `ConnectionInfo`, without its token: nothing is shown to whoever answers.
            None: it is in the job.
        versions: Of Python and packages where it is launched from.
    """

    def __init__(self, connection: str | None, versions: Mapping[str, str]) -> None:
        super().__init__()
        self._info = None if connection is None else ConnectionInfo.from_json(connection)
        self._versions = dict(versions)

    @action
    async def look(self) -> list[dict[str, Any]]:
        """What it finds, as plain values of `Finding`."""
        findings = [
            Finding("node", "ok", f"{platform.node()}, {os.cpu_count()} processors, {platform.platform()}"),
            *_in_short(check_versions(self._versions)),
            *check_files(),
        ]
        if self._info is not None:
            findings += check_proxies(self._info, os.environ)
            findings += await reach_findings(self._info.candidates(), self._info.fingerprint)
        return [msgspec.to_builtins(finding) for finding in findings]


def _in_short(versions: list[Finding]) -> list[Finding]:
    """One line where all are alike."""
    odd = [finding for finding in versions if finding.state != "ok"]
    return odd or [Finding("packages", "ok", f"{', '.join(one.subject for one in versions)}: as at the launcher")]


async def reach_findings(urls: Sequence[str], fingerprint: str | None) -> list[Finding]:
    """Whether each URL leads to the exchange from here. One is enough: that others don't is no failure then."""
    outcomes = await asyncio.gather(*(asyncio.to_thread(_outcome, url, fingerprint) for url in urls))
    reached = any(isinstance(outcome, float) for outcome in outcomes)
    return [_reach_finding(url, outcome, reached=reached) for url, outcome in zip(urls, outcomes, strict=True)]


def _reach_finding(url: str, outcome: float | str, *, reached: bool) -> Finding:
    if isinstance(outcome, float):
        return Finding(url, "ok", f"reached in {outcome * 1000:.1f} ms")
    if reached and is_loopback(url):
        return Finding(url, "ok", "leads to this host's own loopback, where the exchange is not")
    return Finding(url, "warning" if reached else "failed", outcome)


def _outcome(url: str, fingerprint: str | None) -> float | str:
    try:
        return reach(url, fingerprint=fingerprint, timeout_s=CONNECT_S)
    except OSError as error:
        return str(error) or type(error).__name__
