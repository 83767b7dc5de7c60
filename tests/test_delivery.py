"""One mailbox: put, take within a window, acknowledge, release, terminate."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any

import pytest

from academy_hpc import delivery
from academy_hpc.delivery import OVERHEAD_BYTES, Delivery, Mailbox, Window, size_of
from academy_hpc.identifiers import AgentId, UserId
from academy_hpc.message import Header, Message

__all__: list[str] = []

USER = UserId.new("ada")
AGENT = AgentId[Any].new("simulator")
ALL = Window(messages=1000)


def message(size: int = 2) -> Message:
    return Message(Header(USER, AGENT, uuid.uuid4(), "request"), b"x" * size)


def numbers(deliveries: Sequence[Delivery]) -> list[int]:
    return [delivery.seq for delivery in deliveries]


def attempts(deliveries: Sequence[Delivery]) -> list[int]:
    return [delivery.attempt for delivery in deliveries]


def start(mailbox: Mailbox, *, max_attempts: int = 5) -> list[Delivery]:
    return mailbox.start_session(uuid.uuid4(), max_attempts=max_attempts)


@pytest.fixture
def mailbox() -> Mailbox:
    """A mailbox with messages 1 to 5, and a listener that has taken none."""
    mailbox = Mailbox()
    for _ in range(5):
        mailbox.put(message())
    start(mailbox)
    return mailbox


def test_the_table_in_the_docstring_is_the_table() -> None:
    row = re.compile(r"^    (READY|OUT|\(none\)) +(\w+) +(READY|OUT|GONE) ", re.MULTILINE)
    drawn = {(state, event): new for state, event, new in row.findall(delivery.__doc__ or "")}
    assert drawn == {("(none)", "put"): "READY", **delivery._TRANSITIONS}


# Put and take


def test_messages_are_numbered_from_one_in_the_order_they_come() -> None:
    mailbox = Mailbox()
    assert [mailbox.put(message()) for _ in range(3)] == [1, 2, 3]
    assert (len(mailbox), mailbox.ready, mailbox.last_seq) == (3, 3, 3)


def test_a_number_is_never_given_twice(mailbox: Mailbox) -> None:
    mailbox.acknowledge(numbers(mailbox.take(ALL)))
    assert mailbox.put(message()) == 6


def test_first_in_first_out(mailbox: Mailbox) -> None:
    sixth = message()
    assert numbers(mailbox.take(ALL)) == [1, 2, 3, 4, 5]
    mailbox.put(sixth)
    (taken,) = mailbox.take(ALL)
    assert (taken.seq, taken.attempt, taken.message) == (6, 1, sixth)


def test_what_was_taken_is_not_taken_again_in_the_same_session(mailbox: Mailbox) -> None:
    mailbox.take(ALL)
    assert mailbox.take(ALL) == []


def test_a_message_stays_until_it_is_acknowledged(mailbox: Mailbox) -> None:
    mailbox.take(ALL)
    assert (len(mailbox), mailbox.ready) == (5, 0)
    assert mailbox.acknowledge([2, 4]) == [2, 4]
    assert len(mailbox) == 3


@pytest.mark.parametrize("again", [[1], [1, 1], [99], [0], [-1], []])
def test_an_acknowledgement_twice_or_of_nothing_is_harmless(mailbox: Mailbox, again: list[int]) -> None:
    mailbox.take(Window(messages=1))
    mailbox.acknowledge([1])
    assert mailbox.acknowledge(again) == []
    assert len(mailbox) == 4


def test_a_message_that_was_not_handed_out_cannot_be_acknowledged(mailbox: Mailbox) -> None:
    mailbox.take(Window(messages=2))
    assert mailbox.acknowledge([1, 2, 3]) == [1, 2]
    assert numbers(mailbox.take(ALL)) == [3, 4, 5]


def test_bytes_are_counted_with_room_for_the_bookkeeping() -> None:
    """A message counts for its texts and a fixed amount, so that empty bodies are not free, nor are long names."""
    mailbox = Mailbox()
    mailbox.put(message(1000))
    mailbox.put(message(0))
    assert 1000 + 2 * OVERHEAD_BYTES <= mailbox.stored_bytes < 1100 + 2 * OVERHEAD_BYTES
    start(mailbox)
    mailbox.take(ALL)
    mailbox.acknowledge([1])
    assert mailbox.stored_bytes == size_of(message(0))
    named = UserId.new("x" * 1000)
    assert size_of(Message(Header(named, named, uuid.uuid4(), "request", None, "1" * 500, "1" * 500), b"")) == 3512


# The window


def test_no_more_messages_are_out_than_the_window_allows(mailbox: Mailbox) -> None:
    window = Window(messages=2)
    assert numbers(mailbox.take(window)) == [1, 2]
    assert mailbox.take(window) == []
    mailbox.consumed(1)
    assert numbers(mailbox.take(window)) == [3]


def test_no_more_bytes_are_out_than_the_window_allows() -> None:
    mailbox = Mailbox()
    for _ in range(4):
        mailbox.put(message(1000))
    start(mailbox)
    window = Window(limit_bytes=2 * size_of(message(1000)))
    assert numbers(mailbox.take(window)) == [1, 2]
    assert mailbox.take(window) == []
    mailbox.consumed(1)
    assert numbers(mailbox.take(window)) == [3]


def test_after_a_message_larger_than_the_whole_window_nothing_is_handed_out_until_it_is_read() -> None:
    mailbox = Mailbox()
    for size in (10, 5000, 10):
        mailbox.put(message(size))
    start(mailbox)
    window = Window(limit_bytes=2000)
    assert numbers(mailbox.take(window)) == [1, 2]
    assert mailbox.take(window) == []
    mailbox.consumed(2)
    assert numbers(mailbox.take(window)) == [3]


def test_reading_opens_the_window_and_acknowledging_does_not(mailbox: Mailbox) -> None:
    """The window bounds what waits in the listener's buffers; a long action does not stop the next request."""
    window = Window(messages=2)
    mailbox.take(window)
    mailbox.acknowledge([1, 2])
    assert mailbox.take(window) == []
    mailbox.consumed(2)
    assert numbers(mailbox.take(window)) == [3, 4]


