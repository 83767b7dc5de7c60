"""The durable store: a journal and a SQLite database in a state directory. What `write` has done survives SIGKILL.

One thread writes. Whatever was asked for while it wrote goes into one record of the journal, so that the price of
making it durable is shared by all who wait; a record also survives the loss of power, as far as the disk keeps its
promises. The database takes over what the journal has when that gets long, and when nobody writes. By then most
messages are gone again, and never reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import sqlite3
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

from academy_hpc.changes import Change, MessagesRemoved, Snapshot
from academy_hpc.errors import StoreError
from academy_hpc.exchange.store.damage import DamageError
from academy_hpc.exchange.store.database import DATABASE, Database
from academy_hpc.exchange.store.digest import Digest
from academy_hpc.exchange.store.journal import JOURNAL, Journal, decode_changes, encode_changes
from academy_hpc.exchange.store.salvage import damaged, is_used
from academy_hpc.exchange.store.state_directory import claim

__all__ = ["SqliteStore"]

# The journal is taken over at this size; later while large messages are under way, which would be written for nothing;
# earlier when many messages are there to stay, so that nobody waits long for it.
TAKE_OVER_BYTES = 32 << 20
TAKE_OVER_AT_LAST_BYTES = 256 << 20
UNDER_WAY_BYTES = 8 << 20
MESSAGES_AT_ONCE = 10_000
QUIET_S = 1.0

_Job = tuple[Sequence[Change], asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class SqliteStore:
    """Keeps everything in a state directory, which is this user's alone and on a local disk.

    Raises:
        StoreError: The directory can't be used, is used by another exchange, or holds what can't be read.
    """

    def __init__(self, directory: str | os.PathLike[str], *, tombstones: int = 50_000) -> None:
        self.directory = Path(directory)
        self._limit = tombstones
        self._digest = Digest()
        self._failure: StoreError | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._busy = threading.Lock()  # held while files are read or written
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, claim(self.directory))
            self._database, self._journal = self._open(stack)
            self._files = stack.pop_all()

    @property
    def exchange_id(self) -> str:
        """Names what is stored here; an exchange that serves it has this id, however often it is restarted."""
        return self._database.exchange_id.hex

    def load(self) -> Snapshot:
        """See `Store`. Raises StoreError."""
        with self._busy:
            try:
                self._take_over()
                return self._database.load()
            except DamageError as error:
                raise damaged(self.directory, error) from error
            except (sqlite3.Error, OSError) as error:
                raise _unwritable(self.directory, error) from error

    def write(self, changes: Sequence[Change]) -> asyncio.Future[None]:
        """See `Store`. With a StoreError nothing of it was kept, and nothing more can be."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="academy_hpc store", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._jobs.put((changes, loop, future))
        return future

    async def close(self) -> None:
        """See `Store`."""
        if self._thread is not None:
            self._jobs.put(None)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join)
            self._thread = None
        self._files.close()

    # Opening

    def _open(self, stack: contextlib.ExitStack) -> tuple[Database, Journal]:
        try:
            self._check_complete()
            database = stack.enter_context(Database(self.directory / DATABASE))
            journal = self._open_journal(database)
            stack.callback(journal.close)
            records, damage = journal.read(database.generation)
            if damage is not None:
                raise DamageError(damage)
            for record in records:
                self._digest.add(decode_changes(record))
        except DamageError as error:
            raise damaged(self.directory, error) from error
        except (OSError, sqlite3.Error) as error:
            raise _unwritable(self.directory, error) from error
        return database, journal

    def _check_complete(self) -> None:
        path = self.directory / DATABASE
        if not (path.exists() and path.stat().st_size) and is_used(self.directory / JOURNAL):
            raise DamageError(f"{DATABASE} is {'empty' if path.exists() else 'missing'}")

    def _open_journal(self, database: Database) -> Journal:
        path = self.directory / JOURNAL
        if not database.is_new:
            return Journal.open(path, database.exchange_id)
        if is_used(path):
            raise DamageError(f"{DATABASE} has lost what was in it")
        exchange_id = uuid.uuid4()
        journal = Journal.create(path, exchange_id)
        database.create(exchange_id)
        return journal

    # The thread

    def _run(self) -> None:
        last = False
        while not last:
            jobs = self._next_jobs()
            last = None in jobs
            with self._busy:
                self._write_all([job for job in jobs if job is not None])
                if self._failure is None and (not jobs or last or self._is_long()):
                    self._tidy()

    def _next_jobs(self) -> list[_Job | None]:
        """All that was asked for; nothing when it is quiet and there is something to tidy up."""
        jobs: list[_Job | None] = []
        with contextlib.suppress(queue.Empty):
            jobs.append(self._jobs.get(timeout=QUIET_S if self._digest else None))
            while True:
                jobs.append(self._jobs.get_nowait())
        return jobs

    def _write_all(self, jobs: list[_Job]) -> None:
        changes = [change for changes, _, _ in jobs for change in changes]
        if self._failure is None and changes:
            try:
                # Acknowledgements alone may wait for the disk: a listener that comes back says them again.
                urgent = any(type(change) is not MessagesRemoved for change in changes)
                self._journal.append(encode_changes(changes), urgent=urgent)
            except OSError as error:
                self._failure = _unwritable(self.directory, error)
        self._answer(jobs)
        self._digest.add(changes)

    def _answer(self, jobs: list[_Job]) -> None:
        for loop in {loop for _, loop, _ in jobs}:
            futures = [future for _, of, future in jobs if of is loop]
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(_resolve, futures, self._failure)

    def _is_long(self) -> bool:
        size, live = self._journal.size, self._digest.live_bytes
        if size < TAKE_OVER_BYTES:
            return self._digest.live >= MESSAGES_AT_ONCE
        return live <= UNDER_WAY_BYTES or size >= min(4 * live, TAKE_OVER_AT_LAST_BYTES)

    def _tidy(self) -> None:
        try:
            self._take_over()
        except (OSError, sqlite3.Error) as error:  # the journal still has it all, but nobody knows for how long
            self._failure = _unwritable(self.directory, error)

    def _take_over(self) -> None:
        if self._digest:
            self._database.take_over(self._digest, tombstones=self._limit)
            self._digest = Digest()
            self._journal.start_over(self._database.generation)


def _resolve(futures: list[asyncio.Future[None]], error: StoreError | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _unwritable(directory: Path, error: OSError | sqlite3.Error) -> StoreError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StoreError(
        f"The state directory {directory} can't be written: {reason}. All that was confirmed is kept there: free space "
        "or mend it, and start the exchange again."
    )
