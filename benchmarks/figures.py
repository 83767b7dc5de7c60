"""The figures that are printed, in order, each with its target.

A target compares medians of one run: `at_most` and `at_least` bound ours divided by theirs, `limit` bounds ours alone,
`durable_at_least` bounds ours with a state directory divided by ours without.
"""

from dataclasses import dataclass

__all__ = ["FIGURES", "Figure"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table.

    `key` is the name under which the workload records it; braces in `label` are filled with the counts of the scale.
    """

    workload: str
    key: str
    label: str
    unit: str
    at_least: float | None = None
    durable_at_least: float | None = None
    at_most: float | None = None
    limit: float | None = None

    @property
    def target(self) -> str:
        """Return the target in words, empty where there is none."""
        parts = []
        if self.at_least is not None:
            parts.append(f">= {self.at_least:g}x")
        if self.at_most is not None:
            parts.append("< theirs" if self.at_most == 1 else f"<= 1/{1 / self.at_most:g}")
        if self.limit is not None:
            parts.append(f"<= {self.limit:g} {self.unit}")
        return ", ".join(parts)

    def met(self, theirs: float | None, ours: float | None) -> bool | None:
        """Return whether `ours` reaches the target; None without a target or without the figures to tell."""
        if ours is None or not self.target:
            return None
        if self.limit is not None and ours > self.limit:
            return False
        if self.at_most is None and self.at_least is None:
            return True
        if theirs is None:
            return None
        return (self.at_most is None or ours <= theirs * self.at_most) and (
            self.at_least is None or ours >= theirs * self.at_least
        )


def _size(size: int) -> str:
    return f"{size} B" if size < 1_000 else f"{size // 1_000} kB" if size < 1_000_000 else f"{size // 1_000_000} MB"


def _roundtrip(size: int, at_least: float | None) -> tuple[Figure, ...]:
    name = f"action {_size(size)}"
    outstanding = 64 if size <= 1_000_000 else 8
    p50_at_most = 1 / 8 if size <= 350_000 else None
    durable = 2 / 3 if size <= 10_000 else None
    return (
        Figure("roundtrip", f"p50_ms_{size}", f"{name}, 1 outstanding, p50", "ms", at_most=p50_at_most),
        Figure("roundtrip", f"p99_ms_{size}", f"{name}, 1 outstanding, p99", "ms"),
        Figure("roundtrip", f"rate_{size}", f"{name}, {outstanding} outstanding", "/s", at_least, durable),
    )


def _fleet(processes: int) -> tuple[Figure, ...]:
    name = f"{{fleet_agents}} agents x 4, {processes} process{'es' if processes > 1 else ''}"
    return (
        Figure("fleet", f"rate_{processes}", f"{name}: actions", "/s"),
        Figure("fleet", f"exchange_cpu_ms_{processes}", f"{name}: exchange CPU", "ms/action", at_most=1 / 15),
        Figure("fleet", f"user_cpu_ms_{processes}", f"{name}: user CPU", "ms/action"),
        Figure("fleet", f"agent_cpu_ms_{processes}", f"{name}: agents CPU", "ms/action"),
    )


FIGURES: tuple[Figure, ...] = (
    *_roundtrip(100, 20),
    *_roundtrip(10_000, None),
    *_roundtrip(100_000, 8),
    *_roundtrip(350_000, 5),
    *_roundtrip(1_000_000, None),
    *_roundtrip(16_000_000, None),
    *_fleet(1),
    *_fleet(4),
    Figure("oneway", "send_rate", "send, 32 outstanding", "/s", at_least=20),
    Figure("oneway", "drain_rate", "drain by a fresh process", "/s", at_least=20),
    Figure("registry", "register_rate", "register agents, 32 outstanding", "/s", at_least=3),
    Figure("registry", "discover_all_ms", "discover all of {mailboxes:,} agents", "ms", at_most=1 / 5),
    Figure("registry", "discover_few_ms", "discover 10 among {mailboxes:,} agents", "ms", at_most=1 / 5),
    Figure("registry", "idle_mailbox_bytes", "memory of an idle mailbox", "B", limit=1024),
    Figure("registry", "closed_mailbox_bytes", "memory kept of a closed mailbox", "B", at_most=1 / 5),
    Figure("idle", "listener_bytes", "memory of an idle listening client", "B", at_most=1),
    Figure("idle", "idle_cpu_percent", "CPU of an exchange with {listeners} listeners", "%"),
    Figure("lifecycle", "import_s", "import", "s", at_most=1),
    Figure("lifecycle", "spawn_s", "spawn until a client is ready", "s", at_most=1),
    Figure("lifecycle", "stop_s", "stop while a client listens", "s", limit=0.5),
    Figure("launch", "worker_s", "launch {launched} agents on one worker until all answer", "s"),
    Figure("launch", "worker_rate", "agents launched on one worker", "/s", at_least=4),
    Figure("launch", "threads_rate", "agents launched in threads of the program", "/s", at_least=4),
    Figure("launch", "processes_rate", "agents launched in {launched_apart} processes", "/s"),
    Figure("launch", "agent_kb", "memory of a further agent in a worker", "kB", limit=100),
    Figure("slurm", "slurm_s", "launch {launched} agents on 3 nodes of Slurm until all answer", "s"),
    Figure("slurm", "slurm_job_s", "the same from the start of the job", "s"),
    Figure("slurm", "slurm_rate", "agents launched on 3 nodes of Slurm", "/s"),
    Figure("launch", "relaunch_s", "start of a killed worker until all answer", "s", limit=2),
)