def test_what_was_read_and_not_acknowledged_is_still_out_when_more_is_taken(mailbox: Mailbox) -> None:
    """An agent reads on while it works: its acknowledgements count, and what it had not done with comes again."""
    for seq in (1, 2, 3):
        assert numbers(mailbox.take(Window(messages=1))) == [seq]
        mailbox.consumed(seq)
    assert mailbox.acknowledge([2]) == [2]
    start(mailbox)
    assert numbers(mailbox.take(ALL)) == [1, 3, 4, 5]


@pytest.mark.parametrize("seq", [-1, 0, 2, 99])
def test_consumed_counts_all_up_to_a_number_and_twice_is_harmless(mailbox: Mailbox, seq: int) -> None:
    window = Window(messages=3)
    mailbox.take(window)
    mailbox.consumed(2)
    mailbox.consumed(seq)
    assert numbers(mailbox.take(window)) == [4, 5]


def test_a_new_listener_has_a_whole_window(mailbox: Mailbox) -> None:
    window = Window(messages=2)
    mailbox.take(window)
    start(mailbox)
    assert numbers(mailbox.take(window)) == [1, 2]


# A new session


def test_a_delivery_that_is_not_acknowledged_comes_again_in_its_old_place(mailbox: Mailbox) -> None:
    """When the receiver dies, its unacknowledged deliveries go back, in order, to the next listener."""
    mailbox.take(Window(messages=4))
    mailbox.acknowledge([2])
    mailbox.put(message())
    assert start(mailbox) == []
    again = mailbox.take(ALL)
    assert numbers(again) == [1, 3, 4, 5, 6]
    assert attempts(again) == [2, 2, 2, 1, 1]


def test_a_message_is_given_up_after_as_many_attempts_as_allowed(mailbox: Mailbox) -> None:
    for attempt in (1, 2, 3):
        taken = mailbox.take(Window(messages=1))
        assert (numbers(taken), attempts(taken)) == ([1], [attempt])
        given_up = start(mailbox, max_attempts=3)
        assert numbers(given_up) == ([1] if attempt == 3 else [])
    assert (given_up[0].attempt, len(mailbox)) == (3, 4)
    assert numbers(mailbox.take(ALL)) == [2, 3, 4, 5]


def test_a_listener_that_ends_in_order_has_not_died_of_what_it_leaves_behind(mailbox: Mailbox) -> None:
    """Jobs may end at their walltime as often as they like. But that it was handed out before is told."""
    for attempt in range(1, 10):
        assert attempts(mailbox.take(Window(messages=1))) == [attempt]
        mailbox.detach()
        assert start(mailbox, max_attempts=2) == []
    mailbox.take(Window(messages=1))
    assert start(mailbox, max_attempts=2) == []
    mailbox.take(Window(messages=1))
    assert numbers(start(mailbox, max_attempts=2)) == [1]


def test_a_listener_that_comes_back_after_all_may_still_die(mailbox: Mailbox) -> None:
    mailbox.take(Window(messages=1))
    mailbox.detach()
    mailbox.resume(received=1, held=[1])
    assert numbers(start(mailbox, max_attempts=1)) == [1]


def test_what_was_never_handed_out_is_never_given_up(mailbox: Mailbox) -> None:
    for _ in range(10):
        assert start(mailbox, max_attempts=1) == []
    assert attempts(mailbox.take(ALL)) == [1] * 5


def test_a_mailbox_whose_last_message_is_given_up_goes_on(mailbox: Mailbox) -> None:
    mailbox.take(ALL)
    assert numbers(start(mailbox, max_attempts=1)) == [1, 2, 3, 4, 5]
    assert (len(mailbox), mailbox.ready, mailbox.stored_bytes) == (0, 0, 0)
    mailbox.put(message())
    assert numbers(mailbox.take(ALL)) == [6]


