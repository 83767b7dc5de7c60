"""Where an exchange keeps its state: the `Store` protocol. One module for each kind of store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from academy_hpc.changes import Change, Snapshot

__all__ = ["Store"]


class Store(Protocol):
    """Keeps what the core asks it to keep. tests/contract/test_store.py holds for every implementation."""

    @property
    def exchange_id(self) -> str:
        """Names what is stored: another id means that nothing is left of the old."""
        ...

    def load(self) -> Snapshot:
        """All changes written so far, put together. Called before the first write of an exchange's life."""

    def write(
        self, changes: Sequence[Change], *, written: Callable[[], None] = lambda: None, hurried: bool = True
    ) -> Awaitable[None]:
        """Done once all of `changes` are kept, as durably as this store keeps anything; all of them or none.

        Changes of one call, and calls one after another, take effect in order. Removing what is not there is harmless.
        Whoever stops waiting changes nothing. With no changes it is done when all that was written before is kept.
        Raises StoreError when awaited.

        Args:
            changes: What to keep.
            written: Called in the event loop, perhaps before this returns and never after it is done: from here on the
                end of this process does not undo the changes, though the end of the machine may.
            hurried: Somebody waits for the end; without it some milliseconds more are no matter.
        """
        ...

    async def close(self) -> None:
        """Let go of files and connections; what was written stays."""
