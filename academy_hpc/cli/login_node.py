"""What ``academy-hpc doctor`` looks at on a login node: what may keep an exchange or a program from working there.

Nothing is changed: what is tried out in a directory is removed again.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import resource
import shutil
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import getproxies_environment, proxy_bypass

import psutil

from academy_hpc.exchange.file_system import file_system, network_file_system
from academy_hpc.exchange.http.addresses import LocalAddress, local_addresses
from academy_hpc.launch.run import RUNS_VARIABLE, default_runs
from academy_hpc.launch.site import Site
from academy_hpc.worker.checks import CLOCK_S, PROXY_VARIABLES, Finding, check_files

__all__ = ["login_node_findings"]

PORT = 5463
CONNECT_S = 3.0
# An exchange is one process of one thread, and a program with agents has a few; with Parsl, some dozen more.
NEEDED_TASKS, AMPLE_TASKS = 16, 64
DAY_S = 86_400
FEW_BYTES = 100 << 20
CGROUPS = Path("/sys/fs/cgroup")
LOCAL_FOLDERS = ("/local/scratch", "/scratch/local", "/tmp", "/var/tmp")  # noqa: S108 - looked at
IN_MEMORY = ("tmpfs", "ramfs")
MEND_RUNS = f"name another directory with {RUNS_VARIABLE}"


def login_node_findings(site: Site) -> list[Finding]:
    """Everything that can be seen without asking a scheduler."""
    addresses = sorted(local_addresses(), key=lambda one: one.rank)
    return [
        *_rules(site),
        *check_addresses(addresses, site),
        *check_ports(addresses),
        *check_tasks(site),
        *check_files(),
        *check_cpu_time(),
        *check_proxy_rules(addresses),
        *check_runs(site),
        *check_state_folders(),
    ]


def _rules(site: Site) -> list[Finding]:
    """What the site says of login nodes, for people to know."""
    place = "on a login node" if site.exchange == "login" else "in the job"
    notes = " ".join(filter(None, (site.exchange_note, site.login_note)))
    return [Finding("site", "ok", f"{site.title or site.name}: the exchange runs {place}. {notes}".strip())]


# Network


def check_addresses(addresses: list[LocalAddress], site: Site) -> list[Finding]:
    """Whether others can reach this machine at all, and by which networks."""
    usable = [one for one in addresses if not one.ip.is_loopback]
    shown = ", ".join(f"{one.interface} {one.ip}" for one in usable)
    if not usable and site.scheduler != "local":
        text = "only loopback is up here: no compute node can reach an exchange on this machine; let it run in the job"
        return [Finding("addresses", "failed", text)]
    there = [name for name in site.interfaces if any(one.interface == name for one in usable)]
    if site.interfaces and not there:
        text = f"{shown or 'loopback only'}: none is called {' or '.join(site.interfaces)}, as {site.name} has them; "
        return [Finding("addresses", "warning", f"{text}which one the nodes reach, a job tells: doctor --site")]
    return [Finding("addresses", "ok", f"{shown or 'loopback only'}: the most useful first, all are advertised")]


def check_ports(addresses: list[LocalAddress]) -> list[Finding]:
    """Whether a server can listen here, and be reached at each of the addresses from here."""
    findings = []
    with contextlib.closing(socket.socket()) as listener:
        try:
            listener.bind(("0.0.0.0", 0))  # noqa: S104 - for a moment, and nothing is read
            listener.listen()
        except OSError as error:
            return [Finding("ports", "failed", f"no port can be listened at: {error}")]
        port = listener.getsockname()[1]
        for one in addresses:
            if one.ip.version == 4 and (problem := _connect_problem(str(one.ip), port)):
                text = f"{one.ip} ({one.interface}) can't be reached from here at port {port}: {problem}; a firewall?"
                findings.append(Finding("ports", "warning", text))
    usual = "the usual 5463 is free" if _is_free(PORT) else "the usual 5463 is taken: use --port 0, which takes another"
    return findings or [Finding("ports", "ok", f"a server can listen and be reached from here; {usual}")]


def _connect_problem(host: str, port: int) -> str:
    try:
        socket.create_connection((host, port), timeout=CONNECT_S).close()
    except OSError as error:
        return str(error)
    return ""


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def check_proxy_rules(addresses: list[LocalAddress]) -> list[Finding]:
    """Whether Python's rules send what goes to this machine to the site's proxy. Values may hold passwords."""
    names = sorted(name for name, value in os.environ.items() if value and name.lower() in PROXY_VARIABLES)
    if not getproxies_environment().keys() & {"http", "https", "all"}:
        return [Finding("proxies", "ok", f"{', '.join(names)} set alone" if names else "no proxy variables")]
    hosts = [str(one.ip) for one in addresses if not one.ip.is_loopback] or ["127.0.0.1"]
    sent = [host for host in hosts if not proxy_bypass(host)]
    if not sent:
        return [
            Finding("proxies", "ok", f"{', '.join(names)} set; no_proxy keeps them off the addresses of this machine")
        ]
    text = (
        f"{', '.join(names)} set: by Python's rules what goes to {', '.join(sent)} goes to the proxy. Exchanges that "
        "are started here are reached past it; for other programs add these addresses to no_proxy, one by one"
    )
    listed = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    odd = [part.strip() for part in listed if set("*/") & set(part) and part.strip() != "*"]
    if odd:
        text += f" ({', '.join(odd)} mean nothing to Python: it knows names, and endings such as .example.org)"
    return [Finding("proxies", "warning", text)]


# Limits


def check_tasks(site: Site) -> list[Finding]:
    """How many more processes and threads this user may have here."""
    limits = [*_rlimit_tasks(), *_cgroup_tasks()]
    if site.login_processes is not None and not any(name != "RLIMIT_NPROC" for name, _, _ in limits):
        limits.append((f"the rules of {site.name}", site.login_processes, _own_tasks()))
    if not limits:
        return [Finding("processes", "ok", f"no limit; {_own_tasks()} processes and threads of this user run")]
    name, limit, used = min(limits, key=lambda one: one[1] - one[2])
    text = f"{used} of {limit} processes and threads are in use ({name})"
    if limit - used < NEEDED_TASKS:
        text += ": too few are left; end what you don't need here, or have the exchange run in the job"
        return [Finding("processes", "failed", text)]
    if limit - used < AMPLE_TASKS:
        text += ": enough for an exchange and a program with agents, few for Parsl beside them"
        return [Finding("processes", "warning", text)]
    return [Finding("processes", "ok", text)]


def _rlimit_tasks() -> list[tuple[str, int, int]]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    # Linux does not hold root to it.
    return [] if soft == resource.RLIM_INFINITY or os.getuid() == 0 else [("RLIMIT_NPROC", soft, _own_tasks())]


def _own_tasks() -> int:
    found = psutil.process_iter(["uids", "num_threads"])
    return sum(
        one.info["num_threads"] or 1 for one in found if one.info["uids"] and one.info["uids"].real == os.getuid()
    )


def _cgroup_tasks() -> list[tuple[str, int, int]]:
    """The limits of the control groups that this process is in, and of the one that ALCF has for each user."""
    found = []
    for folder in {*_own_cgroups(), *_own_users_cgroup()}:
        with contextlib.suppress(OSError, ValueError):  # no limit is called max
            limit, used = (int((folder / name).read_text()) for name in ("pids.max", "pids.current"))
            found.append((str(folder / "pids.max"), limit, used))
    return found


def _own_cgroups() -> Iterator[Path]:
    """By cgroups(7): a line is ``0::PATH`` in version 2, and ``NUMBER:CONTROLLERS:PATH`` in version 1."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "pids" in controllers.split(","):
                top = CGROUPS / "pids" if controllers else CGROUPS
                place = top / path.lstrip("/")
                yield from (one for one in (place, *place.parents) if one.is_relative_to(top))


