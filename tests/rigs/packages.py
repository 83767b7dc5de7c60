"""Programs that Debian has and this machine lacks."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["install", "unpack"]

APT = ("apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120")


def install(packages: Mapping[str, str]) -> None:
    """Install what is missing: pairs of a program, or the path of a file, and the package that has it."""
    missing = sorted({package for name, package in packages.items() if not _is_here(name)})
    if missing:
        # What the packages start as a service ends with this PID namespace.
        alone = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
        _apt((*alone, *APT, "install", "--yes", "--no-install-recommends", *missing))


def unpack(packages: Sequence[str], folder: Path) -> None:
    """The files of `packages` in `folder`, not installed; nothing is done where the folder exists."""
    if folder.exists():
        return
    downloads = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(downloads, ignore_errors=True)
    downloads.mkdir(parents=True)
    _apt((*APT, "download", *packages), cwd=downloads)
    for archive in downloads.glob("*.deb"):
        _run(["dpkg", "--extract", str(archive), str(downloads)])
        archive.unlink()
    downloads.rename(folder)


def _is_here(name: str) -> bool:
    return Path(name).exists() if name.startswith("/") else shutil.which(name) is not None


def _apt(command: Sequence[str], cwd: Path | None = None) -> None:
    """Run it; where it fails, the lists of packages may be old or not there yet."""
    if shutil.which("apt-get") is None:
        raise SystemExit("The schedulers are installed with apt-get, which this machine does not have.")
    words = ["env", "DEBIAN_FRONTEND=noninteractive", *command]
    if subprocess.run(words, cwd=cwd, capture_output=True, check=False).returncode != 0:
        _run([*APT, "update"])
        _run(words, cwd=cwd)


def _run(command: Sequence[str], cwd: Path | None = None) -> None:
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)
