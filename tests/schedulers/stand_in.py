"""Stand-ins for the commands of PBS Pro, LSF and Flux, which take what their manuals name, and refuse everything else.

Run as a program, whose first argument is the command to be. A job is a directory in ``$STAND_IN``; its script runs on
this machine, and the hosts of a job are names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["COMMANDS", "Jobs"]

PAUSE_S = 0.02
KILL_S = 1.0


class Jobs:
    """The jobs of one stand-in, as its commands and the tests see them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, fields: dict[str, Any]) -> str:
        number = str(1001 + len(list(self.folder.glob("job-*"))))
        (self.folder / f"job-{number}").mkdir()
        self.write(number, state="pending", **fields)
        return number

    def write(self, number: str, **fields: Any) -> None:
        path = self.folder / f"job-{number}" / "job.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        aside = path.with_suffix(f".{os.getpid()}")
        aside.write_text(json.dumps(known | fields))
        aside.replace(path)

    def read(self, number: str) -> dict[str, Any]:
        fields: dict[str, Any] = json.loads((self.folder / f"job-{number}" / "job.json").read_text())
        return fields

    def all(self) -> list[str]:
        return sorted(path.name.removeprefix("job-") for path in self.folder.glob("job-*"))

    def hold(self) -> None:
        """Start nothing from now on."""
        (self.folder / "hold").touch()

    def release(self) -> None:
        (self.folder / "hold").unlink()

    def end(self, number: str, state: str) -> None:
        """The job ends like this, and all its processes with it."""
        self.write(number, ending=state)

    def calls(self, command: str) -> int:
        """How often a command was used."""
        path = self.folder / "commands"
        return path.read_text().split().count(command) if path.exists() else 0


def refuse(text: str, code: int = 1) -> NoReturn:
    sys.stderr.write(f"{text}\n")
    sys.exit(code)


