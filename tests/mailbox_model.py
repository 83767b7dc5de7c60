"""What test_registry_model.py keeps of each mailbox: the plainest state that can tell right from wrong."""

from __future__ import annotations

import uuid
from collections import deque

from academy_hpc import errors
from academy_hpc.changes import MailboxTerminated, MessagesRemoved, MessageStored
from academy_hpc.delivery import Delivery
from academy_hpc.directory import Effects, MailboxCounters
from academy_hpc.identifiers import EntityId
from academy_hpc.message import AcademyErrorResponse, Header, Message, UserErrorResponse
from academy_hpc.serialization import deserialize_exception

__all__ = ["Box", "Item", "Listener", "check_effects"]


class Item:
    """A message that was accepted and is not acknowledged. `answer`: the exchange made it, with this error."""

    def __init__(self, header: Header, size: int, answer: type[errors.AcademyError] | None = None) -> None:
        self.header = header
        self.size = size
        self.answer = answer
        self.attempts = 0
        self.deaths = 0
        self.out = False
        self.restored = False

    @property
    def key(self) -> tuple[uuid.UUID, uuid.UUID, str]:
        return self.header.src.uid, self.header.tag, self.header.kind

    def fits(self, message: Message) -> bool:
        """Whether `message` is this one."""
        if message.header != self.header:
            return False
        if self.answer is None:
            return len(message.body) == self.size
        body = message.decoded()
        if isinstance(body, AcademyErrorResponse):
            return type(body.exception()) is self.answer
        assert isinstance(body, UserErrorResponse)
        return type(deserialize_exception(body.exception, body.serialization)) is self.answer


class Listener:
    """An agent's or user's end: what is under way to it, what it has received and what it works on."""

    def __init__(self) -> None:
        self.session = uuid.uuid4()
        self.connected = True
        self.under_way: deque[Delivery] = deque()
        self.unread: list[int] = []
        self.received = 0
        self.held: dict[int, Message] = {}


class Box:
    """What the model knows of one open mailbox."""

    def __init__(self, entity: EntityId) -> None:
        self.entity = entity
        self.items: dict[int, Item] = {}
        self.last_seq = 0
        self.pending: dict[uuid.UUID, Header] = {}
        self.dead: dict[uuid.UUID, Item] = {}
        self.completed = 0
        self.outgoing = 0
        self.shared = False
        self.listener: Listener | None = None
        self.left_in_order = False
        self.attempts_kept = False  # whether after a restart what is here counts as attempted

    def died(self, item: Item) -> None:
        """The last two are kept."""
        self.dead.pop(item.header.tag, None)
        self.dead[item.header.tag] = item
        for tag in list(self.dead)[:-2]:
            del self.dead[tag]

    def put(self, item: Item) -> None:
        self.last_seq += 1
        self.items[self.last_seq] = item

    def resumed(self, listener: Listener) -> None:
        """What has arrived is held or done with; what has not was never attempted."""
        for seq in [seq for seq in self.items if seq <= listener.received and seq not in listener.held]:
            del self.items[seq]
        self.left_in_order = False
        for seq, item in self.items.items():
            item.deaths *= not item.restored
            if seq in listener.held:
                item.attempts, item.out = max(1, item.attempts), True
            elif item.out:
                item.attempts, item.out = item.attempts - 1, False
            elif item.restored:
                item.attempts = 0
            item.restored = False

    def left(self, listener: Listener, unbegun: list[int]) -> None:
        """Its listener has ended in order: it has died of nothing, and what it has not begun was never attempted."""
        for seq in unbegun:
            self.items[seq].attempts -= 1
        self.listener, self.left_in_order = None, True
        self.attempts_kept = any(item.attempts for item in self.items.values())

    def restarted(self) -> None:
        """Counts of attempts and of answers live as long as the exchange's process; one attempt may have been made."""
        self.completed = self.outgoing = 0
        for item in self.items.values():
            item.attempts = item.deaths = int(self.attempts_kept)
            item.out, item.restored = False, True
        self.left_in_order = False
        if self.listener is not None:
            self.listener.connected = False

    def counters(self) -> MailboxCounters:
        ready = sum(not item.out for item in self.items.values())
        waiting = len(self.pending)
        return MailboxCounters(self.completed + waiting, self.outgoing, self.completed, max(0, waiting - ready), ready)


def check_effects(effects: Effects) -> None:
    """What the changes of an operation mean for listeners and waiting senders is said, too."""
    changes = effects.changes
    assert {change.uid for change in changes if isinstance(change, MessageStored)} <= set(effects.woken)
    assert {change.uid for change in changes if isinstance(change, MessagesRemoved)} <= set(effects.freed)
    assert [change.uid for change in changes if isinstance(change, MailboxTerminated)] == list(effects.ended)
    assert set(effects.woken).isdisjoint(effects.ended)
