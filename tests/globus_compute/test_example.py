"""The example for Globus Compute, on a real endpoint."""

from __future__ import annotations

import pytest

from academy_hpc import GlobusComputeLauncher, HttpExchangeFactory
from examples import globus_compute
from tests.globus_compute.endpoint import Endpoint, compute_client

__all__: list[str] = []

pytestmark = [pytest.mark.globus_compute, pytest.mark.timeout(90)]


async def test_agents_on_an_endpoint(
    factory: HttpExchangeFactory, endpoint: Endpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"workers_per_node": 2}
    launcher = GlobusComputeLauncher(endpoint.endpoint_id, client=compute_client(), user_endpoint_config=values)
    await globus_compute.main(factory, launcher)
    assert capsys.readouterr().out == f"a letter was carried on {', '.join(['login'] * 4)}\n"
