"""The store of an exchange whose state lives as long as its process."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Generator, Sequence

from academy_hpc.changes import Change, Snapshot

__all__ = ["MemoryStore"]


class _Done:
    """Nothing to wait for."""

    def __await__(self) -> Generator[None, None, None]:
        return
        yield


_DONE = _Done()


class MemoryStore:
    """Keeps nothing: the registry has it all, and nobody can ask for it when that is gone."""

    def __init__(self) -> None:
        self._exchange_id = uuid.uuid4().hex

    @property
    def exchange_id(self) -> str:
        """See `Store`: new with each object."""
        return self._exchange_id

    def load(self) -> Snapshot:
        """See `Store`."""
        return Snapshot()

    def write(
        self, changes: Sequence[Change], *, written: Callable[[], None] = lambda: None, hurried: bool = True
    ) -> Awaitable[None]:
        """See `Store`. Done when it returns."""
        written()
        return _DONE

    async def close(self) -> None:
        """See `Store`."""
