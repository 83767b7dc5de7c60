"""Which messages were accepted lately, so that one that is sent again is stored once. No I/O, no clock."""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from academy_hpc.message import Header

__all__ = ["PER_SOURCE", "SOURCES", "RecentIds", "RecentMessages"]

PER_SOURCE = 512
"""How many messages of one source are remembered. A client keeps fewer unconfirmed."""

SOURCES = 10_000
"""Of how many sources: those that sent last."""


class RecentMessages:
    """Remembers, for each of the sources that sent last, the last messages it sent.

    A repeat is recognised if fewer than `per_source` later messages came from the same source. A client keeps fewer
    unconfirmed messages than that, so what it sends again after a broken connection is always recognised.
    """

    def __init__(self, *, per_source: int, sources: int) -> None:
        self._per_source = per_source
        self._limit = sources
        self._sources: OrderedDict[uuid.UUID, dict[int, None]] = OrderedDict()

    def __contains__(self, header: Header) -> bool:
        """Whether the message with this header was accepted before."""
        recent = self._sources.get(header.src.uid)
        return recent is not None and _number(header) in recent

    def add(self, header: Header) -> None:
        """The message with this header was accepted."""
        recent = self._sources.get(header.src.uid)
        if recent is None:
            recent = self._sources[header.src.uid] = {}
            if len(self._sources) > self._limit:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(header.src.uid)
        recent[_number(header)] = None
        if len(recent) > self._per_source:
            del recent[next(iter(recent))]

    def restore(self, source: uuid.UUID, numbers: Iterable[int]) -> None:
        """Take back what a store kept of `source`, from `RecentIds`; the source that sent first comes first."""
        self._sources[source] = dict.fromkeys(list(numbers)[-self._per_source :])
        if len(self._sources) > self._limit:
            self._sources.popitem(last=False)


class RecentIds:
    """The same ids in the same order, without the look-up: what a store keeps of them."""

    def __init__(self, *, per_source: int = PER_SOURCE, sources: int = SOURCES) -> None:
        self._per_source = per_source
        self._limit = sources
        self._sources: OrderedDict[uuid.UUID, list[int]] = OrderedDict()

    def add(self, header: Header) -> None:
        """The message with this header was accepted."""
        source = header.src.uid
        recent = self._sources.get(source)
        if recent is None:
            recent = self._sources[source] = []
            if len(self._sources) > self._limit:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(source)
        recent.append(_number(header))
        if len(recent) >= 2 * self._per_source:  # now and then, since a list moves all that stays
            del recent[: -self._per_source]

    def restore(self, source: uuid.UUID, numbers: Iterable[int]) -> None:
        """Take back what `items` gave, in its order."""
        self._sources[source] = list(numbers)

    def items(self) -> Iterator[tuple[uuid.UUID, tuple[int, ...]]]:
        """Each source with its numbers, oldest first; the source that sent last comes last."""
        for source, recent in self._sources.items():
            yield source, tuple(recent[-self._per_source :])


def _number(header: Header) -> int:
    # One small integer instead of a tuple of objects: a request and its response have the same tag.
    number = header.tag.int
    return number if header.kind == "request" else ~number
