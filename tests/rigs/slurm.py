"""A real Slurm on the hosts of the rig: Debian's, with PBS's words beside its own."""

from __future__ import annotations

import os
import secrets
import string
import subprocess
from pathlib import Path

from tests.rigs import hosts
from tests.rigs.hosts import LOGIN, NODES, Host, folder, start_daemon, wait_until
from tests.rigs.packages import install

__all__ = ["boot", "environment", "install_packages", "job_ids", "start", "wait_until_idle"]

CPUS_PER_NODE = 16
MEMORY_PER_NODE_MB = 16_000


def install_packages() -> None:
    """Slurm, munge, and ``qsub``, ``qstat`` and ``qdel`` over Slurm."""
    install({"munged": "munge", "slurmctld": "slurm-wlm", "slurmd": "slurm-wlm", "/usr/bin/qsub": "slurm-wlm-torque"})


def environment() -> dict[str, str]:
    """What the programs of Slurm need to find this one."""
    return {"SLURM_CONF": str(folder() / "slurm.conf")}


def start() -> None:
    """The hosts, and its daemons on them; return when the nodes take jobs."""
    hosts.start()
    _configure()
    _start_munge()
    (folder() / "slurmctld").mkdir()
    start_daemon(LOGIN.command("slurmctld"))
    for node in NODES:
        (folder() / f"slurmd.{node.name}").mkdir()
        start_daemon(node.command("slurmd", "-N", node.name))
    wait_until_idle()


def boot(node: Host) -> None:
    """A node that has crashed comes back."""
    node.boot()
    start_daemon(node.command("slurmd", "-N", node.name))


def wait_until_idle(timeout: float = 30.0) -> None:
    """Until no node runs a job or is down."""
    wait_until(lambda: _states() == ["idle"] * len(NODES), timeout=timeout)


def job_ids(states: str = "PENDING,RUNNING") -> list[str]:
    """Of all jobs in these states."""
    return LOGIN.run("squeue", "--noheader", "--format=%i", f"--states={states}").split()


def _states() -> list[str]:
    command = LOGIN.command("sinfo", "--noheader", "--Node", "--format=%t")
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout.split()


def _configure() -> None:
    names = ",".join(node.name for node in NODES)
    addresses = ",".join(node.address for node in NODES)
    size = f"CPUs={CPUS_PER_NODE} RealMemory={MEMORY_PER_NODE_MB}"
    template = string.Template(Path(__file__).with_name("slurm.conf.template").read_text())
    text = template.substitute(
        folder=folder(),
        controller=LOGIN.address,
        nodes=f"NodeName={names} NodeAddr={addresses} {size} State=UNKNOWN",
    )
    # PBS_JOBID and its like in jobs.
    (folder() / "plugstack.conf").write_text("optional spank_pbs.so\n")
    (folder() / "slurm.conf").write_text(f"{text}PlugStackConfig={folder()}/plugstack.conf\n")
    # slurmd loads a plugin for cgroups also where nothing uses them, and can't find the right one by itself.
    (folder() / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")


def _start_munge() -> None:
    """One for all hosts, by a socket that they share. Its key is nobody else's; its folder has to be open to all."""
    files = folder() / "munge"
    files.mkdir(mode=0o755)
    with os.fdopen(os.open(files / "key", os.O_WRONLY | os.O_CREAT, 0o400), "wb") as key:
        key.write(secrets.token_bytes(1024))
    options = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    start_daemon(["munged", *(f"--{option}={files / name}" for option, name in options.items())])
