"""What every `Store` promises. A new store is one line in `KINDS`, and no test."""

from __future__ import annotations

import asyncio
import functools
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import given, strategies as st

from academy_hpc.changes import (
    Change,
    DeadRemoved,
    MailboxCreated,
    MailboxRow,
    MailboxTerminated,
    MessageDied,
    MessagesRemoved,
    MessageStored,
    RequestAnswered,
    RequestPending,
    SessionStarted,
    ShareChanged,
    Snapshot,
)
from academy_hpc.exchange.store import Store
from academy_hpc.exchange.store.sqlite import SqliteStore
from academy_hpc.identifiers import AgentId, EntityId, UserId
from academy_hpc.message import ActionRequest, Message, SuccessResponse
from academy_hpc.repeats import PER_SOURCE
from tests.replayed_store import ReplayedStore

__all__: list[str] = []


class Kind(Protocol):
    """How a store is opened, and what the exchange's end and new start is for it."""

    def open(self, folder: Path, *, tombstones: int = 1000) -> Store: ...

    async def restart(self, store: Store, folder: Path) -> Store: ...


class Memory:
    """Lives as long as its object does."""

    def open(self, folder: Path, *, tombstones: int = 1000) -> Store:
        return ReplayedStore(tombstones=tombstones)

    async def restart(self, store: Store, folder: Path) -> Store:
        return store


class Sqlite:
    """Lives as long as its state directory does."""

    def open(self, folder: Path, *, tombstones: int = 1000) -> Store:
        return SqliteStore(folder / "state", tombstones=tombstones)

    async def restart(self, store: Store, folder: Path) -> Store:
        await store.close()
        return SqliteStore(folder / "state")


class Killed(Sqlite):
    """The process was killed: the next one finds the files as they were at that moment."""

    async def restart(self, store: Store, folder: Path) -> Store:
        assert isinstance(store, SqliteStore)
        left = folder / uuid.uuid4().hex
        shutil.copytree(store.directory, left)
        await store.close()  # puts things in order, which is not seen
        return SqliteStore(left)


KINDS: list[Kind] = [
    Memory(),
    Sqlite(),
    Killed(),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: type(kind).__name__)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
def store(kind: Kind, tmp_path: Path) -> Iterator[Store]:
    opened = kind.open(tmp_path)
    yield opened
    asyncio.run(opened.close())


AGENTS = [AgentId[Any].new(f"agent-{number}") for number in range(3)]
USER = UserId.new("ada")
AGENT = AGENTS[0]


def request(dest: EntityId = AGENT, size: int = 0) -> Message:
    return Message.create(USER, dest, ActionRequest("run", f'["é"{" " * size}]', "{}", "json"), label=uuid.uuid4())


def created(entity: EntityId = AGENT, *classes: str) -> MailboxCreated:
    return MailboxCreated(entity, "owner", classes)


def content(snapshot: Snapshot) -> tuple[Any, ...]:
    """All that a snapshot says, in a form that `==` compares in full."""
    return (
        [(row.entity.uid, row.entity.name, row.entity.role, *_rest(row)) for row in snapshot.mailboxes],
        sorted(((m.uid, m.seq, m.message.to_json()) for m in snapshot.messages), key=lambda entry: entry[0]),
        sorted((str(p.uid), Message(p.header, b"").to_json()) for p in snapshot.pending),
        snapshot.tombstones,
        snapshot.recent,
        sorted(((str(d.uid), d.message.to_json(), d.attempts, d.died_s) for d in snapshot.dead), key=lambda d: d[0]),
    )


def _rest(row: MailboxRow) -> tuple[Any, ...]:
    return row.owner, row.classes, row.groups, row.session, row.last_seq


async def numbers(store: Store, entity: EntityId = AGENT) -> list[int]:
    return [stored.seq for stored in store.load().messages if stored.uid == entity.uid]


async def test_a_new_store_is_empty(store: Store) -> None:
    assert content(store.load()) == content(Snapshot())


async def test_a_mailbox_is_given_back_as_it_was_made(store: Store) -> None:
    await store.write([MailboxCreated(AGENT, "owner", ("pkg.Simulator", "academy.agent.Agent")), created(USER)])
    agent, user = store.load().mailboxes
    assert (agent.entity.uid, agent.entity.name, agent.entity.role) == (AGENT.uid, AGENT.name, "agent")
    assert (user.entity.uid, user.entity.name, user.entity.role) == (USER.uid, USER.name, "user")
    assert _rest(agent) == ("owner", ("pkg.Simulator", "academy.agent.Agent"), frozenset(), None, 0)


