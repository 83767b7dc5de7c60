"""What holds for every test on Grid Engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rigs.fixtures import factory, program
from tests.rigs.gridengine import job_ids
from tests.rigs.hosts import only_inside, wait_until

__all__ = ["factory", "program"]

only_inside("gridengine")


@pytest.fixture(autouse=True)
def _no_jobs() -> Iterator[None]:
    """A test leaves no job."""
    yield
    wait_until(lambda: not job_ids())
