"""How long each step of an agent's end may take that is to go on in another life, before its host is gone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

__all__ = ["ACTIONS", "INTERRUPTED", "SHUTDOWN", "Drain"]

# Parts of the time: what is left after them is for saving the state, and for telling of the end.
ACTIONS = 0.5
"""Until then, what runs may finish; then it is cancelled."""
INTERRUPTED = 0.6
"""Until then, what was cancelled may clean up."""
SHUTDOWN = 0.75
"""Until then, `agent_on_shutdown` may take."""


class Drain:
    """The time that is left; as long as it has not begun, there is no limit."""

    def __init__(self) -> None:
        self.begun = False
        self._start_s = self._end_s = 0.0
        self._limits: dict[asyncio.Timeout, float] = {}

    def begin(self, grace_s: float) -> None:
        """From now on there are `grace_s` seconds; again: no more than that, and no more than before."""
        now = asyncio.get_running_loop().time()
        if self.begun and now + grace_s >= self._end_s:
            return
        self.begun, self._start_s, self._end_s = True, now, now + grace_s
        for limit, part in self._limits.items():
            if not limit.expired():
                limit.reschedule(self._when(part))

    @contextlib.asynccontextmanager
    async def limit(self, part: float) -> AsyncIterator[asyncio.Timeout]:
        """Cancel the block, and raise TimeoutError, when this part of the time is over."""
        async with asyncio.timeout_at(self._when(part)) as limit:
            self._limits[limit] = part
            try:
                yield limit
            finally:
                del self._limits[limit]

    def _when(self, part: float) -> float | None:
        return self._start_s + part * (self._end_s - self._start_s) if self.begun else None
