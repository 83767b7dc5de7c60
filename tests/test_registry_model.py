"""Registry and store against a model of what they promise, under any course of events, crashes among them.

The model keeps for each mailbox the messages sent and not acknowledged, in order. Whatever happened, that is what a
restart delivers.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from academy_hpc import errors
from academy_hpc.delivery import Window, size_of
from academy_hpc.directory import Caller, Effects, MailboxCounters
from academy_hpc.identifiers import AgentId, EntityId, UserId
from academy_hpc.message import ActionRequest, Message, SuccessResponse
from academy_hpc.registry import Limits, Registry
from tests.mailbox_model import Box, Item, Listener, check_effects
from tests.replayed_store import ReplayedStore
from tests.stored_registry import ALL, BASE, finish

__all__: list[str] = []

OWNER = Caller("owner")
GUEST = Caller("guest", frozenset({"guests"}))
LIMITS = Limits(mailbox_messages=6, max_attempts=2, dead_letters=2)


class RegistryMachine(RuleBasedStateMachine):
    """Events in any order. Every rule does the same to the registry and to the model."""

    entities = Bundle("entities")
    sent = Bundle("sent")

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry(LIMITS)
        self.store = ReplayedStore()
        self.boxes: dict[uuid.UUID, Box] = {}
        self.gone: dict[uuid.UUID, MailboxCounters] = {}
        self.recognised: set[tuple[uuid.UUID, uuid.UUID, str]] = set()

    # Help

    @contextmanager
    def committed(self) -> Iterator[Effects]:
        """What a shell does with effects, and what they must say to it."""
        effects = Effects()
        yield effects
        check_effects(effects)
        finish(self.store.write(effects.changes))
        self.registry.kept(effects)

    def answer(self, header: Any, error: type[errors.AcademyError]) -> None:
        """The exchange answers a request itself; its requester may be gone."""
        key = header.dest.uid, header.tag, "response"
        if (box := self.boxes.get(header.src.uid)) and key not in self.recognised:
            box.put(Item(header.response(), 0, error))
            self.recognised.add(key)

    def listener(self, entity: EntityId) -> tuple[Box, Listener]:
        """The mailbox and its listener, connected if it was not."""
        box = self.boxes[entity.uid]
        if box.listener is None:
            self.attach(entity)
        elif not box.listener.connected:
            self.resume(entity)
        assert box.listener is not None
        return box, box.listener

    def holding(self, entity: EntityId) -> tuple[Box, Listener]:
        """The mailbox and its listener, which has received something if there is anything."""
        box, listener = self.listener(entity)
        if not listener.held:
            self.take(entity, 8, 8, read=True)
        return box, listener

    def refusal(self, message: Message, *, repeated: bool = False) -> type[errors.AcademyError] | None:
        """Why the owner may not send `message` now."""
        box = self.boxes.get(message.dest.uid)
        if box is None:
            return errors.MailboxTerminatedError if message.dest.uid in self.gone else errors.BadEntityIdError
        if not repeated and len(box.items) >= LIMITS.mailbox_messages * (1 if message.is_request else 1.25):
            return errors.MailboxFullError
        return None

    # Mailboxes

    @initialize(target=entities, agents=st.tuples(st.just(value=True), st.booleans()))
    def listen(self, agents: tuple[bool, ...]) -> Any:
        """Most runs need somebody to write to and somebody to answer."""
        made = [self.create(agent) for agent in agents]
        for entity in made:
            self.attach(entity)
        return multiple(*made)

    @precondition(lambda self: len(self.boxes) < 4)
    @rule(target=entities, agent=st.booleans())
    def create(self, agent: bool) -> EntityId:
        entity = AgentId[Any].new() if agent else UserId.new()
        with self.committed() as effects:
            self.registry.create(entity, ("pkg.Some", BASE), OWNER, effects)
        self.boxes[entity.uid] = Box(entity)
        return entity

    @rule(entity=consumes(entities))
    def terminate(self, entity: EntityId) -> None:
        """Every pending request is answered exactly once, if its requester is still there."""
        with self.committed() as effects:
            self.registry.terminate(entity, OWNER, effects)
        box = self.boxes.pop(entity.uid)
        self.gone[entity.uid] = MailboxCounters(box.completed, box.outgoing, box.completed)
        error = errors.AgentTerminatedError if entity.role == "agent" else errors.UserTerminatedError
        for header in box.pending.values():
            self.answer(header, error)

    @rule(entity=entities, shared=st.booleans())
    def share(self, entity: EntityId, shared: bool) -> None:
        owner = Caller("owner", frozenset({"guests"}))
        with self.committed() as effects:
            (self.registry.share if shared else self.registry.unshare)(entity, "guests", owner, effects)
        self.boxes[entity.uid].shared = shared

    # Sending

    @rule(target=sent, source=entities, dest=entities, sizes=st.lists(st.integers(0, 300), min_size=1, max_size=3))
    def requests(self, source: EntityId, dest: EntityId, sizes: list[int]) -> Any:
        return multiple(*[message for size in sizes if (message := self.request(source, dest, size))])

    def request(self, source: EntityId, dest: EntityId, size: int) -> Message | None:
        """A request is pending with its receiver until it is answered."""
        message = Message.create(source, dest, ActionRequest("run", "x" * size, "", "json"))
        if (error := self.refusal(message)) is not None:
            with pytest.raises(error):
                self.registry.send(message, OWNER, Effects())
            return None
        with self.committed() as effects:
            self.registry.send(message, OWNER, effects)
        self.accepted(message)
        return message

    def accepted(self, message: Message) -> None:
        box, source = self.boxes[message.dest.uid], self.boxes.get(message.src.uid)
        item = Item(message.header, len(message.body))
        box.put(item)
        self.recognised.add(item.key)
        if message.is_request:
            box.pending[message.tag] = message.header
            if source is not None:
                source.outgoing += 1
        elif source is not None and source.pending.pop(message.tag, None) is not None:
            source.completed += 1

    def create_again(self, entity: EntityId, caller: Caller) -> None:
        """Nothing changes, but somebody else is told that it is not theirs."""
        effects = Effects()
        if caller is GUEST and not self.boxes[entity.uid].shared:
            with pytest.raises(errors.ForbiddenError):
                self.registry.create(entity, ("pkg.Other",), caller, effects)
        else:
            self.registry.create(entity, ("pkg.Other",), caller, effects)
        assert effects.changes == []

    @rule(dest=entities)
    def request_from_nowhere(self, dest: EntityId) -> None:
        """The source need not have a mailbox."""
        self.request(UserId.new(), dest, 0)

    @rule(source=entities, dest=entities)
    def request_of_a_guest(self, source: EntityId, dest: EntityId) -> None:
        """One needs rights on the destination, and on a source that exists."""
        self.create_again(dest, GUEST)
        message = Message.create(source, dest, ActionRequest("run", "", "", "json"))
        allowed = self.boxes[source.uid].shared and self.boxes[dest.uid].shared
        error = self.refusal(message) if allowed else errors.ForbiddenError
        if error is not None:
            with pytest.raises(error):
                self.registry.send(message, GUEST, Effects())
            return
        with self.committed() as effects:
            self.registry.send(message, GUEST, effects)
        self.accepted(message)

    @rule(message=sent)
    def repeat(self, message: Message) -> None:
        """A client that got no confirmation sends again: what was stored is not stored twice."""
        key = (message.src.uid, message.tag, message.header.kind)
        if key not in self.recognised:
            return
        effects = Effects()
        if (error := self.refusal(message, repeated=True)) is not None:
            with pytest.raises(error):
                self.registry.send(message, OWNER, effects)
        else:
            self.registry.send(message, OWNER, effects)
        assert effects.changes == []

    # Listening

    @rule(entity=entities)
    def attach(self, entity: EntityId) -> None:
        """What the listeners before did not acknowledge comes again, or is given up and answered."""
        box, listener = self.boxes[entity.uid], Listener()
        with self.committed() as effects:
            self.registry.attach(entity, listener.session, OWNER, effects, now=0.0)
        for item in box.items.values():
            item.deaths += item.out and not box.left_in_order
        given_up = [seq for seq, item in box.items.items() if item.out and item.deaths >= LIMITS.max_attempts]
        assert [delivery.seq for delivery in effects.given_up] == given_up
        assert all(delivery.attempt == box.items[delivery.seq].attempts for delivery in effects.given_up)
        box.left_in_order, box.attempts_kept = False, True
        for item in box.items.values():
            item.out = item.restored = False
        if box.listener is not None:
            self.fenced_off(box, box.listener.session)
        box.listener = listener
        for item in [box.items.pop(seq) for seq in given_up]:
            header = item.header
            if header.kind == "request" and box.pending.pop(header.tag, None) is not None:
                box.died(item)
                self.answer(header, errors.DeliveryFailedError)

    @rule(entity=entities, data=st.data(), discard=st.booleans())
    def put_back(self, entity: EntityId, data: st.DataObject, discard: bool) -> None:
        """A dead letter is a new message for its receiver, and nothing more for its caller."""
        box, effects = self.boxes[entity.uid], Effects()
        if not box.dead:
            return
        tag = data.draw(st.sampled_from(list(box.dead)), label="tag")
        if not discard and len(box.items) >= LIMITS.mailbox_messages:
            with pytest.raises(errors.MailboxFullError):
                self.registry.requeue(entity, tag, OWNER, effects)
            assert effects.changes == []
            return
        with self.committed() as effects:
            (self.registry.discard if discard else self.registry.requeue)(entity, tag, OWNER, effects)
        item = box.dead.pop(tag)
        if not discard:
            box.put(Item(item.header, item.size))
            box.pending[tag] = item.header

    def fenced_off(self, box: Box, former: uuid.UUID) -> None:
        """Whatever a listener does after a newer one has come has no effect."""
        uid, effects = box.entity.uid, Effects()
        with pytest.raises(errors.ListenerSupersededError):
            self.registry.attach(box.entity, former, OWNER, effects, now=0.0, resume=(0, []))
        assert self.registry.take(uid, former, ALL) == []
        self.registry.acknowledge(uid, former, range(100), effects)
        self.registry.consumed(uid, former, 100)
        self.registry.detach(uid, former, now=0.0)
        assert effects.changes == []

    @rule(entity=entities)
    def resume(self, entity: EntityId) -> None:
        """The connection broke: what was under way is lost with it, and acknowledgements that did not arrive."""
        box = self.boxes[entity.uid]
        listener = box.listener
        if listener is None:
            return
        listener.under_way.clear()
        listener.unread = []
        with self.committed() as effects:
            position = (listener.received, list(listener.held))
            self.registry.attach(entity, listener.session, OWNER, effects, now=0.0, resume=position)
        listener.connected = True
        box.resumed(listener)

    @rule(entity=entities)
    def detach(self, entity: EntityId) -> None:
        """The listener is gone for now: nothing happens to its messages."""
        listener = self.listener(entity)[1]
        self.registry.detach(entity.uid, listener.session, now=0.0)
        listener.connected = False

    @rule(entity=entities, data=st.data())
    def leave(self, entity: EntityId, data: st.DataObject) -> None:
        """The listener ends in order, and says what it has not begun."""
        box, listener = self.holding(entity)
        held = [seq for seq in listener.held if seq in box.items]  # of an answer, the confirmation may be lost
        unbegun = data.draw(st.lists(st.sampled_from(held), unique=True) if held else st.just([]), label="unbegun")
        with self.committed() as effects:
            self.registry.detach(entity.uid, listener.session, now=0.0, in_order=effects, unbegun=unbegun)
        box.left(listener, unbegun)

    @rule(entity=entities, messages=st.integers(1, 8), arrive=st.integers(0, 8), read=st.booleans())
    def take(self, entity: EntityId, messages: int, arrive: int, read: bool) -> None:
        """The exchange hands out the oldest that are ready, as the window allows, each at most `max_attempts` times."""
        box, listener = self.listener(entity)
        taken = self.registry.take(entity.uid, listener.session, Window(messages=messages))
        ready = [seq for seq, item in box.items.items() if not item.out]
        room = max(0, messages - len(listener.unread))
        assert [delivery.seq for delivery in taken] == ready[:room]
        for delivery in taken:
            item = box.items[delivery.seq]
            item.attempts, item.out = item.attempts + 1, True
            assert delivery.attempt == item.attempts and item.deaths < LIMITS.max_attempts
            assert item.fits(delivery.message)
        listener.under_way.extend(taken)
        listener.unread += [delivery.seq for delivery in taken]
        self.arrive(entity, arrive)
        if read:
            self.consumed(entity)

    @rule(entity=entities, count=st.integers(1, 4))
    def arrive(self, entity: EntityId, count: int) -> None:
        """Within a session numbers rise: nothing is doubled, and first in is first out for each pair."""
        listener = self.listener(entity)[1]
        for _ in range(min(count, len(listener.under_way))):
            delivery = listener.under_way.popleft()
            assert delivery.seq > listener.received
            listener.received = delivery.seq
            listener.held[delivery.seq] = delivery.message

    def consumed(self, entity: EntityId) -> None:
        """The listener's program has read all that arrived: the window is open for as much."""
        listener = self.listener(entity)[1]
        self.registry.consumed(entity.uid, listener.session, listener.received)
        listener.unread = [seq for seq in listener.unread if seq > listener.received]

    @rule(entity=entities, data=st.data(), lost=st.booleans())
    def acknowledge(self, entity: EntityId, data: st.DataObject, lost: bool) -> None:
        box, listener = self.holding(entity)
        if not listener.held:
            return
        seqs = data.draw(st.lists(st.sampled_from(list(listener.held)), min_size=1, max_size=3), label="seqs")
        for seq in seqs:
            listener.held.pop(seq, None)
        if lost:  # the connection is broken: until it is resumed nothing comes through
            listener.connected = False
            return
        with self.committed() as effects:
            self.registry.acknowledge(entity.uid, listener.session, seqs, effects)
        for seq in seqs:
            box.items.pop(seq, None)

    @rule(target=sent, entity=entities, data=st.data(), lost=st.booleans())
    def respond(self, entity: EntityId, data: st.DataObject, lost: bool) -> Any:
        """A response and the acknowledgement of its request take effect together, or not at all."""
        box, listener = self.holding(entity)
        requests = [seq for seq, message in listener.held.items() if message.is_request]
        if not requests:
            return multiple()
        seq = data.draw(st.sampled_from(requests), label="seq")
        response = listener.held[seq].create_response(SuccessResponse())
        repeated = (entity.uid, response.tag, "response") in self.recognised
        if (error := self.refusal(response, repeated=repeated)) is not None:
            with self.committed() as effects, pytest.raises(error):
                self.registry.send(response, OWNER, effects, acknowledges=seq)
            if response.dest.uid not in self.boxes and box.pending.pop(response.tag, None) is not None:
                box.completed += 1  # there is nobody left to answer
            return multiple()
        with self.committed() as effects:
            self.registry.send(response, OWNER, effects, acknowledges=seq)
        if not repeated:
            self.accepted(response)
        elif box.pending.pop(response.tag, None) is not None:  # it was put back: the caller has its answer
            box.completed += 1
        box.items.pop(seq, None)
        if lost:  # accepted, but the confirmation is lost: the listener still works on it, and will send it again
            listener.connected = False
        else:
            del listener.held[seq]
        return response

    # Crashes

    @rule(unwritten=st.booleans(), data=st.data())
    def crash(self, unwritten: bool, data: st.DataObject) -> None:
        """The exchange dies, maybe with an operation that it had not told the store yet: nobody was told either."""
        if unwritten and self.boxes:
            dest = data.draw(st.sampled_from(list(self.boxes.values())), label="dest").entity
            message = Message.create(UserId.new(), dest, SuccessResponse())
            if self.refusal(message) is None:
                self.registry.send(message, OWNER, Effects())
        self.registry = Registry(LIMITS)
        self.registry.restore(self.store.load())
        self.gone = dict.fromkeys(self.gone, MailboxCounters())
        for box in self.boxes.values():
            box.restarted()

    # What holds at any time

    @invariant()
    def a_restart_delivers_what_was_sent_and_not_acknowledged(self) -> None:
        restarted = Registry(LIMITS)
        restarted.restore(self.store.load())
        for uid, box in self.boxes.items():
            session, effects = uuid.uuid4(), Effects()
            restarted.attach(box.entity, session, OWNER, effects, now=0.0)
            delivered = restarted.take(uid, session, ALL)
            assert [delivery.seq for delivery in delivered] == list(box.items)
            assert all(item.fits(d.message) for item, d in zip(box.items.values(), delivered, strict=True))
        assert restarted.stored_bytes == self.registry.stored_bytes

    @invariant()
    def the_store_awaits_the_same_answers(self) -> None:
        pending = {(entry.uid, entry.header.tag) for entry in self.store.load().pending}
        assert pending == {(uid, tag) for uid, box in self.boxes.items() for tag in box.pending}

    @invariant()
    def dead_letters_are_kept(self) -> None:
        for box in self.boxes.values():
            assert [letter.tag for letter in self.registry.dead_letters(box.entity, OWNER)] == list(box.dead)
        stored = [(letter.uid, letter.message.tag) for letter in self.store.load().dead]
        assert set(stored) == {(uid, tag) for uid, box in self.boxes.items() for tag in box.dead}

    @invariant()
    def counters_are_as_the_protocol_says(self) -> None:
        for uid, box in self.boxes.items():
            assert self.registry.counters(box.entity, OWNER) == box.counters()
            assert self.registry.status(box.entity, OWNER) == "ACTIVE", uid
        for uid, counters in self.gone.items():
            assert self.registry.counters(EntityId(uid), OWNER) == counters
            assert self.registry.status(EntityId(uid), OWNER) == "TERMINATED"

    @invariant()
    def bytes_are_those_of_the_stored_messages(self) -> None:
        stored = self.store.load().messages
        assert self.registry.stored_bytes == sum(size_of(entry.message) for entry in stored)

    @invariant()
    def open_agents_are_discovered_in_the_order_of_registration(self) -> None:
        agents = [box.entity for box in self.boxes.values() if box.entity.role == "agent"]
        assert self.registry.discover("pkg.Some", OWNER, subclasses=False) == agents
        assert self.registry.discover(BASE, OWNER, subclasses=True) == agents
        assert len(self.registry) == len(self.boxes)
        shared = [entity for entity in agents if self.boxes[entity.uid].shared]
        assert self.registry.discover(BASE, GUEST, subclasses=True) == shared


TestRegistry = RegistryMachine.TestCase
TestRegistry.settings = settings(max_examples=200, stateful_step_count=50)
