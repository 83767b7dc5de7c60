"""The exchange of a run on the first node of its job: ``academy-hpc exchange host``, in processes of its own.

A node is a directory for files of its own, in TMPDIR.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from academy_hpc import (
    AgentLaunch,
    ConnectionInfo,
    ConnectionInfoError,
    HttpExchangeFactory,
    LaunchError,
    MailboxStatus,
)
from academy_hpc.agent import Agent
from academy_hpc.exchange.http.tokens import agent_token
from academy_hpc.launch.enrol import enrol, enrolled_mailboxes
from academy_hpc.launch.hosting import node_local_directory
from academy_hpc.launch.request import sources_of
from academy_hpc.launch.run import Run
from academy_hpc.launch.spec import AgentSpec, LaunchSpec
from academy_hpc.message import ActionRequest, Message
from tests.launched_agents import Counter

__all__: list[str] = []

START_S = 20.0


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create("test", runs=tmp_path / "runs")


@pytest.fixture
def spec(run: Run) -> LaunchSpec:
    items = [AgentLaunch(Counter, name=f"c{number}") for number in range(3)]
    made = enrol(run, items, sources=sources_of(items), workers=2)
    run.write_spec(made)
    return made


@contextlib.contextmanager
def hosting(run: Run, node: Path, *, served: bool = True) -> Iterator[subprocess.Popen[str]]:
    """A host on `node`, killed at the end if it still runs; entered when it serves."""
    node.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "academy_hpc", "exchange", "host", str(run.path)]
    environment = {**os.environ, "TMPDIR": str(node)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as host:
        try:
            deadline = time.monotonic() + START_S
            while served and not _serves(run, host.pid):
                assert host.poll() is None and time.monotonic() < deadline, host.stderr and host.stderr.read()
                time.sleep(0.05)
            yield host
        finally:
            host.kill()


def _serves(run: Run, pid: int) -> bool:
    try:
        server = ConnectionInfo.read(run.connection_path).server
    except ConnectionInfoError:
        return False
    return server is not None and server.pid == pid


def end(host: subprocess.Popen[str], number: int = signal.SIGINT) -> tuple[int, str]:
    host.send_signal(number)
    return host.wait(timeout=START_S), "" if host.stderr is None else host.stderr.read()


def kill(host: subprocess.Popen[str]) -> None:
    (exchange,) = psutil.Process(host.pid).children()
    host.kill()
    exchange.kill()
    host.wait()


def factory_of(run: Run) -> HttpExchangeFactory:
    return HttpExchangeFactory.from_connection_info(ConnectionInfo.read(run.connection_path))


async def send(factory: HttpExchangeFactory, spec: LaunchSpec, agent: AgentSpec, action: str) -> None:
    async with await factory.create_transport(spec.manager) as user:
        await user.send(Message.create(user.mailbox_id, agent.agent_id, ActionRequest(action, "", "")))
    await asyncio.sleep(0.1)  # a connection with TLS is closed a moment after its session


async def received(factory: HttpExchangeFactory, agent: AgentSpec, *, timeout_s: float = 0.5) -> list[str]:
    """The actions that are asked of an agent, by one that shows its own token and acknowledges them."""
    factory = HttpExchangeFactory.from_connection_info(factory.connection_info.without_token())
    async with await factory.create_transport(agent.agent_id, registration=agent.registration) as listener:
        found = [str(message.decoded().action) async for message in listener.listen(timeout_s)]
    await asyncio.sleep(0.1)
    return found


async def status(factory: HttpExchangeFactory, spec: LaunchSpec, agent: AgentSpec) -> MailboxStatus:
    async with await factory.create_transport(spec.manager) as user:
        answer = await user.status(agent.agent_id)
    await asyncio.sleep(0.1)
    return answer


async def terminate(factory: HttpExchangeFactory, spec: LaunchSpec, agent: AgentSpec) -> None:
    async with await factory.create_transport(spec.manager) as user:
        await user.terminate(agent.agent_id)
    await asyncio.sleep(0.1)


# Enrolment


def test_agents_are_registered_before_there_is_an_exchange(run: Run, spec: LaunchSpec) -> None:
    """Nothing but the run directory is written, and each agent has a token of its own, for its mailbox alone."""
    assert spec.connection == str(run.connection_path) and spec.ranks == 2
    assert not run.connection_path.exists()
    mailboxes = enrolled_mailboxes(run)
    assert [mailbox.entity.uid for mailbox in mailboxes] == [
        spec.manager.uid,
        *(agent.agent_id.uid for agent in spec.agents),
    ]
    assert mailboxes[1].classes[0] == "tests.launched_agents.Counter"
    owner = owner_token(run)
    for agent in spec.agents:
        assert agent.registration.token == agent_token(owner, agent.agent_id.uid)
    assert owner not in spec.to_json()
    assert {oct(path.stat().st_mode & 0o777) for path in run.exchange_dir.iterdir()} == {"0o600"}


def owner_token(run: Run) -> str:
    from academy_hpc.exchange.http.identity import Identity

    identity = Identity.read(run.exchange_dir)
    assert identity is not None
    return identity.token


def test_what_can_not_be_enrolled_is_told(run: Run, spec: LaunchSpec) -> None:
    with pytest.raises(ValueError, match="at least one agent"):
        enrol(run, [], sources=[], workers=1)
    given = AgentLaunch(Counter, registration=spec.agents[0].registration)
    with pytest.raises(ValueError, match="an exchange that there is already"):
        enrol(run, [given], sources=sources_of([given]), workers=1)


# Hosting


def test_all_mailboxes_are_open_once_the_connection_file_is_there(run: Run, spec: LaunchSpec, tmp_path: Path) -> None:
    with hosting(run, tmp_path / "a") as host:
        assert all(asyncio.run(status(factory_of(run), spec, agent)) is MailboxStatus.INACTIVE for agent in spec.agents)
        asyncio.run(send(factory_of(run), spec, spec.agents[1], "step"))
        assert asyncio.run(received(factory_of(run), spec.agents[1])) == ["step"]
        assert asyncio.run(discovered(factory_of(run), spec)) == {agent.agent_id.uid for agent in spec.agents}
        words = " ".join(psutil.Process(host.pid).cmdline() + list(psutil.Process(host.pid).environ().values()))
        assert owner_token(run) not in words
        assert end(host) == (0, "")
    assert not run.connection_path.exists()


async def discovered(factory: HttpExchangeFactory, spec: LaunchSpec) -> set[object]:
    async with await factory.create_transport(spec.manager) as user:
        found = {agent.uid for agent in await user.discover(Agent)}
    await asyncio.sleep(0.1)
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_next_job_goes_on_where_the_last_one_ended(
    run: Run, spec: LaunchSpec, tmp_path: Path, number: signal.Signals
) -> None:
    """On another node: the same token, mailboxes, undelivered messages, and ends of agents."""
    kept, ended, _ = spec.agents
    with hosting(run, tmp_path / "a") as host:
        first = ConnectionInfo.read(run.connection_path)
        asyncio.run(send(factory_of(run), spec, kept, "remembered"))
        asyncio.run(terminate(factory_of(run), spec, ended))
        assert end(host, number) == (0, "")
    assert list((tmp_path / "a").iterdir()) == []
    with hosting(run, tmp_path / "b") as host:
        second = ConnectionInfo.read(run.connection_path)
        assert (second.headers, second.fingerprint) == (first.headers, first.fingerprint)
        assert asyncio.run(received(factory_of(run), kept)) == ["remembered"]
        assert asyncio.run(status(factory_of(run), spec, ended)) is MailboxStatus.TERMINATED
        assert end(host) == (0, "")
    with hosting(run, tmp_path / "a") as host:
        assert asyncio.run(received(factory_of(run), kept)) == []
        assert end(host) == (0, "")


def test_a_host_that_was_killed_goes_on_with_what_is_on_its_node(run: Run, spec: LaunchSpec, tmp_path: Path) -> None:
    """And at the same address, so that agents connect again."""
    with hosting(run, tmp_path / "a") as host:
        first = ConnectionInfo.read(run.connection_path)
        asyncio.run(send(factory_of(run), spec, spec.agents[0], "remembered"))
        kill(host)
    with hosting(run, tmp_path / "a") as host:
        assert ConnectionInfo.read(run.connection_path).urls == first.urls
        assert asyncio.run(received(factory_of(run), spec.agents[0])) == ["remembered"]
        assert end(host) == (0, "")


def test_a_node_that_is_lost_takes_messages_along_and_nothing_is_done_twice(
    run: Run, spec: LaunchSpec, tmp_path: Path
) -> None:
    """Mailboxes and tokens are there; what was saved before, or left on a node that comes back, is out of date."""
    agent = spec.agents[0]
    with hosting(run, tmp_path / "a") as host:
        asyncio.run(send(factory_of(run), spec, agent, "saved"))
        assert end(host) == (0, "")
    shutil.copytree(run.exchange_dir / "saved-1", tmp_path / "saved")
    with hosting(run, tmp_path / "b") as host:
        assert asyncio.run(received(factory_of(run), agent)) == ["saved"]
        shutil.copytree(tmp_path / "saved", run.exchange_dir / "saved-1")  # as if it had not come to remove it
        asyncio.run(send(factory_of(run), spec, agent, "lost"))
        kill(host)
    with hosting(run, tmp_path / "c") as host:
        assert asyncio.run(received(factory_of(run), agent)) == []
        asyncio.run(send(factory_of(run), spec, agent, "new"))
        assert end(host) == (0, "")
    with hosting(run, tmp_path / "b") as host:
        assert asyncio.run(received(factory_of(run), agent)) == ["new"]
        assert end(host) == (0, "")


def test_a_job_that_was_overtaken_does_not_overwrite_what_the_next_one_has(
    run: Run, spec: LaunchSpec, tmp_path: Path
) -> None:
    """Its node was cut off, not dead."""
    with hosting(run, tmp_path / "a") as old:
        asyncio.run(send(factory_of(run), spec, spec.agents[0], "lost"))
        with hosting(run, tmp_path / "b") as new:
            code, errors = end(old)
            assert code == 1
            assert "has taken over" in errors
            assert _serves(run, new.pid)
            assert asyncio.run(received(factory_of(run), spec.agents[0])) == []
            assert end(new) == (0, "")


def test_the_connection_file_of_an_earlier_job_is_gone_before_the_exchange_serves(
    run: Run, spec: LaunchSpec, tmp_path: Path
) -> None:
    with hosting(run, tmp_path / "a") as host:
        kill(host)
    assert run.connection_path.exists()
    (run.exchange_dir / "mailboxes.json").unlink()
    with hosting(run, tmp_path / "a", served=False) as host:
        host.wait(timeout=START_S)
    assert not run.connection_path.exists()


def test_a_link_that_others_have_put_in_the_place_of_its_state_is_not_followed(
    run: Run, spec: LaunchSpec, tmp_path: Path
) -> None:
    """The place is in a directory that all may write, and its name is no secret."""
    mine, node = tmp_path / "mine", tmp_path / "a"
    (mine / "state").mkdir(parents=True)
    mine.chmod(0o700)
    (mine / "state" / "precious").touch()
    node.mkdir()
    (node / f"academy_hpc-{run.id}").symlink_to(mine)
    with hosting(run, node, served=False) as host:
        assert host.wait(timeout=START_S) == 1
        assert host.stderr is not None and "is a link" in host.stderr.read()
    assert [str(path.relative_to(mine)) for path in sorted(mine.rglob("*"))] == ["state", "state/precious"]


def test_a_run_without_an_exchange_of_its_own_is_told(run: Run, tmp_path: Path) -> None:
    with hosting(run, tmp_path / "a", served=False) as host:
        assert host.wait(timeout=START_S) == 1
        assert host.stderr is not None
        errors = host.stderr.read()
    assert errors == f"Error: Run {run.id} has no exchange of its own: it uses one that was there before it.\n"


def test_a_node_without_a_disk_of_its_own_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node_local_directory({"TMPDIR": str(tmp_path)}) == tmp_path
    assert node_local_directory({"TMPDIR": str(tmp_path / "missing")}) == Path("/tmp")  # noqa: S108
    monkeypatch.setattr("academy_hpc.launch.hosting.network_file_system", lambda _: "lustre")
    with pytest.raises(LaunchError, match=f"no disk of its own .*{tmp_path}, /tmp.*set TMPDIR"):
        node_local_directory({"TMPDIR": str(tmp_path)})
