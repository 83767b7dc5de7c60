"""Where an exchange keeps its state: the `Store` protocol. One module for each kind of store."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
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

    def write(self, changes: Sequence[Change]) -> Awaitable[None]:
        """Done once all of `changes` are kept, as durably as this store keeps anything; all of them or none.

        Changes of one call, and calls one after another, take effect in order, and are done in this order. Removing
        what is not there is harmless. Whoever stops waiting changes nothing. Raises StoreError when awaited.
        """
        ...

    async def close(self) -> None:
        """Let go of files and connections; what was written stays."""