# The same session on a new connection


def test_a_broken_connection_neither_loses_nor_doubles_a_message(mailbox: Mailbox) -> None:
    """What did not arrive comes again, what did arrive does not."""
    mailbox.take(ALL)
    assert mailbox.resume(received=3, held=[1, 2, 3]) == []
    assert numbers(mailbox.take(ALL)) == [4, 5]


def test_resuming_acknowledges_what_is_received_and_not_held(mailbox: Mailbox) -> None:
    """The acknowledgement of a message that the listener has done with may have been lost with the connection."""
    mailbox.take(ALL)
    assert mailbox.resume(received=4, held=[2]) == [1, 3, 4]
    assert len(mailbox) == 2
    assert mailbox.acknowledge([2]) == [2]
    assert numbers(mailbox.take(ALL)) == [5]


def test_what_was_lost_on_its_way_has_not_been_attempted(mailbox: Mailbox) -> None:
    for _ in range(10):
        assert attempts(mailbox.take(ALL)) == [1] * 5
        mailbox.resume(received=0, held=[])
    assert start(mailbox, max_attempts=1) == []


def test_what_is_held_keeps_its_attempt(mailbox: Mailbox) -> None:
    mailbox.take(ALL)
    mailbox.resume(received=5, held=[1, 2, 3, 4, 5])
    start(mailbox)
    assert attempts(mailbox.take(ALL)) == [2] * 5


def test_after_a_restart_a_session_resumes_as_if_nothing_had_happened() -> None:
    """A restored mailbox knows no deliveries; the listener tells of them. What it did not get was not attempted."""
    session = uuid.uuid4()
    mailbox = Mailbox(session=session)
    for seq in (2, 3, 7, 8):
        mailbox.restore(seq, message())
    mailbox.last_seq = 9
    assert mailbox.resume(received=7, held=[3, 7]) == [2]
    assert mailbox.session == session
    assert (mailbox.put(message()), numbers(mailbox.take(ALL))) == (10, [8, 10])
    start(mailbox)
    assert [(d.seq, d.attempt) for d in mailbox.take(ALL)] == [(3, 2), (7, 2), (8, 2), (10, 2)]


def test_after_a_restart_a_new_session_gets_what_an_earlier_one_may_have_run_as_a_second_attempt() -> None:
    """Attempts are not stored: an action that must not run twice is rather not run again."""
    mailbox = Mailbox(session=uuid.uuid4())
    mailbox.restore(1, message())
    start(mailbox)
    assert attempts(mailbox.take(ALL)) == [2]
    never_heard = Mailbox()
    never_heard.restore(1, message())
    start(never_heard)
    assert attempts(never_heard.take(ALL)) == [1]


def test_a_large_message_follows_small_ones_that_are_not_reported_as_read_yet() -> None:
    """A listener reports when a part of its window is full; until then, small ones must not keep out large ones."""
    mailbox = Mailbox()
    for size in (10, 10, 900, 10):
        mailbox.put(message(size))
    start(mailbox)
    assert numbers(mailbox.take(Window(limit_bytes=3 * 512))) == [1, 2, 3]


def test_what_the_store_does_not_have_yet_is_not_handed_out(mailbox: Mailbox) -> None:
    assert numbers(mailbox.take(ALL, kept=2)) == [1, 2]
    assert numbers(mailbox.take(ALL, kept=2)) == []
    assert numbers(mailbox.take(ALL, kept=5)) == [3, 4, 5]


def test_what_a_listener_cannot_hold_comes_again(mailbox: Mailbox) -> None:
    """To hold a message beyond the highest received is impossible: it is delivered, and order is kept."""
    mailbox.take(ALL)
    mailbox.resume(received=2, held=[1, 4, 99])
    assert numbers(mailbox.take(ALL)) == [3, 4, 5]
    start(mailbox)
    assert numbers(mailbox.take(ALL)) == [1, 3, 4, 5]


def test_messages_put_while_the_connection_was_broken_come_after_the_others(mailbox: Mailbox) -> None:
    mailbox.take(Window(messages=3))
    mailbox.put(message())
    mailbox.resume(received=1, held=[1])
    assert numbers(mailbox.take(ALL)) == [2, 3, 4, 5, 6]


def test_resuming_an_empty_mailbox_is_harmless() -> None:
    mailbox = Mailbox()
    assert mailbox.resume(received=5, held=[3]) == []
    assert mailbox.take(ALL) == []


# The end


def test_a_terminated_mailbox_holds_nothing(mailbox: Mailbox) -> None:
    mailbox.take(Window(messages=2))
    mailbox.terminate()
    assert (len(mailbox), mailbox.ready, mailbox.stored_bytes) == (0, 0, 0)
    assert mailbox.take(ALL) == []
    assert mailbox.acknowledge([1]) == []


def test_a_transition_outside_the_table_raises() -> None:
    entry = delivery._Entry(message())
    entry.move("take")
    with pytest.raises(KeyError):
        entry.move("take")
