"""What holds for every test: no blocking call in an event loop, and the same examples in every run of CI."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import blockbuster
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.exchange_server import RunningExchange
    from tests.globus_stand_in import GlobusStandIn

__all__: list[str] = []

# These need a scheduler or a service: `make test-slurm` and its like run them, where there is one.
_KINDS = ("slurm", "gridengine", "globus_compute")
collect_ignore = [kind for kind in _KINDS if os.environ.get("ACADEMY_HPC_RIG") != kind]

# Tests send these to programs that they start; where pytest was started in the background they would be ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# On a loaded machine an example may take any time; that says nothing about the code.
_PATIENT = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("developer", **_PATIENT)
settings.register_profile("ci", **_PATIENT, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "developer")


@pytest.fixture(autouse=True)
def _no_blocking_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A blocking call that academy_hpc makes inside an event loop fails the test.

    The call raises where it is made. That alone could pass unseen, since the package turns what an action raises into
    an answer for the caller; so each call is also remembered, and told when the test is over. Calls without a frame of
    academy_hpc below them, such as pytest's own, are left alone.
    """
    seen: list[str] = []

    class Remembered(blockbuster.BlockingError):
        def __init__(self, function: str) -> None:
            super().__init__(function)
            seen.append(f"{self}\n{''.join(traceback.format_stack(limit=12)[:-2])}")

    monkeypatch.setattr("blockbuster.blockbuster.BlockingError", Remembered)
    with blockbuster.blockbuster_ctx("academy_hpc") as detector:
        # A log record is written where it is made; here it goes to files of pytest.
        for name in ("io.TextIOWrapper.write", "io.BufferedWriter.write"):
            detector.functions[name].can_block_in("logging/__init__.py", "emit")
        for function in detector.functions.values():
            # What /proc says of the kernel is in memory.
            function.can_block_in("academy_hpc/exchange/http/origin.py", {"boot_id"})
            # The certificate is read before its exchange serves anybody.
            function.can_block_in("academy_hpc/exchange/http/certificate.py", {"server_context"})
            # A store is opened and read before its exchange serves anybody.
            function.can_block_in("academy_hpc/exchange/store/sqlite.py", {"__init__", "load", "exchange_id", "close"})
        yield
    if seen:
        pytest.fail("\n".join(seen), pytrace=False)


@pytest.fixture
async def exchange() -> AsyncIterator[RunningExchange]:
    """An exchange in this process, with a token, on a port of loopback; ``exchange.factory`` reaches it."""
    from tests.exchange_server import running_exchange

    async with running_exchange() as running:
        yield running


@pytest.fixture
def globus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[GlobusStandIn]:
    """Globus Auth and Groups on loopback, found by globus_sdk in this process and those it starts; an empty HOME."""
    from tests.globus_stand_in import GlobusStandIn

    monkeypatch.setenv("HOME", str(tmp_path))
    with GlobusStandIn() as services:
        for name, value in services.environment.items():
            monkeypatch.setenv(name, value)
        # What is asked again is asked at once.
        monkeypatch.setattr("globus_sdk.transport.RequestsTransport._retry_sleep", lambda *_: None)
        yield services
