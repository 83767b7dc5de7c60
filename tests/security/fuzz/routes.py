"""Coverage-guided fuzzing of the REST routes: `make fuzz`."""

from __future__ import annotations

import asyncio
import logging
import sys

import atheris  # type: ignore[import-not-found] # installed by `make fuzz` alone

with atheris.instrument_imports(include=["academy_hpc"]):
    from academy_hpc.exchange.http.server_rest import ROUTES
    from tests.security.fuzz.harness import check_books, feed_frames, feed_rest, new_service

__all__: list[str] = []

ROUTE_LIST = [(method, path) for path, methods in ROUTES.items() for method in methods]


def one_input(data: bytes) -> None:
    """The input is requests with this between them; the first byte of each says for which route."""
    requests = [(*ROUTE_LIST[part[0] % len(ROUTE_LIST)], part[1:]) for part in data.split(b"--cut--") if part]
    asyncio.run(_feed(requests))


async def _feed(requests: list[tuple[str, str, bytes]]) -> None:
    service = new_service()
    await feed_frames(service, [])
    statuses = await feed_rest(service, requests)
    assert all(status < 500 or status in (503, 507) for status in statuses), statuses
    check_books(service, service._store)
    await service.close()


if __name__ == "__main__":
    logging.disable()  # each malformed input would be told
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
