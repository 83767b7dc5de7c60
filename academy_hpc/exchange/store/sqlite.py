"""The durable store: a journal and a SQLite database in a state directory. What `write` has done survives SIGKILL.

Changes are appended to the journal where they are made, in the event loop: from then on they survive the end of the
process. A thread makes what has gathered there survive the loss of power, too, as far as the disk keeps its promises;
the price of that is shared by all who wait for it. The same thread has the database take over what the journal has when
that gets long, and when nobody writes. By then most messages are gone again, and never reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from academy_hpc.changes import Change, MessagesRemoved, MessageStored, Snapshot
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

# Larger writes are left to the thread: a megabyte takes half a millisecond.
LARGE_BYTES = 1 << 20
# Where nobody waits, so long is gathered before the disk is asked: each time takes it, and us, some work.
GATHER_S = 0.005


class _Job(NamedTuple):
    """One call of `write`."""

    changes: Sequence[Change]
    written: Callable[[], None]
    hurried: bool
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]

    @property
    def urgent(self) -> bool:
        """Acknowledgements alone need not survive the loss of power: a listener that comes back says them again."""
        return not self.changes or any(type(change) is not MessagesRemoved for change in self.changes)

    @property
    def large(self) -> bool:
        return sum(len(change.message.body) for change in self.changes if type(change) is MessageStored) > LARGE_BYTES


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
        self._closed = False
        self._backlog: deque[_Job] = deque()  # not appended yet, in order
        self._left = False  # to the thread: it appends the backlog, for nothing may overtake that
        self._unsynced: deque[_Job] = deque()  # appended, and not known to be on the disk
        self._work, self._hurry = threading.Event(), threading.Event()  # for the thread
        self._ending = False
        self._thread: threading.Thread | None = None
        self._busy = threading.Lock()  # held while files are written
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
                self._take_over_all()
                snapshot = self._database.load()
                snapshot.starts = self._database.generation
                self._take_over()  # of nothing: each life is another generation
                return snapshot
            except DamageError as error:
                raise damaged(self.directory, error) from error
            except (sqlite3.Error, OSError) as error:
                raise _unwritable(self.directory, error) from error

    def write(
        self, changes: Sequence[Change], *, written: Callable[[], None] = lambda: None, hurried: bool = True
    ) -> asyncio.Future[None]:
        """See `Store`. With a StoreError nothing more can be kept."""
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name="academy_hpc store", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        job = _Job(changes, written, hurried, loop, loop.create_future())
        self._backlog.append(job)
        if not self._left and not job.large and self._busy.acquire(blocking=False):
            try:
                jobs = self._append_backlog()
            finally:
                self._busy.release()
            for appended in jobs:
                self._appended(appended)
        else:
            self._left = True
            self._call_thread(hurried=True)
        return job.future

    async def close(self) -> None:
        """See `Store`."""
        if self._thread is not None:
            self._ending = True
            self._call_thread(hurried=True)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, self._thread.join)
            await loop.run_in_executor(None, self._sync)  # what the thread has appended at last
            self._thread = None
        self._failure = StoreError(f"The exchange that kept its state in {self.directory} was closed.")
        self._closed = True
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

    # Appending, by whoever holds `_busy`

    def _append_backlog(self) -> list[_Job]:
        jobs: list[_Job] = []
        while self._backlog:
            jobs.append(self._backlog.popleft())
        changes = [change for job in jobs for change in job.changes]
        if self._failure is None and changes:
            try:
                self._journal.append(encode_changes(changes))
            except Exception as error:  # noqa: BLE001 - whatever it is, nobody must wait for ever
                self._failure = _unwritable(self.directory, error)
        self._digest.add(changes)
        return jobs

    def _appended(self, job: _Job) -> None:
        """In the event loop: tell so, and wait for the disk where that is needed."""
        if self._failure is None:
            job.written()
            if job.urgent:
                self._unsynced.append(job)
                self._call_thread(hurried=job.hurried)
                return
        _resolve([job.future], self._failure)

    def _call_thread(self, *, hurried: bool) -> None:
        if hurried and not self._hurry.is_set():
            self._hurry.set()
        if not self._work.is_set():
            self._work.set()

    # The thread

    def _run(self) -> None:
        ending = False
        while not ending:
            quiet = not self._work.wait(QUIET_S if self._digest else None)
            if not quiet:
                self._hurry.wait(GATHER_S)
            # Before anything is looked at: what comes from now on sets them again.
            self._work.clear()
            self._hurry.clear()
            ending = self._ending
            if self._left or ending:
                self._append_what_was_left()
            self._sync()
            if self._failure is None and (quiet or ending or self._is_long()):
                with self._busy:
                    self._tidy()

    def _append_what_was_left(self) -> None:
        with self._busy:
            self._left = False  # before: what is left from now on comes with another order
            jobs = self._append_backlog()
        for job in jobs:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                job.loop.call_soon_threadsafe(self._appended, job)

    def _sync(self) -> None:
        jobs = []
        while self._unsynced:
            jobs.append(self._unsynced.popleft())
        if not jobs:
            return
        try:
            self._journal.sync()
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody must wait for ever
            self._failure = _unwritable(self.directory, error)
        for loop in {job.loop for job in jobs}:
            futures = [job.future for job in jobs if job.loop is loop]
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits
                loop.call_soon_threadsafe(_resolve, futures, self._failure)

    def _is_long(self) -> bool:
        size, live = self._journal.size, self._digest.live_bytes
        if size < TAKE_OVER_BYTES:
            return self._digest.live >= MESSAGES_AT_ONCE
        return live <= UNDER_WAY_BYTES or size >= min(4 * live, TAKE_OVER_AT_LAST_BYTES)

    def _tidy(self) -> None:
        try:
            self._take_over_all()
        except Exception as error:  # noqa: BLE001 - the journal still has it all, but nobody knows for how long
            self._failure = _unwritable(self.directory, error)

    def _take_over_all(self) -> None:
        if self._digest:
            self._take_over()

    def _take_over(self) -> None:
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


def _unwritable(directory: Path, error: Exception) -> StoreError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StoreError(
        f"The state directory {directory} can't be written: {reason}. All that was confirmed is kept there: free space "
        "or mend it, and start the exchange again."
    )
