"""Agents on a Globus Compute endpoint: ``python -m examples.globus_compute ENDPOINT_ID '{"account": "m1234"}'``.

Run it where the compute nodes of the endpoint can reach it, such as a login node of the same machine: what agents say
goes through the exchange of this program, and not through Globus Compute. ``launchers/globus_compute`` has an endpoint
made for agents. The JSON after the id has the values for its template.
"""

from __future__ import annotations

import asyncio
import json
import sys

from academy_hpc import AgentLaunch, GlobusComputeLauncher, HttpExchangeFactory, Manager, spawn_http_exchange
from examples.slurm_run import Postman

COUNT = 4


async def main(factory: HttpExchangeFactory, launcher: GlobusComputeLauncher) -> None:
    async with await Manager.from_exchange_factory(factory, launcher) as manager:
        items = [AgentLaunch(Postman, name=f"postman-{number}") for number in range(1, COUNT + 1)]
        postmen = await manager.launch_many(items, agents_per_worker=2, progress=True)
        await asyncio.gather(*(one.meet(other) for one, other in zip(postmen, [*postmen[1:], None], strict=True)))
        print("a letter was carried on", ", ".join(await postmen[0].carry([])))


if __name__ == "__main__":
    endpoint, values = sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    with spawn_http_exchange(port=0) as exchange:
        asyncio.run(main(exchange, GlobusComputeLauncher(endpoint, user_endpoint_config=values)))
