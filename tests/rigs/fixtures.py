"""The exchange of the tests on several hosts is on the login host, and the nodes reach it over the network."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from academy_hpc import HttpExchangeFactory
from tests.rigs.exchange import ExchangeProgram

__all__ = ["factory", "program"]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ExchangeProgram]:
    """The exchange, to be killed and started again."""
    program = ExchangeProgram(tmp_path_factory.mktemp("exchange"))
    yield program
    program.stop()


@pytest.fixture(scope="session")
def factory(program: ExchangeProgram) -> HttpExchangeFactory:
    """What reaches it, encrypted."""
    factory = program.start()
    assert factory.connection_info.urls[0].startswith("https://")
    return factory
