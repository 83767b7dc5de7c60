"""Agents: objects with state, actions that others call, and control loops of their own."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from datetime import timedelta
from typing import Any, ParamSpec, TypeVar, overload

import msgspec

from academy_hpc.errors import AgentNotInitializedError
from academy_hpc.exchange.client import AgentExchangeClient
from academy_hpc.handle import Handle
from academy_hpc.identifiers import AgentId, EntityId, typed
from academy_hpc.serialization import Strategy

__all__ = [
    "ActionContext",
    "ActionOptions",
    "Agent",
    "AgentContext",
    "RuntimeConfig",
    "action",
    "action_options",
    "actions_of",
    "event",
    "loop",
    "loops_of",
    "timer",
]

P = ParamSpec("P")
R = TypeVar("R")
MethodT = TypeVar("MethodT", bound=Callable[..., Coroutine[Any, Any, Any]])

_ACTION = "_academy_hpc_action"
_LOOP = "_academy_hpc_loop"


class ActionOptions(msgspec.Struct, frozen=True):
    """How an action was declared."""

    context: bool = False
    idempotent: bool = True


class RuntimeConfig(msgspec.Struct, frozen=True):
    """How a Runtime behaves.

    Attributes:
        cancel_actions_on_shutdown: Cancel running actions at the end; False: wait for them. The caller of a cancelled
            action gets `ActionCancelledError`; where the mailbox stays open, the action is run again in the agent's
            next life instead.
        max_sync_concurrency: Threads for `Agent.agent_run_sync`; None: as many as Python thinks fit.
        raise_loop_errors_on_shutdown: Let `run_until_complete` raise what a control loop raised.
        shutdown_on_loop_error: End the agent when a control loop raises.
        terminate_on_error: Close the mailbox for good when the agent ends by an error.
        terminate_on_success: Close the mailbox for good when the agent ends as it was meant to.
        default_serializer: For results, where the request asks for nothing; None: as the arguments came.
        allowed_deserializers: How arguments may come: give ``{"json"}`` to read no pickles. None: any.
        loop_grace_s: Seconds that control loops have to return once shutdown is set; then they are cancelled.
        checkpoint_s: Seconds between two times at which the agent's state is saved; None: only when its life ends in
            order. See `academy_hpc.checkpoint`.
    """

    cancel_actions_on_shutdown: bool = True
    max_sync_concurrency: int | None = None
    raise_loop_errors_on_shutdown: bool = True
    shutdown_on_loop_error: bool = True
    terminate_on_error: bool = True
    terminate_on_success: bool = True
    default_serializer: Strategy | None = None
    allowed_deserializers: frozenset[Strategy] | None = None
    loop_grace_s: float = 10.0
    checkpoint_s: float | None = None


class AgentContext(msgspec.Struct):
    """What an agent has while a Runtime runs it."""

    agent_id: AgentId[Any]
    exchange_client: AgentExchangeClient
    executor: Executor
    shutdown_event: asyncio.Event


class ActionContext:
    """Who called an action; given to actions declared with ``context=True``."""

    def __init__(self, source_id: EntityId, exchange_client: AgentExchangeClient) -> None:
        self.source_id = typed(source_id)
        self._client = exchange_client

    def is_agent_source(self) -> bool:
        """Whether an agent called."""
        return self.source_id.role == "agent"

    def is_user_source(self) -> bool:
        """Whether a user called."""
        return self.source_id.role == "user"

    @property
    def source_handle(self) -> Handle[Any]:
        """A handle of the caller. Raises TypeError for a user, who serves no requests."""
        if not isinstance(self.source_id, AgentId):
            raise TypeError(f"{self.source_id} is a user and can't be called.")
        return Handle(self.source_id, exchange=self._client)


class Agent:
    """Base class of agents. Mark methods with `action`, `loop`, `timer` and `event`.

    The constructor runs where the agent runs. Everything that needs the exchange belongs into `agent_on_startup`.
    """

    _agent_context: AgentContext | None = None

    @property
    def agent_context(self) -> AgentContext:
        """What the agent has while it runs. Raises AgentNotInitializedError."""
        if self._agent_context is None:
            raise AgentNotInitializedError()
        return self._agent_context

    @property
    def agent_id(self) -> AgentId[Any]:
        """Who this is. Raises AgentNotInitializedError."""
        return self.agent_context.agent_id

    @property
    def agent_exchange_client(self) -> AgentExchangeClient:
        """The client of this agent. Raises AgentNotInitializedError."""
        return self.agent_context.exchange_client

    async def agent_on_startup(self) -> None:
        """Called before the first request is served; raising ends the agent."""

    async def agent_on_shutdown(self) -> None:
        """Called after the last action and loop have ended."""

    def agent_shutdown(self) -> None:
        """End this agent: returns at once. Raises AgentNotInitializedError."""
        self.agent_context.shutdown_event.set()

    async def agent_run_sync(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run blocking code in a thread, so that the agent goes on; the result of `function`.

        Cancelling the ``await`` does not stop the thread, and the agent's end does not wait for it.
        """
        call = functools.partial(contextvars.copy_context().run, function, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self.agent_context.executor, call)