class Strict(argparse.ArgumentParser):
    """One dash for long options where the manual has it; no beginnings of options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, add_help=False, **options)

    def error(self, message: str) -> NoReturn:
        refuse(f"usage: {message}", 2)


def submitted(
    jobs: Jobs, lines: list[str], mark: str, parser: Strict, env: Callable[[str, Any], dict[str, str]]
) -> str:
    """Take a script: read its directives, and have it run."""
    assert lines[0] == "#!/bin/bash\n"
    words: list[str] = []
    for line in lines[1:]:
        if not line.startswith("#"):
            break
        words += shlex.split(line.removeprefix(mark)) if line.startswith(mark) else []
    options = parser.parse_args(words)
    number = jobs.add({"options": vars(options), "script": "".join(lines)})
    jobs.write(number, env=env(number, options))
    subprocess.Popen(
        [sys.executable, "-IS", __file__, "run", number],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return number


def run(jobs: Jobs, number: str) -> None:
    """The life of a job."""
    while (jobs.folder / "hold").exists():
        if jobs.read(number).get("ending"):
            jobs.write(number, state=jobs.read(number)["ending"])
            return
        time.sleep(PAUSE_S)
    fields = jobs.read(number)
    script = jobs.folder / f"job-{number}" / "script"
    script.write_text(fields["script"])
    # A scheduler takes little from the environment of the user.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "STAND_IN", "USER") if name in os.environ}
    jobs.write(number, state="running")
    process = subprocess.Popen(["/bin/bash", str(script)], env=kept | fields["env"], start_new_session=True)
    while process.poll() is None:
        if ending := jobs.read(number).get("ending"):
            _kill(process, gently=ending == "cancelled")
            jobs.write(number, state=ending)
            return
        time.sleep(PAUSE_S)
    jobs.write(number, state="completed" if process.returncode == 0 else "failed", code=process.returncode)


def _kill(process: subprocess.Popen[bytes], *, gently: bool) -> None:
    if gently:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILL_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def start_ranks(count: int, per_host: int, command: list[str], variables: Callable[[int], dict[str, str]]) -> NoReturn:
    """What mpiexec and its like do: one process for each rank, and signals handed on."""
    processes = [
        subprocess.Popen(command, env=os.environ | variables(rank) | {"STAND_IN_HOST": f"node{rank // per_host}"})
        for rank in range(count)
    ]
    for name in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(name, lambda number, _: [process.send_signal(number) for process in processes])
    sys.exit(max(process.wait() for process in processes))


# PBS Pro


def qsub(jobs: Jobs, words: list[str]) -> None:
    """See ``man qsub``."""
    [script] = words
    parser = Strict()
    for name in ("-A", "-N", "-j", "-o", "-q", "-r", "-S"):
        parser.add_argument(name)
    parser.add_argument("-l", action="append", default=[])
    number = submitted(
        jobs,
        Path(script).read_text().splitlines(keepends=True),
        "#PBS",
        parser,
        lambda number, _: {"PBS_JOBID": f"{number}.pbs"},
    )
    options = jobs.read(number)["options"]
    assert options["S"] == "/bin/bash" and options["j"] == "oe" and options["r"] == "y"
    resources = dict(text.partition("=")[::2] for text in options["l"])
    if "select" not in resources or resources.keys() - {"select", "walltime", "filesystems"}:
        refuse(f"qsub: Unknown resource: {resources}")
    if options["A"] == "nobody":
        jobs.end(number, "refused")
        refuse("qsub: Request rejected.  Reason: 'nobody' is no valid project.", 32)
    sys.stdout.write(f"{number}.pbs\n")


def qstat(jobs: Jobs, words: list[str]) -> None:
    """See ``man qstat``, as ``qstat -x -f`` shows jobs."""
    assert words[:2] == ["-x", "-f"] and len(words) > 2, words
    codes = {"timeout": -29, "failed": 1, "completed": 0, "cancelled": 271, "node_failure": -4}
    letters = {"pending": "Q", "running": "R"}
    unknown = False
    for word in words[2:]:
        number = word.removesuffix(".pbs")
        if number not in jobs.all():
            sys.stderr.write(f"qstat: Unknown Job Id {word}\n")
            unknown = True
            continue
        state = jobs.read(number)["state"]
        sys.stdout.write(
            f"Job Id: {word}\n    Job_Name = {jobs.read(number)['options']['N']}\n    Job_Owner = me@login\n"
        )
        sys.stdout.write(f"    job_state = {letters.get(state, 'F')}\n    Resource_List.walltime = 01:00:00\n")
        if state == "pending":
            sys.stdout.write("    comment = Not Running: Insufficient amount of resource: n\n\tcpus\n")
        elif state != "running":
            sys.stdout.write(f"    Exit_status = {codes[state]}\n    substate = {91 if state == 'cancelled' else 92}\n")
        sys.stdout.write(
            "    Variable_List = PBS_O_HOME=/home/me,PBS_O_LANG=en_US.UTF-8,\n\tPBS_O_WORKDIR=/home/me\n\n"
        )
    sys.exit(153 if unknown else 0)


def qdel(jobs: Jobs, words: list[str]) -> None:
    """See ``man qdel``."""
    for word in words:
        jobs.end(word.removesuffix(".pbs"), "cancelled")


def qselect(jobs: Jobs, words: list[str]) -> None:
    """See ``man qselect``."""
    assert words[:2] == ["-x", "-N"] and len(words) == 3, words
    for number in jobs.all():
        if jobs.read(number)["options"]["N"] == words[2]:
            sys.stdout.write(f"{number}.pbs\n")


def mpiexec(jobs: Jobs, words: list[str]) -> None:
    """That of PALS: see ``man mpiexec``."""
    parser = Strict()
    parser.add_argument("-n", type=int, required=True)
    parser.add_argument("--ppn", type=int, required=True)
    parser.add_argument("--depth", type=int)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(words)
    start_ranks(options.n, options.ppn, options.command, lambda rank: {"PALS_RANKID": str(rank), "PMI_RANK": str(rank)})


# LSF


def bsub(jobs: Jobs, words: list[str]) -> None:
    """See ``man bsub``, which reads directives from its standard input only."""
    assert words == [], words
    parser = Strict(prefix_chars="-")
    for name in ("-J", "-P", "-R", "-U", "-W", "-gpu", "-n", "-nnodes", "-o", "-q", "-wa", "-wt"):
        parser.add_argument(name)
    parser.add_argument("-r", action="store_true")

    def env(number: str, options: Any) -> dict[str, str]:
        count = int(options.n)
        found = re.fullmatch(r"span\[ptile=(\d+)\]", options.R)
        assert found is not None, options.R
        per_host = int(found[1])
        hosts = " ".join(f"node{host} {per_host}" for host in range(-(-count // per_host)))
        return {"LSB_JOBID": number, "LSB_MCPU_HOSTS": hosts}

    number = submitted(jobs, sys.stdin.readlines(), "#BSUB", parser, env)
    options = jobs.read(number)["options"]
    assert options["W"] is None or options["W"].isdecimal()
    assert (options["wt"] is None) == (options["wa"] is None)
    if options["P"] == "nobody":
        jobs.end(number, "refused")
        refuse("nobody: No such project. Job not submitted.", 255)
    sys.stdout.write(f"Job <{number}> is submitted to default queue <normal>.\n")


def bjobs(jobs: Jobs, words: list[str]) -> None:
    """See ``man bjobs``."""
    parser = Strict()
    parser.add_argument("-a", action="store_true")
    parser.add_argument("-noheader", action="store_true")
    parser.add_argument("-o", required=True)
    parser.add_argument("-J")
    parser.add_argument("ids", nargs="*")
    options = parser.parse_args(words)
    assert options.a and options.noheader
    reasons = {
        "timeout": "TERM_RUNLIMIT: job killed after reaching LSF run time limit",
        "cancelled": "TERM_OWNER: job killed by owner",
        "node_failure": "TERM_ZOMBIE: job exited while LSF is not available",
    }
    stats = {"pending": "PEND", "running": "RUN", "completed": "DONE"}
    asked = options.ids or [number for number in jobs.all() if jobs.read(number)["options"]["J"] == options.J]
    for number in asked:
        if number not in jobs.all():
            sys.stderr.write(f"Job <{number}> is not found\n")
            continue
        state = jobs.read(number)["state"]
        if options.o == "jobid":
            sys.stdout.write(f"{number}\n")
            continue
        assert options.o == "jobid stat exit_code exit_reason pend_reason delimiter='|'", options.o
        pending = "New job is waiting for scheduling" if state == "pending" else "-"
        row = (number, stats.get(state, "EXIT"), "1" if state not in stats else "-", reasons.get(state, "-"), pending)
        sys.stdout.write("|".join(row) + "\n")
    if not asked:
        refuse("No job found", 255)
    sys.exit(255 if set(asked) - set(jobs.all()) else 0)


def bkill(jobs: Jobs, words: list[str]) -> None:
    """See ``man bkill``."""
    for number in words:
        if jobs.read(number)["state"] not in ("pending", "running"):
            refuse(f"Job <{number}>: Job has already finished", 255)
        jobs.end(number, "cancelled")
        sys.stdout.write(f"Job <{number}> is being terminated\n")


def blaunch(jobs: Jobs, words: list[str]) -> None:
    """See ``man blaunch``: one command on one host, without the environment of the script."""
    host, *command = words
    assert re.fullmatch(r"node\d+", host), host
    bare = {name: os.environ[name] for name in ("PATH", "HOME", "STAND_IN")} | {"STAND_IN_HOST": host}
    os.execvpe(command[0], command, bare)  # noqa: S606 - as it is told


def jsrun(jobs: Jobs, words: list[str]) -> None:
    """See ``man jsrun``."""
    parser = Strict()
    for name in ("--nrs", "--rs_per_host", "--tasks_per_rs", "--cpu_per_rs"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(words)
    assert options.tasks_per_rs == 1
    start_ranks(options.nrs, options.rs_per_host, options.command, lambda rank: {"JSM_NAMESPACE_RANK": str(rank)})


# Flux


def flux(jobs: Jobs, words: list[str]) -> None:
    """See ``man flux`` and its subcommands."""
    command, *rest = words
    if command == "getattr":
        answers = {"jobid": f"ƒ{os.environ.get('STAND_IN_JOB')}", "parent-uri": "local:///parent"}
        sys.stdout.write(f"{answers[rest[0]]}\n")
    elif [command, *rest] == ["job", "timeleft"]:
        sys.stdout.write(f"{jobs.read(os.environ['STAND_IN_JOB'])['options']['time_limit'].removesuffix('s')}\n")
    else:
        {"batch": _flux_batch, "jobs": _flux_jobs, "cancel": _flux_cancel, "run": _flux_run}[command](jobs, rest)


def _flux_batch(jobs: Jobs, words: list[str]) -> None:
    if os.environ.get("FLUX_URI") == "local:///nested":
        refuse("flux-batch: this would be a job inside the job", 1)
    [script] = words
    parser = Strict()
    for name in ("--job-name", "--output", "--bank", "--queue", "--nodes", "--time-limit", "--requires", "--signal"):
        parser.add_argument(name)
    lines = Path(script).read_text().splitlines(keepends=True)
    number = submitted(
        jobs, lines, "# flux:", parser, lambda number, _: {"STAND_IN_JOB": number, "FLUX_URI": "local:///nested"}
    )
    options = jobs.read(number)["options"]
    assert re.fullmatch(r"SIGUSR1@\d+s", options["signal"]) and int(options["nodes"]) > 0
    if options["bank"] == "nobody":
        jobs.end(number, "refused")
        refuse("flux-batch: ERROR: [Errno 22] cannot find user/bank or user/default bank entry", 1)
    sys.stdout.write(f"ƒ{number}\n")


def _flux_jobs(jobs: Jobs, words: list[str]) -> None:
    assert words[:2] == ["-a", "--no-header"], words
    names = {"pending": "SCHED", "running": "RUN", "cancelled": "CANCELED"}
    exceptions = {"cancelled": "cancel", "timeout": "timeout", "node_failure": "node-failure"}
    for number in jobs.all():
        fields = jobs.read(number)
        state = fields["state"]
        if words[2:] == ["--format={id.f58}|{status}|{exception.type}|{exception.note}"]:
            status = names.get(state, "FAILED" if state == "node_failure" else state.upper())
            sys.stdout.write(f"ƒ{number}|{status}|{exceptions.get(state, '')}|\n")
        else:
            assert words[2].startswith("--name=") and words[3:] == ["--format={id.f58}"], words
            if fields["options"]["job_name"] == words[2].removeprefix("--name="):
                sys.stdout.write(f"ƒ{number}\n")


def _flux_cancel(jobs: Jobs, words: list[str]) -> None:
    for word in words:
        jobs.end(word[1:], "cancelled")


def _flux_run(jobs: Jobs, words: list[str]) -> None:
    parser = Strict()
    for name in ("--nodes", "--ntasks", "--cores-per-task"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(words)
    per_host = -(-options.ntasks // options.nodes)
    start_ranks(options.ntasks, per_host, options.command, lambda rank: {"FLUX_TASK_RANK": str(rank)})


COMMANDS: dict[str, dict[str, Callable[[Jobs, list[str]], None]]] = {
    "pbs": {"qsub": qsub, "qstat": qstat, "qdel": qdel, "qselect": qselect, "mpiexec": mpiexec},
    "lsf": {"bsub": bsub, "bjobs": bjobs, "bkill": bkill, "blaunch": blaunch, "jsrun": jsrun},
    "flux": {"flux": flux},
}


def main(words: list[str]) -> None:
    jobs = Jobs(Path(os.environ["STAND_IN"]))
    if words[0] == "run":
        run(jobs, words[1])
        return
    with (jobs.folder / "commands").open("a") as file:
        file.write(f"{words[0]}\n")
    commands = {name: command for group in COMMANDS.values() for name, command in group.items()}
    commands[words[0]](jobs, words[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
