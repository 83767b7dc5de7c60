"""Which messages were accepted lately, so that one that is sent again is stored once. No I/O, no clock."""

from __future__ import annotations

import uuid
from collections import OrderedDict

from academy_hpc.message import Header

__all__ = ["RecentMessages"]


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
        return recent is not None and _key(header) in recent

    def add(self, header: Header) -> None:
        """The message with this header was accepted."""
        recent = self._sources.get(header.src.uid)
        if recent is None:
            recent = self._sources[header.src.uid] = {}
            if len(self._sources) > self._limit:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(header.src.uid)
        recent[_key(header)] = None
        if len(recent) > self._per_source:
            del recent[next(iter(recent))]

    def restore(self, header: Header) -> None:
        """As `add`, for what a store gave back: nothing is pushed out by it, in whatever order it comes."""
        self._sources.setdefault(header.src.uid, {})[_key(header)] = None

    def forget(self, source: uuid.UUID) -> None:
        """The source will not send again."""
        self._sources.pop(source, None)


def _key(header: Header) -> int:
    # One small integer instead of a tuple of objects: a request and its response have the same tag.
    number = header.tag.int
    return number if header.kind == "request" else ~number
