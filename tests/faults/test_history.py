"""The history checker catches what breaks a promise, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.history import Event, History, Journal, Kind

__all__: list[str] = []


class Script:
    """Events one after another."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, kind: Kind, number: int, *, life: str = "a1", sender: str = "u", **fields: object) -> Script:
        at = float(len(self.events))
        self.events.append(Event(kind, sender, "a", number, life=life, at=at, **fields))  # type: ignore[arg-type]
        return self

    def call(self, number: int, *, life: str = "a1", sender: str = "u") -> Script:
        """A call that goes as it should."""
        for kind in ("invoke", "start", "end", "ok"):
            self.add(kind, number, life=life, sender=sender)  # type: ignore[arg-type]
        return self

    def complaints(self, *killed: str, may_fail: tuple[str, ...] = ()) -> list[str]:
        return History(self.events, killed=killed).complaints(may_fail=may_fail)


@pytest.fixture
def script() -> Script:
    return Script().call(1).call(2)


def test_calls_that_were_executed_once_and_answered_are_no_complaint(script: Script) -> None:
    assert script.call(3).call(1, sender="v").complaints() == []


def test_a_lost_call_is_told(script: Script) -> None:
    assert script.add("invoke", 3).complaints() == ["call 3 from u to a was never answered, and never executed: lost"]


def test_a_lost_answer_is_told(script: Script) -> None:
    assert script.add("invoke", 3).add("start", 3).complaints() == ["call 3 from u to a was never answered"]


def test_a_call_that_was_executed_twice_in_one_life_is_told_even_if_that_was_killed(script: Script) -> None:
    script.add("invoke", 3).add("start", 3).add("start", 3).add("ok", 3)
    assert script.complaints("a1") == ["call 3 from u to a was executed twice in one life: a1, a1"]


def test_a_second_execution_is_told_unless_the_first_was_killed(script: Script) -> None:
    script.add("invoke", 3).add("start", 3).add("start", 3, life="a2").add("ok", 3, life="a2")
    assert script.complaints("a1") == []
    assert History(script.events, killed=["a1"]).repeated() == 1
    assert script.complaints() == ["call 3 from u to a was executed 2 times: a1, a2"]


def test_what_must_not_run_twice_may_not_run_twice_after_a_kill_either(script: Script) -> None:
    script.add("invoke", 3, once=True).add("start", 3).add("start", 3, life="a2").add("ok", 3, life="a2")
    assert script.complaints("a1") == ["call 3 from u to a was executed 2 times: a1, a2"]


def test_an_execution_after_the_answer_is_told_whoever_was_killed(script: Script) -> None:
    assert script.call(3).add("start", 3, life="a2").complaints("a1") == [
        "call 3 from u to a was executed after its answer had come"
    ]


def test_a_copy_that_was_replaced_may_do_what_it_was_given_at_any_time_but_in_order(script: Script) -> None:
    for number in (3, 4):
        script.add("invoke", number)
    for number in (3, 4):
        script.add("start", number, life="a2").add("ok", number, life="a2")
    script.add("start", 3).add("start", 4)
    assert History(script.events, replaced=["a1"]).complaints() == []
    assert len(script.complaints("a1")) == 2
    script.add("start", 2, sender="v").add("start", 1, sender="v")
    assert "call 1 from v to a was executed after number 2 of the same pair" in (
        History(script.events, replaced=["a1"]).complaints()
    )


def test_a_reordered_call_is_told(script: Script) -> None:
    script.add("invoke", 3).add("invoke", 4)
    for number in (4, 3):
        script.add("start", number).add("ok", number)
    complaint = "call 3 from u to a was executed after number 4 of the same pair"
    assert script.complaints() == [complaint, complaint]  # in its life, and at all


def test_a_call_that_was_overtaken_in_an_earlier_life_is_told(script: Script) -> None:
    script.add("invoke", 3).add("invoke", 4).add("start", 4)
    script.add("start", 3, life="a2").add("ok", 3, life="a2").add("start", 4, life="a2").add("ok", 4, life="a2")
    assert script.complaints("a1") == ["call 3 from u to a was executed after number 4 of the same pair"]


def test_repeating_a_whole_life_in_order_is_no_complaint(script: Script) -> None:
    for number in (3, 4, 5):
        script.add("invoke", number).add("start", number)
    for number in (3, 4, 5):
        script.add("start", number, life="a2").add("ok", number, life="a2")
    assert script.complaints("a1") == []


def test_a_failure_is_told_unless_it_is_expected(script: Script) -> None:
    script.add("invoke", 3).add("fail", 3, error="MailboxFullError")
    assert script.complaints() == ["call 3 from u to a failed with MailboxFullError"]
    assert script.complaints(may_fail=("MailboxFullError",)) == []


def test_an_answer_from_nowhere_and_a_second_one_are_told(script: Script) -> None:
    assert script.add("invoke", 3).add("ok", 3).complaints() == [
        "call 3 from u to a was answered by a1, which did not execute it"
    ]
    assert "call 1 from u to a was answered 2 times" in script.add("ok", 1).complaints()


def test_an_execution_that_nobody_asked_for_is_told(script: Script) -> None:
    assert script.add("start", 9).complaints() == ["call 9 from u to a was executed and never asked for"]


def test_events_are_read_from_the_files_of_all_processes(tmp_path: Path) -> None:
    caller, agent = Journal(tmp_path / "caller"), Journal(tmp_path / "agent")
    caller.write(Event("invoke", "u", "a", 1))
    agent.write(Event("start", "u", "a", 1, life="a1"))
    caller.write(Event("ok", "u", "a", 1, life="a1"))
    caller.write(Event("invoke", "u", "a", 2))
    caller.close()
    agent.close()
    history = History.read(tmp_path / "caller", tmp_path / "agent")
    assert (history.count("invoke"), history.count("start"), history.count("ok")) == (2, 1, 1)
    with pytest.raises(AssertionError, match="call 2 from u to a was never answered"):
        history.check()