def _own_users_cgroup() -> Iterator[Path]:
    # An account may have no name here, as in a container: KeyError, from Python 3.13 on OSError.
    with contextlib.suppress(KeyError, OSError):
        yield CGROUPS / "users" / getpass.getuser()


def check_cpu_time() -> list[Finding]:
    """Whether processes here are ended after some time of computing."""
    soft, _ = resource.getrlimit(resource.RLIMIT_CPU)
    if soft == resource.RLIM_INFINITY:
        return [Finding("cpu time", "ok", "no limit that a process could see")]
    text = f"a process is ended after {soft} s of computing"
    if soft < DAY_S:
        return [Finding("cpu time", "warning", f"{text}: for a long campaign have the exchange run in the job")]
    return [Finding("cpu time", "ok", text)]


# Directories


def check_runs(site: Site) -> list[Finding]:
    """The directory of all runs, which compute nodes have to share, and the clock of its file server."""
    runs = default_runs()
    parent = next(one for one in (runs, *runs.parents) if one.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".academy_hpc.", dir=parent) as probe:
            mode = Path(probe).stat().st_mode & 0o777
            ahead_s = _server_ahead_s(Path(probe))
    except OSError as error:
        return [Finding("runs", "failed", f"{runs} can't be written: {error}; {MEND_RUNS}")]
    return [_runs(runs, parent, mode, site), _clock(ahead_s)]


