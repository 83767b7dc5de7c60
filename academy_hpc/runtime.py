"""Runs one agent: starts it, serves its requests, runs its loops, and ends it in order."""

from __future__ import annotations

import asyncio
import functools
import logging
import traceback
import uuid
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from academy_hpc.agent import ActionContext, Agent, AgentContext, RuntimeConfig, action_options, actions_of, loops_of
from academy_hpc.errors import (
    AcademyError,
    AcademyRemoteError,
    ActionInterruptedError,
    AgentLoopError,
    BadEntityIdError,
    BadRequestError,
    ExchangeFullError,
    ListenerSupersededError,
    MailboxFullError,
    MailboxTerminatedError,
    RefusedError,
)
from academy_hpc.exchange.client import AgentExchangeClient, exchange_client
from academy_hpc.exchange.factory import ExchangeFactory
from academy_hpc.exchange.transport import AgentRegistration
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
from academy_hpc.serialization import (
    ALL_STRATEGIES,
    NoPickleMixin,
    Strategy,
    deserialize,
    serialize,
    serialize_exception,
)

__all__ = ["Runtime", "RuntimeConfig"]

logger = logging.getLogger(__name__)

AgentT = TypeVar("AgentT", bound=Agent)

# Error codes of docs/protocol.md, section 6.
MAILBOX_TERMINATED, PING_CANCELLED, NOTHING_TO_CANCEL, ACTION_CANCELLED, INCOMPATIBLE_VERSION = 0, 1, 2, 3, 5

# Not a failure of the agent, but of what runs it.
PASSED_ON = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt)

# How long an answer waits before it is sent again to a mailbox, or an exchange, that was full.
FULL_PAUSE_S = 1.0


