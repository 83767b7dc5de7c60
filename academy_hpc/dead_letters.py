"""Requests that were given up: handed out too often without an answer. No I/O, no clock.

They are kept aside, out of the way of all others, until somebody puts them back or discards them. There is room for the
last ones only.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from academy_hpc.changes import DeadRemoved, MessageDied
from academy_hpc.delivery import size_of
from academy_hpc.identifiers import EntityId

__all__ = ["DeadLetter", "DeadLetters"]

_Key = tuple[uuid.UUID, uuid.UUID]  # mailbox, tag


class DeadLetter(msgspec.Struct, frozen=True):
    """A request that was given up, as its mailbox's owner sees it. ``died_s``: when, in seconds since 1970."""

    tag: uuid.UUID
    source: EntityId
    attempts: int
    size_bytes: int
    died_s: float


class DeadLetters:
    """All dead letters of one exchange, oldest first: at most `per_mailbox` of each mailbox, `limit_bytes` in all."""

    def __init__(self, *, per_mailbox: int, limit_bytes: int) -> None:
        self._per_mailbox = per_mailbox
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._letters: OrderedDict[_Key, MessageDied] = OrderedDict()
        self._mailboxes: dict[uuid.UUID, dict[uuid.UUID, None]] = {}

    def add(self, letter: MessageDied) -> list[DeadRemoved]:
        """Keep `letter`; the older ones, or even itself, that had to go."""
        self.remove(letter.uid, letter.message.tag)
        self._letters[letter.uid, letter.message.tag] = letter
        self._mailboxes.setdefault(letter.uid, {})[letter.message.tag] = None
        self._bytes += size_of(letter.message)
        dropped = []
        if len(self._mailboxes[letter.uid]) > self._per_mailbox:
            dropped.append((letter.uid, next(iter(self._mailboxes[letter.uid]))))
            self.remove(*dropped[0])
        while self._bytes > self._limit_bytes:
            dropped.append(next(iter(self._letters)))
            self.remove(*dropped[-1])
        return [DeadRemoved(uid, (tag,)) for uid, tag in dropped]

    def peek(self, uid: uuid.UUID, tag: uuid.UUID) -> MessageDied | None:
        """One of them; None if it is not there."""
        return self._letters.get((uid, tag))

    def remove(self, uid: uuid.UUID, tag: uuid.UUID) -> MessageDied | None:
        """Take one out; None if it is not there."""
        letter = self._letters.pop((uid, tag), None)
        if letter is not None:
            self._bytes -= size_of(letter.message)
            tags = self._mailboxes[uid]
            del tags[tag]
            if not tags:
                del self._mailboxes[uid]
        return letter

    def forget(self, uid: uuid.UUID) -> None:
        """The mailbox is gone."""
        for tag in list(self._mailboxes.get(uid, ())):
            self.remove(uid, tag)

    def of(self, uid: uuid.UUID) -> list[DeadLetter]:
        """Those of one mailbox."""
        letters = (self._letters[uid, tag] for tag in self._mailboxes.get(uid, ()))
        return [
            DeadLetter(each.message.tag, each.message.src, each.attempts, len(each.message.body), each.died_s)
            for each in letters
        ]

    def restore(self, letters: Iterable[MessageDied]) -> None:
        """Take back what a store has; only when nothing is here."""
        for letter in sorted(letters, key=lambda each: each.died_s):
            self.add(letter)