async def test_mailboxes_come_back_in_the_order_of_their_creation(store: Store) -> None:
    for entity in reversed(AGENTS):
        await store.write([created(entity)])
    await store.write([MessageStored(AGENTS[1].uid, 1, request()), SessionStarted(AGENTS[0].uid, uuid.uuid4())])
    assert [row.entity for row in store.load().mailboxes] == AGENTS[::-1]


async def test_a_message_is_given_back_byte_for_byte(store: Store) -> None:
    """Its body is opaque: bytes that are no JSON, and no text, are kept like any other."""
    messages = [request(size=100_000), Message(request().header, b"\xff\x00'\""), Message(request().header, b"")]
    await store.write([created(), *(MessageStored(AGENT.uid, seq, m) for seq, m in enumerate(messages, 1))])
    stored = [entry.message for entry in store.load().messages]
    assert [(m.to_json(), m.body, m.header.label) for m in stored] == [
        (m.to_json(), m.body, m.header.label) for m in messages
    ]


async def test_messages_come_back_in_the_order_of_their_numbers(store: Store) -> None:
    await store.write([created(AGENTS[0]), created(AGENTS[1])])
    for seq in range(1, 21):
        await store.write([MessageStored(entity.uid, seq, request()) for entity in AGENTS[:2]])
    await store.write([MessagesRemoved(AGENT.uid, (1, 7, 20))])
    assert await numbers(store) == [seq for seq in range(1, 21) if seq not in {1, 7, 20}]
    assert await numbers(store, AGENTS[1]) == list(range(1, 21))


async def test_calls_take_effect_in_order_also_when_they_overlap(store: Store) -> None:
    await store.write([created()])
    writes: list[list[Change]] = [[MessageStored(AGENT.uid, seq, request())] for seq in range(1, 11)]
    writes += [[MessagesRemoved(AGENT.uid, (seq,))] for seq in range(1, 10)]
    await asyncio.gather(*(store.write(changes) for changes in writes))
    assert await numbers(store) == [10]


async def test_large_and_small_writes_take_effect_in_order_too(store: Store) -> None:
    """A store may write large ones elsewhere: nothing overtakes them."""
    await store.write([created()])
    told: list[int] = []
    writes = []
    for seq in range(1, 13):
        size = 3_000_000 if seq % 3 == 1 else 10
        change = MessageStored(AGENT.uid, seq, request(size=size))
        writes.append(store.write([change], written=functools.partial(told.append, seq)))
    writes += [store.write([MessagesRemoved(AGENT.uid, (seq,))]) for seq in range(1, 12)]
    await asyncio.gather(*writes)
    assert told == list(range(1, 13))
    assert await numbers(store) == [12]


async def test_what_nobody_waits_for_is_done_as_well_and_holds_up_nobody(store: Store) -> None:
    """Also without another write after it; and one that is waited for takes along what gathered before it."""
    await store.write([created()])
    async with asyncio.timeout(0.8):  # less than a store takes to find that all is quiet
        await store.write([MessageStored(AGENT.uid, 1, request())], hurried=False)
    async with asyncio.timeout(5):
        unhurried = [
            asyncio.ensure_future(store.write([MessageStored(AGENT.uid, seq, request())], hurried=False))
            for seq in range(2, 50)
        ]
        await store.write([MessageStored(AGENT.uid, 50, request())])
        await asyncio.gather(*unhurried)
    assert await numbers(store) == list(range(1, 51))


async def test_what_is_written_survives_the_process_before_it_is_done(store: Store, kind: Kind, tmp_path: Path) -> None:
    """So it may be passed on while the disk is still at work."""
    await store.write([created()])
    written = asyncio.Event()
    waiting = store.write([MessageStored(AGENT.uid, 1, request())], written=written.set)
    async with asyncio.timeout(5):
        await written.wait()
    restarted = await kind.restart(store, tmp_path)
    assert await numbers(restarted) == [1]
    await waiting
    if restarted is not store:
        await restarted.close()


