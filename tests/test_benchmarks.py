"""The benchmark's harness: small counts, real processes, both sides."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.figures import Figure
from benchmarks.sides import VARIANTS

ROOT = Path(__file__).parent.parent


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", "--scale", "tiny", "--repeats", "1", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)


@pytest.mark.interop
def test_both_sides_are_measured_in_one_run(tmp_path: Path) -> None:
    """One command measures both packages and prints one row a figure."""
    raw = tmp_path / "raw.json"
    sides = ("--side", "academy", "--side", "academy_hpc")
    finished = _run("--only", "roundtrip", "--only", "registry", *sides, "--json", str(raw))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    outcomes = json.loads(raw.read_text())
    assert [(o["side"], o["workload"]) for o in outcomes] == [
        ("academy", "roundtrip"),
        ("academy_hpc", "roundtrip"),
        ("academy", "registry"),
        ("academy_hpc", "registry"),
    ]
    assert all(outcome["figures"]["rate_100"] > 0 for outcome in outcomes[:2])
    assert "action 100 B, 64 outstanding" in finished.stdout


def test_tls_and_durable_exchanges_are_measured_beside_the_plain_one(tmp_path: Path) -> None:
    """The second table has the same round trips for each variant of the exchange, and no other workload."""
    raw = tmp_path / "raw.json"
    variants = [part for name in VARIANTS for part in ("--side", name)]
    only = ("--only", "roundtrip", "--only", "lifecycle")
    finished = _run(*only, "--side", "academy_hpc", *variants, "--json", str(raw))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    outcomes = json.loads(raw.read_text())
    assert [o["side"] for o in outcomes if o["workload"] == "roundtrip"] == ["academy_hpc", *VARIANTS]
    assert [o["side"] for o in outcomes if o["workload"] == "lifecycle"] == ["academy_hpc"]
    assert all(o["figures"]["rate_100"] > 0 for o in outcomes if o["workload"] == "roundtrip")
    (row,) = [line for line in finished.stdout.splitlines() if "durable >=" in line]
    assert row.startswith("action 100 B, 64 outstanding") and row.count("x)") == len(VARIANTS)


@pytest.mark.interop
def test_launches_are_measured_on_both_sides(tmp_path: Path) -> None:
    """Each launch that both packages can do has a rate on both sides; memory and relaunch are of academy_hpc alone."""
    raw = tmp_path / "raw.json"
    finished = _run("--only", "launch", "--side", "academy", "--side", "academy_hpc", "--json", str(raw))
    assert finished.returncode == 0, finished.stdout + finished.stderr
    theirs, ours = (outcome["figures"] for outcome in json.loads(raw.read_text()))
    assert set(theirs) == {"worker_s", "worker_rate", "threads_rate", "processes_rate"}
    assert set(ours) - set(theirs) == {"agent_kb", "relaunch_s"}
    assert all(value > 0 for value in [*theirs.values(), *ours.values()])


def test_a_side_that_fails_is_told_and_the_table_still_printed() -> None:
    """An error of one side is a line below the table and an exit status, not the end of the run."""
    command = [sys.executable, "-c", "import sys, benchmarks.__main__ as m"]
    command[-1] += "; m.SIDES = ('nobody',); sys.exit(m.main(['--scale', 'tiny', '--only', 'lifecycle']))"
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert finished.returncode == 1
    assert "nobody lifecycle process: exit status 1" in finished.stdout


@pytest.mark.parametrize(
    ("figure", "theirs", "ours", "met"),
    [
        (Figure("w", "k", "rate", "/s", at_least=20), 100.0, 2000.0, True),
        (Figure("w", "k", "rate", "/s", at_least=20), 100.0, 1999.0, False),
        (Figure("w", "k", "time", "s", at_most=1 / 8), 8.0, 1.0, True),
        (Figure("w", "k", "time", "s", at_most=1 / 8), 8.0, 1.1, False),
        (Figure("w", "k", "time", "s", limit=0.5), None, 0.4, True),
        (Figure("w", "k", "time", "s", limit=0.5), None, 0.6, False),
        (Figure("w", "k", "rate", "/s", at_least=20), None, 2000.0, None),
        (Figure("w", "k", "rate", "/s"), 100.0, 2000.0, None),
    ],
)
def test_a_target_is_met_by_the_ratio_of_one_run(
    figure: Figure, theirs: float | None, ours: float | None, met: bool | None
) -> None:
    """Targets compare both sides; a limit needs ours alone; without figures nothing is claimed."""
    assert figure.met(theirs, ours) is met
