"""One service, and one endpoint, for all tests: user endpoints take seconds to start."""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Iterator

import pytest
from globus_compute_sdk.sdk.executor import _RESULT_WATCHERS, _ResultWatcher

from academy_hpc import HttpExchangeFactory, spawn_http_exchange
from tests.globus_compute.endpoint import Endpoint
from tests.globus_compute.service import ComputeService
from tests.rigs.globus_compute import BROKER_URL

__all__: list[str] = []

# It looks twice a second whether it is to end, and says goodbye to the broker.
RECEIVER_S = 5.0


@pytest.fixture(autouse=True)
def _receivers_have_ended() -> Iterator[None]:
    """The threads that receive results end with their launchers; the SDK leaves their sockets to the collector."""
    yield
    known = set(_RESULT_WATCHERS.values())  # those of executors that are not ours, which wait for more
    receivers = [each for each in threading.enumerate() if isinstance(each, _ResultWatcher) and each not in known]
    for thread in receivers:
        thread.join(RECEIVER_S)
    assert not any(thread.is_alive() for thread in receivers)
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        receivers.clear()
        thread = None
        gc.collect()


@pytest.fixture(scope="session")
def service() -> Iterator[ComputeService]:
    """The web service."""
    with ComputeService(BROKER_URL) as made:
        yield made


@pytest.fixture(scope="session")
def endpoint(service: ComputeService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """An endpoint that is online."""
    with Endpoint(tmp_path_factory.mktemp("endpoint"), service) as made:
        yield made


@pytest.fixture(scope="session")
def factory() -> Iterator[HttpExchangeFactory]:
    """An exchange that nodes reach."""
    with spawn_http_exchange("0.0.0.0", 0) as made:  # noqa: S104 - the nodes are other hosts
        yield made