async def test_a_number_is_not_forgotten_with_its_message(store: Store) -> None:
    """A resumed listener tells the highest number it received: a restart must not give it to another message."""
    await store.write([created(), MessageStored(AGENT.uid, 41, request()), MessageStored(AGENT.uid, 42, request())])
    await store.write([MessagesRemoved(AGENT.uid, (41, 42))])
    assert store.load().mailboxes[0].last_seq == 42


async def test_removing_what_is_not_there_is_harmless(store: Store) -> None:
    everything: list[Change] = [
        MessagesRemoved(AGENT.uid, (1, 2)),
        RequestAnswered(AGENT.uid, uuid.uuid4()),
        MessagesRemoved(AGENT.uid, ()),
    ]
    await store.write(everything)  # there is no such mailbox
    await store.write([created(), MessageStored(AGENT.uid, 1, request())])
    await store.write([*everything, *everything])
    assert await numbers(store) == []
    assert len(store.load().mailboxes) == 1


async def test_a_write_of_nothing_is_harmless(store: Store) -> None:
    await store.write([])
    assert content(store.load()) == content(Snapshot())


async def test_a_pending_request_is_kept_until_it_is_answered(store: Store) -> None:
    """It is kept on its own: also when its message was acknowledged, and with all of its header."""
    first, second = request(), request()
    await store.write([created(), RequestPending(AGENT.uid, first.header), RequestPending(AGENT.uid, second.header)])
    await store.write([RequestAnswered(AGENT.uid, first.tag)])
    (pending,) = store.load().pending
    assert pending.uid == AGENT.uid
    assert Message(pending.header, second.body).to_json() == second.to_json()


async def test_the_ids_of_messages_are_kept_longer_than_the_messages(store: Store) -> None:
    """In the order in which they came; the source that sent last comes last."""
    ada, bob = UserId.new("ada"), UserId.new("bob")
    sent = [Message.create(source, AGENT, ActionRequest("run", "", "")) for source in (ada, bob, ada)]
    await store.write([created(), *(MessageStored(AGENT.uid, seq, message) for seq, message in enumerate(sent, 1))])
    await store.write([MessagesRemoved(AGENT.uid, (1, 2, 3))])
    response = sent[0].create_response(SuccessResponse())
    await store.write([created(USER), MessageStored(USER.uid, 1, response), MessagesRemoved(USER.uid, (1,))])
    expected = [
        (bob.uid, (sent[1].tag.int,)),
        (ada.uid, (sent[0].tag.int, sent[2].tag.int)),
        (AGENT.uid, (~response.tag.int,)),
    ]
    assert store.load().recent == expected
    await store.write([MessageStored(AGENT.uid, 4, request())])
    await store.write([MessageStored(AGENT.uid, 5, Message.create(bob, AGENT, ActionRequest("run", "", "")))])
    assert [source for source, _ in store.load().recent] == [ada.uid, AGENT.uid, USER.uid, bob.uid]


async def test_ids_survive_any_number_of_restarts(kind: Kind, tmp_path: Path) -> None:
    store, tags = kind.open(tmp_path), []
    await store.write([created()])
    for seq in range(1, 4):
        message = request()
        tags.append(message.tag.int)
        await store.write([MessageStored(AGENT.uid, seq, message), MessagesRemoved(AGENT.uid, (seq,))])
        store = await kind.restart(store, tmp_path)
        assert store.load().recent == [(USER.uid, tuple(tags))]
    await store.close()


async def test_ids_are_bounded_and_the_oldest_go_first(store: Store) -> None:
    await store.write([created()])
    messages = [request() for _ in range(PER_SOURCE + 3)]
    for start, end in ((0, 300), (300, len(messages))):
        await store.write([MessageStored(AGENT.uid, number + 1, messages[number]) for number in range(start, end)])
        (entry,) = store.load().recent
    assert entry == (USER.uid, tuple(message.tag.int for message in messages[3:]))


async def test_what_a_terminated_source_sent_last_is_known(store: Store) -> None:
    message = Message.create(AGENT, USER, ActionRequest("run", "", ""))
    await store.write([created(), created(USER), MessageStored(USER.uid, 1, message)])
    await store.write([MailboxTerminated(AGENT.uid)])
    assert store.load().recent == [(AGENT.uid, (message.tag.int,))]


