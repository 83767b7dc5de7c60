"""Every error that academy_hpc raises on purpose, in one tree.

::

    AcademyError
    ├── ExchangeError                    about an exchange
    │   ├── RefusedError                 the exchange answered, and said no
    │   │   ├── BadRequestError          400  malformed or impossible request
    │   │   ├── UnauthorizedError        401  no token, or none that is known
    │   │   │   └── LoginRequiredError        somebody must log in first
    │   │   ├── ForbiddenError           403  the token does not give this right
    │   │   ├── BadEntityIdError         404  no such mailbox
    │   │   ├── ListenerSupersededError  409  a newer listener has the mailbox
    │   │   ├── MessageTooLargeError     413
    │   │   ├── MailboxTerminatedError   419  closed for good
    │   │   │   ├── AgentTerminatedError
    │   │   │   └── UserTerminatedError
    │   │   ├── MailboxFullError         429  its reader is too slow; nothing was stored
    │   │   └── ExchangeFullError        507  the exchange holds as much as it may
    │   ├── ExchangeUnavailableError     no answer: it is unknown whether a message arrived
    │   │   ├── ExchangeUnreachableError no candidate URL answered
    │   │   └── ExchangeChangedError     another exchange answers at the address; the old one's messages are gone
    │   ├── ExchangeStartError           a spawned exchange did not come up
    │   ├── StoreError                   a state directory can't be used, or no more
    │   ├── ConnectionInfoError          connection info that can't be read
    │   └── ExchangeClientNotFoundError  a handle has no exchange to speak through
    ├── RequestError                     the answer to a request is an error
    │   ├── AcademyRemoteError           a remote exception, as text
    │   ├── ActionCancelledError
    │   ├── ActionInvalidStateError      nothing to cancel
    │   ├── ActionInterruptedError       the agent died in mid-action; not run again, by its own wish
    │   ├── DeliveryFailedError          handed out too often without being acknowledged
    │   ├── AgentAbsentError             nobody has run the agent for too long
    │   ├── InvalidClientError           a request was sent to a user
    │   ├── PingCancelledError           the agent ended while starting
    │   └── IncompatibleProtocolError    the other side speaks another version
    ├── SerializationError               a value could not be written or read
    │   ├── ExceptionSerializationError
    │   └── DeserializationMethodProhibitedError
    ├── CheckpointError                  the saved state of an agent can't be read or written
    ├── AgentNotInitializedError         the agent is not running
    ├── AgentLoopError                   a control loop of the agent raised
    └── LaunchError                      an agent could not be started
        └── TooFewSlotsError

An error's ``args`` are all it needs to be made again, so every one survives pickling and the wire.
``code`` names it on the wire, ``status`` is its HTTP status.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AcademyError",
    "AcademyRemoteError",
    "ActionCancelledError",
    "ActionInterruptedError",
    "ActionInvalidStateError",
    "AgentAbsentError",
    "AgentLoopError",
    "AgentNotInitializedError",
    "AgentTerminatedError",
    "BadEntityIdError",
    "BadRequestError",
    "CheckpointError",
    "ConnectionInfoError",
    "DeliveryFailedError",
    "DeserializationMethodProhibitedError",
    "ExceptionSerializationError",
    "ExchangeChangedError",
    "ExchangeClientNotFoundError",
    "ExchangeError",
    "ExchangeFullError",
    "ExchangeStartError",
    "ExchangeUnavailableError",
    "ExchangeUnreachableError",
    "ForbiddenError",
    "IncompatibleProtocolError",
    "InvalidClientError",
    "LaunchError",
    "ListenerSupersededError",
    "LoginRequiredError",
    "MailboxFullError",
    "MailboxTerminatedError",
    "MessageTooLargeError",
    "PingCancelledError",
    "RefusedError",
    "RequestError",
    "SerializationError",
    "StoreError",
    "TooFewSlotsError",
    "UnauthorizedError",
    "UserTerminatedError",
    "error_class",
]

_BY_CODE: dict[str, type[AcademyError]] = {}


class AcademyError(Exception):
    """Base of all errors of this package.

    Attributes:
        code: Name on the wire, unique in the tree.
        status: HTTP status with which an exchange answers.
        template: How ``args`` become the message; ``{0}`` is the first argument.
    """

    code: ClassVar[str] = "ACADEMY"
    status: ClassVar[int] = 500
    template: ClassVar[str] = "{0}"

    def __init_subclass__(cls) -> None:
        """Enter the class in the table that `error_class` reads. A user's subclass without a code is left out."""
        super().__init_subclass__()
        if "code" in cls.__dict__:
            _BY_CODE.setdefault(cls.code, cls)

    def __str__(self) -> str:
        """Say what happened, and what to do next, in one line."""
        try:
            return self.template.format(*self.args)
        except (IndexError, KeyError):
            return " ".join(str(item) for item in self.args)


