"""How much each workload does: the same on both sides."""

from dataclasses import dataclass

__all__ = ["SCALES", "Scale"]


@dataclass(frozen=True, slots=True)
class Scale:
    """Counts and durations of one run; seconds where a name ends in `_s`, bytes where it ends in `_bytes`."""

    name: str
    repeats: int
    sizes_bytes: tuple[int, ...]
    large_sizes_bytes: tuple[int, ...]
    """Sizes only academy_hpc carries: academy-py refuses payloads above 393,000 bytes."""
    warm_up_s: float
    window_s: float
    fleet_agents: int
    fleet_window_s: float
    messages: int
    registrations: int
    mailboxes: int
    """Total that discovery searches, the measured registrations included."""
    closed_mailboxes: int
    listeners: int
    idle_window_s: float
    """academy-py sends each listener a ping every 15 s: the full window holds one of each."""
    imports: int
    launched: int
    """Agents that one worker runs."""
    launched_apart: int
    """Agents that run in as many processes."""


_SIZES = (100, 10_000, 100_000, 350_000)
_LARGE = (1_000_000, 16_000_000)

SCALES = {
    scale.name: scale
    for scale in (
        Scale("full", 5, _SIZES, _LARGE, 0.3, 1.0, 32, 2.0, 5_000, 1_000, 10_000, 2_000, 500, 15.0, 2, 400, 8),
        Scale("quick", 2, _SIZES, _LARGE, 0.2, 0.6, 32, 1.0, 2_000, 500, 2_000, 500, 100, 3.0, 1, 400, 4),
        Scale("tiny", 1, (100,), (1_000_000,), 0.05, 0.2, 4, 0.2, 50, 50, 200, 20, 5, 0.3, 1, 20, 2),
    )
}
