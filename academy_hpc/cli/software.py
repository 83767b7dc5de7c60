"""What ``academy-hpc doctor`` says of the software: Python, packages, schedulers."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from packaging.requirements import Requirement

from academy_hpc.launch.site import Site
from academy_hpc.worker.checks import Finding

__all__ = ["software_findings"]

COMMAND_S = 15.0
PACKAGE = "academy_hpc"
# Told with their versions: those that both sides of Parsl and Globus Compute have to have alike.
TOLD = (PACKAGE, "parsl", "globus-compute-sdk", "cloudpickle", "dill")
# How the command of each scheduler says its version. Three of them have a qsub, and Grid Engine's knows -help alone.
COMMANDS: dict[str, tuple[str, ...]] = {
    "slurm": ("sbatch", "--version"),
    "lsf": ("bsub", "-V"),
    "flux": ("flux", "--version"),
    "pbs": ("qsub", "--version"),
}
GRID_ENGINE, TORQUE = ("qsub", "-help"), "Version:"
# SGE 8.1.9, UGE 8.6, GE 6.2u5, OGS/GE 2011.11
_GRID_ENGINE = re.compile(r"\S*GE\b")


class _Command(NamedTuple):
    """The command of a scheduler, that is here: what it says, and whether it works."""

    scheduler: str
    said: str
    works: bool

    def __str__(self) -> str:
        return f"{self.scheduler} ({self.said})" if self.works else f"{self.scheduler} (does not work: {self.said})"


def software_findings(site: Site) -> list[Finding]:
    """Python, packages, and the scheduler that the site has."""
    python = f"{platform.python_version()} ({sys.executable})"
    return [Finding("python", "ok", python), _packages(), _scheduler(site)]


def _packages() -> Finding:
    unfit = list(_unfit(PACKAGE))
    if unfit:
        return Finding("packages", "warning", f"{'; '.join(unfit)}: install {PACKAGE} again, in a fresh environment")
    told = [f"{name} {version}" for name in TOLD if (version := _version(name))]
    return Finding("packages", "ok", f"{', '.join(told)}: fit one another; the nodes need the same")


def _unfit(package: str) -> Iterator[str]:
    """What a package asks for and does not have, in this environment."""
    for text in importlib.metadata.requires(package) or ():
        asked = Requirement(text)
        if asked.marker is not None and not asked.marker.evaluate({"extra": ""}):
            continue
        there = _version(asked.name)
        if there is None or not asked.specifier.contains(there, prereleases=True):
            yield f"{package} needs {asked.name}{asked.specifier}, and {there or 'none'} is installed"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _scheduler(site: Site) -> Finding:
    found = list(_commands())
    shown = ", ".join(map(str, found))
    if site.scheduler == "local":
        return Finding("scheduler", "ok", shown or "none on PATH: agents run on this machine, or by Parsl elsewhere")
    own = [one for one in found if one.scheduler == site.scheduler]
    if not own:
        text = f"{site.name} has {site.scheduler}, whose command is not on PATH{f'; there is {shown}' if found else ''}"
        return Finding("scheduler", "failed", f"{text}: log in to the machine itself, or load its module")
    return Finding("scheduler", "ok" if own[0].works else "failed", shown)


def _commands() -> Iterator[_Command]:
    for name, words in COMMANDS.items():
        if shutil.which(words[0]) is not None:
            command = _asked(name, words)
            if name == "pbs" and not command.works:
                other = _asked("gridengine", GRID_ENGINE)
                command = other if other.works and _GRID_ENGINE.match(other.said) else command
            elif name == "pbs" and command.said.startswith(TORQUE):
                command = command._replace(scheduler="torque")
            yield command


def _asked(name: str, words: tuple[str, ...]) -> _Command:
    """Its first line, on whichever stream."""
    try:
        done = subprocess.run(  # noqa: S603 - the words above
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=COMMAND_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return _Command(name, str(error), works=False)
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return _Command(name, lines[0] if lines else f"exit status {done.returncode}", works=done.returncode == 0)
