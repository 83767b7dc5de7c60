"""State directories that can't be used, and files in them that are not as they were written.

Each is told in one line that says what happened, what is kept and what to do; nothing is dropped or overwritten.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from academy_hpc.agent import Agent
from academy_hpc.changes import Change, MailboxCreated, MessagesRemoved, MessageStored, Snapshot
from academy_hpc.errors import ExchangeUnavailableError, ExchangeUnreachableError, StoreError
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.exchange.http.spawn import spawn_http_exchange
from academy_hpc.exchange.store import state_directory
from academy_hpc.exchange.store.database import DATABASE
from academy_hpc.exchange.store.journal import HEAD_BYTES, JOURNAL
from academy_hpc.exchange.store.salvage import salvage
from academy_hpc.exchange.store.sqlite import SqliteStore
from academy_hpc.identifiers import AgentId, EntityId, UserId
from academy_hpc.message import ActionRequest, Message

__all__: list[str] = []

AGENT, USER = AgentId[Any].new("worker"), UserId.new("ada")
NOBODY = 65534


def message(size: int = 100) -> Message:
    return Message.create(USER, AGENT, ActionRequest("run", "x" * size, ""))


def stored(*seqs: int, size: int = 100) -> list[Change]:
    return [MessageStored(AGENT.uid, seq, message(size)) for seq in seqs]


async def written(folder: Path, *batches: list[Change], tidy: bool) -> Path:
    """A state directory as a SIGKILL leaves it, or with `tidy` as an orderly end does."""
    used, left = folder / "used", folder / "state"
    store = SqliteStore(used)
    store.load()
    await store.write([MailboxCreated(USER, "owner", ()), MailboxCreated(AGENT, "owner", ("pkg.Class",))])
    for batch in batches:
        await store.write(batch)
    if tidy:
        await store.close()
        used.rename(left)
    else:
        shutil.copytree(used, left)
        await store.close()
    return left


async def opened(directory: Path) -> Snapshot:
    store = SqliteStore(directory)
    try:
        return store.load()
    finally:
        await store.close()


def seqs(snapshot: Snapshot) -> list[int]:
    return [entry.seq for entry in snapshot.messages]


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def content_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("exchange.*") if not path.name.endswith("-shm")}


# A crash


@pytest.mark.parametrize("cut", [1, 50, 400])
async def test_a_torn_last_record_loses_only_what_was_not_confirmed(tmp_path: Path, cut: int) -> None:
    """The process was killed in the middle of a write: nobody was told that it was done."""
    state = await written(tmp_path, stored(1), stored(2), tidy=False)
    journal = state / JOURNAL
    content = journal.read_bytes()
    end = len(content.rstrip(b"\0"))
    journal.write_bytes(content[: end - cut] + bytes(len(content) - end + cut))
    assert seqs(await opened(state)) == [1]
    assert seqs(await opened(state)) == [1]  # and that is settled


async def test_a_record_that_was_never_synced_may_be_lost_with_what_follows(tmp_path: Path) -> None:
    """Acknowledgements may wait for the disk; after a loss of power they come again. That is no damage."""
    acknowledged: list[Change] = [MessagesRemoved(AGENT.uid, (1,))]
    state = await written(tmp_path, stored(1), acknowledged, stored(2), tidy=False)
    content = (state / JOURNAL).read_bytes()
    flip(state / JOURNAL, content.index(b"MessagesRemoved"))
    assert seqs(await opened(state)) == [1]


async def test_what_was_confirmed_survives_a_crash_in_the_middle_of_taking_over(tmp_path: Path) -> None:
    """The database has it, and the journal has it still: it is there once."""
    state = await written(tmp_path, stored(1), stored(2), tidy=False)
    journal = (state / JOURNAL).read_bytes()
    await opened(state)
    (state / JOURNAL).write_bytes(journal)
    assert seqs(await opened(state)) == [1, 2]


# Damage


def cut_database(state: Path) -> None:
    (state / DATABASE).write_bytes((state / DATABASE).read_bytes()[:8192])


def empty_database(state: Path) -> None:
    (state / DATABASE).write_bytes(b"")


def delete_database(state: Path) -> None:
    for path in state.glob("exchange.sqlite*"):
        path.unlink()


def garbage(state: Path) -> None:
    (state / DATABASE).write_bytes(os.urandom(50_000))


def flip_a_page(state: Path) -> None:
    content = (state / DATABASE).read_bytes()
    damaged = bytearray(content)
    for page in range(4096, len(content), 4096):
        damaged[page + 3 : page + 40] = os.urandom(37)
    (state / DATABASE).write_bytes(damaged)


def flip_a_body(state: Path) -> None:
    flip(state / DATABASE, (state / DATABASE).read_bytes().index(b"xxxxx") + 2)


def delete_journal(state: Path) -> None:
    (state / JOURNAL).unlink()


def cut_journal(state: Path) -> None:
    (state / JOURNAL).write_bytes((state / JOURNAL).read_bytes()[:1000])


def garbage_journal(state: Path) -> None:
    (state / JOURNAL).write_bytes(os.urandom(1 << 20))


DAMAGES = [
    cut_database,
    empty_database,
    delete_database,
    garbage,
    flip_a_page,
    flip_a_body,
    delete_journal,
    cut_journal,
    garbage_journal,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_damage_is_told_in_one_line_and_nothing_is_changed(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    state = await written(tmp_path, stored(1, 2, 3), tidy=True)
    damage(state)
    before = content_of(state)
    with pytest.raises(StoreError) as caught:
        await opened(state)
    text = str(caught.value)
    assert "\n" not in text
    assert f"The state directory {state} is damaged: exchange." in text
    assert "Its files are kept as they are" in text
    assert f"`python -m academy_hpc.exchange.store.salvage {state}`" in text
    after = content_of(state)
    assert {name: after[name] for name in before} == before
    with pytest.raises(StoreError):  # also the second time
        await opened(state)


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_a_confirmed_record_that_is_damaged_is_not_taken_for_a_torn_one(tmp_path: Path, number: int) -> None:
    batches = [stored(seq, size=100 + seq) for seq in range(1, 5)]
    state = await written(tmp_path, *batches, tidy=False)
    body = b'"' + b"x" * (101 + number) + b'"'
    flip(state / JOURNAL, (state / JOURNAL).read_bytes().index(body) + 5)
    with pytest.raises(StoreError, match=r"damaged in the middle.* 2 mailboxes with 3 messages .* can be read"):
        await opened(state)


async def test_a_journal_that_was_cut_off_is_noticed(tmp_path: Path) -> None:
    state = await written(tmp_path, stored(1), *(stored(seq, size=200_000) for seq in range(2, 7)), tidy=False)
    os.truncate(state / JOURNAL, HEAD_BYTES + 500_000)
    with pytest.raises(StoreError, match=r"exchange.journal was cut off.* 2 mailboxes with \d messages"):
        await opened(state)


async def test_a_database_whose_log_was_deleted_is_noticed(tmp_path: Path) -> None:
    """SQLite itself would go on with an older state, and say nothing."""
    store = SqliteStore(tmp_path / "used")
    await store.write([MailboxCreated(USER, "owner", ()), MailboxCreated(AGENT, "owner", ()), *stored(1)])
    store.load()  # takes over what the journal has
    await store.write(stored(2))
    state = tmp_path / "state"
    shutil.copytree(tmp_path / "used", state)
    await store.close()
    assert seqs(await opened(shutil.copytree(state, tmp_path / "whole"))) == [1, 2]
    (state / f"{DATABASE}-wal").unlink()
    with pytest.raises(StoreError, match="damaged"):
        await opened(state)


async def test_the_journal_of_another_exchange_is_refused(tmp_path: Path) -> None:
    one = await written(tmp_path / "one", stored(1), tidy=True)
    other = await written(tmp_path / "other", stored(1), tidy=True)
    shutil.copy(other / JOURNAL, one / JOURNAL)
    with pytest.raises(StoreError, match="the journal of another exchange"):
        await opened(one)


async def test_another_version_is_named(tmp_path: Path) -> None:
    state = await written(tmp_path, stored(1), tidy=True)
    with sqlite3.connect(state / DATABASE) as connection:
        connection.execute("PRAGMA user_version = 77")
    connection.close()
    with pytest.raises(StoreError, match=r"schema 77, here \d+\). Nothing was changed"):
        await opened(state)


# Salvage


async def test_what_can_be_read_is_taken_over_and_the_rest_kept_aside(tmp_path: Path) -> None:
    state = await written(tmp_path, stored(1, 2, 3), tidy=True)
    flip_a_body(state)
    damaged = content_of(state)
    counts, aside = await asyncio.to_thread(salvage, state)
    assert counts == "2 mailboxes with 2 messages and 0 dead letters"
    assert {name: (aside / name).read_bytes() for name in damaged} == damaged
    snapshot = await opened(state)
    assert seqs(snapshot) == [1, 2]
    assert [row.entity for row in snapshot.mailboxes] == [USER, AGENT]
    assert snapshot.mailboxes[1].last_seq == 3  # no number is given twice


async def test_records_behind_the_damage_are_taken_over_too(tmp_path: Path) -> None:
    state = await written(tmp_path, *(stored(seq, size=100 + seq) for seq in range(1, 5)), tidy=False)
    flip(state / JOURNAL, (state / JOURNAL).read_bytes().index(b'"' + b"x" * 102 + b'"') + 5)
    counts, _ = await asyncio.to_thread(salvage, state)
    assert counts == "2 mailboxes with 3 messages and 0 dead letters"
    assert seqs(await opened(state)) == [1, 3, 4]


async def test_an_exchange_that_was_salvaged_has_another_identity(tmp_path: Path) -> None:
    """It can't know what it has forgotten, so its clients must not rely on it."""
    state = await written(tmp_path, stored(1), tidy=True)
    whole = SqliteStore(state)
    exchange_id = whole.exchange_id
    await whole.close()
    delete_journal(state)
    await asyncio.to_thread(salvage, state)
    mended = SqliteStore(state)
    assert mended.exchange_id != exchange_id
    await mended.close()