_BY_CODE[AcademyError.code] = AcademyError


def error_class(code: str) -> type[AcademyError] | None:
    """The error with the wire code `code`, or None where this version knows none."""
    return _BY_CODE.get(code)


class ExchangeError(AcademyError):
    """Something about an exchange."""

    code = "EXCHANGE"


class RefusedError(ExchangeError):
    """The exchange answered and said no: nothing was done."""

    code = "REFUSED"


class BadRequestError(RefusedError):
    """A request that is malformed, or that can't be meant."""

    code = "BAD_REQUEST"
    status = 400


class UnauthorizedError(RefusedError):
    """No token, or one the exchange does not know."""

    code = "UNAUTHORIZED"
    status = 401
    template = "The exchange did not accept the token ({0}). Take the connection info of the exchange that runs now."

    def __init__(self, reason: str = "no reason given") -> None:
        super().__init__(reason)


class LoginRequiredError(UnauthorizedError):
    """There is no token to show before somebody has logged in; the text says how."""

    code = "LOGIN_REQUIRED"
    template = "{0}"


class ForbiddenError(RefusedError):
    """The token is known and does not give this right."""

    code = "FORBIDDEN"
    status = 403


class BadEntityIdError(RefusedError):
    """No mailbox with this id is at the exchange. ``args``: the entity."""

    code = "BAD_ENTITY_ID"
    status = 404
    template = "{0} is not registered at this exchange. Register it first, and check that this is the right exchange."

    def __init__(self, uid: Any) -> None:
        super().__init__(uid)
        self.uid = uid


class ListenerSupersededError(RefusedError):
    """A newer listener has taken the mailbox; this one must stop. ``args``: the entity."""

    code = "LISTENER_SUPERSEDED"
    status = 409
    template = "A newer listener has the mailbox of {0}; this one stops. A mailbox has one listener at a time."

    def __init__(self, uid: Any) -> None:
        super().__init__(uid)
        self.uid = uid


class MessageTooLargeError(RefusedError):
    """A message over the limit of the exchange. ``args``: size and limit in bytes."""

    code = "MESSAGE_TOO_LARGE"
    status = 413
    template = "Message of size {0} larger than limit {1}."

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(size, limit)
        self.size = size
        self.limit = limit


class MailboxTerminatedError(RefusedError):
    """The mailbox was closed for good. ``args``: the entity, and where it is known the reason."""

    code = "MAILBOX_TERMINATED"
    status = 419

    def __init__(self, uid: Any, reason: str | None = None) -> None:
        super().__init__(*((uid,) if reason is None else (uid, reason)))
        self.uid = uid
        self.reason = reason

    def __str__(self) -> str:
        """Whose it was, and the reason or what to do."""
        if self.reason is not None:
            return f"{self.uid} has ended: {self.reason}"
        return f"The mailbox of {self.uid} was terminated. Register a new one to go on."


class AgentTerminatedError(MailboxTerminatedError):
    """The agent was terminated. ``args``: its id."""

    code = "AGENT_TERMINATED"


