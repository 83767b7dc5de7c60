"""When a worker has to end, and why: by the clock, and by signals."""

from __future__ import annotations

import asyncio
import signal

import pytest

from academy_hpc import ConnectionInfo, LaunchError, LaunchSpec, UserId
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.worker.deadline import HURRIED_S, SAME_S, TOLD_S, Ending, with_environment

__all__: list[str] = []

START_S = 1_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now_s = START_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ending(clock: Clock, *, deadline_s: float | None = None, grace_s: float = 90.0) -> Ending:
    """`deadline_s`: seconds from now."""
    return Ending(deadline_s=None if deadline_s is None else START_S + deadline_s, grace_s=grace_s, clock=clock)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_who_kills_soon_leaves_less_time_than_who_warns(clock: Clock, name: str) -> None:
    """PBS waits 10 s after SIGTERM, and Flux 5 s."""
    told, warned = ending(clock), ending(clock)
    told.tell(name)
    warned.tell("SIGUSR1")
    assert (told.left_s, warned.left_s) == (TOLD_S, 90.0)
    assert (told.cause, told.reason) == ("preempted", f"its worker was told to end by {name}")
    assert told.asked


def test_being_told_again_shortens_the_time_and_keeps_the_reason(clock: Clock) -> None:
    it = ending(clock)
    it.tell("SIGUSR2")
    it.tell("SIGTERM")
    assert it.left_s == TOLD_S
    it.tell("SIGTERM")  # the same one, by another way
    it.tell("SIGUSR2")
    assert it.left_s == TOLD_S
    clock.now_s += SAME_S + 0.1
    it.tell("SIGTERM")
    assert it.left_s == HURRIED_S
    assert it.reason == "its worker was told to end by SIGUSR2"


def test_a_warning_leaves_no_more_time_than_the_job_has(clock: Clock) -> None:
    it = ending(clock, deadline_s=1000, grace_s=90)
    clock.now_s += 970
    it.tell("SIGUSR1")
    assert it.left_s == 30


@pytest.mark.parametrize(("passed_s", "cause"), [(0, "preempted"), (800, "preempted"), (860, "walltime")])
def test_a_signal_near_the_deadline_means_it(clock: Clock, passed_s: float, cause: str) -> None:
    """The warning of Slurm may come a minute early."""
    it = ending(clock, deadline_s=1000, grace_s=90)
    clock.now_s += passed_s
    it.tell("SIGUSR1")
    assert it.cause == cause


@pytest.mark.parametrize(("deadline_s", "left_s"), [(1000, 90), (100, 50), (2, 1)])
async def test_the_deadline_leaves_the_grace_or_half_of_a_short_job(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, deadline_s: float, left_s: float
) -> None:
    """One that is shorter than its grace still gets something done."""
    monkeypatch.setattr("academy_hpc.worker.deadline.LOOK_S", 0.01)
    it = ending(clock, deadline_s=deadline_s, grace_s=90)
    watch = asyncio.create_task(it.watch_deadline())
    clock.now_s = START_S + deadline_s - left_s - 0.5
    await asyncio.sleep(0.05)
    assert not it.asked
    clock.now_s += 0.5
    async with asyncio.timeout(5):
        await watch
    assert (it.cause, it.reason) == ("walltime", "its job is near its walltime")
    assert it.left_s == left_s


async def test_a_deadline_that_is_over_leaves_no_time(clock: Clock) -> None:
    it = ending(clock, deadline_s=-5)
    async with asyncio.timeout(5):
        await it.watch_deadline()
    assert (it.cause, it.left_s) == ("walltime", 0)


async def test_the_deadline_is_looked_for_by_the_clock_of_the_day(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be set while a worker runs."""
    monkeypatch.setattr("academy_hpc.worker.deadline.LOOK_S", 0.01)
    it = ending(clock, deadline_s=5000)
    watch = asyncio.create_task(it.watch_deadline())
    await asyncio.sleep(0.05)
    assert not watch.done()
    clock.now_s += 4950
    async with asyncio.timeout(5):
        await watch


async def test_who_listens_hears_it_also_when_it_was_before(clock: Clock) -> None:
    it = ending(clock)
    heard: list[float] = []
    it.listen(lambda: heard.append(it.left_s))
    it.tell("SIGUSR1")
    await asyncio.sleep(0)
    it.ignore()
    it.tell("SIGTERM")
    await asyncio.sleep(0)
    it.listen(lambda: heard.append(it.left_s))
    assert heard == [90.0, TOLD_S]


def test_signals_are_heeded_inside_the_block_only() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with Ending(deadline_s=None, grace_s=9) as it:
        signal.raise_signal(signal.SIGUSR1)
    assert it.asked
    assert signal.getsignal(signal.SIGUSR1) is before


INFO = ConnectionInfo(("http://127.0.0.1:9",))
SPEC = LaunchSpec(INFO, ClientOptions(), (), UserId.new(), attempt=2, deadline_s=1.0)


def test_what_the_job_script_exports_counts_before_the_spec() -> None:
    changed = with_environment(SPEC, {"ACADEMY_HPC_DEADLINE": "1790000000.5", "ACADEMY_HPC_ATTEMPT": "3"})
    assert (changed.deadline_s, changed.attempt) == (1790000000.5, 3)
    assert with_environment(SPEC, {"ACADEMY_HPC_DEADLINE": ""}) == SPEC


def test_a_deadline_that_is_no_number_is_an_error() -> None:
    with pytest.raises(LaunchError, match="ACADEMY_HPC_DEADLINE='tomorrow' is no number"):
        with_environment(SPEC, {"ACADEMY_HPC_DEADLINE": "tomorrow"})
