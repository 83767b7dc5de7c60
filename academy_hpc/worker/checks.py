"""What a worker looks at where it starts: what may keep agents from running, or explain why they don't.

Each look costs microseconds and never the start itself; what is found is told with a failure, so that one message at
the launcher has all that is needed to mend it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import secrets
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from academy_hpc.errors import AcademyError, ExchangeUnreachableError
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.launch.source import python_minor

__all__ = [
    "STATE",
    "Finding",
    "check_clock",
    "check_files",
    "check_folder",
    "check_proxies",
    "check_reach",
    "check_versions",
    "findings_text",
]

# A clock that is off by more makes deadlines and logs wrong.
CLOCK_S = 5.0
# Each process has one connection; what agents open themselves is theirs. Fewer than this is no login or batch shell.
FEW_FILES = 256
STATE = "state"
"""What is found of the directory for checkpoints."""
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at.

    Attributes:
        subject: What.
        state: "ok"; "warning": it may matter; "failed": agents can't run because of it.
        text: What was found and, unless all is well, what mends it.
    """

    subject: str
    state: Literal["ok", "warning", "failed"]
    text: str

    def __str__(self) -> str:
        """In one line."""
        return f"{self.subject}: {'' if self.state == 'ok' else self.state + ': '}{self.text}"


def findings_text(findings: Iterable[Finding]) -> str:
    """A line for each."""
    return "\n".join(map(str, findings))


def check_versions(launcher: Mapping[str, str]) -> list[Finding]:
    """Python and packages here beside those of the launching program (`academy_hpc.launch.spec.versions_here`)."""
    findings = [_python(launcher.get("python"))]
    for name, there in launcher.items():
        if name == "python":
            continue
        here = _version(name)
        if here != there:
            text = f"{here or 'not installed'} here, {there} at the launcher: install the same on both sides"
            findings.append(Finding(name, "warning", text))
        else:
            findings.append(Finding(name, "ok", f"{here}, as at the launcher"))
    return findings


def _python(there: str | None) -> Finding:
    here = f"{platform.python_version()} ({sys.executable})"
    if there is None or there == platform.python_version():
        return Finding("python", "ok", here if there is None else f"{here}, as at the launcher")
    if there.split(".")[:2] == python_minor().split("."):
        return Finding("python", "ok", f"{here}; {there} at the launcher")
    text = f"{here}, and {there} at the launcher: what travels by value needs the same minor version"
    return Finding("python", "warning", text)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_clock(ahead_s: float | None) -> list[Finding]:
    """By how much the clock of the exchange is ahead of the one here; None: not known."""
    if ahead_s is None:
        return []
    if abs(ahead_s) <= CLOCK_S:
        return [Finding("clock", "ok", "as at the exchange")]
    text = (
        f"{abs(ahead_s):.0f} s {'behind' if ahead_s > 0 else 'ahead of'} that of the exchange: deadlines and times in "
        "logs are off by as much; tell the administrators of this host"
    )
    return [Finding("clock", "warning", text)]


def check_proxies(info: ConnectionInfo, environment: Mapping[str, str]) -> list[Finding]:
    """Whether proxy variables are set, and apply to the exchange. Their values may hold passwords, and aren't shown."""
    names = [name for name in environment if name.lower() in PROXY_VARIABLES]
    if not names:
        return [Finding("proxies", "ok", "no proxy variables")]
    shown = ", ".join(sorted(names))
    if not info.uses_proxies:
        return [Finding("proxies", "ok", f"{shown} set, and ignored for this exchange")]
    text = f"{shown} set, and used: if the exchange is inside this machine, its connection info needs trust_env=False"
    return [Finding("proxies", "warning", text)]


def check_files() -> list[Finding]:
    """How many files and connections this process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = f"{_limit(soft)} open files (at most {_limit(hard)})"
    if soft != resource.RLIM_INFINITY and soft < FEW_FILES:
        return [Finding("files", "warning", f"{limits}: agents may need more; raise it by `ulimit -n`")]
    return [Finding("files", "ok", limits)]


def _limit(number: int) -> str:
    return "unlimited" if number == resource.RLIM_INFINITY else str(number)


def check_folder(folder: Path) -> Finding:
    """Whether files can be made in the directory for checkpoints, which is made if need be."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / f".probe.{secrets.token_hex(8)}"
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        with contextlib.suppress(FileNotFoundError):
            probe.unlink()
    except OSError as error:
        text = f"{folder} can't be written: {error}. Name another directory, on a file system that this host shares."
        return Finding(STATE, "failed", text)
    return Finding(STATE, "ok", f"{folder} can be written")


def check_reach(info: ConnectionInfo, error: AcademyError | None, url: str | None = None) -> list[Finding]:
    """How the candidate URLs of an exchange answered: the error that connecting ended with, or the URL that did."""
    if error is None:
        return [Finding("exchange", "ok", f"reached at {url or info.urls[0]}; it accepts the token")]
    if not isinstance(error, ExchangeUnreachableError):
        return [Finding("exchange", "failed", str(error))]
    findings = [Finding(tried, "failed", outcome) for tried, outcome in error.attempts.items()]
    skipped = [tried for tried in info.urls if tried not in error.attempts]
    return findings + [
        Finding(tried, "warning", "not tried: it leads to another machine's loopback") for tried in skipped
    ]