class UserTerminatedError(MailboxTerminatedError):
    """The user was terminated. ``args``: its id."""

    code = "USER_TERMINATED"


class MailboxFullError(RefusedError):
    """The mailbox stayed full while the sender waited; nothing was stored. ``args``: entity, seconds waited."""

    code = "MAILBOX_FULL"
    status = 429
    template = "The mailbox of {0} stayed full for {1} s. Its agent reads too slowly, or is not running."

    def __init__(self, uid: Any, waited_s: float) -> None:
        super().__init__(uid, waited_s)
        self.uid = uid
        self.waited_s = waited_s


class ExchangeFullError(RefusedError):
    """A limit of the whole exchange is reached. ``args``: what is full, and its limit."""

    code = "EXCHANGE_FULL"
    status = 507
    template = "The exchange holds as many {0} as it may ({1}). Terminate some, or start it with a higher limit."

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(what, limit)
        self.what = what
        self.limit = limit


class ExchangeUnavailableError(ExchangeError):
    """The exchange did not answer: it is unknown whether a message arrived."""

    code = "EXCHANGE_UNAVAILABLE"
    status = 503


class ExchangeUnreachableError(ExchangeUnavailableError):
    """No candidate URL answered. ``args``: a mapping of URL to what went wrong there."""

    code = "EXCHANGE_UNREACHABLE"

    def __init__(self, attempts: dict[str, str]) -> None:
        attempts = dict(attempts)  # fails here, not when shown, with what another version may send
        super().__init__(attempts)
        self.attempts = attempts

    def __str__(self) -> str:
        """All URLs and what each said."""
        tried = "; ".join(f"{url}: {reason}" for url, reason in self.attempts.items())
        return f"No URL of the exchange can be used from here ({tried}). Is it still running, and on this network?"


class ExchangeChangedError(ExchangeUnavailableError):
    """Another exchange answers at the address: what the old one held is gone."""

    code = "EXCHANGE_CHANGED"
    template = (
        "The exchange at {0} is gone with its mailboxes: another one answers there, perhaps because it was "
        "restarted without a state directory. Take its connection info, and register again."
    )


class ExchangeStartError(ExchangeError):
    """A spawned exchange did not come up, or could not bind."""

    code = "EXCHANGE_START"


class StoreError(ExchangeError):
    """A state directory that can't be used, or can't be written any more."""

    code = "STORE"


class ConnectionInfoError(ExchangeError):
    """Connection info that can't be read or must not be trusted."""

    code = "CONNECTION_INFO"


class ExchangeClientNotFoundError(ExchangeError):
    """A handle is used where no exchange is known. ``args``: the agent's id."""

    code = "NO_EXCHANGE_CLIENT"
    template = "The handle of {0} has no exchange here: use it inside `async with` of a client or give it `exchange=`."

    def __init__(self, aid: Any) -> None:
        super().__init__(aid)


class RequestError(AcademyError):
    """The answer to a request is an error."""

    code = "REQUEST"


class AcademyRemoteError(RequestError):
    """An exception of the remote side whose type can't be had here. ``args``: its traceback as text."""

    code = "REMOTE"


class ActionCancelledError(RequestError):
    """The action was cancelled."""

    code = "ACTION_CANCELLED"
    template = "The action was cancelled."


class ActionInvalidStateError(RequestError):
    """The action to be cancelled is not running."""

    code = "ACTION_INVALID_STATE"
    template = "The action can't be cancelled: it is not running."


class ActionInterruptedError(RequestError):
    """An action declared ``idempotent=False`` may have run in part and was not run again. ``args``: its name."""

    code = "ACTION_INTERRUPTED"
    template = "The action {0!r} was interrupted when its agent died and is not run again (idempotent=False)."

    def __init__(self, action: str) -> None:
        super().__init__(action)
        self.action = action


