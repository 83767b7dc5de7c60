"""Serves the requests to one agent: runs its actions, answers, and leaves to a next life what it does not begin."""

from __future__ import annotations

import asyncio
import functools
import logging
import traceback
import uuid
from typing import Any, Protocol

from academy_hpc.agent import ActionContext, Agent, RuntimeConfig, action_options, actions_of
from academy_hpc.errors import (
    AcademyError,
    AcademyRemoteError,
    ActionInterruptedError,
    BadEntityIdError,
    BadRequestError,
    ExchangeFullError,
    MailboxFullError,
    MailboxTerminatedError,
    RefusedError,
)
from academy_hpc.exchange.client import AgentExchangeClient
from academy_hpc.identifiers import AgentId, EntityId
from academy_hpc.message import (
    PROTOCOL_VERSION,
    AcademyErrorResponse,
    ActionRequest,
    ActionResponse,
    Body,
    CancelRequest,
    Message,
    PingRequest,
    ShutdownRequest,
    SuccessResponse,
    UserErrorResponse,
    compatible,
)
from academy_hpc.serialization import ALL_STRATEGIES, Strategy, deserialize, serialize, serialize_exception

__all__ = ["AgentLife", "Requests"]

logger = logging.getLogger(__name__)

# Error codes of docs/protocol.md, section 6.
MAILBOX_TERMINATED, PING_CANCELLED, NOTHING_TO_CANCEL, ACTION_CANCELLED, INCOMPATIBLE_VERSION = 0, 1, 2, 3, 5

# How long an answer waits before it is sent again to a mailbox, or an exchange, that was full.
FULL_PAUSE_S = 1.0


class AgentLife(Protocol):
    """What the requests need to know of the life of their agent, and may do to it."""

    @property
    def failed_start(self) -> bool:
        """Whether the agent could not start."""
        ...

    @property
    def ending(self) -> bool:
        """Whether it is going to end."""
        ...

    @property
    def ends_for_good(self) -> bool:
        """Whether its mailbox is going to be closed with it."""
        ...

    def signal_shutdown(self, *, terminate: bool | None = None) -> None:
        """End it."""
        ...

    def fail(self, error: BaseException) -> None:
        """End it by an error."""
        ...


