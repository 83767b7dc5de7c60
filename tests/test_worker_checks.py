"""What a worker finds where it starts: one message at the launcher has all that is needed to mend a failure."""

from __future__ import annotations

import asyncio
import platform
import resource
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from academy_hpc import (
    AgentLaunch,
    ConnectionInfo,
    ExchangeUnreachableError,
    HttpExchangeFactory,
    LaunchError,
    LaunchSpec,
    Manager,
    UnauthorizedError,
    spawn_http_exchange,
)
from academy_hpc.exchange.http.dial import dial
from academy_hpc.exchange.http.origin import ServerOrigin
from academy_hpc.launch.spec import AgentReport, WorkerReport, versions_here
from academy_hpc.worker import run
from academy_hpc.worker.checks import (
    Finding,
    check_clock,
    check_files,
    check_folder,
    check_proxies,
    check_reach,
    check_versions,
    findings_text,
)
from tests.lasting_agents import Diary, Forgetful
from tests.launched_agents import Counter
from tests.worker_process import report_of, worker_process

__all__: list[str] = []

PATIENCE_S = 30.0
NOWHERE = ConnectionInfo(("http://127.0.0.1:9",))


def states(findings: list[Finding]) -> dict[str, str]:
    return {finding.subject: finding.state for finding in findings}


def test_the_same_versions_on_both_sides_are_well() -> None:
    findings = check_versions(versions_here())
    assert set(states(findings).values()) == {"ok"}
    assert {"python", "academy_hpc", "cloudpickle"} <= states(findings).keys()


def test_other_versions_are_told_with_both() -> None:
    findings = check_versions({"python": "3.9.1", "msgspec": "0.0.1", "no-such-package": "7"})
    assert set(states(findings).values()) == {"warning"}
    text = findings_text(findings)
    assert f"python: warning: {platform.python_version()} ({sys.executable}), and 3.9.1 at the launcher" in text
    assert "0.0.1 at the launcher" in text
    assert "no-such-package: warning: not installed here, 7 at the launcher" in text


def test_another_patch_version_of_python_is_no_trouble() -> None:
    [finding] = check_versions({"python": f"{sys.version_info[0]}.{sys.version_info[1]}.99"})
    assert finding.state == "ok"


@pytest.mark.parametrize(("ahead_s", "text"), [(100.0, "100 s behind"), (-100.0, "100 s ahead of")])
def test_a_clock_that_is_off_is_told(ahead_s: float, text: str) -> None:
    [finding] = check_clock(ahead_s)
    assert finding.state == "warning"
    assert text in finding.text


def test_a_clock_that_is_right_or_can_not_be_known_is_well() -> None:
    assert states(check_clock(0.5)) == {"clock": "ok"}
    assert check_clock(None) == []


def test_proxy_variables_are_named_without_their_values() -> None:
    environment = {"http_proxy": "http://me:secret@proxy:3128", "NO_PROXY": "localhost"}
    inside = ConnectionInfo(("http://10.0.0.1:5463",))
    [ignored] = check_proxies(inside, environment)
    [used] = check_proxies(msgspec.structs.replace(inside, trust_env=True), environment)
    assert (ignored.state, used.state) == ("ok", "warning")
    assert "NO_PROXY, http_proxy set, and ignored" in ignored.text
    assert "trust_env=False" in used.text
    assert "secret" not in ignored.text + used.text
    assert states(check_proxies(inside, {})) == {"proxies": "ok"}


def test_a_low_limit_of_open_files_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(check_files()) == {"files": "ok"}
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, resource.RLIM_INFINITY))
    [finding] = check_files()
    assert finding.state == "warning"
    assert "64 open files (at most unlimited): agents may need more; raise it by `ulimit -n`" in finding.text