def test_salvage_is_a_command(tmp_path: Path) -> None:
    """Without the database, the journal alone still has what was written last."""
    state = asyncio.run(written(tmp_path, stored(1, 2), tidy=True))
    garbage(state)
    command = [sys.executable, "-m", "academy_hpc.exchange.store.salvage", str(state)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"2 mailboxes with 2 messages and 0 dead letters were taken over. The damaged files are in {state}/damaged-1.\n"
    )
    assert seqs(asyncio.run(opened(state))) == [1, 2]


# Directories


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_directory, "network_file_system", lambda _: "lustre")
    with pytest.raises(StoreError, match=r"network file system \(lustre\).* local disk of this host"):
        SqliteStore(tmp_path / "state")


def test_a_directory_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    with pytest.raises(StoreError, match=r"open to others: chmod 700"):
        SqliteStore(tmp_path / "state")


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StoreError, match="can't be made"):
        SqliteStore(tmp_path / "state")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="is no directory, or a link to one"):
        SqliteStore(tmp_path / "link")


async def test_two_exchanges_do_not_share_a_directory(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state")
    with pytest.raises(StoreError, match=r"in use by another exchange\. Stop that one first"):
        SqliteStore(tmp_path / "state")
    await store.close()


def run_as_nobody(program: str, *arguments: object) -> str:
    """What `program` prints, run by a user whom rights mean something to."""
    head = "import os, sys, asyncio; from academy_hpc.exchange.store.sqlite import SqliteStore; "
    # Imported first: the user may not be able to read where the packages are.
    drop = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    imports = "import academy_hpc.exchange.store.salvage, academy_hpc.errors\n"
    command = [sys.executable, "-c", f"{head}\n{imports}{drop}{program}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
OPEN = """
try:
    SqliteStore(sys.argv[1]).load()
except academy_hpc.errors.StoreError as error:
    print(error)
"""


@pytest.fixture
def public(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that nobody can get to."""
    folder = Path("/var/tmp") / f"academy-test-{os.getpid()}"  # noqa: S108 - removed below
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


@as_root
def test_a_directory_of_somebody_else_is_refused(public: Path) -> None:
    (public / "state").mkdir(mode=0o700)
    text = run_as_nobody(OPEN, public / "state")
    assert f"belongs to user 0, who could read and change all that is in it; you are user {NOBODY}" in text


@as_root
def test_a_directory_that_can_only_be_read_is_refused(public: Path) -> None:
    (public / "state").mkdir()
    os.chown(public / "state", NOBODY, NOBODY)
    (public / "state").chmod(0o500)
    text = run_as_nobody(OPEN, public / "state")
    assert text.count("\n") == 1
    assert "can't be written: Permission denied. Nothing was changed: free space or mend its rights" in text


@as_root
def test_a_place_where_no_directory_can_be_made_is_told(public: Path) -> None:
    assert "can't be made: Permission denied. Make it yourself, or take another" in run_as_nobody(
        OPEN, public / "state"
    )


@as_root
def test_files_of_somebody_else_in_an_own_directory_are_refused(public: Path) -> None:
    """As an exchange leaves them that was once started as root."""
    state = public / "state"
    asyncio.run(SqliteStore(state).close())
    os.chown(state, NOBODY, NOBODY)
    os.chown(state / "lock", NOBODY, NOBODY)
    text = run_as_nobody(OPEN, state)
    assert text.count("\n") == 1
    assert "can't be" in text and "damaged" not in text


# A full disk


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """No file may become larger: as on a full disk, writing fails; SIGXFSZ is ignored by Python."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_what_can_not_be_written_is_told_and_what_was_confirmed_is_kept(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "state")
    await store.write([MailboxCreated(AGENT, "owner", ()), *stored(1)])
    with file_size_limit(2 << 20):
        with pytest.raises(StoreError, match=r"can't be written: File too large. All that was confirmed is kept"):
            await store.write(stored(2, size=4 << 20))
        with pytest.raises(StoreError):  # whoever trusted it after that would trust memory
            await store.write(stored(3))
    with pytest.raises(StoreError):  # also when there is room again
        await store.write(stored(4))
    await store.close()
    assert seqs(await opened(tmp_path / "state")) == [1]


async def test_a_database_that_can_not_grow_loses_nothing(tmp_path: Path) -> None:
    """The journal has it until the database has it."""
    store = SqliteStore(tmp_path / "state")
    store._database._connection.execute("PRAGMA max_page_count = 20")
    await store.write([MailboxCreated(AGENT, "owner", ())])
    await store.write(stored(1, 2, size=100_000))
    with pytest.raises(StoreError, match=r"database or disk is full\. All that was confirmed is kept"):
        store.load()
    await store.close()
    assert seqs(await opened(tmp_path / "state")) == [1, 2]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "academy-test", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("file systems can't be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)  # noqa: S607


async def test_a_full_disk_loses_nothing_and_is_told(small_disk: Path) -> None:
    store, kept = SqliteStore(small_disk / "state"), 0
    await store.write([MailboxCreated(AGENT, "owner", ())])
    with pytest.raises(StoreError, match=r"No space left on device\. All that was confirmed is kept there: free space"):
        while True:
            await store.write(stored(kept + 1, size=100_000))
            kept += 1
    await store.close()
    assert kept > 0
    with pytest.raises(StoreError, match=r"(No space left|disk is full).*All that was confirmed is kept"):
        await opened(small_disk / "state")  # what it has must be put in order before it goes on
    more = ["mount", "-o", "remount,size=30m", str(small_disk)]
    await asyncio.to_thread(subprocess.run, more, check=True)
    assert seqs(await opened(small_disk / "state")) == list(range(1, kept + 1))


async def test_a_disk_that_is_full_at_the_start_is_told(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(3 << 20)[: (3 << 20) - 8192])
    with pytest.raises(StoreError, match=r"(No space left|disk is full|disk I/O error).*free space"):
        await opened(small_disk / "state")
    (small_disk / "filler").unlink()
    assert (await opened(small_disk / "state")).mailboxes == []


def test_an_exchange_whose_disk_is_full_ends_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    """It says so once, is not started again and again, and has all that it confirmed."""
    told: list[str] = []

    async def fill(factory: HttpExchangeFactory) -> tuple[EntityId, int]:
        kept = 0
        async with await factory.create_transport(name="sender") as sender:
            agent_id = (await sender.register_agent(Agent)).agent_id
            with pytest.raises((ExchangeUnavailableError, ExchangeUnreachableError)):
                while True:
                    body = ActionRequest(str(kept), "x" * 50_000, "")
                    await sender.send(Message.create(sender.mailbox_id, agent_id, body))
                    kept += 1
        return agent_id, kept

    async def drain(factory: HttpExchangeFactory, agent_id: EntityId, count: int) -> list[str]:
        async with await factory.create_transport(agent_id) as agent:
            got: list[str] = []
            async for message in agent.listen(5):
                got.append(message.decoded().action)  # type: ignore[union-attr]
                if len(got) >= count:
                    break
            return got

    log_path, state = small_disk.parent / "log", small_disk / "state"
    options: dict[str, Any] = {"state_dir": state, "log_path": log_path, "on_end": told.append}
    with spawn_http_exchange("127.0.0.1", 0, **options) as factory:
        impatient = ClientOptions(reconnect_s=1.0)
        hasty = HttpExchangeFactory.from_connection_info(factory.connection_info, options=impatient)
        agent_id, kept = asyncio.run(fill(hasty))
    assert kept > 0
    assert told == ["The exchange has ended and is not started again: its state directory can't be written."]
    assert "No space left on device. All that was confirmed is kept there: free space" in log_path.read_text()
    assert log_path.read_text().count("CRITICAL") == 1
    subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)  # noqa: S607
    with spawn_http_exchange("127.0.0.1", 0, state_dir=state) as factory:
        assert asyncio.run(drain(factory, agent_id, kept)) == [str(number) for number in range(kept)]