def _runs(runs: Path, parent: Path, mode: int, site: Site) -> Finding:
    kind, free = file_system(parent) or "file system not known", shutil.disk_usage(parent).free
    if mode != 0o700:
        text = f"{runs} ({kind}): files there can't be closed to others ({mode:o} came of 700); {MEND_RUNS}"
        return Finding("runs", "failed", text)
    if runs.is_dir() and runs.stat().st_mode & 0o077:
        return Finding("runs", "warning", f"{runs} is open to other users: `chmod 700 {runs}` closes it")
    if free < FEW_BYTES:
        return Finding("runs", "warning", f"{runs} ({kind}) has {free >> 20} MiB left; {MEND_RUNS}")
    if network_file_system(parent) is None and site.scheduler != "local":
        text = f"{runs} ({kind}) seems to be of this machine alone: unless compute nodes see it, {MEND_RUNS}"
        return Finding("runs", "warning", text)
    note = "" if os.environ.get(RUNS_VARIABLE) or not site.runs_note else f"; {site.name}: {site.runs_note}"
    return Finding("runs", "warning" if note else "ok", f"{runs} ({kind}) can be written{note}")


def _server_ahead_s(folder: Path) -> float:
    """By how much the clock of the file server is ahead of the one here."""
    before_s = time.time()
    path = folder / "clock"
    path.write_bytes(b"academy_hpc")
    stamp_s, after_s = path.stat().st_mtime, time.time()
    return stamp_s - min(max(stamp_s, before_s), after_s)


def _clock(ahead_s: float) -> Finding:
    if abs(ahead_s) <= CLOCK_S:
        return Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S %Z, as at the file server"))
    side = "behind" if ahead_s > 0 else "ahead of"
    return Finding("clock", "warning", f"{abs(ahead_s):.0f} s {side} that of the file server: tell its administrators")


def check_state_folders() -> list[Finding]:
    """Where an exchange that outlives its process can keep its state: on a disk of this machine."""
    folders = dict.fromkeys(filter(None, (os.environ.get("TMPDIR"), *LOCAL_FOLDERS)))
    good: list[str] = []
    in_memory: list[str] = []
    for folder in map(Path, folders):
        kind = file_system(folder)
        if folder.is_dir() and network_file_system(folder) is None and _holds_database(folder):
            (in_memory if kind in IN_MEMORY else good).append(f"{folder} ({kind})")
    if good:
        return [Finding("state", "ok", f"{', '.join(good)}: fit for --state-dir")]
    if in_memory:
        text = f"{', '.join(in_memory)}: fit for --state-dir until the machine is restarted; there seems to be no disk"
        return [Finding("state", "warning", text)]
    text = f"none of {', '.join(folders)} can hold the state of an exchange: it runs in memory, or name a local disk"
    return [Finding("state", "warning", text)]


def _holds_database(folder: Path) -> bool:
    try:
        with tempfile.TemporaryDirectory(prefix=".academy_hpc.", dir=folder) as probe:
            with contextlib.closing(sqlite3.connect(Path(probe) / "probe.db")) as database:
                [mode] = database.execute("PRAGMA journal_mode=WAL").fetchone()
                database.execute("CREATE TABLE probe (number INTEGER)")
                return bool(mode == "wal")
    except (OSError, sqlite3.Error):
        return False
