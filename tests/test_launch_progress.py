"""What is shown while agents come up."""

from __future__ import annotations

import io

import pytest

from academy_hpc.launch.progress import LaunchProgress, ProgressLine

__all__: list[str] = []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_names_those_who_are_missing() -> None:
    progress = LaunchProgress(("a", "b"), ("c",), ("d", "e"))
    assert str(progress) == "2/5 ready, starting: c, waiting for a worker: d, e"
    assert str(LaunchProgress(("a",))) == "1/1 ready"


def test_many_names_are_cut_short() -> None:
    text = str(LaunchProgress((), tuple(f"sim-{number}" for number in range(400))))
    assert text.endswith("sim-9 and 390 more")


def test_a_terminal_shows_one_line_that_changes() -> None:
    terminal = Terminal()
    show = ProgressLine(terminal)
    show(LaunchProgress((), (), ("first",)))
    show(LaunchProgress((), ("first",)))
    show(LaunchProgress(("first",)))
    lines = terminal.getvalue().split("\r")
    assert [line.strip() for line in lines] == [
        "",
        "0/1 ready, waiting for a worker: first",
        "0/1 ready, starting: first",
        "1/1 ready",
    ]
    assert terminal.getvalue().count("\n") == 1
    assert len(lines[2]) >= len(lines[1])  # nothing of the longer line stays


def test_a_log_gets_a_line_now_and_then_and_the_last_one() -> None:
    log = io.StringIO()
    show = ProgressLine(log)
    for ready in range(101):
        show(LaunchProgress(("x",) * ready, ("y",) * (100 - ready)))
        show(LaunchProgress(("x",) * ready, ("y",) * (100 - ready)))
    lines = log.getvalue().splitlines()
    assert len(lines) < 10
    assert lines[-1] == "100/100 ready"


def test_a_log_of_a_long_wait_stays_short(monkeypatch: pytest.MonkeyPatch) -> None:
    log, now = io.StringIO(), 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    show = ProgressLine(log)
    for second in range(3600):
        now = float(second)
        show(LaunchProgress(queued=("x",), waiting=f"job 4711 is pending, {second} s"))
    assert 60 < len(log.getvalue().splitlines()) < 80


def test_nothing_is_shown_where_nobody_is_waited_for_any_more() -> None:
    log = io.StringIO()
    ProgressLine(log)(LaunchProgress())
    assert log.getvalue() == ""
