"""`academy-hpc doctor`: it is run where something is wrong, and has to find it."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from academy_hpc.cli import login_node
from academy_hpc.cli.command import main
from academy_hpc.exchange.http.addresses import local_addresses
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.spawn import spawn_http_exchange
from academy_hpc.launch.site import Site
from academy_hpc.worker.probe import reach_findings

__all__: list[str] = []

COMMAND = str(Path(sys.executable).with_name("academy-hpc"))
PROJECT = Path(__file__).parent.parent
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can set this up")


class Doctor:
    """Runs the command with an environment and files of its own, and holds what it found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sites = folder / "config" / "academy_hpc" / "sites"
        self.sites.mkdir(parents=True)
        self.runs = folder / "runs"
        plain = {"PATH": os.environ["PATH"], "HOME": str(folder), "XDG_CONFIG_HOME": str(folder / "config")}
        self.environment = plain | {"ACADEMY_HPC_RUNS": str(self.runs)}
        self.code = 0

    def run(self, *arguments: str) -> Any:
        """The document that it prints; in this process, which is ten times as fast."""
        hidden = dict.fromkeys(os.environ.keys() - self.environment.keys())
        done = CliRunner().invoke(main, ["doctor", "--json", *arguments], env=hidden | self.environment)
        return self.document(done.stdout, done.stderr, done.exit_code)

    def run_apart(self, *arguments: str, before: Callable[[], None] | None = None, wrap: tuple[str, ...] = ()) -> Any:
        """The same in a process of its own, with limits of its own."""
        done = subprocess.run(
            [*wrap, COMMAND, "doctor", "--json", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
            env=self.environment,
            preexec_fn=before,
        )
        return self.document(done.stdout, done.stderr, done.returncode)

    def document(self, stdout: str, stderr: str, code: int) -> Any:
        assert stdout, stderr
        document = json.loads(stdout)
        self.code = code
        assert (code == 0) == document["ok"]
        return document

    def finds(self, subject: str, *arguments: str, **options: Any) -> tuple[str, str]:
        """State and text of the one finding on a subject."""
        findings = (self.run_apart(*arguments, **options) if options else self.run(*arguments))["findings"]
        [found] = [one for one in findings if one["subject"] == subject]
        return found["state"], found["text"]

    def site(self, text: str) -> str:
        """The name of a site with this profile."""
        (self.sites / "mine.toml").write_text(text)
        return "mine"

    def command(self, name: str, script: str) -> None:
        """Put a stand-in for a command of a scheduler, alone, on PATH."""
        folder = self.folder / "bin"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        self.environment["PATH"] = str(folder)


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    return Doctor(tmp_path)


def limited(kind: int, soft: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))


def test_all_is_looked_at_and_the_exit_code_tells(doctor: Doctor) -> None:
    document = doctor.run_apart()
    subjects = [one["subject"] for one in document["findings"]]
    assert subjects == [
        *("python", "packages", "scheduler", "site", "addresses", "ports", "processes", "files", "cpu time", "proxies"),
        *("runs", "clock", "state"),
    ]
    assert {one["state"] for one in document["findings"]} <= {"ok", "warning", "problem"}
    assert (document["host"], document["site"]) == (socket.gethostname(), "local")
    doctor.environment["ACADEMY_HPC_RUNS"] = "/proc/runs"
    assert not doctor.run_apart()["ok"]
    assert doctor.code == 1


def test_the_rules_of_a_site_are_told(doctor: Doctor) -> None:
    state, text = doctor.finds("site", "--site", "stampede3", "--no-job")
    assert state == "ok"
    assert "the exchange runs in the job. TACC's rules: " in text


def test_people_read_a_line_for_each(doctor: Doctor) -> None:
    done = subprocess.run([COMMAND, "doctor"], capture_output=True, text=True, check=True, env=doctor.environment)
    [line] = [line for line in done.stdout.splitlines() if " python " in line]
    assert line.startswith("  ok       python ")
    assert sys.executable in line


