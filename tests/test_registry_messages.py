"""Messages from sender to listener and back, through registry and store: one example for each rule."""

from __future__ import annotations

from typing import Any

import pytest

from academy_hpc import errors
from academy_hpc.changes import MessagesRemoved, Snapshot
from academy_hpc.directory import Effects, MailboxCounters
from academy_hpc.identifiers import AgentId, UserId
from academy_hpc.message import AcademyErrorResponse, ActionRequest, Message, SuccessResponse, UserErrorResponse
from academy_hpc.registry import Registry
from academy_hpc.serialization import deserialize_exception
from tests.stored_registry import ALL, OWNER, Exchange

__all__: list[str] = []


@pytest.fixture
def exchange() -> Exchange:
    return Exchange()


# Requests and their answers


def test_every_pending_request_of_a_terminated_mailbox_is_answered_once(exchange: Exchange) -> None:
    """Delivered or not, but not responded to: the requester gets an error, as a response to its tag."""
    waiting, delivered, answered = exchange.request(), exchange.request(), exchange.request()
    exchange.listen(exchange.agent)
    exchange.acknowledge(exchange.agent, *[d.seq for d in exchange.take(exchange.agent)][1:])
    exchange.send(answered.create_response(SuccessResponse()))
    effects = exchange.terminate(exchange.agent)
    assert isinstance(effects.ended[exchange.agent.uid], errors.AgentTerminatedError)
    first, *bounced = exchange.received(exchange.user)
    assert first.tag == answered.tag
    assert [message.header for message in bounced] == [waiting.header.response(), delivered.header.response()]
    assert all(message.decoded() == AcademyErrorResponse(0, exchange.agent) for message in bounced)


def test_requesters_that_are_gone_are_passed_over(exchange: Exchange) -> None:
    sent = [exchange.request(), exchange.request(source=UserId.new("without mailbox"))]
    sent.append(exchange.request(source=exchange.agent))  # to itself
    exchange.terminate(exchange.user)
    effects = exchange.terminate(exchange.agent)
    assert list(effects.woken) == []
    recent = [(message.src.uid, (message.tag.int,)) for message in sent]
    assert exchange.store.load() == Snapshot(tombstones=[exchange.user.uid, exchange.agent.uid], recent=recent)
    assert exchange.registry.stored_bytes == 0


def test_a_batch_that_writes_to_a_mailbox_and_ends_it_wakes_no_listener(exchange: Exchange) -> None:
    effects = Effects()
    message = Message.create(exchange.user, exchange.agent, ActionRequest("run", "", "", "json"))
    exchange.registry.send(message, OWNER, effects)
    exchange.registry.terminate(exchange.agent, OWNER, effects)
    assert (list(effects.woken), list(effects.ended)) == ([exchange.user.uid], [exchange.agent.uid])


def test_counters_are_as_the_protocol_says(exchange: Exchange) -> None:
    """incoming, outgoing, completed, in_progress, queued."""
    requests = [exchange.request() for _ in range(3)]
    assert exchange.counters(exchange.agent) == (3, 0, 0, 0, 3)
    assert exchange.counters(exchange.user) == (0, 3, 0, 0, 0)
    exchange.listen(exchange.agent)
    exchange.take(exchange.agent)
    assert exchange.counters(exchange.agent) == (3, 0, 0, 3, 0)
    response = requests[0].create_response(SuccessResponse())
    exchange.send(response, acknowledges=1)
    exchange.send(response, acknowledges=1)
    exchange.send(Message.create(exchange.agent, exchange.user, SuccessResponse()))  # to no request
    assert exchange.counters(exchange.agent) == (3, 0, 1, 2, 0)
    assert exchange.counters(exchange.user) == (0, 3, 0, 0, 2)


def test_termination_clears_what_is_pending_and_queued_in_the_counters(exchange: Exchange) -> None:
    requests = [exchange.request() for _ in range(2)]
    exchange.send(requests[0].create_response(SuccessResponse()))
    exchange.terminate(exchange.agent)
    exchange.terminate(exchange.user)
    assert exchange.counters(exchange.agent) == (1, 0, 1, 0, 0)
    assert exchange.counters(exchange.user) == (0, 2, 0, 0, 0)
    assert exchange.registry.counters(AgentId[Any].new(), OWNER) == MailboxCounters()


