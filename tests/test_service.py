"""The exchange between its core and its store: what waits for what, and what happens to whom stops waiting."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import pytest

from academy_hpc.changes import Change
from academy_hpc.delivery import Window
from academy_hpc.directory import Caller, Effects
from academy_hpc.errors import AcademyError, AgentTerminatedError, ForbiddenError
from academy_hpc.exchange.service import ExchangeService
from academy_hpc.exchange.store.memory import MemoryStore
from academy_hpc.identifiers import AgentId, UserId
from academy_hpc.message import Message, PingRequest
from tests.stored_registry import OWNER

__all__: list[str] = []

AGENT, USER, SESSION = AgentId[Any].new(), UserId.new(), uuid.uuid4()


class SlowStore(MemoryStore):
    """A store whose disk takes its time while it is `slow`."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        self._unkept: list[asyncio.Future[None]] = []

    def write(
        self, changes: Sequence[Change], *, written: Callable[[], None] = lambda: None, hurried: bool = True
    ) -> Awaitable[None]:
        super().write(changes, written=written)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unkept.append(future)
        if not self.slow:
            self.keep()
        return future

    def keep(self) -> None:
        self.slow = False
        while self._unkept:
            future = self._unkept.pop(0)
            if not future.done():
                future.set_result(None)


class Ear:
    """A listener that notes what it is told."""

    def __init__(self) -> None:
        self.ended: list[AcademyError] = []
        self.woken = 0

    def wake(self, uid: uuid.UUID) -> None:
        self.woken += 1

    def end(self, uid: uuid.UUID, error: AcademyError) -> None:
        self.ended.append(error)


async def serving(store: SlowStore, ear: Ear) -> ExchangeService:
    service, effects = ExchangeService(store), Effects()
    service.registry.create(USER, (), OWNER, effects)
    service.registry.create(AGENT, (), OWNER, effects)
    service.attach(AGENT, ear, SESSION, OWNER, effects)
    await service.commit(effects)
    store.slow = True
    return service


def send(service: ExchangeService) -> Callable[[], Coroutine[Any, Any, None]]:
    message = Message.create(USER, AGENT, PingRequest())
    return lambda: service.send_and_wait(message, OWNER)


async def change(service: ExchangeService, operation: Callable[[Effects], Any]) -> None:
    effects = Effects()
    operation(effects)
    await service.commit(effects)


def create(service: ExchangeService) -> Callable[[], Coroutine[Any, Any, None]]:
    other = AgentId[Any].new()
    return lambda: change(service, lambda effects: service.registry.create(other, (), OWNER, effects))


def terminate(service: ExchangeService) -> Callable[[], Coroutine[Any, Any, None]]:
    return lambda: change(service, lambda effects: service.registry.terminate(AGENT, OWNER, effects))


def attach(service: ExchangeService) -> Callable[[], Coroutine[Any, Any, None]]:
    session = uuid.uuid4()
    return lambda: change(service, lambda effects: service.attach(AGENT, Ear(), session, OWNER, effects))


@pytest.mark.parametrize("operation", [send, create, terminate, attach])
async def test_what_is_done_already_is_confirmed_when_it_is_kept(
    operation: Callable[[ExchangeService], Callable[[], Coroutine[Any, Any, None]]],
) -> None:
    """A connection breaks while the disk is at work, and the client asks again on another one."""
    store = SlowStore()
    do = operation(await serving(store, Ear()))
    first, again = asyncio.create_task(do()), asyncio.create_task(do())
    await asyncio.sleep(0.01)
    assert not first.done()
    assert not again.done()
    store.keep()
    async with asyncio.timeout(5):
        await asyncio.gather(first, again)


async def test_a_message_is_handed_out_though_its_sender_does_not_wait_any_more() -> None:
    store, ear = SlowStore(), Ear()
    service = await serving(store, ear)
    woken = ear.woken
    sending = asyncio.create_task(send(service)())
    await asyncio.sleep(0)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    assert ear.woken > woken
    assert len(service.registry.take(AGENT.uid, SESSION, Window())) == 1


async def test_whom_a_mailbox_is_not_shared_with_any_more_listens_to_it_no_more() -> None:
    ada, bob = Caller("ada", frozenset({"lab"})), Caller("bob", frozenset({"lab"}))
    ear, own = Ear(), Ear()
    service, effects = ExchangeService(MemoryStore()), Effects()
    service.registry.create(AGENT, (), ada, effects)
    service.registry.share(AGENT, "lab", ada, effects)
    service.attach(AGENT, ear, SESSION, bob, effects)
    await service.commit(effects)
    await change(service, lambda effects: service.registry.unshare(AGENT, "lab", ada, effects))
    assert [type(error) for error in ear.ended] == [ForbiddenError]
    await change(service, lambda effects: service.attach(AGENT, own, uuid.uuid4(), ada, effects))
    await change(service, lambda effects: service.registry.unshare(AGENT, "lab", ada, effects))
    assert not own.ended


async def test_a_listener_is_told_that_its_mailbox_is_gone_though_who_closed_it_does_not_wait_any_more() -> None:
    store, ear = SlowStore(), Ear()
    service = await serving(store, ear)
    closing = asyncio.create_task(terminate(service)())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    assert [type(error) for error in ear.ended] == [AgentTerminatedError]