def test_nothing_is_left_behind(doctor: Doctor) -> None:
    doctor.runs.mkdir(mode=0o700)
    doctor.run()
    assert list(doctor.runs.iterdir()) == []


# Limits


def test_few_files(doctor: Doctor) -> None:
    state, text = doctor.finds("files", before=limited(resource.RLIMIT_NOFILE, 100))
    assert (state, text.split(" (")[0]) == ("warning", "100 open files")


def test_processes_that_are_ended_after_a_while(doctor: Doctor) -> None:
    state, text = doctor.finds("cpu time", before=limited(resource.RLIMIT_CPU, 600))
    assert (state, text.split(":")[0]) == ("warning", "a process is ended after 600 s of computing")
    assert doctor.finds("cpu time", before=limited(resource.RLIMIT_CPU, 100_000))[0] == "ok"


AS_NOBODY = """
import os, resource, sys
from academy_hpc.cli.login_node import check_tasks
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.spawn import spawn_http_exchange
from academy_hpc.launch.site import Site
from academy_hpc.worker.probe import reach_findings
site, limit = Site.load("local"), int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
os.setgroups([]), os.setgid(64321), os.setuid(64321)
print(*(finding.state + " " + finding.text for finding in check_tasks(site)))
"""


@as_root
@pytest.mark.parametrize(("limit", "state"), [(12, "failed"), (40, "warning"), (1000, "ok")])
def test_few_processes(doctor: Doctor, limit: int, state: str) -> None:
    """Linux holds all users but root to it. What this one loads, it loads before: nobody may read all of this."""
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(limit)], capture_output=True, text=True, check=False, cwd=PROJECT
    )
    assert done.stdout.startswith(f"{state} "), done.stderr
    assert f" of {limit} processes and threads are in use (RLIMIT_NPROC)" in done.stdout


@as_root
def test_few_processes_by_a_control_group(doctor: Doctor) -> None:
    top = Path("/sys/fs/cgroup/pids" if Path("/sys/fs/cgroup/pids").is_dir() else "/sys/fs/cgroup")
    group = top / f"academy_hpc_test_{os.getpid()}"
    try:
        group.mkdir()
        (group / "pids.max").write_text("20")
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip("no control groups for processes here")
    try:
        enter = f'echo $$ > {group}/cgroup.procs && exec "$@"'
        state, text = doctor.finds("processes", wrap=("sh", "-c", enter, "sh"))
        assert (state, f"of 20 processes and threads are in use ({group}/pids.max)" in text) == ("warning", True)
        (group / "pids.max").write_text("10")
        assert doctor.finds("processes", wrap=("sh", "-c", enter, "sh"))[0] == "problem"
    finally:
        until = time.monotonic() + 5
        while (group / "cgroup.procs").read_text() and time.monotonic() < until:
            time.sleep(0.05)
        group.rmdir()


def test_the_limit_that_a_site_has_for_each_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ALCF counts a user's tasks in a place of its own, whatever group a process is in."""
    own = tmp_path / "users" / getpass.getuser()
    own.mkdir(parents=True)
    monkeypatch.setattr(login_node, "CGROUPS", tmp_path)
    site = Site.load("polaris", environ={})
    for used, state in ((120, "failed"), (90, "warning"), (10, "ok")):
        (own / "pids.max").write_text("128\n")
        (own / "pids.current").write_text(f"{used}\n")
        [finding] = login_node.check_tasks(site)
        assert (finding.state, f"{used} of 128" in finding.text) == (state, True)
    (own / "pids.max").write_text("max\n")
    [finding] = login_node.check_tasks(site)
    assert "(the rules of polaris)" in finding.text


# Network


@as_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare here")
def test_a_machine_that_nobody_reaches(doctor: Doctor) -> None:
    alone = ("unshare", "--net", "--")
    document = doctor.run_apart("--no-job", "--site", doctor.site('scheduler = "slurm"'), wrap=alone)
    found = {one["subject"]: one for one in document["findings"]}
    assert found["addresses"]["state"] == "problem"
    assert "let it run in the job" in found["addresses"]["text"]
    assert doctor.finds("addresses", wrap=alone)[0] == "ok"  # agents on this machine need no more