def test_a_response_needs_no_request(exchange: Exchange) -> None:
    """Responses are delivered whether or not a request with that tag is known."""
    response = Message.create(exchange.agent, exchange.user, SuccessResponse())
    exchange.send(response)
    assert [message.tag for message in exchange.received(exchange.user)] == [response.tag]


def test_a_response_and_its_acknowledgement_take_effect_together(exchange: Exchange) -> None:
    request = exchange.request()
    exchange.listen(exchange.agent)
    (delivery,) = exchange.take(exchange.agent)
    effects = exchange.send(request.create_response(SuccessResponse()), acknowledges=delivery.seq)
    assert MessagesRemoved(exchange.agent.uid, (1,)) in effects.changes
    assert exchange.received(exchange.agent) == []
    assert len(exchange.received(exchange.user)) == 1


def test_a_response_that_is_refused_acknowledges_nothing(exchange: Exchange) -> None:
    request = exchange.request()
    exchange.listen(exchange.agent)
    exchange.take(exchange.agent)
    exchange.terminate(exchange.user)
    with pytest.raises(errors.UserTerminatedError):
        exchange.send(request.create_response(SuccessResponse()), acknowledges=1)
    assert [message.tag for message in exchange.received(exchange.agent)] == [request.tag]


def test_an_agent_that_was_terminated_cannot_acknowledge(exchange: Exchange) -> None:
    request = exchange.request()
    exchange.terminate(exchange.agent)
    with pytest.raises(errors.AgentTerminatedError):
        exchange.send(request.create_response(SuccessResponse()), acknowledges=1)


def test_a_request_handed_out_too_often_is_answered_with_delivery_failed() -> None:
    """Nothing is dropped in silence: the caller gets DeliveryFailedError, with the agent and the attempts."""
    exchange = Exchange(max_attempts=2)
    request = exchange.request()
    for attempt in (1, 2):
        exchange.listen(exchange.agent)
        assert [delivery.attempt for delivery in exchange.take(exchange.agent)] == [attempt]
    effects = exchange.listen(exchange.agent)
    assert [(delivery.seq, delivery.attempt) for delivery in effects.given_up] == [(1, 2)]
    (answer,) = exchange.received(exchange.user)
    assert answer.header == request.header.response()
    body = answer.decoded()
    assert isinstance(body, UserErrorResponse)
    error = deserialize_exception(body.exception, body.serialization)
    assert isinstance(error, errors.DeliveryFailedError)
    assert (error.uid, error.attempts) == (exchange.agent, 2)
    assert exchange.counters(exchange.agent) == (0, 0, 0, 0, 0)


def test_a_response_handed_out_too_often_is_given_up_and_noted() -> None:
    exchange = Exchange(max_attempts=1)
    exchange.send(Message.create(exchange.agent, exchange.user, SuccessResponse()))
    exchange.received(exchange.user)
    assert len(exchange.listen(exchange.user).given_up) == 1
    assert exchange.store.load().messages == []


# Repeats


def test_a_repeat_is_accepted_and_dropped(exchange: Exchange) -> None:
    """Sending is idempotent: source, tag and kind identify a message."""
    request = exchange.request()
    assert exchange.send(request).changes == []
    assert [message.tag for message in exchange.received(exchange.agent)] == [request.tag]
    assert exchange.counters(exchange.user)[1] == 1


def test_a_response_with_the_tag_of_its_request_is_no_repeat_of_it(exchange: Exchange) -> None:
    request = exchange.request(source=exchange.agent, dest=exchange.agent)
    exchange.send(request.create_response(SuccessResponse()))
    assert [message.is_request for message in exchange.received(exchange.agent)] == [True, False]


def test_a_repeat_into_a_full_mailbox_is_accepted() -> None:
    exchange = Exchange(mailbox_messages=1)
    assert exchange.send(exchange.request()).changes == []