class Runtime(NoPickleMixin, Generic[AgentT]):
    """Runs `agent` under `registration`: ``await Runtime(...).run_until_complete()``.

    A Runtime is used once. To run the agent again, after a crash or another job, make a new one from the same
    registration: what was not answered is delivered again.
    """

    def __init__(
        self,
        agent: AgentT,
        *,
        exchange_factory: ExchangeFactory,
        registration: AgentRegistration,
        config: RuntimeConfig | None = None,
        on_end: Callable[[BaseException | None], Awaitable[None]] | None = None,
    ) -> None:
        """Store what to run.

        Args:
            agent: The agent.
            exchange_factory: Makes its client.
            registration: As which entity.
            config: How it behaves.
            on_end: Awaited when all of the agent has ended, and its mailbox, if it is to be closed, is still open: the
                last moment at which something can be sent as this agent. It is given what the agent ended with.
        """
        self.agent = agent
        self.agent_id: AgentId[Any] = registration.agent_id
        self._factory = exchange_factory
        self._registration = registration
        self._config = config or RuntimeConfig()
        self._on_end = on_end
        allowed = self._config.allowed_deserializers
        self._allowed = ALL_STRATEGIES if allowed is None else allowed
        self._actions = actions_of(agent)
        self._running: dict[uuid.UUID, asyncio.Task[Any]] = {}
        self._cancelled: set[uuid.UUID] = set()
        self._shutdown = asyncio.Event()
        self._started = asyncio.Event()
        self._gate = asyncio.Lock()  # held while the agent starts; who waits at it goes through in order
        self._ended = asyncio.Event()
        self._failed_start = False
        self._expected = True
        self._terminate: bool | None = None
        self._errors: list[BaseException] = []
        self._client: AgentExchangeClient | None = None

    async def run_until_complete(self) -> None:
        """Run the agent until it is told to end, its mailbox is terminated, or it fails.

        Raises:
            BadEntityIdError: The agent is not registered, or was terminated.
            ListenerSupersededError: Another copy of the agent has taken over.
            ExchangeUnavailableError: The exchange is gone.
            AgentLoopError: A control loop raised; an ExceptionGroup if several did.
            SystemExit: An action raised it: raised here, after an end in order, it spares others in the event loop.
            Exception: What `agent_on_startup` or `agent_on_shutdown` raised.
        """
        token = None
        await self._gate.acquire()
        try:
            self._client = await self._factory.create_agent_client(self._registration, self._handle)
            token = exchange_client.set(self._client)
            await self._live(self._client)
        finally:
            if token is not None:
                exchange_client.reset(token)
            self._ended.set()

    async def wait_started(self) -> bool:
        """Until the agent has started (True), or could not (False)."""
        waits = [asyncio.ensure_future(self._started.wait()), asyncio.ensure_future(self._ended.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self._started.is_set() and not self._failed_start

    async def wait_shutdown(self, timeout: float | None = None) -> None:
        """Until the end is asked for. Raises TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            await self._shutdown.wait()

    def signal_shutdown(self, *, expected: bool = True, terminate: bool | None = None) -> None:
        """Ask the agent to end; returns at once.

        Args:
            expected: False: it ends by an error.
            terminate: Close its mailbox for good; None: as configured.
        """
        if not self._shutdown.is_set():
            self._expected = expected
            self._terminate = terminate
            self._shutdown.set()

    async def action(self, action: str, source_id: EntityId, *, args: Any, kwargs: Any) -> Any:
        """Run an action of the agent. Raises AttributeError: it has none of this name."""
        method = self._actions.get(action)
        if method is None:
            raise AttributeError(f'Agent<{type(self.agent).__name__}> does not have an action named "{action}".')
        options = action_options(method)
        if options is not None and options.context:
            assert self._client is not None  # requests only come through it
            kwargs = {**kwargs, "context": ActionContext(source_id, self._client)}
        return await method(*args, **kwargs)

    # Life

    async def _live(self, client: AgentExchangeClient) -> None:
        executor = ThreadPoolExecutor(self._config.max_sync_concurrency, f"{self.agent_id}")
        self.agent._agent_context = AgentContext(self.agent_id, client, executor, self._shutdown)
        watch = asyncio.create_task(self._watch(client))
        try:
            if await self._start(client):
                await self._work(client)
            if self._on_end is not None:
                await self._on_end(self._error())
        except BaseException:  # cancelled; what goes wrong in the agent is collected
            self._expected = False
            raise
        finally:
            watch.cancel()
            await self._leave(client)
            executor.shutdown(wait=False, cancel_futures=True)  # waiting would stop the event loop
            self.agent._agent_context = None
        if (error := self._error()) is not None:
            raise error

    async def _start(self, client: AgentExchangeClient) -> bool:
        self._failed_start = not await self._call_safely(self.agent.agent_on_startup)
        self._started.set()
        self._gate.release()
        if self._failed_start:
            await client.wait_handled()  # who asked is told that it did not start
        return not self._failed_start

    async def _work(self, client: AgentExchangeClient) -> None:
        loops = [
            asyncio.create_task(self._run_loop(name, method), name=f"{self.agent_id} {name}")
            for name, method in loops_of(self.agent).items()
        ]
        try:
            await self._shutdown.wait()
            if loops:
                await asyncio.wait(loops, timeout=self._config.loop_grace_s)
        except asyncio.CancelledError:
            self.signal_shutdown(expected=False)
            self._abandon_actions()
            raise
        finally:
            await self._end_loops(loops)
            await self._end_actions(client)
            await self._call_safely(self.agent.agent_on_shutdown)

    async def _end_loops(self, loops: list[asyncio.Task[None]]) -> None:
        late = [task for task in loops if not task.done()]
        for task in late:
            logger.warning("%s is cancelled: it did not return in time after shutdown", task.get_name())
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _run_loop(self, name: str, method: Callable[[asyncio.Event], Awaitable[None]]) -> None:
        try:
            await method(self._shutdown)
        except PASSED_ON:
            raise
        except BaseException as error:
            logger.exception("the control loop %r of %s failed", name, self.agent_id)
            if self._config.raise_loop_errors_on_shutdown:
                wrapped = AgentLoopError(name, f"{type(error).__name__}: {error}")
                wrapped.__cause__ = error
                self._errors.append(wrapped)
            if self._config.shutdown_on_loop_error:
                self.signal_shutdown(expected=False)

    async def _end_actions(self, client: AgentExchangeClient) -> None:
        if self._config.cancel_actions_on_shutdown:
            if self._will_terminate():  # otherwise they are not answered, and run again in the next life
                self._cancelled.update(tag for tag, task in self._running.items() if not task.cancelling())
            self._abandon_actions()
        while self._running:  # an action that ends may call another one of its own agent
            await asyncio.wait(self._running.values())
        await client.wait_handled()

    def _abandon_actions(self) -> None:
        """Cancel them; their requests are not answered, unless they are in `_cancelled`."""
        for task in self._running.values():
            if not task.cancelling():
                task.cancel()

    async def _watch(self, client: AgentExchangeClient) -> None:
        """End when no more messages can come: terminated by somebody else, superseded, or the exchange is gone."""
        error = await client.wait_ended()
        terminated = isinstance(error, MailboxTerminatedError)
        if not self._shutdown.is_set() and not terminated:
            self._errors.append(error)
        self.signal_shutdown(expected=terminated)
        self._terminate = False  # the mailbox is gone, out of reach, or another copy's
        if isinstance(error, ListenerSupersededError):
            self._abandon_actions()  # the other copy runs them

    async def _call_safely(self, function: Callable[[], Awaitable[None]]) -> bool:
        """Whether it succeeded; what it raised ends the agent, and is raised at the end."""
        try:
            await function()
        except PASSED_ON:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the agent's own code raises
            self._fail(error)
            return False
        return True

    def _fail(self, error: BaseException) -> None:
        self._errors.append(error)
        self.signal_shutdown()
        self._expected = False  # also where it was ending well

    def _will_terminate(self) -> bool:
        if self._terminate is not None:
            return self._terminate
        return self._config.terminate_on_success if self._expected else self._config.terminate_on_error

    async def _leave(self, client: AgentExchangeClient) -> None:
        try:
            if self._will_terminate():
                await client.terminate(self.agent_id)
        except AcademyError as error:
            logger.warning("could not terminate the mailbox of %s: %s", self.agent_id, error)
        finally:
            await client.close()

    def _error(self) -> BaseException | None:
        """What the agent ended with."""
        if len(self._errors) > 1:
            return BaseExceptionGroup(f"{self.agent_id} ended with {len(self._errors)} errors", self._errors)
        return self._errors[0] if self._errors else None

    # Requests

    async def _handle(self, request: Message) -> None:
        async with self._gate:
            pass
        version = request.header.protocol_version
        if version != PROTOCOL_VERSION and not compatible(version):
            await self._answer(request, AcademyErrorResponse(INCOMPATIBLE_VERSION, self.agent_id))
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
            await self._answer(request, failed if self._failed_start else SuccessResponse())
        elif isinstance(body, CancelRequest):
            await self._answer(request, self._cancel(body.target_tag))
        elif isinstance(body, ShutdownRequest):
            await self._answer(request, SuccessResponse())
            self.signal_shutdown(terminate=body.terminate)
        else:
            await self._answer_error(request, BadRequestError(f"{type(body).__name__} is no request"), "json")

    async def _serve_action(self, request: Message, body: ActionRequest) -> None:
        if self._shutdown.is_set() and (self._failed_start or request.src.uid != self.agent_id.uid):
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
            self._fail(failure)
        elif isinstance(failure, KeyboardInterrupt):
            raise failure

    async def _answer_late(self, request: Message) -> None:
        """The agent is ending: the exchange will refuse the request, or keep it for the next life."""
        if self._will_terminate():
            await self._answer(request, AcademyErrorResponse(MAILBOX_TERMINATED, self.agent_id))

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
        assert self._client is not None  # requests only come through it
        await self._client.respond(request, body, functools.partial(self._answer_lost, request, body, final))

    async def _answer_error(
        self, request: Message, error: BaseException, strategy: Strategy, *, final: bool = False
    ) -> None:
        await self._answer(request, _error_answer(error, strategy), final=final)

    def _answer_lost(self, request: Message, body: Body, final: bool, error: AcademyError) -> None:
        """The exchange did not take an answer. `final`: it was one that told of such a failure."""
        assert self._client is not None  # it has tried
        if isinstance(error, (MailboxTerminatedError, BadEntityIdError)):
            self._client.drop(request)  # nobody waits for it any more
        elif isinstance(error, (MailboxFullError, ExchangeFullError)):
            self._client.spawn(self._answer_again(request, body, final))
        elif isinstance(error, RefusedError) and not final:
            self._client.spawn(self._answer_error(request, error, "json", final=True))
        else:
            logger.error("could not answer %r: %s", request, error)

    async def _answer_again(self, request: Message, body: Body, final: bool) -> None:
        await asyncio.sleep(FULL_PAUSE_S)
        await self._answer(request, body, final=final)


def _error_answer(error: BaseException, strategy: Strategy) -> UserErrorResponse:
    if isinstance(error, (KeyboardInterrupt, SystemExit)):  # the caller's program is not meant
        error = AcademyRemoteError("".join(traceback.format_exception(error)))
    return UserErrorResponse(*serialize_exception(error, strategy))