def test_the_networks_of_a_site(doctor: Doctor) -> None:
    names = [one.interface for one in local_addresses() if not one.ip.is_loopback]
    if not names:
        pytest.skip("there is only loopback here")
    site = doctor.site(f'extends = "slurm"\ninterfaces = ["hsn7", "{names[0]}"]')
    assert doctor.finds("addresses", "--site", site, "--no-job")[0] == "ok"
    state, text = doctor.finds("addresses", "--site", doctor.site('interfaces = ["hsn7"]'), "--no-job")
    assert (state, "none is called hsn7, as mine has them" in text) == ("warning", True)


def test_proxies_that_catch_what_is_for_this_machine(doctor: Doctor) -> None:
    """Patterns and networks, as sites write them, mean nothing to Python; and a proxy's password is not shown."""
    hosts = [str(one.ip) for one in local_addresses() if not one.ip.is_loopback]
    if not hosts:
        pytest.skip("there is only loopback here")
    doctor.environment |= {
        "http_proxy": "http://user:hunter2@proxy:3128",
        "no_proxy": "*.alcf.anl.gov, 10.0.0.0/8,.gov",
    }
    state, text = doctor.finds("proxies")
    assert (state, "hunter2" in text) == ("warning", False)
    assert text.startswith("http_proxy, no_proxy set: by Python's rules what goes to ")
    assert all(host in text for host in hosts)
    assert "(*.alcf.anl.gov, 10.0.0.0/8 mean nothing to Python" in text
    doctor.environment["no_proxy"] = ",".join(hosts)
    state, text = doctor.finds("proxies")
    assert (state, "no_proxy keeps them off" in text) == ("ok", True)
    del doctor.environment["http_proxy"]
    assert doctor.finds("proxies")[0] == "ok"


def test_a_port_that_is_taken(doctor: Doctor) -> None:
    with contextlib.closing(socket.socket()) as taken:
        with contextlib.suppress(OSError):  # somebody else has it: as good
            taken.bind(("127.0.0.1", 5463))
            taken.listen()
        assert "5463 is taken: use --port 0" in doctor.finds("ports")[1]


# Directories


@pytest.mark.parametrize("place", ["/proc/runs", "file/runs"])
def test_runs_that_can_not_be_written(doctor: Doctor, place: str) -> None:
    (doctor.folder / "file").touch()
    doctor.environment["ACADEMY_HPC_RUNS"] = str(doctor.folder / place)
    state, text = doctor.finds("runs")
    assert (state, "name another directory with ACADEMY_HPC_RUNS" in text) == ("problem", True)


def test_runs_that_are_open_to_others(doctor: Doctor) -> None:
    doctor.runs.mkdir(mode=0o755)
    doctor.runs.chmod(0o755)
    assert doctor.finds("runs") == (
        "warning",
        f"{doctor.runs} is open to other users: `chmod 700 {doctor.runs}` closes it",
    )


def test_runs_that_nodes_may_not_see(doctor: Doctor) -> None:
    state, text = doctor.finds("runs", "--site", doctor.site('scheduler = "slurm"'), "--no-job")
    assert (state, "seems to be of this machine alone" in text) == ("warning", True)
    assert doctor.finds("runs")[0] == "ok"


def test_a_site_may_say_where_runs_belong(doctor: Doctor) -> None:
    site = doctor.site('runs_note = "Not at home."')
    assert doctor.finds("runs", "--site", site, "--no-job")[0] == "ok"
    del doctor.environment["ACADEMY_HPC_RUNS"]
    state, text = doctor.finds("runs", "--site", site, "--no-job")
    assert (state, text.endswith("; mine: Not at home.")) == ("warning", True)


