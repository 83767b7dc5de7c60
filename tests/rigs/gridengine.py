"""A real Grid Engine on the hosts of the rig: Debian's, unpacked beside the checkout's environment.

It is not installed, because its ``qsub`` and those of other schedulers would not fit on one machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.rigs import hosts
from tests.rigs.hosts import LOGIN, NODES, folder, start_daemon, wait_until
from tests.rigs.packages import install, unpack

__all__ = ["PROGRAMS", "environment", "install_packages", "job_ids", "start"]

FILES = Path(sys.prefix) / "gridengine"
"""Of the packages, as they lie below ``/``."""

PROGRAMS = Path("/usr/lib/gridengine")
"""Where its programs look for one another."""

SLOTS_PER_NODE = 16

BOOTSTRAP = """\
admin_user none
default_domain none
ignore_fqdn true
spooling_method classic
spooling_lib libspoolc
spooling_params {cell}/common;{cell}/spool/qmaster
binary_path {root}/bin
qmaster_spool_dir {cell}/spool/qmaster
security_mode none
listener_threads 2
worker_threads 2
scheduler_threads 1
jvm_threads 0
"""

PARALLEL_ENVIRONMENT = """\
pe_name mpi
slots 999
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule 1
control_slaves TRUE
job_is_first_task FALSE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
"""

CONFIGURATION = {
    "min_uid": "0",
    "min_gid": "0",
    "load_report_time": "00:00:05",
    "max_unheard": "00:00:30",
    "mailer": "/bin/true",
    # Processes that have left a job's session end with it.
    "execd_params": "ENABLE_ADDGRP_KILL=true",
    "finished_jobs": "100",
}

QUICK = {"schedule_interval": "0:0:2", "flush_submit_sec": "1", "flush_finish_sec": "1"}

QUEUE = {
    "qname": "all.q",
    "hostlist": "@allhosts",
    "pe_list": "mpi",
    "slots": str(SLOTS_PER_NODE),
    "shell": "/bin/bash",
    "shell_start_mode": "unix_behavior",
    # The machine is always busy.
    "load_thresholds": "NONE",
    # With -notify, a job is warned this long before it is killed.
    "notify": "00:00:15",
}


def install_packages() -> None:
    """The packages' files, and the libraries that they need."""
    unpack([f"gridengine-{part}" for part in ("master", "exec", "client", "common")], FILES)
    libraries = ("libjemalloc2", "libtirpc3", "libhwloc15", "libmunge2", "libdb5.3")
    install({f"/usr/share/doc/{library}": library for library in libraries})
    PROGRAMS.mkdir(exist_ok=True)


def environment() -> dict[str, str]:
    """What its programs need to find this one."""
    return {
        "SGE_ROOT": str(_root()),
        "SGE_CELL": "default",
        "SGE_CLUSTER_NAME": "rig",
        "SGE_QMASTER_PORT": "6444",
        "SGE_EXECD_PORT": "6445",
        "LD_LIBRARY_PATH": str(PROGRAMS),
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
    }


def start() -> None:
    """The hosts, and its daemons on them; return when jobs can run."""
    start_daemon(["mount", "--bind", str(_unpacked("lib")), str(PROGRAMS)])
    hosts.start()
    _make_cell()
    start_daemon(LOGIN.command("sge_qmaster"))
    wait_until(lambda: _answers("qconf", "-sh"))
    _configure()
    for node in NODES:
        start_daemon(node.command("sge_execd"))
    wait_until(_nodes_are_up)


def job_ids() -> list[str]:
    """Of all jobs that wait or run."""
    return [line.split()[0] for line in LOGIN.run("qstat", "-u", "*").splitlines()[2:]]


def _root() -> Path:
    return folder() / "gridengine"


def _unpacked(kind: str) -> Path:
    return FILES / "usr" / kind / "gridengine"


def _make_cell() -> None:
    """What its installer makes."""
    root, cell = _root(), _root() / "default"
    for path in (
        cell / "common",
        cell / "spool" / "qmaster" / "job_scripts",
        *(root / kind for kind in ("bin", "lib", "utilbin")),
    ):
        path.mkdir(parents=True)
    for kind in ("bin", "lib", "utilbin"):
        (root / kind / "lx-amd64").symlink_to(PROGRAMS)
    (root / "util").symlink_to(_unpacked("share") / "util")
    (cell / "common" / "act_qmaster").write_text(f"{LOGIN.name}\n")
    (cell / "common" / "cluster_name").write_text("rig\n")
    (cell / "common" / "bootstrap").write_text(BOOTSTRAP.format(root=root, cell=cell))
    default = (_unpacked("share") / "default-configuration").read_text()
    configuration = _file("configuration", _changed(default, CONFIGURATION | {"execd_spool_dir": str(cell / "spool")}))
    resources = _unpacked("share") / "util" / "resources"
    places = f"{cell}/common;{cell}/spool/qmaster"
    start_daemon(LOGIN.command("spoolinit", "classic", "libspoolc", places, "init"), cwd=root)
    for words in (
        ("configuration", configuration),
        ("complexes", str(resources / "centry")),
        ("usersets", str(resources / "usersets")),
        ("managers", "root"),
    ):
        start_daemon(LOGIN.command("spooldefaults.bin", *words), cwd=root)


def _configure() -> None:
    """A queue on all nodes, jobs of several nodes, and a scheduler that does not wait."""
    for host in (LOGIN, *NODES):
        LOGIN.run("qconf", "-as", host.name)
    for node in NODES:
        LOGIN.run("qconf", "-ah", node.name)
    LOGIN.run("qconf", "-Msconf", _file("scheduler", _changed(LOGIN.run("qconf", "-ssconf"), QUICK)))
    names = " ".join(node.name for node in NODES)
    LOGIN.run("qconf", "-Ahgrp", _file("hosts", f"group_name @allhosts\nhostlist {names}\n"))
    LOGIN.run("qconf", "-Ap", _file("parallel", PARALLEL_ENVIRONMENT))
    LOGIN.run("qconf", "-Aq", _file("queue", _changed(LOGIN.run("qconf", "-sq"), QUEUE)))


def _changed(text: str, values: Mapping[str, str]) -> str:
    """A configuration with other values."""
    lines = []
    for line in text.splitlines():
        name = line.partition(" ")[0]
        lines.append(f"{name} {values[name]}" if name in values else line)
    return "\n".join(lines) + "\n"


def _file(name: str, text: str) -> str:
    path = _root() / name
    path.write_text(text)
    return str(path)


def _nodes_are_up() -> bool:
    """Whether no queue is in alarm, unknown or otherwise unwell."""
    lines = LOGIN.run("qstat", "-f", "-q", "all.q").splitlines()
    return sum("BIP" in line and line.split()[-1] == "lx-amd64" for line in lines) == len(NODES)


def _answers(*words: str) -> bool:
    return subprocess.run(LOGIN.command(*words), capture_output=True, check=False, timeout=10).returncode == 0
