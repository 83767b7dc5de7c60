"""What callers asked for, what they heard, and what agents did: and whether the promises of delivery held.

Callers and agents append events to files, each process to one of its own or all to the same one; a `History` reads them
when all is over. Nothing lost, nothing executed twice, the order of each pair kept, every call answered: what breaks
that is a complaint.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal, Self

import msgspec

__all__ = ["Event", "History", "Journal", "Kind", "Notes"]

Kind = Literal["invoke", "ok", "fail", "start", "end"]
Call = tuple[str, str, int]


class Event(msgspec.Struct, frozen=True):
    """Something that happened to one call: number `number` from `sender` to `receiver`.

    `life`: which process, or copy, of the receiver did it. `error`: class of the error that the caller got. `once`: the
    action must not be executed a second time, whatever happens. `at`: `time.monotonic`, one clock for all processes.
    """

    kind: Kind
    sender: str
    receiver: str
    number: int
    life: str = ""
    error: str = ""
    once: bool = False
    at: float = msgspec.field(default_factory=time.monotonic)

    @property
    def call(self) -> Call:
        """Which call."""
        return self.sender, self.receiver, self.number


class Journal:
    """Writes events to a file; a process that is killed right after that has written them."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, event: Event) -> None:
        """Append one line."""
        os.write(self._descriptor, msgspec.json.encode(event) + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


class Notes:
    """Keeps events in memory: for callers and agents of this process."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def write(self, event: Event) -> None:
        """Append it."""
        self.events.append(event)


class History:
    """All events of one run.

    `killed`: lives that were killed on purpose; what they were at may be executed again. `replaced`: lives to which a
    newer copy came. Until such a life hears of that it does what it had been given, beside the newer copy, and whoever
    is first has answered: an execution may come after the answer, in no order with those of the newer copy.
    """

    def __init__(
        self, events: Iterable[Event] = (), *, killed: Collection[str] = (), replaced: Collection[str] = ()
    ) -> None:
        self.events = sorted(events, key=lambda event: event.at)
        self.replaced = frozenset(replaced)
        self.killed = self.replaced.union(killed)

    @classmethod
    def read(cls, *paths: Path, **lives: Collection[str]) -> Self:
        """The events in these files."""
        decoder = msgspec.json.Decoder(Event)
        return cls((event for path in paths for event in decoder.decode_lines(path.read_bytes())), **lives)

    def count(self, kind: Kind) -> int:
        """How many events of this kind there are."""
        return sum(event.kind == kind for event in self.events)

    def repeated(self) -> int:
        """How many executions were further ones of the same call."""
        return sum(len(runs) - 1 for runs in self._by_call("start").values())

    def check(self, *, may_fail: Collection[str] = ()) -> None:
        """Raise AssertionError with all complaints, if there are any."""
        complaints = self.complaints(may_fail=may_fail)
        assert not complaints, f"{len(complaints)} complaints:\n" + "\n".join(complaints[:20])

    def complaints(self, *, may_fail: Collection[str] = ()) -> list[str]:
        """What broke the promises. `may_fail`: classes of errors that calls may end with."""
        invoked, started = self._by_call("invoke"), self._by_call("start")
        complaints = [f"{_name(call)} was executed and never asked for" for call in started if call not in invoked]
        for call, (first, *_) in invoked.items():
            complaints += self._of_answer(call, started.get(call, []), may_fail)
            complaints += self._of_executions(call, started.get(call, []), once=first.once)
        return complaints + self._of_order()

    def _by_call(self, *kinds: Kind) -> dict[Call, list[Event]]:
        found = defaultdict(list)
        for event in self.events:
            if event.kind in kinds:
                found[event.call].append(event)
        return found

    def _of_answer(self, call: Call, runs: list[Event], may_fail: Collection[str]) -> list[str]:
        outcomes = self._outcomes.get(call, [])
        if not outcomes:
            return [f"{_name(call)} was never answered" + ("" if runs else ", and never executed: lost")]
        if len(outcomes) > 1:
            return [f"{_name(call)} was answered {len(outcomes)} times"]
        outcome = outcomes[0]
        if outcome.kind == "fail":
            return [] if outcome.error in may_fail else [f"{_name(call)} failed with {outcome.error}"]
        complaints = []
        if outcome.life not in {run.life for run in runs}:
            complaints.append(f"{_name(call)} was answered by {outcome.life}, which did not execute it")
        if self.replaced.isdisjoint(run.life for run in runs):
            late = f"{_name(call)} was executed after its answer had come"
            complaints += [late for run in runs if run.at > outcome.at]
        return complaints

    @property
    def _outcomes(self) -> dict[Call, list[Event]]:
        if not hasattr(self, "_outcomes_by_call"):
            self._outcomes_by_call = self._by_call("ok", "fail")
        return self._outcomes_by_call

    def _of_executions(self, call: Call, runs: list[Event], *, once: bool) -> list[str]:
        lives = [run.life for run in runs]
        survivors = [life for life in lives if life not in self.killed]
        if len(set(lives)) < len(lives):
            return [f"{_name(call)} was executed twice in one life: {', '.join(lives)}"]
        if len(survivors) > 1 or (once and len(lives) > 1):
            return [f"{_name(call)} was executed {len(lives)} times: {', '.join(lives)}"]
        return []

    def _of_order(self) -> list[str]:
        complaints = []
        latest: dict[tuple[str, str, str], int] = defaultdict(lambda: -1)
        seen: set[Call] = set()
        for event in self.events:
            if event.kind != "start":
                continue
            # In each life, and where it was executed for the first time at all.
            first = [""] if event.call not in seen and event.life not in self.replaced else []
            seen.update([event.call] if first else [])
            for life in (event.life, *first):
                key = event.sender, event.receiver, life
                if event.number < latest[key]:
                    complaints.append(f"{_name(event.call)} was executed after number {latest[key]} of the same pair")
                latest[key] = max(latest[key], event.number)
        return complaints


def _name(call: Call) -> str:
    sender, receiver, number = call
    return f"call {number} from {sender} to {receiver}"