class DeliveryFailedError(RequestError):
    """A request was handed out `attempts` times and never acknowledged. ``args``: the agent, the attempts."""

    code = "DELIVERY_FAILED"
    template = "{0} was handed this request {1} times and died each time before it answered."

    def __init__(self, uid: Any, attempts: int) -> None:
        super().__init__(uid, attempts)
        self.uid = uid
        self.attempts = attempts


class AgentAbsentError(RequestError):
    """Nobody has run the agent for so long that the exchange answers in its place. ``args``: the agent, seconds."""

    code = "AGENT_ABSENT"
    template = "Nobody has run {0} for {1} s, and it will not see this request. Start it, and call it again."

    def __init__(self, uid: Any, absent_s: float) -> None:
        super().__init__(uid, absent_s)
        self.uid = uid
        self.absent_s = absent_s


class InvalidClientError(RequestError):
    """A request was sent to a user, who serves none. ``args``: the user."""

    code = "INVALID_CLIENT"
    template = "{0} is a user and answers no requests."

    def __init__(self, uid: Any = None) -> None:
        super().__init__(uid)


class PingCancelledError(RequestError):
    """The agent ended while it was starting."""

    code = "PING_CANCELLED"
    template = "The agent ended before it had started. Its log says why."


class IncompatibleProtocolError(RequestError):
    """The two sides speak versions of the protocol that do not fit. ``args``: theirs, ours."""

    code = "INCOMPATIBLE_PROTOCOL"
    template = "The other side does not understand protocol version {1} (it said: {0}). Install matching versions."

    def __init__(self, version: str | None = None, own_version: str | None = None) -> None:
        super().__init__(version, own_version)


class SerializationError(AcademyError):
    """A value could not be written for the wire, or not read from it."""

    code = "SERIALIZATION"
    status = 400


class ExceptionSerializationError(SerializationError):
    """An exception could not be serialized. ``args``: its class's name, the format, its text."""

    code = "EXCEPTION_SERIALIZATION"
    template = "The agent raised {0}, which can't be sent as {1}: {2}"

    def __init__(self, name: str, serializer: str, text: str = "") -> None:
        super().__init__(name, serializer, text)


class DeserializationMethodProhibitedError(SerializationError):
    """The receiver does not read this format. ``args``: the format, and those it reads."""

    code = "DESERIALIZATION_PROHIBITED"
    template = "Values in {0!r} are not read here, only {1}. Send with request_serializer='json'."

    def __init__(self, method: str, allowed: str) -> None:
        super().__init__(method, allowed)


class CheckpointError(AcademyError):
    """The saved state of an agent can't be used. ``args``: the directory, and what is wrong with it."""

    code = "CHECKPOINT"
    template = "The saved state of the agent in {0} {1}."

    def __init__(self, directory: str, what: str) -> None:
        super().__init__(directory, what)


class AgentNotInitializedError(AcademyError):
    """The agent is used outside a running Runtime."""

    code = "AGENT_NOT_INITIALIZED"
    template = "The agent is not running: agent_id and the like exist only while a Runtime runs it."


class AgentLoopError(AcademyError):
    """A control loop raised. ``args``: the loop's name, and what it raised, as text."""

    code = "AGENT_LOOP"
    template = "The control loop {0!r} of the agent failed: {1}"

    def __init__(self, loop: str, text: str) -> None:
        super().__init__(loop, text)


class LaunchError(AcademyError):
    """An agent could not be started; the text says why and where."""

    code = "LAUNCH"


class TooFewSlotsError(LaunchError):
    """More agents than slots: the rest would never start. ``args``: launcher, agents or workers wanted, slots."""

    code = "TOO_FEW_SLOTS"
    template = (
        "{0}: {1} workers asked for, {2} slots are there; the rest would never start. "
        "Ask for fewer, raise agents_per_worker, or add slots."
    )

    def __init__(self, launcher: str, wanted: int, slots: int) -> None:
        super().__init__(launcher, wanted, slots)
        self.wanted = wanted
        self.slots = slots
