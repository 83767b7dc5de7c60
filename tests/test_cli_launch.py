"""The story of a run at the command line, for real on this machine: launch, look, call, kill, stop."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from academy_hpc.exchange.http.spawn import spawn_http_exchange
from academy_hpc.launch.run import Run
from tests.test_cli_conventions import COMMANDS, OF_JOB_SCRIPTS

__all__: list[str] = []

# Each test runs dozens of processes, one after the other.
pytestmark = pytest.mark.timeout(240)

COMMAND = str(Path(sys.executable).with_name("academy-hpc"))
COUNTING = """
import asyncio
import os

from academy_hpc import Agent, action

class Counter(Agent):
    def __init__(self, total: int = 0, *, pause: float = 0.0) -> None:
        super().__init__()
        self.total, self.pause = total, pause

    async def agent_on_startup(self) -> None:
        print("starting", flush=True)
        await asyncio.sleep(self.pause)

    @action
    async def add(self, amount: int, *, times: int = 1) -> int:
        self.total += amount * times
        return self.total

    @action
    async def process(self) -> int:
        return os.getpid()

    @action
    async def fail(self) -> None:
        raise ValueError("no such input")

    @action
    async def itself(self) -> object:
        return object()

class Unlucky(Agent):
    async def agent_on_startup(self) -> None:
        raise OSError("no such instrument")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the user is, with an agent in a file, and an exchange whose connection file is in the environment."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "counting.py").write_text(COUNTING)
    with spawn_http_exchange("127.0.0.1", connection_file=folder / "exchange" / "connection.json"):
        yield folder
        for run in Run.all(runs=folder / "runs"):
            if not run.asked_to_stop:
                academy_hpc("agents", "stop", run.id, "--timeout", "0", folder=folder)


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {
        "ACADEMY_HPC_RUNS": str(folder / "runs"),
        "ACADEMY_HPC_CONNECTION": str(folder / "exchange" / "connection.json"),
        "ACADEMY_HPC_SITE": "local",
    }


def academy_hpc(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *words], cwd=folder, env=environment(folder), capture_output=True, text=True, check=False, timeout=50
    )