def test_the_directory_for_states_is_tried(tmp_path: Path) -> None:
    assert check_folder(tmp_path / "new" / "state").state == "ok"
    assert list((tmp_path / "new" / "state").iterdir()) == []
    (tmp_path / "file").touch()
    finding = check_folder(tmp_path / "file" / "state")
    assert finding.state == "failed"
    assert "Name another directory" in finding.text


def test_every_url_is_told_with_what_happened_there() -> None:
    elsewhere = ServerOrigin("login1", "another machine", 1, None)
    urls = ("http://10.0.0.1:1", "http://10.0.0.2:1", "http://127.0.0.1:1")
    info = ConnectionInfo(urls, server=elsewhere)
    error = ExchangeUnreachableError({urls[0]: "refused", urls[1]: "no answer within 10 s"})
    text = findings_text(check_reach(info, error))
    assert text.splitlines() == [
        f"{urls[0]}: failed: refused",
        f"{urls[1]}: failed: no answer within 10 s",
        f"{urls[2]}: warning: not tried: it leads to another machine's loopback",
    ]
    assert states(check_reach(info, UnauthorizedError("no"))) == {"exchange": "failed"}
    assert urls[1] in findings_text(check_reach(info, None, urls[1]))


# Workers


@pytest.fixture(scope="module")
def factory() -> Iterator[HttpExchangeFactory]:
    with spawn_http_exchange("127.0.0.1", 0) as made:
        yield made


@pytest.fixture
async def manager(factory: HttpExchangeFactory) -> AsyncIterator[Manager]:
    async with (
        asyncio.timeout(PATIENCE_S),
        await Manager.from_exchange_factory(factory, ThreadPoolExecutor(2)) as made,
    ):
        yield made


async def reports_of(spec: LaunchSpec) -> tuple[AgentReport, ...]:
    return WorkerReport.from_json(await asyncio.to_thread(run, spec.to_json())).agents