def test_a_repeat_is_recognised_within_the_window() -> None:
    """It is recognised if fewer later messages came from the same source than are remembered."""
    exchange = Exchange(remembered_per_source=3)
    first, *_ = [exchange.request() for _ in range(3)]
    assert exchange.send(first).changes == []
    exchange.request()
    assert exchange.send(first).changes != []


def test_sources_do_not_push_out_each_others_messages() -> None:
    exchange = Exchange(remembered_per_source=1)
    first = exchange.request()
    exchange.request(source=exchange.create(UserId.new()))
    assert exchange.send(first).changes == []


def test_the_sources_that_sent_last_are_remembered() -> None:
    exchange = Exchange(remembered_sources=2)
    others = [exchange.create(UserId.new()) for _ in range(2)]
    first = exchange.request()
    second = exchange.request(source=others[0])
    exchange.request()  # makes the first source the later one
    exchange.request(source=others[1])
    assert exchange.send(first).changes == []
    assert exchange.send(second).changes != []


@pytest.mark.parametrize("delivered", [False, True])
def test_a_repeat_is_recognised_after_a_restart(*, delivered: bool) -> None:
    """The exchange died before it could confirm: what is sent again is still the same message."""
    exchange = Exchange(remembered_per_source=2)
    first, second = exchange.request(), exchange.request()
    if delivered:  # acknowledged, not answered
        exchange.listen(exchange.agent)
        exchange.acknowledge(exchange.agent, *[delivery.seq for delivery in exchange.take(exchange.agent)])
    exchange.restart()
    assert exchange.send(first).changes == exchange.send(second).changes == []


def test_a_response_is_recognised_after_a_restart(exchange: Exchange) -> None:
    response = exchange.request().create_response(SuccessResponse())
    exchange.send(response)
    exchange.restart()
    assert exchange.send(response).changes == []


# Listeners


def test_a_newer_listener_fences_the_older_one_off(exchange: Exchange) -> None:
    """Whatever the older one still says has no effect, and it may not come back."""
    exchange.request()
    exchange.listen(exchange.agent)
    old = exchange.sessions[exchange.agent.uid]
    exchange.take(exchange.agent)
    exchange.listen(exchange.agent)
    effects = Effects()
    exchange.registry.acknowledge(exchange.agent.uid, old, [1], effects)
    assert effects.changes == []
    assert exchange.registry.take(exchange.agent.uid, old, ALL) == []
    with pytest.raises(errors.ListenerSupersededError):
        exchange.registry.attach(exchange.agent, old, OWNER, effects, now=0.0, resume=(1, []))
    assert [delivery.attempt for delivery in exchange.take(exchange.agent)] == [2]


def test_a_session_resumes_after_a_restart(exchange: Exchange) -> None:
    """Numbers go on where they were, also when nothing was left in the mailbox."""
    exchange.request()
    exchange.listen(exchange.agent)
    exchange.acknowledge(exchange.agent, *[delivery.seq for delivery in exchange.take(exchange.agent)])
    exchange.restart()
    request = exchange.request()
    exchange.listen(exchange.agent, resume=(1, []))
    assert [(d.seq, d.message.tag) for d in exchange.take(exchange.agent)] == [(2, request.tag)]


def test_of_two_listeners_the_newer_one_has_the_mailbox_after_a_restart_too(exchange: Exchange) -> None:
    exchange.listen(exchange.agent)
    old = exchange.sessions[exchange.agent.uid]
    exchange.listen(exchange.agent)
    exchange.restart()
    with pytest.raises(errors.ListenerSupersededError):
        exchange.registry.attach(exchange.agent, old, OWNER, Effects(), now=0.0, resume=(0, []))
    exchange.listen(exchange.agent, resume=(0, []))


def test_what_is_lost_on_its_way_is_not_held_against_the_agent() -> None:
    exchange = Exchange(max_attempts=1)
    exchange.request()
    exchange.listen(exchange.agent)
    for _ in range(3):
        assert [delivery.attempt for delivery in exchange.take(exchange.agent)] == [1]
        exchange.listen(exchange.agent, resume=(0, []))
    assert exchange.listen(exchange.agent).given_up == []


