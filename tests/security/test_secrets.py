"""No token, private key or proof is where another user, a log or a print could show it."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

__all__: list[str] = []

# The files that are made to hold secrets.
PRIVATE = {"state/identity.json", "private/connection.json"}


def run_session(folder: Path, kind: str) -> set[str]:
    """The secrets of a session that told everything else into files below `folder`."""
    for name in ("tmp", "state", "parsl"):
        (folder / name).mkdir(mode=0o700)
    environment = os.environ | {"TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(Path(__file__).parents[2])}
    if kind == "parsl":
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "tests.security.session", str(folder), kind],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5_000:]
    (folder / "stderr.txt").write_text(done.stderr)
    secrets = set(done.stdout.split())
    assert len(secrets) > 5
    return secrets


def forms(secret: str) -> set[bytes]:
    """How a secret may have been written down."""
    raw = secret.encode()
    return {
        raw,
        base64.b64encode(raw),
        raw.hex().encode(),
        quote(secret, safe="").encode(),
        repr(secret)[1:-1].encode(),
    }


def leaks(folder: Path, secrets: set[str]) -> list[str]:
    """The files below `folder`, other than those that are made for it, that hold a secret."""
    wanted = {form for secret in secrets for form in forms(secret)}
    found = []
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name not in PRIVATE:
            content = path.read_bytes()
            found += [f"{name}: {form.decode()[:12]}…" for form in wanted if form in content]
    return found


def loose(folder: Path) -> list[str]:
    """What below `folder` others may look at."""
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")] if not path.is_socket()}
    return [f"{path}: {mode:o}" for path, mode in modes.items() if mode & 0o077]


def check(folder: Path, secrets: set[str]) -> None:
    assert leaks(folder, secrets) == []
    # There it would have been, had the exchange not covered it up.
    assert "[token]" not in (folder / "exchange.log").read_text()
    assert loose(folder / "state") == loose(folder / "private") == loose(folder / "tmp") == []
    assert stat.S_IMODE((folder / "exchange.log").stat().st_mode) == 0o600
    # The search would find them: the files that are made for secrets have them.
    both = "".join((folder / name).read_text() for name in PRIVATE)
    assert [secret for secret in secrets if secret in both]


def test_a_session_with_mishaps_leaves_no_secret_behind(tmp_path: Path) -> None:
    """Logs at DEBUG of all processes, command lines, environments, reprs, tracebacks, temporary and state files."""
    secrets = run_session(tmp_path, "pool")
    check(tmp_path, secrets)
    seen = (tmp_path / "seen.txt").read_text()
    for name in ("ConnectionInfo(", "HttpExchangeFactory(", "AgentSpec(", "LaunchSpec(", "Task ", "Traceback"):
        assert name in seen
    assert len(list(tmp_path.glob("process-*.log"))) > 1
    assert len(list(tmp_path.glob("proc-*-environ"))) > 2


@pytest.mark.parsl
def test_neither_does_one_with_parsl(tmp_path: Path) -> None:
    """Nor are there any in Parsl's run directory and in the command lines of its workers."""
    secrets = run_session(tmp_path, "parsl")
    check(tmp_path, secrets)
    assert list((tmp_path / "parsl").rglob("*.log"))


@pytest.mark.parametrize("form", range(3))
def test_a_secret_that_is_somewhere_is_found(tmp_path: Path, form: int) -> None:
    """The search can fail."""
    secret = "s3cret/of+thirty-two.characters=x"  # noqa: S105
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "some.log").write_bytes(b"\x00said " + sorted(forms(secret))[form] + b" and went on")
    (tmp_path / "clean.log").write_text("nothing here")
    (found,) = leaks(tmp_path, {secret})
    assert found.startswith("deep/some.log")


def test_what_others_may_read_is_found(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "tight").touch(0o600)
    (tmp_path / "loose").touch()
    (tmp_path / "loose").chmod(0o640)
    assert loose(tmp_path) == [f"{tmp_path / 'loose'}: 640"]
