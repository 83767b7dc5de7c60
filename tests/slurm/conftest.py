"""What holds for every test on Slurm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rigs.fixtures import factory, program
from tests.rigs.hosts import only_inside
from tests.rigs.slurm import wait_until_idle

__all__ = ["factory", "program"]

only_inside("slurm")


@pytest.fixture(autouse=True)
def _idle_nodes() -> Iterator[None]:
    """A test leaves no job."""
    yield
    wait_until_idle()
