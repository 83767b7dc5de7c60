"""docs/reliability.md names each fault, and tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.faults.soak import FAULTS, Scene

__all__: list[str] = []

TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text()
ROWS = dict(re.findall(r"^\| (F\d+) \| (.*)$", PAGE, re.MULTILINE))
# `path -k "one or another"` or `path`
NAMED = sorted(set(re.findall(r"`((?:\w+/)*(?:\w+\.py|)(?: -k [^`]+)?)`", "\n".join(ROWS.values()))))


def test_every_fault_has_its_row() -> None:
    assert list(ROWS) == [f"F{number}" for number in range(1, 25)]
    assert all("_" in row or "/" in row for row in ROWS.values())


@pytest.mark.parametrize("named", [item for item in NAMED if ".py" in item or item.endswith("/")])
def test_a_test_that_is_named_is_there(named: str) -> None:
    place, _, words = named.partition(" -k ")
    assert (TESTS / place).exists()
    if words:
        names = re.findall(r"def (test_\w+)", (TESTS / place).read_text())
        for word in words.strip('"').split(" or "):
            assert any(word in name for name in names), word


def test_the_faults_of_the_soak_are_those_that_are_named() -> None:
    assert set(FAULTS) <= {name for name in vars(Scene) if not name.startswith("_")}
    named = set(re.findall(r"`([a-z]+_[a-z_]+|cut|stall|delay|refuse)`", "\n".join(ROWS.values())))
    assert named <= set(FAULTS)