async def test_a_dead_letter_is_kept_until_it_is_removed(store: Store) -> None:
    """Oldest first, with all that is needed to send it again."""
    letters = [MessageDied(AGENT.uid, request(size=size), size + 1, 1.5 + size) for size in range(3)]
    await store.write([created(), *letters[:2]])
    await store.write([letters[2], DeadRemoved(AGENT.uid, (letters[1].message.tag, uuid.uuid4()))])
    found = store.load().dead
    assert [(each.attempts, each.died_s, each.message.to_json()) for each in found] == [
        (each.attempts, each.died_s, each.message.to_json()) for each in (letters[0], letters[2])
    ]


async def test_the_last_session_counts(store: Store) -> None:
    last = uuid.uuid4()
    await store.write([created(), SessionStarted(AGENT.uid, uuid.uuid4()), SessionStarted(AGENT.uid, last)])
    assert store.load().mailboxes[0].session == last


async def test_the_last_groups_count(store: Store) -> None:
    await store.write([created(), ShareChanged(AGENT.uid, frozenset({"a", "b'"}))])
    assert store.load().mailboxes[0].groups == {"a", "b'"}
    await store.write([ShareChanged(AGENT.uid, frozenset())])
    assert store.load().mailboxes[0].groups == frozenset()


async def test_of_a_terminated_mailbox_only_a_tombstone_is_left(store: Store) -> None:
    await store.write([created(AGENTS[0]), created(AGENTS[1])])
    for entity in AGENTS[:2]:
        await store.write([MessageStored(entity.uid, 1, request()), RequestPending(entity.uid, request(entity).header)])
        await store.write([SessionStarted(entity.uid, uuid.uuid4()), ShareChanged(entity.uid, frozenset({"g"}))])
        await store.write([MessageDied(entity.uid, request(entity), 5, 1.0)])
    await store.write([MailboxTerminated(AGENT.uid)])
    snapshot = store.load()
    assert snapshot.tombstones == [AGENT.uid]
    left = [[row.entity.uid for row in snapshot.mailboxes], [m.uid for m in snapshot.messages]]
    left += [[pending.uid for pending in snapshot.pending], [letter.uid for letter in snapshot.dead]]
    assert left == [[AGENTS[1].uid]] * 4


async def test_tombstones_are_bounded_and_the_oldest_go_first(kind: Kind, tmp_path: Path) -> None:
    store = kind.open(tmp_path, tombstones=2)
    for entity in AGENTS:
        await store.write([created(entity), MailboxTerminated(entity.uid)])
    assert store.load().tombstones == [AGENTS[1].uid, AGENTS[2].uid]
    await store.close()


async def test_a_mailbox_made_again_has_no_tombstone(store: Store) -> None:
    """That happens when an exchange remembers fewer tombstones than its store."""
    await store.write([created(), MailboxTerminated(AGENT.uid), created()])
    assert store.load().tombstones == []
    assert len(store.load().mailboxes) == 1


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancelled_write_is_kept_or_not_but_never_in_part(store: Store, turns: int) -> None:
    await store.write([created(entity) for entity in AGENTS])
    changes = [MessageStored(entity.uid, seq, request()) for entity in AGENTS for seq in range(1, 50)]
    write = asyncio.ensure_future(store.write(changes))
    for _ in range(turns):
        await asyncio.sleep(0)
    write.cancel()
    await asyncio.gather(write, return_exceptions=True)
    await store.write([created(USER)])
    assert len(store.load().messages) in {0, len(changes)}


async def test_what_is_loaded_does_not_change_with_later_writes(store: Store) -> None:
    await store.write([created(), MessageStored(AGENT.uid, 1, request())])
    before = store.load()
    said = content(before)
    await store.write([MessagesRemoved(AGENT.uid, (1,)), MailboxTerminated(AGENT.uid)])
    assert content(before) == said


# Random changes, against the obvious way to put them together