@pytest.mark.parametrize("ends", ["in order", "at work", "dies"])
def test_what_a_listener_left_without_having_begun_it_counts_as_no_attempt_after_a_restart(ends: str) -> None:
    """So an action that must not run twice runs in the next job. Where it may have been begun, it counts."""
    exchange = Exchange()
    for _ in range(3):
        exchange.request()
    exchange.listen(exchange.agent)
    handed_out = [delivery.seq for delivery in exchange.take(exchange.agent)]
    exchange.request()
    effects = Effects()
    unbegun = handed_out[ends == "at work" :]
    in_order = None if ends == "dies" else effects
    session = exchange.sessions[exchange.agent.uid]
    exchange.registry.detach(exchange.agent.uid, session, now=0.0, in_order=in_order, unbegun=unbegun)
    exchange.commit(effects)
    exchange.restart()
    exchange.listen(exchange.agent)
    expected = 1 if ends == "in order" else 2
    assert [delivery.attempt for delivery in exchange.take(exchange.agent)] == [expected] * 4


def test_what_an_earlier_listener_may_have_begun_counts_after_a_restart_though_the_last_one_left_it(
    exchange: Exchange,
) -> None:
    """An action that must not run twice was at work when its agent's node died; the next job ended before its turn."""
    exchange.request()
    exchange.listen(exchange.agent)
    exchange.take(exchange.agent)
    exchange.listen(exchange.agent)
    [second] = exchange.take(exchange.agent)
    assert second.attempt == 2
    effects, session = Effects(), exchange.sessions[exchange.agent.uid]
    exchange.registry.detach(exchange.agent.uid, session, now=0.0, in_order=effects, unbegun=[second.seq])
    exchange.commit(effects)
    exchange.restart()
    exchange.listen(exchange.agent)
    assert [delivery.attempt for delivery in exchange.take(exchange.agent)] == [2]


def test_last_seen_is_the_last_sign_of_life(exchange: Exchange) -> None:
    """None before the first; 0 while it listens on a stream; then seconds since it left, or since a heartbeat."""
    assert exchange.registry.last_seen(exchange.agent, OWNER, now=5.0) is None
    exchange.listen(exchange.agent, now=10.0)
    assert exchange.registry.last_seen(exchange.agent, OWNER, now=500.0) == 0.0
    exchange.registry.detach(exchange.agent.uid, exchange.sessions[exchange.agent.uid], now=501.0)
    assert exchange.registry.last_seen(exchange.agent, OWNER, now=503.5) == 2.5
    exchange.registry.beat(exchange.agent, OWNER, now=504.0)
    assert exchange.registry.last_seen(exchange.agent, OWNER, now=505.0) == 1.0
    exchange.registry.beat(AgentId[Any].new(), OWNER, now=504.0)  # without a mailbox it has no effect


def test_what_the_store_has_not_kept_yet_is_handed_to_nobody() -> None:
    """After a crash its number would be another message's, and a listener that resumes would skip that one."""
    exchange = Exchange()
    exchange.listen(exchange.agent)
    effects = Effects()
    message = Message.create(exchange.user, exchange.agent, SuccessResponse())
    exchange.registry.send(message, OWNER, effects)
    assert exchange.take(exchange.agent) == []
    exchange.commit(effects)
    assert [delivery.message for delivery in exchange.take(exchange.agent)] == [message]


def test_a_number_that_was_lost_with_the_power_does_not_come_again() -> None:
    """A message may be handed out before the disk has it. Whoever received it must not take a later one for it."""
    exchange = Exchange()
    exchange.listen(exchange.agent)
    on_disk = exchange.store.load()
    exchange.request()
    [lost] = exchange.take(exchange.agent)
    on_disk.starts = 1
    exchange.registry = Registry(exchange.limits)
    exchange.registry.restore(on_disk)
    exchange.request()
    exchange.listen(exchange.agent, resume=(lost.seq, [lost.seq]))
    [after] = exchange.take(exchange.agent)
    assert after.seq > lost.seq