async def test_an_exchange_out_of_reach_is_told_with_all_that_may_explain_it(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    spec = await manager.make_spec([Counter, Counter])
    spec = msgspec.structs.replace(spec, connection=NOWHERE, versions={"python": "3.9.1"})
    reports = await reports_of(spec)
    assert [report.state for report in reports] == ["failed"] * 2
    assert "http://127.0.0.1:9" in reports[0].reason
    for text in ("http://127.0.0.1:9: failed:", "python: warning:", "http_proxy set", "open files"):
        assert text in reports[0].checks


async def test_a_class_that_can_not_be_imported_is_told_at_the_launcher_with_the_checks(manager: Manager) -> None:
    spec = await manager.make_spec([Counter])
    text = spec.to_json().replace("tests.launched_agents:Counter", "tests.no_such_module:Counter")
    with worker_process(LaunchSpec.from_json(text)) as process:
        with pytest.raises(LaunchError, match=r"tests\.no_such_module:Counter can't be imported") as raised:
            await manager.adopt(spec)
        await report_of(process)
    assert process.returncode == 1
    notes = "\n".join(raised.value.__notes__)
    assert "exchange: reached at http" in notes
    assert "clock: as at the exchange" in notes


async def test_a_healthy_start_opens_no_connection_for_its_checks(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the worker's own connections prove and say is all that is asked."""
    dialled = []

    async def counted(info: ConnectionInfo, *arguments: Any, **options: Any) -> Any:
        if "authorization" in options:  # an agent's, and not the manager's
            dialled.append(info)
        return await dial(info, *arguments, **options)

    monkeypatch.setattr("academy_hpc.exchange.http.stream.dial", counted)
    spec = await manager.make_spec([Counter] * 3)
    running = asyncio.create_task(reports_of(spec))
    for handle in await manager.adopt(spec):
        await manager.shutdown(handle)
    assert [report.state for report in await running] == ["finished"] * 3
    assert len(dialled) == 2  # before the constructors, and for the life of the agents


async def test_a_state_that_can_not_be_kept_keeps_its_agent_from_starting(manager: Manager, tmp_path: Path) -> None:
    """It would run for hours and lose them; another agent of the worker has no state to lose."""
    (tmp_path / "file").touch()
    spec = await manager.make_spec([AgentLaunch(Diary, name="diary"), AgentLaunch(Counter, name="counter")])
    spec = msgspec.structs.replace(spec, state_dir=str(tmp_path / "file" / "state"))
    with worker_process(spec) as process:
        with pytest.raises(LaunchError, match=r"diary: The state of Diary can't be kept: .*Name another directory"):
            await manager.adopt(spec)
        diary, counter = (await report_of(process)).agents
    assert diary.state == "failed"
    assert counter.state != "failed"


async def test_an_agent_that_can_save_and_not_restore_does_not_start(manager: Manager) -> None:
    [report] = await reports_of(await manager.make_spec([Forgetful]))
    assert report.reason == "Forgetful has agent_get_state alone: agent_get_state and agent_set_state go together."


async def test_too_few_ranks_are_told_at_the_launcher(manager: Manager) -> None:
    spec = msgspec.structs.replace(await manager.make_spec([Counter] * 3), ranks=3)
    with worker_process(spec, environment={"PMI_RANK": "1", "PMI_SIZE": "2"}) as process:
        with pytest.raises(LaunchError, match="spread over 3 ranks, and only 2 were started"):
            await manager.adopt(spec)
        await report_of(process)
    assert process.returncode == 1


async def test_each_rank_runs_its_share_and_a_rank_without_agents_ends_well(manager: Manager) -> None:
    spec = msgspec.structs.replace(await manager.make_spec([Counter] * 3), ranks=2)
    ranks = [{"PMI_RANK": str(rank), "PMI_SIZE": "3"} for rank in range(3)]
    with (
        worker_process(spec, environment=ranks[0]) as first,
        worker_process(spec, environment=ranks[1]) as second,
        worker_process(spec, environment=ranks[2]) as third,
    ):
        handles = await manager.adopt(spec)
        assert [await handle.process() for handle in handles] == [first.pid, second.pid, second.pid]
        assert (await report_of(third)).agents == ()
        assert third.returncode == 0
        for handle in handles:
            await manager.shutdown(handle)
        assert len((await report_of(second)).agents) == 2


async def test_a_worker_that_an_agent_starts_is_none_of_its_own_run(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACADEMY_HPC_RUN", str(tmp_path))
    monkeypatch.setenv("ACADEMY_HPC_ATTEMPT", "7")
    [report] = await reports_of(await manager.make_spec([Forgetful]))
    assert report.attempt == 1
    assert await asyncio.to_thread(lambda: list(tmp_path.iterdir())) == []


# An exchange inside the job


async def test_a_worker_waits_for_the_exchange_that_its_job_starts(
    manager: Manager, factory: HttpExchangeFactory, tmp_path: Path
) -> None:
    """The file of the job before may still be there, and lead nowhere."""
    path = tmp_path / "run" / "connection.json"
    asked = asyncio.Event()

    async def something_else(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        writer.close()

    async with await asyncio.start_server(something_else, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await asyncio.to_thread(ConnectionInfo((f"http://127.0.0.1:{port}",)).write, path)
        spec = await manager.make_spec([Counter])
        with worker_process(msgspec.structs.replace(spec, connection=str(path))) as process:
            adopting = asyncio.create_task(manager.adopt(spec))
            await asked.wait()
            await asyncio.to_thread(factory.connection_info.write, path)
            [counter] = await adopting
            assert await counter.process() == process.pid
            await manager.shutdown(counter)
            await report_of(process)


async def test_an_exchange_that_does_not_come_is_told_with_what_was_seen(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("academy_hpc.worker.arrival.WAIT_S", 0.2)
    path = tmp_path / "run" / "connection.json"
    spec = msgspec.structs.replace(await manager.make_spec([Counter]), connection=str(path))
    [report] = await reports_of(spec)
    assert f"Can't read the connection file {path}" in report.reason
    assert "waited 0 s" in report.reason
