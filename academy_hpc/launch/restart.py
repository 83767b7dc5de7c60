"""How often, and after which pauses, agents whose worker was lost are started again."""

from __future__ import annotations

import msgspec

__all__ = ["RestartPolicy"]

STEADY_S = 600.0
"""A life of an agent that was this long starts the count anew: a crash loop is bounded, not a campaign of months."""


class RestartPolicy(msgspec.Struct, frozen=True):
    """When a manager starts an agent again, under the same registration, with what waits in its mailbox.

    A worker that had to end because of its walltime, or for the scheduler, is always followed by another one.

    Attributes:
        max_restarts: How often in a row an agent is started again that was lost, or fails, within ten minutes.
        backoff_s: Seconds before the first of them; each further one waits twice as long.
        max_backoff_s: Seconds that it waits at the most.
        on_error: Also after an error of the agent's own, which would as a rule come again.

    Raises:
        ValueError: A field makes no sense.
    """

    max_restarts: int = 3
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    on_error: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.max_restarts < 0 or not 0 <= self.backoff_s <= self.max_backoff_s:
            raise ValueError(f"{self}: give 0 or more restarts, and pauses that grow.")

    def pause_s(self, restarts: int) -> float:
        """Seconds before the restart that follows `restarts` others."""
        return float(min(self.backoff_s * 2 ** min(restarts, 30), self.max_backoff_s))
