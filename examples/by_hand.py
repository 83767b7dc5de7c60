"""Agents in a job script of your own: ``python -m examples.by_hand``, on a login node with Slurm.

A `BatchLauncher` writes job scripts by itself. Do it by hand where a job has more to do than to run agents. Here the
script is ``examples/by_hand.sbatch``; the program submits it with a launch spec, and waits for the agents.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from academy_hpc import AgentLaunch, HttpExchangeFactory, Manager, spawn_http_exchange
from examples.slurm_run import Postman

SCRIPT = Path(__file__).with_suffix(".sbatch")
COUNT = 24


async def main(factory: HttpExchangeFactory, folder: Path) -> None:
    async with await Manager.from_exchange_factory(factory) as manager:  # without a launcher: the script is it
        spec = await manager.make_spec([AgentLaunch(Postman, name=f"postman-{n}") for n in range(1, COUNT + 1)])
        # ranks=None: the share of each rank is a share of as many as srun has started.
        path = write_privately(folder / "spec.json", msgspec.structs.replace(spec, ranks=None).to_json())
        submit(path)
        postmen = await manager.adopt(spec, progress=True)
        await asyncio.gather(*(one.meet(other) for one, other in zip(postmen, [*postmen[1:], None], strict=True)))
        print("a letter was carried by", len(await postmen[0].carry([])), "agents")


def write_privately(path: Path, text: str) -> Path:
    """The spec holds the keys of its agents."""
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def submit(spec: Path) -> None:
    export = f"--export=ALL,PYTHON={sys.executable}"
    command = ["sbatch", "--parsable", export, f"--output={spec.with_name('job.log')}", str(SCRIPT), str(spec)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own words
    print("job", answer.stdout.strip(), flush=True)


if __name__ == "__main__":
    # In the home directory, which login and compute nodes share.
    with tempfile.TemporaryDirectory(prefix=".by-hand-", dir=Path.home()) as shared:
        with spawn_http_exchange(port=0) as exchange:
            asyncio.run(main(exchange, Path(shared)))
