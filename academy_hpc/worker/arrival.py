"""How a worker finds its exchange, and what it looks at where it starts."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec

from academy_hpc.errors import ConnectionInfoError, ExchangeError, ExchangeUnreachableError
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.launch.spec import LaunchSpec
from academy_hpc.worker.checks import (
    check_clock,
    check_files,
    check_folder,
    check_proxies,
    check_reach,
    check_versions,
)
from academy_hpc.worker.reports import Reports

__all__ = ["arrive", "look_around"]

# An exchange inside the job starts with it, on another node; its file system may show a new file late.
WAIT_S = 300.0
LOOK_S = 0.5
# A durable exchange is started again when it dies.
FIRST_CONNECTION_S = 30.0


def look_around(spec: LaunchSpec, reports: Reports) -> None:
    """All checks that need no exchange. Blocks, but not for long."""
    reports.findings += [*check_versions(spec.versions), *check_files()]
    if spec.state_dir is not None:
        reports.findings.append(check_folder(Path(spec.state_dir)))


async def arrive(spec: LaunchSpec, reports: Reports) -> None:
    """Reach the exchange, and tell the manager that the agents have a worker.

    Raises:
        ExchangeError: It can't be used from here; what was found is in `reports`.
    """
    if isinstance(spec.connection, str):
        await _arrive_later(spec, spec.connection, reports)
    else:
        await _arrive_at(
            spec, spec.connection, reports, patience_s=FIRST_CONNECTION_S if spec.connection.durable else 0.0
        )


async def _arrive_at(spec: LaunchSpec, info: ConnectionInfo, reports: Reports, *, patience_s: float = 0.0) -> None:
    options = msgspec.structs.replace(spec.options, first_connection_s=patience_s)
    factory = HttpExchangeFactory.from_connection_info(info, options=options)
    first, *_ = agents = [agent for agent in spec.agents if not reports.ended(agent)]
    try:
        # Kept open while all tell: they share its connection.
        async with await factory.create_transport(first.agent_id, registration=first.registration) as transport:
            reports.factory = factory
            await asyncio.gather(*map(reports.tell_arrived, agents))
            dialled = transport.dialled
    except ExchangeError as error:
        reports.findings += [*check_reach(info, error), *check_proxies(info, os.environ)]
        raise
    reports.findings += [
        *check_reach(info, None, None if dialled is None else dialled.url),
        *check_proxies(info, os.environ),
        *check_clock(None if dialled is None else dialled.ahead_s),
    ]


async def _arrive_later(spec: LaunchSpec, path: str, reports: Reports) -> None:
    """The file may not be there yet, or be that of the exchange in the job before this one, which has ended."""
    until = time.monotonic() + WAIT_S
    found = len(reports.findings)
    while True:
        del reports.findings[found:]
        try:
            info = await asyncio.to_thread(ConnectionInfo.read, path)
            await _arrive_at(spec, info.without_token(), reports)  # agents have tokens of their own
        except (ConnectionInfoError, ExchangeUnreachableError) as error:
            if time.monotonic() > until:
                seen = (
                    f"{error} It is what the exchange inside this job writes; waited {WAIT_S:.0f} s for one to answer."
                )
                raise ConnectionInfoError(seen) from error
        else:
            return
        await asyncio.sleep(LOOK_S)
