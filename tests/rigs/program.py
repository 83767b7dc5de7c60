"""A program that launches clerks and watches them until it is killed.

``python -m tests.rigs.program CONNECTION_FILE SCHEDULER FOLDER OPTIONS`` writes the run's directory to standard output
when all are ready. `OPTIONS` are those of the job, in JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from academy_hpc import ConnectionInfo, HttpExchangeFactory
from tests.rigs.fleet import launched

__all__: list[str] = []


async def main(connection_file: str, scheduler: str, folder: str, options: str) -> None:
    factory = HttpExchangeFactory.from_connection_info(ConnectionInfo.read(Path(connection_file)))
    async with launched(factory, scheduler, Path(folder), **json.loads(options)) as fleet:
        sys.stdout.write(f"{fleet.run.path}\n")
        sys.stdout.flush()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
