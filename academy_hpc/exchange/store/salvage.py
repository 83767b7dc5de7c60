"""What is left of a damaged state directory: ``python -m academy_hpc.exchange.store.salvage DIRECTORY``.

The damaged files are moved into a new folder beside them, never changed; what can be read of them goes into new ones.
The exchange has another identity then, since it can't know what it has forgotten: its clients are told so.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import sys
import uuid
from pathlib import Path

from academy_hpc.changes import Snapshot
from academy_hpc.errors import StoreError
from academy_hpc.exchange.store.damage import DamageError
from academy_hpc.exchange.store.database import DATABASE, Database, read_damaged
from academy_hpc.exchange.store.digest import Digest
from academy_hpc.exchange.store.journal import JOURNAL, Journal, decode_changes
from academy_hpc.exchange.store.state_directory import claim

__all__ = ["damaged", "is_used", "main", "salvage"]

MODULE = "academy_hpc.exchange.store.salvage"


def damaged(directory: Path, what: Exception) -> StoreError:
    """The error that says what is damaged, what can be read, and what to do."""
    return StoreError(
        f"The state directory {directory} is damaged: {what}. Its files are kept as they are; "
        f"{_count(_read(directory))} can be read: `python -m {MODULE} {directory}` goes on with these, or take another "
        "state directory."
    )


def salvage(directory: Path) -> tuple[str, Path]:
    """Go on with what can be read; what that is, and the folder that has the damaged files now.

    Raises:
        StoreError: The directory can't be used, or another exchange uses it.
    """
    lock_fd = claim(directory)
    try:
        digest = _read(directory)
        aside = _new_folder(directory)
        for path in directory.glob("exchange.*"):
            path.rename(aside / path.name)
        exchange_id = uuid.uuid4()
        Journal.create(directory / JOURNAL, exchange_id).close()
        with Database(directory / DATABASE) as database:
            database.create(exchange_id)
            database.take_over(digest, tombstones=len(digest.tombstones))
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"The state directory {directory} can't be written: {error}. Free space first.") from error
    finally:
        os.close(lock_fd)
    return _count(digest), aside


def is_used(path: Path) -> bool:
    """Whether there is a journal that was ever written to, or what may be the rest of one."""
    try:
        with contextlib.closing(Journal.open(path, None)) as journal:
            return journal.last_generation() > 0
    except DamageError:
        return path.exists()


def _read(directory: Path) -> Digest:
    snapshot, generation = _read_database(directory / DATABASE)
    digest = Digest()
    digest.restore(snapshot)
    with contextlib.suppress(DamageError), contextlib.closing(Journal.open(directory / JOURNAL, None)) as journal:
        for record in journal.read(generation or journal.last_generation())[0]:
            with contextlib.suppress(DamageError):
                digest.add(decode_changes(record))
    digest.drop_incomplete()
    return digest


def _read_database(path: Path) -> tuple[Snapshot, int]:
    try:
        return read_damaged(path)
    except sqlite3.Error:
        return Snapshot(), 0


def _count(digest: Digest) -> str:
    boxes = digest.boxes.values()
    messages, letters = sum(len(box.messages) for box in boxes), sum(len(box.dead) for box in boxes)
    return f"{len(boxes)} mailboxes with {messages} messages and {letters} dead letters"


def _new_folder(directory: Path) -> Path:
    number = 1
    while True:
        with contextlib.suppress(FileExistsError):
            folder = directory / f"damaged-{number}"
            folder.mkdir(mode=0o700)
            return folder
        number += 1


def main() -> None:
    """Salvage the directory that the command line names."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("directory", type=Path)
    try:
        kept, aside = salvage(parser.parse_args().directory)
    except StoreError as error:
        parser.exit(1, f"{error}\n")
    sys.stdout.write(f"{kept} were taken over. The damaged files are in {aside}.\n")


if __name__ == "__main__":
    main()
