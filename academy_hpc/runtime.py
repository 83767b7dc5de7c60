"""Runs one agent: starts it, serves its requests, runs its loops, and ends it in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from academy_hpc.agent import Agent, AgentContext, RuntimeConfig, loops_of
from academy_hpc.checkpoint import CheckpointFiles, StateKeeper
from academy_hpc.drain import ACTIONS, INTERRUPTED, SHUTDOWN, Drain
from academy_hpc.errors import (
    AcademyError,
    AgentLoopError,
    ExchangeError,
    ListenerSupersededError,
    MailboxTerminatedError,
)
from academy_hpc.exchange.client import AgentExchangeClient, exchange_client
from academy_hpc.exchange.factory import ExchangeFactory
from academy_hpc.exchange.transport import AgentRegistration
from academy_hpc.identifiers import AgentId, EntityId
from academy_hpc.serialization import NoPickleMixin
from academy_hpc.serving import Requests

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

    Attributes:
        agent: Whom it runs.
        agent_id: As which entity.
        drained: Whether `drain` has ended it, before anything else did.
    """

    def __init__(
        self,
        agent: AgentT,
        *,
        exchange_factory: ExchangeFactory,
        registration: AgentRegistration,
        config: RuntimeConfig | None = None,
        on_end: Callable[[BaseException | None], Awaitable[None]] | None = None,
        state: CheckpointFiles | None = None,
    ) -> None:
        """Store what to run.

        Args:
            agent: The agent.
            exchange_factory: Makes its client.
            registration: As which entity.
            config: How it behaves.
            on_end: Awaited when all of the agent has ended, and its mailbox, if it is to be closed, is still open: the
                last moment at which something can be sent as this agent. It is given what the agent ended with.
            state: Where the agent's state is kept from one life to the next; None: nowhere.
        """
        self.agent = agent
        self.agent_id: AgentId[Any] = registration.agent_id
        self._factory = exchange_factory
        self._registration = registration
        self._config = config or RuntimeConfig()
        self._on_end = on_end
        self._state_files = state
        self._state: StateKeeper | None = None
        self._requests = Requests(agent, self.agent_id, self._config, self)
        self._shutdown = asyncio.Event()
        self._started = asyncio.Event()
        self._ended = asyncio.Event()
        self._failed_start = False
        self._expected = True
        self._superseded = False
        self._drain = Drain()
        self.drained = False
        self._terminate: bool | None = None
        self._errors: list[BaseException] = []

    async def run_until_complete(self) -> None:
        """Run the agent until it is told to end, its mailbox is terminated, or it fails.

        Raises:
            BadEntityIdError: The agent is not registered, or was terminated.
            ListenerSupersededError: Another copy of the agent has taken over.
            ExchangeUnavailableError: The exchange is gone.
            AgentLoopError: A control loop raised; an ExceptionGroup if several did.
            SystemExit: An action raised it: raised here, after an end in order, it spares others in the event loop.
            CheckpointError: Its state could not be restored, or not be saved at its end.
            Exception: What `agent_on_startup` or `agent_on_shutdown` raised.
        """
        token = None
        await self._requests.hold()
        try:
            async with self._drain.limit(ACTIONS):
                client = await self._factory.create_agent_client(self._registration, self._requests.handle)
            self._requests.client = client
            token = exchange_client.set(client)
            await self._live(client)
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

    def drain(self, *, grace_s: float) -> None:
        """End this life of the agent, which is to go on in another; returns at once.

        Requests that were not begun stay in the mailbox, and no attempt is counted. Running actions and loops have
        half of the time to finish; then they are interrupted, and the actions run again in the next life. Then comes
        `agent_on_shutdown`, until three quarters of the time, and the state is saved. Calling it again can shorten it.

        Args:
            grace_s: Seconds until the agent's host may be gone.
        """
        self.drained = self.drained or not self._shutdown.is_set()
        self._drain.begin(grace_s)
        self.signal_shutdown(terminate=False)

    def fail(self, error: BaseException) -> None:
        """End the agent by `error`, which is raised at the end; returns at once."""
        self._errors.append(error)
        self.signal_shutdown()
        self._expected = False  # also where it was ending well

    async def action(self, action: str, source_id: EntityId, *, args: Any, kwargs: Any) -> Any:
        """Run an action of the agent. Raises AttributeError: it has none of this name."""
        return await self._requests.action(action, source_id, args=args, kwargs=kwargs)

    @property
    def failed_start(self) -> bool:
        """Whether the agent could not start."""
        return self._failed_start

    @property
    def ending(self) -> bool:
        """Whether the agent is going to end."""
        return self._shutdown.is_set()

    @property
    def ends_for_good(self) -> bool:
        """Whether the agent's mailbox is going to be closed with it."""
        if self._terminate is not None:
            return self._terminate
        return self._config.terminate_on_success if self._expected else self._config.terminate_on_error

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
        self._failed_start = not await self._call_safely(self._begin, ACTIONS)
        self._started.set()
        self._requests.release()
        if self._failed_start:
            await client.wait_handled()  # who asked is told that it did not start
        return not self._failed_start

    async def _begin(self) -> None:
        self._state = StateKeeper.of(self.agent, self._state_files)
        if self._state is not None:
            await self._state.restore()
        await self.agent.agent_on_startup()

    async def _work(self, client: AgentExchangeClient) -> None:
        loops = [
            asyncio.create_task(self._run_loop(name, method), name=f"{self.agent_id} {name}")
            for name, method in loops_of(self.agent).items()
        ]
        saving = None
        if self._state is not None and self._config.checkpoint_s is not None:
            saving = asyncio.create_task(self._state.save_regularly(self._config.checkpoint_s))
        try:
            await self._shutdown.wait()
            await self._until_done(loops, ACTIONS, timeout=self._config.loop_grace_s)
        except asyncio.CancelledError:
            self.signal_shutdown(expected=False)
            self._requests.abandon_all()
            raise
        finally:
            if saving is not None:
                saving.cancel()
            await self._end_loops(loops)
            await self._end_actions(client)
            sound = self.drained or all(isinstance(error, ExchangeError) for error in self._errors)
            await self._call_safely(self.agent.agent_on_shutdown, SHUTDOWN)
            if sound and not self._superseded and not self.ends_for_good:
                await self._save()

    async def _save(self) -> None:
        """For the next life. What goes wrong is raised at the end, and does not decide over the mailbox."""
        try:
            if self._state is not None:
                await self._state.save()
        except PASSED_ON:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the agent's own code raises
            self._errors.append(error)

    async def _end_loops(self, loops: list[asyncio.Task[None]]) -> None:
        late = [task for task in loops if not task.done()]
        for task in late:
            logger.warning("%s is cancelled: it did not return in time after shutdown", task.get_name())
            task.cancel()
        await self._until_done(late, INTERRUPTED)

    async def _until_done(
        self, tasks: Collection[asyncio.Task[Any]], part: float, *, timeout: float | None = None
    ) -> None:
        """Until all have ended, or the time is over."""
        if tasks:
            with contextlib.suppress(TimeoutError):
                async with self._drain.limit(part):
                    await asyncio.wait(tasks, timeout=timeout)

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
        if self._config.cancel_actions_on_shutdown and not self._drain.begun:
            if self.ends_for_good:
                self._requests.cancel_all()
            else:
                self._requests.abandon_all()
        for part in (ACTIONS, INTERRUPTED):
            with contextlib.suppress(TimeoutError):
                async with self._drain.limit(part):
                    await self._requests.wait_done()
            self._requests.abandon_all()  # after a drain, there may be some
        await client.wait_handled()

    async def _watch(self, client: AgentExchangeClient) -> None:
        """End when no more messages can come: terminated by somebody else, superseded, or the exchange is gone."""
        error = await client.wait_ended()
        terminated = isinstance(error, MailboxTerminatedError)
        if not self._shutdown.is_set() and not terminated:
            self._errors.append(error)
        self.signal_shutdown(expected=terminated)
        self._terminate = False  # the mailbox is gone, out of reach, or another copy's
        if isinstance(error, ListenerSupersededError):
            self._superseded = True
            self._requests.abandon_all()  # the other copy runs them

    async def _call_safely(self, function: Callable[[], Awaitable[None]], part: float) -> bool:
        """Whether it succeeded; what it raised ends the agent, and is raised at the end."""
        try:
            async with self._drain.limit(part) as limit:
                await function()
        except PASSED_ON:
            raise
        except TimeoutError as error:
            if not limit.expired():
                self.fail(error)
            else:
                logger.warning("%s of %s is interrupted: its time is over", function.__name__, self.agent_id)
            return False
        except BaseException as error:  # noqa: BLE001 - whatever the agent's own code raises
            self.fail(error)
            return False
        return True

    async def _leave(self, client: AgentExchangeClient) -> None:
        try:
            if self.ends_for_good:
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
