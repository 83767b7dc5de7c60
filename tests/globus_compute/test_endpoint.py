"""Agents on a real endpoint of Globus Compute, through the real SDK and a real broker.

Only the web service is a stand-in. The endpoint has two workers, or jobs of a real Slurm.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import pytest
from globus_compute_sdk import Executor

from academy_hpc import (
    AgentId,
    AgentLaunch,
    AgentTerminatedError,
    GlobusComputeLauncher,
    Handle,
    HttpExchangeFactory,
    LaunchError,
    Manager,
    RestartPolicy,
)
from academy_hpc.launch import globus_compute, supervisor
from academy_hpc.worker import run
from tests.globus_compute.endpoint import PROGRAMS, ROOT, Endpoint, compute_client
from tests.globus_compute.resident import Resident
from tests.globus_compute.service import ComputeService
from tests.launched_agents import Counter

__all__: list[str] = []

pytestmark = [pytest.mark.globus_compute, pytest.mark.timeout(90)]

PATIENCE_S = 60.0
WORKERS = {"workers_per_node": 2}
NO_RESTARTS = RestartPolicy(max_restarts=0)


def launcher(endpoint: Endpoint, **options: Any) -> GlobusComputeLauncher:
    made = {"client": compute_client(), "user_endpoint_config": WORKERS} | options
    return GlobusComputeLauncher(endpoint.endpoint_id, **made)


async def test_agents_are_launched_and_called(factory: HttpExchangeFactory, endpoint: Endpoint) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, launcher(endpoint)) as manager:
            agents = [AgentLaunch(Counter, args=(number,), name=f"c{number}") for number in range(4)]
            counters = await manager.launch_many(agents, agents_per_worker=2)
            assert [await counter.add(1) for counter in counters] == [1, 2, 3, 4]
            assert len({await counter.process() for counter in counters}) == 2


async def test_an_agent_whose_worker_is_killed_comes_back(factory: HttpExchangeFactory, endpoint: Endpoint) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, launcher(endpoint)) as manager:
            counter = await manager.launch(Counter, name="victim")
            first = await counter.process()
            os.kill(first, signal.SIGKILL)
            assert await counter.process() != first
            [end] = manager.ends(counter)
    assert end.reason.startswith("its worker process died on host login: killed, out of memory, or crashed.")
    assert end.cause == "lost"


async def test_callers_hear_why_an_agent_is_gone(factory: HttpExchangeFactory, endpoint: Endpoint) -> None:
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, launcher(endpoint), restarts=NO_RESTARTS) as manager:
            counter = await manager.launch(Counter, name="victim")
            call = asyncio.create_task(counter.hang())
            os.kill(await counter.process(), signal.SIGKILL)
            with pytest.raises(
                AgentTerminatedError, match=r"agent victim .* has ended: its worker process died on host"
            ):
                await call


async def test_agents_that_find_no_worker_wait_and_one_that_is_given_up_never_serves(
    factory: HttpExchangeFactory, endpoint: Endpoint, service: ComputeService
) -> None:
    """Nobody but the user knows how many workers there are. A task can't be taken back: it ends when it starts."""
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, launcher(endpoint)) as manager:
            counters = await manager.launch_many([Counter] * 2)
            with pytest.raises(LaunchError, match=r"late .*endpoint .* which is online") as caught:
                await manager.launch(Counter, name="late", timeout=3)
            assert "late" in str(caught.value)
            tasks = len(service.tasks)
            await manager.shutdown(counters[0])
            again = await manager.launch(Counter, args=(41,))
            assert await again.add(1) == 42
            assert len(service.tasks) == tasks + 1
            assert manager.running() == {counters[1].agent_id, again.agent_id}