# What a Handle has of its own can't be an action called as an attribute.
_PROTECTED = frozenset(name for name in dir(Handle) if not name.startswith("__")) | {"agent_id"}


@overload
def action(method: MethodT) -> MethodT: ...
@overload
def action(
    *, allow_protected_name: bool = ..., context: bool = ..., idempotent: bool = ...
) -> Callable[[MethodT], MethodT]: ...
def action(
    method: MethodT | None = None,
    *,
    allow_protected_name: bool = False,
    context: bool = False,
    idempotent: bool = True,
) -> MethodT | Callable[[MethodT], MethodT]:
    """Make a coroutine method one that others can call.

    Args:
        method: The method, where the decorator is used without parentheses.
        allow_protected_name: Allow a name that `Handle` has itself; it can only be called by ``handle.action(name)``.
        context: Pass an `ActionContext` as keyword argument ``context``.
        idempotent: False: when the agent dies in mid-action and comes back, the action is not run again, and the
            caller gets `ActionInterruptedError`. A request that was handed to the dead agent and may not have been
            started counts as interrupted too.

    Raises:
        TypeError: Not a coroutine method, or a protected name.
    """

    def decorate(method: MethodT) -> MethodT:
        _check_coroutine(method, "action")
        if method.__name__ in _PROTECTED and not allow_protected_name:
            raise TypeError(
                f"An action can't be called {method.__name__!r}: handles have a {method.__name__!r} already."
            )
        setattr(method, _ACTION, ActionOptions(context, idempotent))
        return method

    return decorate if method is None else decorate(method)


def loop(method: MethodT) -> MethodT:
    """Make a coroutine method ``(self, shutdown: asyncio.Event)`` a control loop: runs from start to shutdown."""
    _check_coroutine(method, "loop")
    setattr(method, _LOOP, True)
    return method


def timer(interval: float | timedelta) -> Callable[[Callable[[Any], Coroutine[Any, Any, None]]], Any]:
    """Make a coroutine method run every `interval` (seconds, if a number) until shutdown; first after one interval."""
    seconds = interval.total_seconds() if isinstance(interval, timedelta) else float(interval)

    def decorate(method: Callable[[Any], Coroutine[Any, Any, None]]) -> Any:
        _check_coroutine(method, "timer")

        @functools.wraps(method)
        async def run(self: Any, shutdown: asyncio.Event) -> None:
            while not await _set_within(shutdown, seconds):
                await method(self)

        return loop(run)

    return decorate


def event(name: str) -> Callable[[Callable[[Any], Coroutine[Any, Any, None]]], Any]:
    """Make a coroutine method run each time the `asyncio.Event` in attribute `name` is set; it is cleared first.

    An attribute that is missing, or is no `asyncio.Event`, is an error of this control loop.
    """

    def decorate(method: Callable[[Any], Coroutine[Any, Any, None]]) -> Any:
        _check_coroutine(method, "event")

        @functools.wraps(method)
        async def run(self: Any, shutdown: asyncio.Event) -> None:
            trigger = getattr(self, name, None)
            if not isinstance(trigger, asyncio.Event):
                raise TypeError(f"{type(self).__name__}.{name} is not an asyncio.Event, as @event({name!r}) needs.")
            while await _set_before(trigger, shutdown):
                trigger.clear()  # before: what is set meanwhile is not lost
                await method(self)

        return loop(run)

    return decorate


def action_options(method: Any) -> ActionOptions | None:
    """How `method` was declared as an action; None if it was not."""
    return getattr(method, _ACTION, None)


def actions_of(agent: Agent) -> dict[str, Callable[..., Coroutine[Any, Any, Any]]]:
    """The actions of an agent by name."""
    return {name: method for name, method in _methods(agent) if action_options(method) is not None}


def loops_of(agent: Agent) -> dict[str, Callable[[asyncio.Event], Coroutine[Any, Any, None]]]:
    """The control loops of an agent by name."""
    return {name: method for name, method in _methods(agent) if getattr(method, _LOOP, False)}


def _methods(agent: Agent) -> list[tuple[str, Any]]:
    # Looked up in the classes: properties of the agent are not to be evaluated here.
    found: dict[str, Any] = {}
    for cls in reversed(type(agent).__mro__):
        found.update(vars(cls))
    return [(name, getattr(agent, name)) for name in sorted(found) if inspect.isfunction(found[name])]


def _check_coroutine(method: Any, what: str) -> None:
    if not inspect.iscoroutinefunction(method):
        name = getattr(method, "__qualname__", method)
        raise TypeError(f"@{what} needs an `async def` method; {name} is none. Wrap blocking code in agent_run_sync.")


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def _set_before(trigger: asyncio.Event, shutdown: asyncio.Event) -> bool:
    """Whether `trigger` was set; False when `shutdown` was first."""
    waits = [asyncio.ensure_future(trigger.wait()), asyncio.ensure_future(shutdown.wait())]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
    return trigger.is_set() and not shutdown.is_set()
