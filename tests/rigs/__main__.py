"""Run a command on the login host of a small cluster with a real scheduler.

    python -m tests.rigs slurm|gridengine|globus_compute COMMAND...

The cluster is there for this command only; several run side by side. Needs root, on Debian or Ubuntu: what is missing
is installed.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import IO

from tests.rigs import hosts

__all__: list[str] = []

KINDS = ("slurm", "gridengine", "globus_compute")
FOLDERS = Path("/var/tmp")  # noqa: S108 - the names are made by mkdtemp; sockets want short paths
PREFIX = "academy-hpc-rig-"
INSIDE = "--inside"


def main(words: list[str]) -> int:
    """The exit status of the command."""
    if words[:1] == [INSIDE]:
        return _inside(words[1], words[2:])
    if len(words) < 2 or words[0] not in KINDS:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    if os.geteuid() != 0:
        sys.stderr.write("The rigs make hosts out of namespaces, for which they have to be run as root.\n")
        return 2
    # Programs of administrators, such as ip and slurmd.
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    _rig(words[0]).install_packages()
    return _run_in_folder(words)


def _run_in_folder(words: list[str]) -> int:
    """In namespaces that end with the rig's first process, which ends with this one, even if this one is killed."""
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{words[0]}-", dir=FOLDERS))
    folder.chmod(0o755)
    namespaces = ("--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
    command = [
        "setpriv",
        "--pdeathsig=KILL",
        "unshare",
        *namespaces,
        sys.executable,
        "-m",
        "tests.rigs",
        INSIDE,
        *words,
    ]
    with _claimed(folder):
        status = subprocess.run(
            command, env=os.environ | {"ACADEMY_HPC_RIG_FOLDER": str(folder)}, check=False
        ).returncode
    if status == 0:
        shutil.rmtree(folder)
    else:
        sys.stderr.write(f"The logs of the rig are in {folder} until the next one is started.\n")
    return status


def _claimed(folder: Path) -> IO[bytes]:
    """The folder is in use until the file is closed, at the latest when this process ends."""
    lock = (folder / "lock.new").open("wb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    # Whoever sees it sees it locked.
    (folder / "lock.new").rename(folder / "lock")
    return lock


def _sweep() -> None:
    """Remove what rigs that failed or were killed have left."""
    for folder in FOLDERS.glob(f"{PREFIX}*"):
        try:
            with (folder / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
        except OSError:
            continue  # it is in use


def _rig(kind: str) -> ModuleType:
    return importlib.import_module(f"tests.rigs.{kind}")


def _inside(kind: str, command: list[str]) -> int:
    """As process 1 of the rig: when it returns, all is gone."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["ACADEMY_HPC_RIG"] = kind
    # Both on the file system that all hosts share; pytest takes the second for its `tmp_path`.
    for variable in ("HOME", "PYTEST_DEBUG_TEMPROOT"):
        os.environ[variable] = str(hosts.folder() / variable.lower())
        Path(os.environ[variable]).mkdir(mode=0o700)
    os.environ |= _rig(kind).environment()
    _rig(kind).start()
    process = subprocess.Popen(hosts.LOGIN.command(*command))
    # Orphans of the rig become children of this process.
    while (ended := os.wait())[0] != process.pid:
        pass
    return os.waitstatus_to_exitcode(ended[1])


sys.exit(main(sys.argv[1:]))