def json_of(*words: str, folder: Path) -> Any:
    done = academy_hpc(*words, "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextlib.contextmanager
def launching(*words: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """`academy-hpc launch` in a terminal of its own."""
    with subprocess.Popen(
        [COMMAND, "launch", *words],
        cwd=folder,
        env=environment(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_the_story_of_a_run(folder: Path) -> None:
    """Four agents in two workers are launched, listed, called, survive a kill, and are stopped."""
    words = ("counting.py:Counter", "--count", "4", "--agents-per-worker", "2", "--name", "sim", "--arg", "10")
    launched = academy_hpc("launch", *words, folder=folder)
    assert launched.returncode == 0, launched.stderr
    run_id = launched.stdout.split()[1].rstrip(",")
    assert launched.stdout.startswith(f"Run {run_id}, job ")
    assert launched.stderr.splitlines()[-1] == "4/4 ready"
    assert re.search(r"^Ready after \d+\.\d s in the queue and \d+\.\d s to start\.$", launched.stdout, re.MULTILINE)

    (listed,) = [run for run in json_of("runs", folder=folder) if run["run"] == run_id]
    assert listed["state"] == "running"
    agents = json_of("agents", "list", run_id, folder=folder)
    assert [agent["name"] for agent in agents] == ["sim-1", "sim-2", "sim-3", "sim-4"]
    assert [(agent["state"], agent["worker"], agent["attempt"]) for agent in agents] == [
        *[("ready", 0, 1)] * 2,
        *[("ready", 1, 1)] * 2,
    ]
    assert all(agent["seconds_since_seen"] is not None for agent in agents)

    def call(*words: str) -> Any:
        return json_of("agents", "call", run_id, *words, folder=folder)["result"]

    assert call("sim-1", "add", "-3", "--kwarg", "times=2") == 4
    assert academy_hpc("agents", "call", run_id, "sim-1", "add", "1", folder=folder).stdout == "5\n"
    pids = [call(name, "process") for name in ("sim-1", "sim-2", "sim-3")]
    assert pids[0] == pids[1] != pids[2]
    assert "starting" in academy_hpc("agents", "logs", run_id, "sim-3", folder=folder).stdout

    os.kill(pids[0], signal.SIGKILL)
    assert call("sim-2", "process") not in pids
    assert call("sim-3", "process") == pids[2]
    assert [agent["attempt"] for agent in json_of("agents", "list", run_id, folder=folder)] == [2, 2, 1, 1]

    stopped = academy_hpc("agents", "stop", run_id, "sim-4", folder=folder)
    assert stopped.stdout == "sim-4: ended\n"
    assert call("sim-3", "process") == pids[2]
    ended = academy_hpc("agents", "call", run_id, "sim-4", "process", folder=folder)
    assert ended.stderr.startswith("Error: sim-4 has ended: finished")

    stopped = academy_hpc("agents", "stop", run_id, folder=folder)
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert stopped.stdout.splitlines() == ["sim-1: ended", "sim-2: ended", "sim-3: ended", "sim-4: had ended: finished"]
    assert within(10, lambda: is_gone(pids[2]))
    (listed,) = [run for run in json_of("runs", folder=folder) if run["run"] == run_id]
    assert (listed["state"], listed["reason"]) == ("ended", "it was asked to end")


# What may come in between


def run_of(line: str) -> str:
    """The id of the run that `launch` has told."""
    assert line.startswith("Run "), line
    return line.split()[1].rstrip(",")


def state_of(run_id: str, folder: Path) -> str:
    (listed,) = [run for run in json_of("runs", folder=folder) if run["run"] == run_id]
    return str(listed["state"])


def test_ctrl_c_leaves_the_run_and_says_how_to_go_on(folder: Path) -> None:
    with launching("counting.py:Counter", "--kwarg", "pause=60", folder=folder) as running:
        assert running.stdout is not None
        run_id = run_of(running.stdout.readline())
        assert within(20, lambda: json_of("agents", "list", run_id, folder=folder)[0]["state"] == "starting")
        os.killpg(running.pid, signal.SIGINT)
        _, errors = running.communicate(timeout=20)
    assert running.returncode == 130, errors
    assert errors.splitlines()[-1] == (
        f"The run goes on. `academy-hpc agents list {run_id}` shows its agents, `agents call` calls one, "
        f"`academy-hpc agents stop {run_id}` ends it."
    )
    assert state_of(run_id, folder) == "running"
    stopped = json_of("agents", "stop", run_id, "--timeout", "1", folder=folder)
    assert stopped["agents"] == {"counter": "cancelled with its job"}
    assert within(20, lambda: state_of(run_id, folder) == "ended")


def test_agents_that_are_late_are_listed_and_left_as_they_are(folder: Path) -> None:
    words = ("counting.py:Counter", "--kwarg", "pause=60", "--timeout", "3", "--json")
    launched = academy_hpc("launch", *words, folder=folder)
    assert launched.returncode == 1
    submitted, late = map(json.loads, launched.stdout.splitlines())
    run_id = submitted["run"]
    assert (late["run"], late["state"]) == (run_id, "late")
    ((name, state),) = [(agent["name"], agent["state"]) for agent in late["missing"]]
    assert name == "counter"
    assert state in ("queued", "starting")
    *_, known, error, how = launched.stderr.splitlines()
    assert known.startswith(("counter: its worker has started (host ", "counter: waits for a worker"))
    assert error.startswith("Error: Not all agents are ready in time")
    assert "counter" in error
    assert how.startswith(f"The run goes on. `academy-hpc agents list {run_id}` shows its agents")
    assert state_of(run_id, folder) == "running"
    academy_hpc("job", "cancel", run_id, folder=folder)
    assert within(20, lambda: state_of(run_id, folder) == "ended")


def test_an_agent_that_can_not_start_ends_the_launch_with_its_reason(folder: Path) -> None:
    launched = academy_hpc("launch", "counting.py:Unlucky", "--count", "2", folder=folder)
    assert launched.returncode == 1
    assert "its agent_on_startup raised OSError: no such instrument" in launched.stderr.splitlines()[-1]
    assert "in agent_on_startup\n" in launched.stderr  # of the traceback
    run_id = run_of(launched.stdout)
    assert state_of(run_id, folder) == "ended"
    states = [agent["state"] for agent in json_of("agents", "list", run_id, folder=folder)]
    assert "failed" in states
    assert set(states) <= {"failed", "lost", "stopped"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("counting.py:Nobody",),
            "Error: Nobody of counting.py does not exist. Agent classes there: Counter, Unlucky.",
        ),
        (("counting.py:Counter", "--arg", "1", "--arg", "2"), "too many positional arguments"),
        (("counting.py:Counter", "--site", "a", "--scheduler", "b"), "give one."),
        (("counting.py:Counter", "--site", "nowhere"), "There is no site 'nowhere'."),
        (("counting.py:Counter", "--exchange", "none.json"), "Can't read the connection file none.json"),
        (("counting.py:Counter", "--name", "a b"), "name='a b'"),
        (("counting.py:Counter", "--scheduler", "slurm", "--walltime", "soon"), "'soon' is no walltime"),
    ],
)
def test_what_can_not_be_launched_is_told_in_one_line_and_makes_no_run(
    folder: Path, words: tuple[str, ...], said: str
) -> None:
    before = json_of("runs", folder=folder)
    launched = academy_hpc("launch", *words, folder=folder)
    assert (launched.returncode, launched.stdout, launched.stderr.count("\n")) == (1, "", 1)
    assert said in launched.stderr
    assert json_of("runs", folder=folder) == before


def test_what_an_action_raises_is_told_with_its_traceback(folder: Path) -> None:
    launched = academy_hpc("launch", "counting.py:Counter", "--name", "one", folder=folder)
    run_id = run_of(launched.stdout)
    failed = academy_hpc("agents", "call", "latest", "one", "fail", folder=folder)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.splitlines()[-1] == "Error: fail of one raised ValueError: no such input"
    assert "in fail" in failed.stderr
    no_json = academy_hpc("agents", "call", run_id, "one", "itself", folder=folder)
    assert "can't be sent as json" in no_json.stderr.splitlines()[-1]
    unknown = academy_hpc("agents", "call", run_id, "one", "sing", folder=folder)
    assert "sing" in unknown.stderr.splitlines()[-1]
    academy_hpc("agents", "stop", run_id, folder=folder)


def test_a_launch_that_follows_tells_how_the_agents_end(folder: Path) -> None:
    words = ("counting.py:Counter", "--count", "2", "--follow", "--json")
    with launching(*words, folder=folder) as running:
        assert running.stdout is not None
        submitted = json.loads(running.stdout.readline())
        assert submitted["state"] == "submitted"
        ready = json.loads(running.stdout.readline())
        assert ready["run"] == submitted["run"]
        assert (ready["state"], ready["agents"]) == ("ready", ["counter-1", "counter-2"])
        assert 0 <= ready["queue_s"] < 20
        assert 0 < ready["start_s"] < 40
        academy_hpc("agents", "stop", submitted["run"], folder=folder)
        output, errors = running.communicate(timeout=20)
    assert running.returncode == 0, errors
    ends = [json.loads(line) for line in output.splitlines()]
    assert sorted(end["agent"] for end in ends) == ["counter-1", "counter-2"]
    assert {end["state"] for end in ends} == {"finished"}


def test_agents_with_their_exchange_in_the_job(folder: Path) -> None:
    launched = academy_hpc("launch", "counting.py:Counter", "--exchange", "job", folder=folder)
    assert launched.returncode == 0, launched.stderr
    run_id = run_of(launched.stdout)
    assert json_of("agents", "call", run_id, "counter", "add", "2", folder=folder)["result"] == 2
    assert json_of("agents", "stop", run_id, folder=folder)["agents"] == {"counter": "ended"}


def test_an_agent_that_has_failed_before_its_exchange_was_found_is_told_all_the_same(folder: Path) -> None:
    launched = academy_hpc("launch", "counting.py:Unlucky", "--exchange", "job", folder=folder)
    assert launched.returncode == 1
    assert "OSError: no such instrument" in launched.stderr.splitlines()[-1]


def test_the_exchange_of_the_login_node_is_found(folder: Path, tmp_path: Path) -> None:
    """`launch` needs to be told of no exchange where `exchange start` has started one."""

    def at_home(*words: str) -> str:
        without = {key: value for key, value in environment(folder).items() if key != "ACADEMY_HPC_CONNECTION"}
        variables = without | {"HOME": str(tmp_path)}
        done = subprocess.run(
            [COMMAND, *words], cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=50
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    at_home("exchange", "start", "--host", "127.0.0.1", "--state-dir", str(tmp_path / "state"))
    try:
        run_id = run_of(at_home("launch", "counting.py:Counter"))
        status = json.loads(at_home("exchange", "status", "--json"))
        assert Run.find(run_id, runs=folder / "runs").connection_path.read_text().count(status["url"]) == 1
        at_home("agents", "stop", run_id)
    finally:
        at_home("exchange", "stop")


def test_every_command_prints_json_and_nothing_else(folder: Path) -> None:
    """What `exchange run` and `login` print is tested where they are."""
    agents = ("counting.py:Counter", "--count", "2")
    exchange = ("--state-dir", str(folder / "state"), "--connection-file", str(folder / "other" / "connection.json"))
    words = {
        "launch": agents,
        "runs": (),
        "agents list": ("latest",),
        "agents call": ("latest", "counter-1", "process"),
        "agents logs": ("latest",),
        "agents stop": ("latest",),
        "job render": agents,
        "job submit": agents,
        "job status": ("latest",),
        "job cancel": ("latest",),
        "job resubmit": ("latest",),
        "completion": ("zsh",),
        "exchange start": (*exchange, "--host", "127.0.0.1"),
        "exchange status": exchange[2:],
        "exchange stop": exchange[2:],
        "site list": (),
        "site show": ("local",),
        "site check": ("local",),
        "doctor": (),
    }
    assert {f"academy-hpc {path}" for path in words} == COMMANDS.keys() - OF_JOB_SCRIPTS - {
        "academy-hpc exchange run",
        "academy-hpc login",
    }
    for path, arguments in words.items():
        done = academy_hpc(*path.split(), *arguments, "--json", folder=folder)
        assert done.stdout, (path, done.stderr)
        for line in done.stdout.splitlines():
            json.loads(line)