def test_a_clock_that_is_not_that_of_the_file_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    monkeypatch.setattr(login_node.time, "time", lambda: real() - 400)
    monkeypatch.setenv("ACADEMY_HPC_RUNS", str(tmp_path))
    clock = login_node.check_runs(Site.load("local", environ={}))[-1]
    assert (clock.subject, clock.state) == ("clock", "warning")
    assert clock.text.startswith("400 s behind that of the file server")


def test_where_an_exchange_can_keep_its_state(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doctor.environment["TMPDIR"] = str(tmp_path)
    state, text = doctor.finds("state")
    assert (state, text.startswith(f"{tmp_path} (")) == ("ok", True)
    monkeypatch.setattr(login_node, "LOCAL_FOLDERS", ())
    monkeypatch.setenv("TMPDIR", "/proc")
    [finding] = login_node.check_state_folders()
    assert (finding.state, "none of /proc can hold" in finding.text) == ("warning", True)
    if Path("/dev/shm").is_dir():  # noqa: S108 - a file system in memory, as some login nodes have for /tmp
        monkeypatch.setenv("TMPDIR", "/dev/shm")  # noqa: S108
        [finding] = login_node.check_state_folders()
        assert (finding.state, "until the machine is restarted" in finding.text) == ("warning", True)


# Software


def test_a_package_that_does_not_fit(doctor: Doctor) -> None:
    """One that the environment has by PYTHONPATH, say, in place of its own."""
    older = doctor.folder / "older" / "msgspec-0.1.dist-info"
    older.mkdir(parents=True)
    (older / "METADATA").write_text("Metadata-Version: 2.1\nName: msgspec\nVersion: 0.1\n")
    doctor.environment["PYTHONPATH"] = str(older.parent)
    state, text = doctor.finds("packages", wrap=("env",))
    assert (state, text.split(":")[0]) == ("warning", "academy_hpc needs msgspec>=0.19, and 0.1 is installed")


@pytest.mark.parametrize(
    ("scheduler", "name", "script"),
    [
        ("slurm", "sbatch", "echo slurm 23.02.6"),
        ("lsf", "bsub", "echo 'IBM Spectrum LSF Standard 10.1.0.0' >&2"),
        ("flux", "flux", "echo 'commands: 0.66.0'"),
        ("pbs", "qsub", "echo 'pbs_version = 2022.1.1'"),
        ("torque", "qsub", "echo 'Version: 6.1.3' >&2"),
        ("pbs", "qsub", '[ "$1" = --version ] && echo pbs_version = 20.0.1 || echo Usage: qsub'),
        ("gridengine", "qsub", '[ "$1" = -help ] && echo GE 8.1.9 || { echo Unknown option >&2; exit 1; }'),
    ],
)
def test_a_scheduler_is_known_by_its_command(doctor: Doctor, scheduler: str, name: str, script: str) -> None:
    doctor.command(name, script)
    state, text = doctor.finds("scheduler", "--site", scheduler, "--no-job")
    assert state == "ok"
    assert text.startswith(f"{scheduler} (")
    other = "slurm" if scheduler != "slurm" else "pbs"
    state, text = doctor.finds("scheduler", "--site", other, "--no-job")
    assert (state, f"whose command is not on PATH; there is {scheduler} (" in text) == ("problem", True)


def test_a_scheduler_that_does_not_work(doctor: Doctor) -> None:
    """Slurm has a qsub, too, that can't say its version, and helps."""
    doctor.command("qsub", '[ "$1" = -help ] && echo Usage: qsub || { echo Unknown option >&2; exit 1; }')
    assert doctor.finds("scheduler")[1] == "pbs (does not work: Unknown option)"
    (doctor.folder / "bin" / "qsub").unlink()
    doctor.command("sbatch", "echo cannot contact anybody >&2; exit 1")
    assert doctor.finds("scheduler", "--site", "slurm", "--no-job") == (
        "problem",
        "slurm (does not work: cannot contact anybody)",
    )
    assert doctor.finds("scheduler")[0] == "ok"


# Jobs


@pytest.fixture
def in_job(doctor: Doctor) -> Iterator[dict[str, Any]]:
    yield {one["subject"]: one for one in doctor.run_apart("--site", "local", "--timeout", "40")["findings"]}


def test_a_job_tells_what_its_node_reaches(in_job: dict[str, Any]) -> None:
    reached = {subject: one for subject, one in in_job.items() if subject.startswith("https://")}
    assert len(reached) >= 1
    assert {one["state"] for one in reached.values()} == {"ok"}
    assert all(one["text"].startswith("reached in ") for one in reached.values())
    assert in_job["node"]["text"].startswith(socket.gethostname())
    assert in_job["packages"]["text"].endswith("as at the launcher")
    assert in_job["job"]["state"] == "ok"


def test_a_job_that_fails_is_told_with_its_reason(doctor: Doctor) -> None:
    findings = doctor.run_apart("--site", "local", "--prelude", "echo no such module; exit 3", "--timeout", "40")[
        "findings"
    ]
    [job] = [one for one in findings if one["subject"] == "job"]
    assert job["state"] == "problem"
    assert str(doctor.runs) in job["text"]


def test_where_the_exchange_is_in_the_job_this_machine_tries_to_reach_it(doctor: Doctor) -> None:
    site = doctor.site('extends = "local"\nexchange = "job"')
    found = {one["subject"]: one for one in doctor.run_apart("--site", site, "--timeout", "40")["findings"]}
    reached = {one["state"] for subject, one in found.items() if subject.startswith("https://")}
    assert "ok" in reached
    assert found["node"]["text"].startswith(socket.gethostname())


def test_ctrl_c_cancels_the_job(doctor: Doctor) -> None:
    slow = [COMMAND, "doctor", "--site", "local", "--prelude", "exec sleep 54.321"]
    with subprocess.Popen(slow, stderr=subprocess.PIPE, text=True, env=doctor.environment) as running:
        until = time.monotonic() + 20
        while not (sleeping := _processes("54.321")) and time.monotonic() < until:
            time.sleep(0.1)
        assert sleeping
        running.send_signal(signal.SIGINT)
        assert running.stderr is not None
        told = running.stderr.read()
    assert (running.returncode, told.splitlines()[-1]) == (130, "Interrupted: the job was cancelled.")
    psutil.wait_procs(sleeping, timeout=5)
    assert not _processes("54.321")


def _processes(argument: str) -> list[psutil.Process]:
    found = psutil.process_iter(["cmdline"])
    return [one for one in found if one.info["cmdline"] and one.info["cmdline"][-1] == argument]


def test_an_option_that_the_site_demands(doctor: Doctor) -> None:
    done = subprocess.run(
        [COMMAND, "doctor", "--site", "perlmutter"], capture_output=True, text=True, check=False, env=doctor.environment
    )
    assert done.returncode == 1
    assert "perlmutter takes no job without account" in done.stderr


async def test_one_address_that_is_reached_is_enough() -> None:
    """The others are worth a remark only; where none is, agents can't work."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        listening = f"http://127.0.0.1:{server.getsockname()[1]}"
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as other:
            port = other.getsockname()[1]
        closed, loopback = f"http://0.0.0.0:{port}", f"http://127.0.0.1:{port}"
        findings = {one.subject: one for one in await reach_findings([listening, closed, loopback], None)}
        assert (findings[listening].state, findings[closed].state) == ("ok", "warning")
        assert "refused" in findings[closed].text
        assert findings[loopback].state == "ok"  # elsewhere it leads to another machine, and that is no fault
        [finding] = await reach_findings([closed], None)
        assert finding.state == "failed"


async def test_a_stranger_at_the_address_is_not_the_exchange(stranger: ConnectionInfo) -> None:
    [finding] = await reach_findings(stranger.urls, "0" * 64)
    assert (finding.state, finding.text) == ("failed", "its certificate is another one")
    [finding] = await reach_findings(stranger.urls, stranger.fingerprint)
    assert finding.state == "ok"


@pytest.fixture
def stranger() -> Iterator[ConnectionInfo]:
    with spawn_http_exchange("127.0.0.1", 0, tls=True) as factory:
        yield factory.connection_info