def put_together(changes: Sequence[Change]) -> Snapshot:
    """A snapshot, by the docstrings of the changes; slowly."""
    snapshot = Snapshot()
    rows = {change.entity.uid: change for change in changes if isinstance(change, MailboxCreated)}
    gone = [change.uid for change in changes if isinstance(change, MailboxTerminated)]
    for uid in (uid for uid in rows if uid not in gone):
        mine = [change for change in changes if getattr(change, "uid", None) == uid]
        row = MailboxRow(rows[uid].entity, rows[uid].owner, rows[uid].classes)
        removed = {seq for change in mine if isinstance(change, MessagesRemoved) for seq in change.seqs}
        answered = {change.tag for change in mine if isinstance(change, RequestAnswered)}
        revived = {tag for change in mine if isinstance(change, DeadRemoved) for tag in change.tags}
        for change in mine:
            if isinstance(change, ShareChanged):
                row.groups = change.groups
            elif isinstance(change, SessionStarted):
                row.session = change.session
            elif isinstance(change, MessageStored):
                row.last_seq = change.seq
                snapshot.messages += [change] if change.seq not in removed else []
            elif isinstance(change, RequestPending) and change.header.tag not in answered:
                snapshot.pending.append(change)
            elif isinstance(change, MessageDied) and change.message.tag not in revived:
                snapshot.dead.append(change)
        snapshot.mailboxes.append(row)
    snapshot.tombstones = gone
    snapshot.recent = ids_of(changes)
    return snapshot


def ids_of(changes: Sequence[Change]) -> list[tuple[uuid.UUID, tuple[int, ...]]]:
    recent: dict[uuid.UUID, list[int]] = {}
    for change in changes:
        if isinstance(change, MessageStored):
            header = change.message.header
            tag = header.tag.int if header.kind == "request" else ~header.tag.int
            recent[header.src.uid] = [*recent.pop(header.src.uid, []), tag]
    return [(source, tuple(ids)) for source, ids in recent.items()]


EVENTS = ("message", "remove", "answer", "session", "share", "die", "revive", "end")


class Changes:
    """Draws changes as a registry makes them: of open mailboxes only, with numbers that rise."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.open: list[EntityId] = []
        self.seqs: dict[uuid.UUID, int] = {}
        self.tags: list[uuid.UUID] = []
        self.dead: list[uuid.UUID] = []

    def draw(self) -> list[Change]:
        if not self.open or self.data.draw(st.integers(0, 9), label="create") == 0:
            self.open.append(AgentId[Any].new())
            self.seqs[self.open[-1].uid] = 0
            return [created(self.open[-1], "pkg.Class")]
        entity = self.data.draw(st.sampled_from(self.open), label="entity")
        return self.of(entity, self.data.draw(st.sampled_from(EVENTS), label="event"))

    def of(self, entity: EntityId, event: str) -> list[Change]:
        uid, message = entity.uid, request(entity)
        if event == "message":
            self.seqs[uid] += 1
            self.tags.append(message.tag)
            return [MessageStored(uid, self.seqs[uid], message), RequestPending(uid, message.header)]
        if event == "remove":
            highest = self.seqs[uid]
            return [MessagesRemoved(uid, tuple(self.data.draw(st.sets(st.integers(0, highest), max_size=3))))]
        if event == "answer" and self.tags:
            return [RequestAnswered(uid, self.data.draw(st.sampled_from(self.tags)))]
        if event == "session":
            return [SessionStarted(uid, uuid.uuid4())]
        if event == "share":
            return [ShareChanged(uid, frozenset(self.data.draw(st.sets(st.sampled_from("abc")))))]
        if event == "die":
            self.dead.append(message.tag)
            return [MessageDied(uid, message, 5, 1.0)]
        if event == "revive" and self.dead:
            return [DeadRemoved(uid, (self.data.draw(st.sampled_from(self.dead)),))]
        if event == "end" and len(self.open) > 1:
            self.open.remove(entity)
            # As a registry does: the pending request of somebody else is answered in the same write.
            answer = request(entity).create_response(SuccessResponse())
            self.seqs[self.open[0].uid] += 1
            return [MailboxTerminated(uid), MessageStored(self.open[0].uid, self.seqs[self.open[0].uid], answer)]
        return []


@given(data=st.data())
def test_what_is_loaded_is_what_was_written(kind: Kind, data: st.DataObject) -> None:
    """After any changes, in calls of any size, a restart finds all of them, put together."""

    async def scenario(folder: Path) -> None:
        store, source = kind.open(folder), Changes(data)
        history: list[Change] = []
        for size in data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=8), label="calls"):
            changes = [change for _ in range(size) for change in source.draw()]
            await store.write(changes)
            history += changes
            if data.draw(st.booleans(), label="restart"):
                store = await kind.restart(store, folder)
            assert content(store.load()) == content(put_together(history))
        await store.close()

    memory = Path("/dev/shm")  # noqa: S108 - the folder in it is private; a disk would take minutes, and prove no more
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        asyncio.run(scenario(Path(name)))
