"""Messages are the JSON of the Academy protocol; the exchange reads their header only."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from academy_hpc import errors
from academy_hpc.identifiers import AgentId, EntityId, UserId
from academy_hpc.message import (
    ACADEMY_VERSION,
    PROTOCOL_VERSION,
    AcademyErrorResponse,
    ActionRequest,
    ActionResponse,
    CancelRequest,
    Header,
    Message,
    PingRequest,
    ShutdownRequest,
    SuccessResponse,
    UserErrorResponse,
    compatible,
    encode_body,
    parse_message,
)

__all__: list[str] = []

CAPTURED = {path.stem: json.loads(path.read_text()) for path in (Path(__file__).parent / "wire").glob("message_*.json")}
KINDS = {
    "ping-request": PingRequest,
    "action-request": ActionRequest,
    "cancel-request": CancelRequest,
    "shutdown-request": ShutdownRequest,
    "success-response": SuccessResponse,
    "action-response": ActionResponse,
    "user-error-response": UserErrorResponse,
    "academy-error-response": AcademyErrorResponse,
}
USER = UserId.new("caller")
AGENT = AgentId[Any].new("worker")

NO_BODIES = ("NaN", "01", "'x'", "[1,]", "[" * 100_000 + "]" * 100_000)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def header_json(**changed: Any) -> dict[str, Any]:
    """The JSON of a header as academy-py 1.0.0 writes it; a field changed to ... is left out."""
    header = {
        "src": {"uid": str(USER.uid), "name": "caller", "role": "user"},
        "dest": {"uid": str(AGENT.uid), "name": "worker", "role": "agent"},
        "tag": str(uuid.uuid4()),
        "label": str(uuid.uuid4()),
        "kind": "request",
        "protocol_version": "1.1",
        "academy_version": "1.0.0",
    }
    return {name: value for name, value in (header | changed).items() if value is not ...}


def message_json(body: Any = None, **changed: Any) -> str:
    return json.dumps({"header": header_json(**changed), "body": body})


# Captured traffic of academy-py 1.0.0


@pytest.mark.parametrize("name", sorted(CAPTURED))
def test_a_captured_message_is_parsed_and_written_again_with_the_same_content(name: str) -> None:
    captured = CAPTURED[name]
    message = parse_message(captured["message_text"])
    assert json.loads(message.to_json()) == captured["message"]
    assert len(message.to_json()) == len(captured["message_text"].encode())  # as compact as it came


@pytest.mark.parametrize("name", sorted(CAPTURED))
def test_a_captured_body_is_read_and_written_again_with_the_same_content(name: str) -> None:
    captured = CAPTURED[name]
    body = parse_message(captured["message_text"]).decoded()
    assert type(body) is KINDS[captured["message"]["body"]["kind"]]
    assert json.loads(encode_body(body)) == captured["message"]["body"]


def test_every_kind_of_body_was_captured() -> None:
    assert {captured["message"]["body"]["kind"] for captured in CAPTURED.values()} == set(KINDS)


def test_the_answer_to_a_captured_request_is_the_captured_answer() -> None:
    """A response has source and destination swapped, the tag and the label kept, the versions of the responder."""
    captured = CAPTURED["message_academy_error_0_mailbox_terminated"]
    request = parse_message(json.dumps(captured["answers"]))
    response = request.create_response(AcademyErrorResponse(0, request.dest))
    assert json.loads(response.to_json()) == captured["message"]
    assert not response.is_request


# Header


def test_an_entity_is_its_uid() -> None:
    """Identity is the uid; the name is for display and never part of a key."""
    one, other = EntityId(AGENT.uid, "one"), EntityId(AGENT.uid, "other", "user")
    assert one == other == AGENT
    assert len({one, other, AGENT}) == 1
    assert one != USER
    assert one != str(AGENT.uid)


def test_name_and_role_of_an_entity_may_be_left_out() -> None:
    message = parse_message(message_json(src={"uid": str(USER.uid)}))
    assert (message.src.name, message.src.role) == (None, "agent")


def test_a_uuid_is_written_in_lower_case_with_dashes() -> None:
    message = parse_message(message_json(src={"uid": str(USER.uid).upper()}))
    assert json.loads(message.to_json())["header"]["src"]["uid"] == str(USER.uid)


@pytest.mark.parametrize(
    "entity",
    [
        {"uid": "not-a-uuid"},
        {"name": "no uid"},
        {"uid": str(USER.uid), "role": "manager"},
        {"uid": str(USER.uid), "color": "blue"},
        {"uid": str(USER.uid), "name": 7},
        str(USER.uid),
        None,
    ],
)
def test_an_entity_that_is_none_is_refused(entity: Any) -> None:
    """Unknown keys, a malformed UUID or another role are errors."""
    with pytest.raises(errors.BadRequestError):
        parse_message(message_json(src=entity))


@pytest.mark.parametrize("field", ["src", "dest", "tag", "kind"])
def test_a_header_without_one_of_its_fields_is_refused(field: str) -> None:
    with pytest.raises(errors.BadRequestError, match=field):
        parse_message(message_json(**{field: ...}))


@pytest.mark.parametrize("changed", [{"kind": "other"}, {"tag": "x"}, {"label": "x"}, {"protocol_version": 1.1}])
def test_a_header_field_that_does_not_parse_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(errors.BadRequestError):
        parse_message(message_json(**changed))


def test_unknown_header_fields_are_accepted() -> None:
    assert parse_message(message_json(priority=3)).src == USER


def test_header_fields_left_out_have_their_meaning() -> None:
    """Without protocol_version "1.1" is put in; without academy_version it is 0.5.0; without label it is null."""
    header = parse_message(message_json(label=..., protocol_version=..., academy_version=...)).header
    assert (header.label, header.protocol_version, header.academy_version) == (None, "1.1", "0.5.0")


@pytest.mark.parametrize("version", [None, "1", "2.0", "1.1+fork", ""])
def test_protocol_version_is_kept_as_it_is(version: str | None) -> None:
    """The exchange does not compare versions: null and any string are passed on."""
    message = parse_message(message_json(protocol_version=version))
    assert json.loads(message.to_json())["header"]["protocol_version"] == version


@pytest.mark.parametrize(
    ("version", "fits"),
    [(version, True) for version in ("1", "1.0", "1.1", "1.7")]
    + [(version, False) for version in ("2.0", "10.1", "1.1+fork", "", None, 1.1)],
)
def test_versions_fit_when_major_number_and_local_part_agree(version: Any, *, fits: bool) -> None:
    assert compatible(version) is fits


def test_a_new_message_says_which_versions_it_speaks() -> None:
    label = uuid.uuid4()
    request = Message.create(USER, AGENT, PingRequest(), label=label)
    response = Message.create(AGENT, USER, SuccessResponse(), label=label, tag=request.tag)
    assert request.header.kind == "request"
    assert request.create_response(SuccessResponse()).header == response.header
    assert (request.header.protocol_version, request.header.academy_version) == (PROTOCOL_VERSION, ACADEMY_VERSION)


def test_requests_have_different_tags() -> None:
    assert Message.create(USER, AGENT, PingRequest()).tag != Message.create(USER, AGENT, PingRequest()).tag


# Body


@given(body=json_values, spaces=st.booleans())
def test_any_body_is_passed_on_unchanged(body: Any, *, spaces: bool) -> None:
    """The body is opaque: any JSON value, unknown kinds included, is passed on byte for byte."""
    text = json.dumps(body, indent=2 if spaces else None)
    message = parse_message(f'{{ "body" :  {text} , "header": {json.dumps(header_json())} }}')
    assert message.body == text.encode()
    assert json.loads(message.to_json())["body"] == body
    again = parse_message(message.to_json())
    assert (again.header, again.body) == (message.header, message.body)


@given(body=json_values)
def test_text_and_bytes_mean_the_same_message(body: Any) -> None:
    text = json.dumps({"header": header_json(), "body": body}, ensure_ascii=False)
    assert parse_message(text).body == parse_message(text.encode()).body


def test_a_body_of_an_unknown_kind_travels_and_is_refused_only_by_its_reader() -> None:
    message = parse_message(message_json({"kind": "of-tomorrow", "x": [1]}))
    assert json.loads(message.to_json())["body"] == {"kind": "of-tomorrow", "x": [1]}
    with pytest.raises(errors.BadRequestError, match=str(message.tag)):
        message.decoded()


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b'"\xff"', b"null", b"[" * 100_000 + b"]" * 100_000, b"{", b'{"kind":7}']
)
def test_a_body_that_is_none_is_refused_by_its_reader(body: bytes) -> None:
    """Whatever bytes a peer sends, reading the body raises BadRequestError and nothing else."""
    with pytest.raises(errors.BadRequestError):
        Message(Header(USER, AGENT, uuid.uuid4(), "request"), body).decoded()


def test_a_body_is_read_once() -> None:
    message = Message.create(USER, AGENT, ActionRequest("run", "[]", "{}", "json"))
    assert message.decoded() is message.decoded()


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "null", "{", '"x"', b"\xff", "\ud800", message_json() + "x"),
        *(json.dumps({"header": header_json()}), json.dumps({"body": None})),
        *(f'{{"header":{json.dumps(header_json())},"body":{body}}}' for body in NO_BODIES),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_what_is_no_message_is_refused(text: str | bytes) -> None:
    """A text that is no JSON object with header and body raises BadRequestError and nothing else."""
    with pytest.raises(errors.BadRequestError):
        parse_message(text)


def test_a_message_shows_who_and_which_and_never_what() -> None:
    message = Message.create(USER, AGENT, ActionRequest("run", '["secret"]', "{}", "json"))
    assert "secret" not in repr(message)
    assert str(message.tag) in repr(message)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (0, errors.AgentTerminatedError),
        (1, errors.PingCancelledError),
        (2, errors.ActionInvalidStateError),
        (3, errors.ActionCancelledError),
        (4, errors.InvalidClientError),
        (5, errors.IncompatibleProtocolError),
    ],
)
def test_an_error_code_of_the_protocol_is_an_error_here(code: int, error: type[errors.AcademyError]) -> None:
    captured = next(value for name, value in CAPTURED.items() if name.startswith(f"message_academy_error_{code}_"))
    body = parse_message(captured["message_text"]).decoded()
    assert isinstance(body, AcademyErrorResponse)
    assert type(body.exception()) is error
    assert str(body.exception())


def test_a_terminated_mailbox_is_told_by_its_role() -> None:
    assert type(AcademyErrorResponse(0, USER).exception()) is errors.UserTerminatedError
    assert type(AcademyErrorResponse(0, AGENT).exception()) is errors.AgentTerminatedError
    assert type(AcademyErrorResponse(0).exception()) is errors.MailboxTerminatedError
    assert isinstance(AcademyErrorResponse(0, EntityId(AGENT.uid)).exception().args[0], AgentId)


def test_an_error_code_of_another_version_is_an_error_too() -> None:
    assert "99" in str(AcademyErrorResponse(99).exception())