class Requests:
    """The requests to one agent.

    Args:
        agent: Whose actions they are for.
        agent_id: Who that is.
        config: How it behaves.
        life: Its life.
    """

    def __init__(self, agent: Agent, agent_id: AgentId[Any], config: RuntimeConfig, life: AgentLife) -> None:
        self._agent = agent
        self._agent_id = agent_id
        self._config = config
        self._life = life
        allowed = config.allowed_deserializers
        self._allowed = ALL_STRATEGIES if allowed is None else allowed
        self._actions = actions_of(agent)
        self._running: dict[uuid.UUID, asyncio.Task[Any]] = {}
        self._cancelled: set[uuid.UUID] = set()
        self._gate = asyncio.Lock()  # held while the agent starts; who waits at it goes through in order
        self.client: AgentExchangeClient | None = None

    @property
    def running(self) -> bool:
        """Whether actions run."""
        return bool(self._running)

    async def hold(self) -> None:
        """Let those that come wait, until `release`."""
        await self._gate.acquire()

    def release(self) -> None:
        """Serve those that have come, in order, and all others."""
        self._gate.release()

    async def wait_done(self) -> None:
        """Until no action runs. One that ends may call another one of its own agent."""
        while self._running:
            await asyncio.wait(self._running.values())

    def cancel_all(self) -> None:
        """Cancel the running actions, as if their callers had done it: they are answered so."""
        self._cancelled.update(tag for tag, task in self._running.items() if not task.cancelling())
        self.abandon_all()

    def abandon_all(self) -> None:
        """Cancel the running actions; their requests are not answered, and so run again in the next life."""
        for task in self._running.values():
            if not task.cancelling():
                task.cancel()

    async def action(self, action: str, source_id: EntityId, *, args: Any, kwargs: Any) -> Any:
        """Run an action of the agent. Raises AttributeError: it has none of this name."""
        method = self._actions.get(action)
        if method is None:
            raise AttributeError(f'Agent<{type(self._agent).__name__}> does not have an action named "{action}".')
        options = action_options(method)
        if options is not None and options.context:
            assert self.client is not None  # requests only come through it
            kwargs = {**kwargs, "context": ActionContext(source_id, self.client)}
        return await method(*args, **kwargs)

    async def handle(self, request: Message) -> None:
        """Serve one; returns when its answer is under way, or is not going to be given here."""
        async with self._gate:
            pass
        version = request.header.protocol_version
        if version != PROTOCOL_VERSION and not compatible(version):
            await self._answer(request, AcademyErrorResponse(INCOMPATIBLE_VERSION, self._agent_id))
            return
        try:
            body = request.decoded()
        except RefusedError as error:
            await self._answer_error(request, error, "json")
            return
        if isinstance(body, ActionRequest):
            await self._serve_action(request, body)
        elif isinstance(body, PingRequest):
            failed = AcademyErrorResponse(PING_CANCELLED)
            await self._answer(request, failed if self._life.failed_start else SuccessResponse())
        elif isinstance(body, CancelRequest):
            await self._answer(request, self._cancel(body.target_tag))
        elif isinstance(body, ShutdownRequest):
            await self._answer(request, SuccessResponse())
            self._life.signal_shutdown(terminate=body.terminate)
        else:
            await self._answer_error(request, BadRequestError(f"{type(body).__name__} is no request"), "json")

    async def _serve_action(self, request: Message, body: ActionRequest) -> None:
        if self._life.ending and (self._life.failed_start or request.src.uid != self._agent_id.uid):
            # Running actions may need others of their own agent; anybody else comes too late.
            await self._answer_late(request)
            return
        task = asyncio.current_task()
        assert task is not None  # every request has a task of its own
        self._running[request.tag] = task
        failure: BaseException | None = None
        try:
            answer = await self._run_action(request, body)
        except asyncio.CancelledError:
            if task.cancelling() and request.tag not in self._cancelled:
                raise  # not by the caller: the request is to be delivered again
            answer = AcademyErrorResponse(ACTION_CANCELLED)
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the action raises goes to the caller
            failure = error
            answer = _error_answer(
                error, body.exception_serialization or body.result_serialization or body.serialization
            )
        finally:
            # From here on a cancellation comes too late, and must not take the answer with it.
            del self._running[request.tag]
            if request.tag in self._cancelled:
                self._cancelled.discard(request.tag)
                task.uncancel()
        await self._answer(request, answer)
        if isinstance(failure, SystemExit):  # raised here, it would end the event loop with all other agents in it
            self._life.fail(failure)
        elif isinstance(failure, KeyboardInterrupt):
            raise failure

    async def _answer_late(self, request: Message) -> None:
        """The agent is ending: the exchange will refuse the request, or keep it for the next life."""
        assert self.client is not None  # requests only come through it
        if self._life.ends_for_good:
            await self._answer(request, AcademyErrorResponse(MAILBOX_TERMINATED, self._agent_id))
        else:
            self.client.give_back(request)

    async def _run_action(self, request: Message, body: ActionRequest) -> Body:
        method = self._actions.get(body.action)
        options = None if method is None else action_options(method)
        if request.attempt > 1 and options is not None and not options.idempotent:
            raise ActionInterruptedError(body.action)
        args = deserialize(body.pargs, body.serialization, self._allowed)
        kwargs = deserialize(body.kargs, body.serialization, self._allowed)
        result = await self.action(body.action, request.src, args=args, kwargs=kwargs)
        result_format = body.result_serialization or self._config.default_serializer or body.serialization
        return ActionResponse(("__serialized__", serialize(result, result_format)), result_format)

    def _cancel(self, tag: uuid.UUID) -> Body:
        task = self._running.get(tag)
        if task is None:
            return AcademyErrorResponse(NOTHING_TO_CANCEL)
        self._cancelled.add(tag)
        task.cancel()
        return SuccessResponse()

    async def _answer(self, request: Message, body: Body, *, final: bool = False) -> None:
        assert self.client is not None  # requests only come through it
        await self.client.respond(request, body, functools.partial(self._answer_lost, request, body, final))

    async def _answer_error(
        self, request: Message, error: BaseException, strategy: Strategy, *, final: bool = False
    ) -> None:
        await self._answer(request, _error_answer(error, strategy), final=final)

    def _answer_lost(self, request: Message, body: Body, final: bool, error: AcademyError) -> None:
        """The exchange did not take an answer. `final`: it was one that told of such a failure."""
        assert self.client is not None  # it has tried
        if isinstance(error, (MailboxTerminatedError, BadEntityIdError)):
            self.client.drop(request)  # nobody waits for it any more
        elif isinstance(error, (MailboxFullError, ExchangeFullError)):
            self.client.spawn(self._answer_again(request, body, final))
        elif isinstance(error, RefusedError) and not final:
            self.client.spawn(self._answer_error(request, error, "json", final=True))
        else:
            logger.error("could not answer %r: %s", request, error)

    async def _answer_again(self, request: Message, body: Body, final: bool) -> None:
        await asyncio.sleep(FULL_PAUSE_S)
        await self._answer(request, body, final=final)


def _error_answer(error: BaseException, strategy: Strategy) -> UserErrorResponse:
    if isinstance(error, (KeyboardInterrupt, SystemExit)):  # the caller's program is not meant
        error = AcademyRemoteError("".join(traceback.format_exception(error)))
    return UserErrorResponse(*serialize_exception(error, strategy))
