"""Agents on several hosts, a user who calls them while things go wrong, and a record of all of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any, Self

from academy_hpc import AgentLaunch, Handle, HttpExchangeFactory, Manager
from academy_hpc.launch.batch import BatchLauncher
from academy_hpc.launch.run import Run
from tests.faults.history import Event, History, Journal
from tests.faults.participants import record_call
from tests.rigs.agents import Clerk
from tests.rigs.exchange import ExchangeProgram

__all__ = ["BatchFleet", "Fleet", "attached_after_kill", "launched"]

USER = "user"
PAUSE_S = 0.05
LAUNCH_S = 60.0
ANSWER_S = 90.0


class Fleet:
    """Clerks by name, and whoever launched them."""

    def __init__(self, manager: Manager, clerks: dict[str, Handle[Clerk]], journal: Path) -> None:
        self.manager = manager
        self.clerks = clerks
        self._path = journal
        self._journal = Journal(journal)
        self._numbers = 0

    @classmethod
    async def launch(cls, manager: Manager, journal: Path, *, count: int, agents_per_worker: int = 1) -> Self:
        """So many clerks."""
        names = [f"clerk-{number}" for number in range(1, count + 1)]
        items = [AgentLaunch(Clerk, args=(name, str(journal)), name=name) for name in names]
        handles = await manager.launch_many(items, agents_per_worker=agents_per_worker, timeout=LAUNCH_S)
        return cls(manager, dict(zip(names, handles, strict=True)), journal)

    async def homes(self) -> dict[str, tuple[str, str]]:
        """Host and life of each."""
        homes = await asyncio.gather(*(clerk.home() for clerk in self.clerks.values()))
        return dict(zip(self.clerks, homes, strict=True))

    async def hosts(self) -> dict[str, str]:
        """Host of each."""
        return {name: host for name, (host, _) in (await self.homes()).items()}

    async def lives(self) -> dict[str, str]:
        """Life of each."""
        return {name: life for name, (_, life) in (await self.homes()).items()}

    async def until_reborn(self, before: dict[str, str], *, timeout: float) -> dict[str, str]:
        """Wait until none is in the life that it was in; the lives then. Raises TimeoutError."""
        async with asyncio.timeout(timeout):
            while set((lives := await self.lives()).values()) & set(before.values()):  # noqa: ASYNC110 - calls tell
                await asyncio.sleep(0.5)
        return lives

    async def call(self, name: str) -> None:
        """One call of the user, recorded."""
        self._numbers += 1
        event = Event("invoke", USER, name, self._numbers)
        self._journal.write(event)
        await record_call(self._journal, self.clerks[name], event)

    async def call_one_another(self, count: int) -> None:
        """Each calls each of all so many times."""
        await asyncio.gather(*(clerk.call(self.clerks, count) for clerk in self.clerks.values()))

    @contextlib.asynccontextmanager
    async def called(self) -> AsyncIterator[None]:
        """Inside the block the user calls all of them again and again; after it, all calls have been answered."""
        ended = asyncio.Event()
        calls = [asyncio.create_task(self._keep_calling(name, ended)) for name in self.clerks]
        try:
            yield
        finally:
            ended.set()
            _, late = await asyncio.wait(calls, timeout=ANSWER_S)
            for call in late:
                call.cancel()
        assert not late, f"{len(late)} calls were not answered within {ANSWER_S} s"

    async def worked(self) -> dict[str, int]:
        """How often each thinks that it has worked."""
        counts = await asyncio.gather(*(clerk.worked() for clerk in self.clerks.values()))
        return dict(zip(self.clerks, counts, strict=True))

    def history(self, killed: Collection[str] = ()) -> History:
        """All until now. `killed`: lives whose last work may have been lost."""
        return History.read(self._path, killed=killed)

    async def check(self, killed: Collection[str] = ()) -> None:
        """All calls were executed once, and answered; where nobody was killed, each has counted every one of them."""
        history = self.history(killed)
        history.check()
        if not killed:
            starts = [event.receiver for event in history.events if event.kind == "start"]
            assert await self.worked() == {name: starts.count(name) for name in self.clerks}

    async def _keep_calling(self, name: str, ended: asyncio.Event) -> None:
        while not ended.is_set():
            await self.call(name)
            await asyncio.sleep(PAUSE_S)


class BatchFleet(Fleet):
    """Clerks in jobs."""

    run: Run

    async def state(self) -> str:
        """Of the run, as a program that looks at its directory sees it."""
        return (await asyncio.to_thread(self.run.status)).state

    async def job_ids(self) -> list[str]:
        """Of all jobs that the run has had."""
        return [job.job_id for job in await asyncio.to_thread(self.run.jobs)]


@contextlib.asynccontextmanager
async def launched(
    factory: HttpExchangeFactory,
    scheduler: str,
    folder: Path,
    *,
    count: int = 6,
    agents_per_worker: int = 2,
    **options: Any,
) -> AsyncIterator[BatchFleet]:
    """So many clerks, started by the scheduler; when the block ends, so do they and their job."""
    launcher = await asyncio.to_thread(BatchLauncher, scheduler, **options)
    async with await Manager.from_exchange_factory(factory, launcher) as manager:
        fleet = await BatchFleet.launch(manager, folder / "journal", count=count, agents_per_worker=agents_per_worker)
        fleet.run = launcher.runs[-1]
        yield fleet


@contextlib.asynccontextmanager
async def attached_after_kill(
    program: ExchangeProgram, scheduler: str, folder: Path, **options: Any
) -> AsyncIterator[BatchFleet]:
    """The same, launched by another program, which was killed."""
    words = [str(program.connection_file), scheduler, str(folder), json.dumps(options)]
    launching = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.rigs.program", *words, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert launching.stdout is not None
        path = await asyncio.wait_for(launching.stdout.readline(), LAUNCH_S)
        run = await asyncio.to_thread(Run.find, Path(path.decode().strip()))
    finally:
        launching.kill()
        await launching.wait()
    async with await Manager.attach(run) as manager:
        fleet = BatchFleet(manager, manager.handles(), folder / "journal")
        fleet.run = run
        yield fleet
