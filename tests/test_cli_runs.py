"""The commands that show what a run directory holds: written here by hand, as launchers and workers write it."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from academy_hpc.agent import RuntimeConfig
from academy_hpc.cli.command import main
from academy_hpc.cli.launching import Launch
from academy_hpc.cli.logs import follow_logs
from academy_hpc.cli.run_agents import failure_of
from academy_hpc.exchange.http.client import HttpAgentRegistration
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.identifiers import AgentId, UserId
from academy_hpc.launch.job import JobRequest
from academy_hpc.launch.run import RUNS_VARIABLE, Run, RunStatus, WorkerStatus
from academy_hpc.launch.source import ByReference
from academy_hpc.launch.spec import AgentReport, AgentSpec, LaunchSpec, Origin
from academy_hpc.launch.submission import Job, write_job

__all__: list[str] = []

NOWHERE = ConnectionInfo(("http://127.0.0.1:9",), {"Authorization": "Bearer " + "x" * 43}, proof=True)
HERE = Origin("node-7", 4711, "3.11.9")


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the runs of the test are."""
    folder = tmp_path / "runs"
    monkeypatch.setenv(RUNS_VARIABLE, str(folder))
    return folder


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def json_of(*arguments: str) -> Any:
    done = call(*arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def agent(name: str) -> AgentSpec:
    registration = HttpAgentRegistration[Any](AgentId(uuid.uuid4(), name), token="t" * 43)
    return AgentSpec(registration, ByReference("sim:Simulator"), RuntimeConfig(), uuid.uuid4())


@pytest.fixture
def run() -> Run:
    """Of four agents in two workers: the second worker has said nothing yet."""
    run = Run.create("sim")
    agents = tuple(agent(f"sim-{number}") for number in range(1, 5))
    run.write_spec(LaunchSpec(NOWHERE.without_token(), ClientOptions(), agents, UserId.new("me"), ranks=2))
    NOWHERE.write(run.connection_path)
    reports = (
        AgentReport(agents[0].agent_id, "ready", origin=HERE, attempt=2),
        AgentReport(agents[1].agent_id, "failed", "it [has] no input.", origin=HERE),
    )
    run.write_worker(WorkerStatus(rank=0, attempt=2, origin=HERE, agents=reports))
    run.record_job("4711")
    run.write_status(RunStatus("running", "4711", "running"))
    return run


def test_runs_are_listed_with_their_state_the_newest_last(run: Run, runs: Path) -> None:
    newer = Run((runs / run.id).with_name("a-29991231-235959-0000"))
    (newer.path / "workers").mkdir(parents=True)
    run.write_status(RunStatus("running", "4711", "running"))
    listed = json_of("runs")
    assert [one["run"] for one in listed] == [run.id, newer.id]
    assert [one["state"] for one in listed] == ["running", "new"]
    assert listed[0] | {"job_id": "4711", "jobs": 1, "path": str(run.path)} == listed[0]
    table = call("runs").stdout.splitlines()
    assert table[1].split()[:2] == [run.id, "running"]


@pytest.mark.parametrize("file", ["status.json", "jobs.jsonl"])
def test_a_run_that_cannot_be_read_does_not_hide_the_others(run: Run, file: str) -> None:
    broken = Run.create("broken")
    broken.write_status(RunStatus("running"))
    (broken.path / file).write_text("{\n")
    states = {one["run"]: (one["state"], one["reason"]) for one in json_of("runs")}
    assert states[run.id][0] == "running"
    assert states[broken.id][0] == "unknown" and str(broken.path / file) in states[broken.id][1]


def test_no_name_names_no_run_and_no_agent(run: Run) -> None:
    """As a variable of the shell that is not set."""
    assert call("agents", "stop", "").exit_code == 1 and not run.asked_to_stop
    alone = msgspec.structs.replace(run.spec(), agents=run.spec().agents[:1], ranks=1)
    run.write_spec(alone)
    assert "There is no agent ''" in call("agents", "logs", run.id, "").stderr


def test_logs_are_followed_until_all_workers_have_ended_though_nobody_has_said_so(run: Run) -> None:
    write_job(run, Job(JobRequest(scheduler="slurm"), 2))
    run.worker_log(0).write_text("all is done")
    for rank in range(2):
        (run.path / "workers" / f"{rank}.exit").write_text("0\n")
    assert list(follow_logs(run, 0)) == [("worker 0", "all is done")]


def test_without_runs_it_says_where_it_looked(runs: Path) -> None:
    done = call("runs")
    assert (done.stdout, done.stderr) == ("", f"There are no runs in {runs}.\n")
    assert json_of("runs") == []


@pytest.mark.parametrize("name", [lambda run: run.id, lambda run: run.id[:7], lambda _: "latest", lambda run: run.path])
def test_a_run_is_named_by_its_id_a_beginning_of_it_its_directory_or_as_the_latest(
    run: Run, name: Callable[[Run], object]
) -> None:
    assert len(json_of("agents", "list", str(name(run)))) == 4


def test_a_run_that_is_not_there_is_told_in_one_line(runs: Path) -> None:
    done = call("agents", "list", "nope")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"Error: There is no run 'nope' in {runs}; `academy-hpc runs` lists them.\n"


def test_agents_are_listed_as_their_workers_said_where_the_exchange_is_gone(run: Run) -> None:
    done = call("agents", "list", run.id)
    assert done.exit_code == 0
    assert "Shown is what the workers wrote last: " in done.stderr
    assert "127.0.0.1:9" in done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[1] == ["sim-1", "ready", "0", "node-7", "2"]
    assert rows[2] == ["sim-2", "failed", "0", "node-7", "1", "it", "[has]", "no", "input."]
    assert rows[3] == ["sim-3", "queued", "1"]


def test_an_agent_that_waits_for_its_next_life_is_queued(run: Run) -> None:
    first = run.spec().agents[0].agent_id
    ended = AgentReport(first, "stopped", "the walltime is near", again=True, cause="walltime")
    run.write_worker(WorkerStatus(rank=0, attempt=1, origin=HERE, agents=(ended,), again=True))
    listed = json_of("agents", "list", run.id)
    assert (listed[0]["state"], listed[0]["reason"]) == ("queued", "the walltime is near")


def test_a_call_of_an_unknown_agent_is_told_in_one_line(run: Run) -> None:
    done = call("agents", "call", run.id, "sim-9", "step")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: There is no agent 'sim-9' in the run sim-")
    assert done.stderr.count("\n") == 1


def test_a_call_of_an_agent_that_has_ended_says_how_it_ended(run: Run) -> None:
    done = call("agents", "call", run.id, "sim-2", "step")
    assert done.stderr == "Error: sim-2 has ended: failed, it [has] no input.\n"


def test_a_call_says_which_exchange_can_not_be_reached(run: Run) -> None:
    done = call("agents", "call", run.id, "sim-1", "step")
    assert done.exit_code == 1
    assert "http://127.0.0.1:9" in done.stderr


@pytest.mark.parametrize(("value", "problem"), [("[1,", "is no JSON"), ("--verbose", "is no option")])
def test_a_value_that_is_mistyped_is_wrong_usage(run: Run, value: str, problem: str) -> None:
    done = call("agents", "call", run.id, "sim-1", "step", value)
    assert (done.exit_code, done.stdout) == (2, "")
    assert problem in done.stderr


def write_logs(run: Run) -> None:
    run.job_log("4711").write_text("starting\n")
    run.worker_log(0).write_text("one\ntwo\n")
    run.worker_log(1).write_text("three\nunfinished")


def test_logs_say_whose_each_line_is(run: Run) -> None:
    write_logs(run)
    assert call("agents", "logs", run.id).stdout.splitlines() == [
        "job 4711 | starting",
        "worker 0 | one",
        "worker 0 | two",
        "worker 1 | three",
        "worker 1 | unfinished",
    ]


def test_the_log_of_an_agent_is_that_of_its_worker(run: Run) -> None:
    write_logs(run)
    assert call("agents", "logs", run.id, "sim-3").stdout == "three\nunfinished\n"
    lines = call("agents", "logs", run.id, "sim-3", "--json").stdout.splitlines()
    assert json.loads(lines[0]) == {"source": "worker 1", "line": "three"}


def test_logs_are_followed_until_the_run_has_ended(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_job(run, Job(JobRequest(scheduler="slurm"), 2))
    write_logs(run)

    def passes(_: float) -> None:
        with run.worker_log(1).open("a") as log:
            log.write(" no more\n")
        run.worker_log(2).write_text("late\n")
        run.write_status(RunStatus("ended"))

    monkeypatch.setattr(time, "sleep", passes)
    lines = call("agents", "logs", run.id, "--follow").stdout.splitlines()
    assert lines[3:] == ["worker 1 | three", "worker 1 | unfinished no more", "worker 2 | late"]


def test_all_that_ended_badly_are_one_error(run: Run) -> None:
    assert str(failure_of(run)) == "1 of 4 agents have ended badly. sim-2: it [has] no input."
    (run.path / "workers" / "1.exit").write_text("137\n")
    assert str(failure_of(run)).splitlines() == [
        "3 of 4 agents have ended badly. sim-2: it [has] no input.",
        "sim-3: its worker ended with exit status 137",
        "sim-4: its worker ended with exit status 137",
    ]


def test_agents_of_a_run_that_is_over_are_not_waited_for(run: Run) -> None:
    run.write_status(RunStatus("ended", "4711", reason="it was cancelled"))
    listed = json_of("agents", "list", run.id)
    assert [(agent["state"], agent["reason"]) for agent in listed] == [
        ("lost", "it was cancelled"),
        ("failed", "it [has] no input."),
        ("lost", "it was cancelled"),
        ("lost", "it was cancelled"),
    ]


def test_the_shell_completes_the_names_of_the_agents_of_the_run(run: Run) -> None:
    complete = ShellComplete(main, {}, "academy-hpc", "_ACADEMY_HPC_COMPLETE").get_completions
    assert [item.value for item in complete(["agents", "call", run.id], "sim-")] == ["sim-1", "sim-2", "sim-3", "sim-4"]
    assert [item.value for item in complete(["agents", "logs", "latest"], "sim-3")] == ["sim-3"]
    assert complete(["agents", "call", "no-such-run"], "sim-") == []


def test_a_run_that_is_to_stop_is_marked_before_anything_else(run: Run) -> None:
    """Nothing of it is started again, whatever becomes of the rest."""
    done = call("agents", "stop", run.id)
    assert done.exit_code == 1
    assert "request.json can't be read" in done.stderr
    assert run.asked_to_stop


@pytest.mark.parametrize(
    ("codes", "state", "reason"),
    [
        ({0: 0}, "failed", "job 4000000:1 has ended (failed), and 1 of 2 workers have not"),
        ({0: 0, 1: 0}, "ended", ""),
        ({0: 0, 1: 1}, "failed", ""),
    ],
)
def test_a_run_whose_job_is_gone_is_not_shown_as_running(
    run: Run, codes: dict[int, int], state: str, reason: str
) -> None:
    """Also where no program was there to see it end; looking changes nothing."""
    write_job(run, Job(JobRequest(scheduler="local"), 2))
    run.record_job("4000000:1")
    for rank, code in codes.items():
        (run.path / "workers" / f"{rank}.exit").write_text(f"{code}\n")
    (listed,) = json_of("runs")
    assert (listed["state"], listed["reason"], listed["job_state"]) == (state, reason, "failed")
    assert run.status().state == "running"
    (_, job) = json_of("job", "status", run.id)["jobs"]
    assert (job["number"], job["job_id"], job["state"]) == (2, "4000000:1", "failed")


class Attached:
    """A manager that came when all was over."""

    def handles(self) -> dict[str, Any]:
        return {}

    async def wait_ready(self, **_: Any) -> dict[str, Any]:
        return {}

    async def detach(self) -> None:
        pass


@pytest.mark.parametrize(("started", "waits"), [(60.0, (60.0, 40.0)), (-5.0, (0.0, 100.0)), (200.0, (100.0, 0.0))])
def test_the_wait_in_the_queue_is_told_apart_from_the_start(
    run: Run, monkeypatch: pytest.MonkeyPatch, started: float, waits: tuple[float, float]
) -> None:
    """Also where the clock of the node is wrong."""
    submitted_s = run.jobs()[0].time_s
    monkeypatch.setattr("time.time", lambda: submitted_s + started)
    run.event("job_started")
    monkeypatch.setattr("time.time", lambda: submitted_s + 100)
    run.write_worker(WorkerStatus(rank=0, attempt=1, origin=HERE))  # without the one that has failed
    plan: Any = SimpleNamespace(launcher=SimpleNamespace(runs=[run]))
    listener, manager = Mock(), Attached()
    asyncio.run(Launch(plan, listener)._see_to(manager, "ready", None))  # type: ignore[arg-type]
    assert listener.ready.call_args.args[1] == waits


async def test_who_has_failed_before_the_launching_program_came_is_told(run: Run) -> None:
    plan: Any = SimpleNamespace(launcher=SimpleNamespace(runs=[run]))
    listener, manager = Mock(), Attached()
    outcome = await Launch(plan, listener)._see_to(manager, "ready", None)  # type: ignore[arg-type]
    assert str(outcome.error) == "1 of 4 agents have ended badly. sim-2: it [has] no input."
    assert outcome.failed
    assert not listener.ready.called