async def test_a_request_that_is_too_large_is_told_and_the_next_launch_succeeds(
    factory: HttpExchangeFactory, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the service says it, should it take less than the launcher expects."""
    large = Counter()
    large.ballast = b"x" * 12_000_000  # type: ignore[attr-defined]
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, launcher(endpoint), restarts=NO_RESTARTS) as manager:
            with pytest.raises(LaunchError, match=r"take \d\d\.\d MB, and Globus Compute takes 10 MB"):
                await manager.launch(large)
            monkeypatch.setattr(globus_compute, "REQUEST_BYTES", 100_000_000)
            with pytest.raises(LaunchError, match="answered 413: the agents of one worker are too large for it"):
                await manager.launch(large)
            assert await (await manager.launch(Counter)).add(1) == 1


async def test_an_endpoint_that_does_not_exist_is_told(factory: HttpExchangeFactory, service: ComputeService) -> None:
    stranger = "5a5a5a5a-0000-4000-8000-000000000001"
    nowhere = GlobusComputeLauncher(stranger, client=compute_client())
    async with await Manager.from_exchange_factory(factory, nowhere) as manager:
        with pytest.raises(
            LaunchError, match=f"Globus Compute answered 404: there is no endpoint {stranger}, or you may"
        ):
            await manager.launch(Counter)


async def test_a_value_that_the_endpoint_does_not_know_is_told(
    factory: HttpExchangeFactory, endpoint: Endpoint
) -> None:
    wrong = launcher(endpoint, user_endpoint_config={"wall_time": "1:00:00"})
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, wrong, restarts=NO_RESTARTS) as manager:
            with pytest.raises(LaunchError, match="wall_time"):
                await manager.launch(Counter)


async def test_workers_without_academy_hpc_are_told(
    factory: HttpExchangeFactory, endpoint: Endpoint, tmp_path: Path
) -> None:
    (tmp_path / "academy_hpc.py").touch()
    options = {"worker_init": f'export PYTHONPATH="{tmp_path}"'}
    async with asyncio.timeout(PATIENCE_S):
        bare = launcher(endpoint, user_endpoint_config=options)
        async with await Manager.from_exchange_factory(factory, bare, restarts=NO_RESTARTS) as manager:
            with pytest.raises(
                LaunchError, match=r"has no academy_hpc that fits: there has to be the same as here, Python"
            ):
                await manager.launch(Counter)


async def test_agents_in_tasks_that_the_program_submits(factory: HttpExchangeFactory, endpoint: Endpoint) -> None:
    async with asyncio.timeout(PATIENCE_S):
        executor = Executor(endpoint.endpoint_id, compute_client(), user_endpoint_config=WORKERS)
        async with await Manager.from_exchange_factory(factory, launcher(endpoint)) as manager:
            spec = await manager.make_spec([AgentLaunch(Counter, args=(40,), name="by hand")])
            [counter] = await manager.adopt(spec, executor.submit(run, spec.to_json()))
            assert await counter.add(2) == 42
        await asyncio.to_thread(executor.shutdown)


JOBS = {"provider": "slurm", "nodes_per_block": 2, "interface": "eth0"}


async def test_agents_in_a_job_of_slurm_know_when_it_ends(factory: HttpExchangeFactory, endpoint: Endpoint) -> None:
    """One on each node."""
    setup = f'export PATH="{PROGRAMS}:$PATH" PYTHONPATH="{ROOT}"'
    jobs = launcher(endpoint, user_endpoint_config=JOBS | {"worker_init": setup}, slots=2)
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, jobs) as manager:
            homes = [await resident.home() for resident in await manager.launch_many([Resident] * 2)]
    assert {host for host, _ in homes} == {"cn1", "cn2"}
    assert all(3400 < deadline_s - time.time() <= 3600 for _, deadline_s in homes)


async def test_a_job_that_the_scheduler_refuses_is_told(factory: HttpExchangeFactory, endpoint: Endpoint) -> None:
    refused = launcher(endpoint, user_endpoint_config=JOBS | {"partition": "nowhere"})
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, refused) as manager:
            with pytest.raises(LaunchError, match=r"all batch jobs of the endpoint have failed \(.*Invalid partition"):
                await manager.launch(Counter)


PROGRAM = """
import asyncio, os, sys
from academy_hpc import ConnectionInfo, GlobusComputeLauncher, HttpExchangeFactory, Manager
from tests.globus_compute.endpoint import compute_client
from tests.launched_agents import Counter

async def main(endpoint_id):
    factory = HttpExchangeFactory.from_connection_info(ConnectionInfo.from_json(sys.stdin.readline()))
    launcher = GlobusComputeLauncher(endpoint_id, client=compute_client(), user_endpoint_config={"workers_per_node": 2})
    manager = await Manager.from_exchange_factory(factory, launcher)
    counter = await manager.launch(Counter)
    print(counter.agent_id.uid, await counter.process(), flush=True)
    if sys.argv[2] == "fail":
        raise RuntimeError("a mistake")
    await asyncio.sleep(100)

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("way", ["fail", "interrupt"])
async def test_a_program_that_does_not_close_its_manager_ends_and_leaves_its_agents(
    factory: HttpExchangeFactory, endpoint: Endpoint, way: str
) -> None:
    """The SDK would keep it until all agents have ended."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
    words = ["-c", PROGRAM, str(endpoint.endpoint_id), way]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = await asyncio.create_subprocess_exec(sys.executable, *words, env=environment, **pipes)
    assert program.stdin is not None and program.stdout is not None
    program.stdin.write(f"{factory.connection_info.to_json()}\n".encode())
    uid, process = (await program.stdout.readline()).decode().split()
    if way == "interrupt":
        program.send_signal(signal.SIGINT)
    async with asyncio.timeout(5):
        _, errors = await program.communicate()
    assert errors.splitlines()[-1].startswith(b"RuntimeError: a mistake" if way == "fail" else b"KeyboardInterrupt")
    assert psutil.pid_exists(int(process))
    async with await factory.create_user_client() as user:
        agent_id = AgentId(uuid.UUID(uid))
        assert await Handle(agent_id, exchange=user).add(42) == 42
        await user.terminate(agent_id)


async def test_agents_outlive_an_endpoint_that_is_killed(
    factory: HttpExchangeFactory, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tasks are never heard of again: what becomes of agents is known from the exchange."""
    monkeypatch.setattr(globus_compute, "STATUS_PERIOD_S", 0.5)
    monkeypatch.setattr(globus_compute, "OFFLINE_S", 2.0)
    async with asyncio.timeout(PATIENCE_S):
        watching = launcher(endpoint)
        async with await Manager.from_exchange_factory(factory, watching) as manager:
            survivor, victim = await manager.launch_many([AgentLaunch(Counter, name=n) for n in ("survivor", "victim")])
            endpoint.kill()
            try:
                while watching.failure() is None:
                    assert await survivor.add(1) > 0
                    await asyncio.sleep(0.5)
                os.kill(await victim.process(), signal.SIGKILL)
                with pytest.raises(AgentTerminatedError, match=r"endpoint .* has been offline for \d+ s"):
                    await victim.add(1)
                assert await survivor.add(1) > 1
                with pytest.raises(LaunchError, match=r"endpoint .* is offline. Start it where it was configured"):
                    await manager.launch(Counter)
                await manager.shutdown(survivor)
            finally:
                await asyncio.to_thread(endpoint.start)


async def test_agents_of_an_endpoint_that_is_stopped_end_in_order(
    factory: HttpExchangeFactory, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "WORKER_OVER_S", 1.0)
    async with asyncio.timeout(PATIENCE_S):
        async with await Manager.from_exchange_factory(factory, launcher(endpoint)) as manager:
            counter = await manager.launch(Counter)
            try:
                await asyncio.to_thread(endpoint.stop)
                with pytest.raises(AgentTerminatedError, match=r"told to end by SIGTERM.* endpoint .* is offline"):
                    await counter.add(1)
            finally:
                await asyncio.to_thread(endpoint.start)
