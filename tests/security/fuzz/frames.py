"""Coverage-guided fuzzing of the frame decoders and of what a stream does with a frame: `make fuzz`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys

import atheris  # type: ignore[import-not-found] # installed by `make fuzz` alone

with atheris.instrument_imports(include=["academy_hpc"]):
    from academy_hpc.errors import BadRequestError
    from academy_hpc.exchange.http.wire import decode_from_server
    from tests.security.fuzz.harness import check_books, feed_frames, new_service

__all__: list[str] = []


def one_input(data: bytes) -> None:
    """The input is one frame, or several with this between them."""
    frames = data.split(b"--cut--")
    for frame in frames:
        with contextlib.suppress(BadRequestError):
            decode_from_server(frame)
    asyncio.run(_feed(frames))


async def _feed(frames: list[bytes]) -> None:
    service = new_service()
    await feed_frames(service, frames)
    check_books(service, service._store)
    await service.close()


if __name__ == "__main__":
    logging.disable()  # each malformed input would be told
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
