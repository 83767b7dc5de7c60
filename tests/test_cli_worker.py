"""``academy-hpc worker``: what a job script has of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from academy_hpc import ConnectionInfo, LaunchSpec, UserId
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.exchange.http.private_file import MAX_BYTES, write_private
from tests.worker_process import clean_environment

__all__: list[str] = []

NO_AGENTS = LaunchSpec(ConnectionInfo(("http://127.0.0.1:9",)), ClientOptions(), (), UserId.new())


def worker(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "academy_hpc", "worker", *options]
    return subprocess.run(
        command, env=clean_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def test_a_spec_without_agents_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "run" / "spec.json"
    write_private(path, NO_AGENTS.to_json())
    ended = worker("--spec", str(path))
    assert (ended.returncode, ended.stdout) == (0, "")


def test_a_spec_that_others_may_have_written_is_not_read(tmp_path: Path) -> None:
    """It says what code to run, and holds keys."""
    path = tmp_path / "run" / "spec.json"
    write_private(path, NO_AGENTS.to_json())
    path.chmod(0o644)
    ended = worker("--spec", str(path))
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [f"Error: {path} is open to other users; `chmod 600 {path}` closes it"]


def test_a_spec_may_be_large(tmp_path: Path) -> None:
    """It holds the code of classes that can't be imported, once for each agent."""
    path = tmp_path / "run" / "spec.json"
    write_private(path, msgspec.structs.replace(NO_AGENTS, versions={"x": "y" * MAX_BYTES}).to_json())
    assert worker("--spec", str(path)).returncode == 0


def test_what_is_no_spec_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "run" / "spec.json"
    write_private(path, "{}")
    ended = worker("--spec", str(path))
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert "This text is no launch spec" in line
    missing = worker("--spec", str(tmp_path / "missing"))
    assert missing.returncode == 1
    assert "No such file" in missing.stderr


def test_wrong_usage_has_a_code_of_its_own() -> None:
    assert worker().returncode == 2
