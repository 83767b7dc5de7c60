"""What an agent's token opens: its own mailbox, and nothing else."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import msgspec
import pytest

from academy_hpc.agent import Agent, action
from academy_hpc.delivery import Window
from academy_hpc.directory import Caller, Effects
from academy_hpc.errors import (
    AgentTerminatedError,
    BadEntityIdError,
    ForbiddenError,
    RefusedError,
    UnauthorizedError,
)
from academy_hpc.exchange.client import UserExchangeClient
from academy_hpc.exchange.http import wire
from academy_hpc.exchange.http.client import HttpAgentRegistration, HttpExchangeFactory, HttpExchangeTransport
from academy_hpc.exchange.http.operations import Operations
from academy_hpc.exchange.http.tokens import agent_token, agent_uid, is_agent_token
from academy_hpc.exchange.transport import MailboxStatus
from academy_hpc.handle import Handle
from academy_hpc.identifiers import AgentId, EntityId, UserId
from academy_hpc.launch.manager import Manager
from academy_hpc.message import Message, PingRequest, SuccessResponse
from academy_hpc.runtime import Runtime
from tests.exchange_server import TOKEN, RunningExchange
from tests.faults.proxy import running_proxy
from tests.rest_client import Rest
from tests.stored_registry import BASE, Exchange

__all__: list[str] = []


class Worker(Agent):
    @action
    async def double(self, number: int) -> int:
        return 2 * number

    @action
    async def ask(self, other: AgentId[Any], number: int) -> int:
        result: int = await Handle[Worker](other).double(number)
        return result


@pytest.fixture
async def owner(exchange: RunningExchange) -> AsyncIterator[UserExchangeClient]:
    async with await exchange.factory.create_user_client() as client:
        yield client


def without_owner(factory: HttpExchangeFactory) -> HttpExchangeFactory:
    """What a launched worker has."""
    return HttpExchangeFactory.from_connection_info(factory.connection_info.without_token(), options=factory.options)


async def registered(owner: UserExchangeClient, name: str = "worker") -> HttpAgentRegistration[Any]:
    registration = await owner.register_agent(Worker, name=name)
    assert isinstance(registration, HttpAgentRegistration)
    return registration


async def transport_of(factory: HttpExchangeFactory, registration: Any) -> HttpExchangeTransport:
    return await without_owner(factory).create_transport(registration.agent_id, registration=registration)


# In the core


def operations(exchange: Exchange, about: EntityId) -> dict[str, Callable[[Caller], Any]]:
    registry = exchange.registry
    message = Message.create(about, exchange.user, SuccessResponse())
    return {
        "attach": lambda caller: registry.attach(about, uuid.uuid4(), caller, Effects(), now=0),
        "send as it": lambda caller: registry.send(message, caller, Effects()),
        "may send as it": lambda caller: registry.check_send(message.header, caller),
        "heartbeat": lambda caller: registry.beat(about, caller, now=0),
        "counters": lambda caller: registry.counters(about, caller),
        "status": lambda caller: registry.status(about, caller),
        "last seen": lambda caller: registry.last_seen(about, caller, now=0),
        "send to it": lambda caller: registry.send(_to(about, caller), caller, Effects()),
        "groups": lambda caller: registry.groups(about, caller),
        "share": lambda caller: registry.share(about, "lab", caller, Effects()),
        "unshare": lambda caller: registry.unshare(about, "lab", caller, Effects()),
        "create again": lambda caller: registry.create(about, (), caller, Effects()),
        "create": lambda caller: registry.create(AgentId[Any].new(), (), caller, Effects()),
        "terminate": lambda caller: registry.terminate(about, caller, Effects()),
    }


def _to(dest: EntityId, caller: Caller) -> Message:
    assert caller.entity is not None
    return Message.create(EntityId(caller.entity), dest, PingRequest())


OWN = {
    "attach",
    "send as it",
    "may send as it",
    "heartbeat",
    "counters",
    "status",
    "last seen",
    "send to it",
    "terminate",
}
OTHERS = {"status", "last seen", "send to it"}


@pytest.mark.parametrize("name", operations(Exchange(), UserId.new()))
def test_an_agent_may_do_all_this_with_its_own_mailbox_and_only_that_with_others(name: str) -> None:
    """Terminating is the right to give the mailbox up, with which its token ends; nobody else's."""
    exchange = Exchange()
    other = exchange.create(AgentId[Any].new("other"), "pkg.Worker", BASE)
    caller = exchange.registry.agent_caller(exchange.agent.uid)
    for about, allowed in ((other, OTHERS), (exchange.agent, OWN)):
        if name in allowed:
            operations(exchange, about)[name](caller)
        else:
            with pytest.raises(ForbiddenError):
                operations(exchange, about)[name](caller)


@pytest.mark.parametrize("name", operations(Exchange(), UserId.new()))
def test_a_terminated_agent_may_do_nothing(name: str) -> None:
    exchange = Exchange()
    other = exchange.create(AgentId[Any].new("other"), "pkg.Worker", BASE)
    caller = exchange.registry.agent_caller(exchange.agent.uid)
    exchange.terminate(exchange.agent)
    for right in (caller, exchange.registry.agent_caller(exchange.agent.uid)):
        with pytest.raises((ForbiddenError, AgentTerminatedError)):
            operations(exchange, other)[name](right)
    with pytest.raises(AgentTerminatedError):
        exchange.registry.discover("pkg.Worker", caller, subclasses=True)


def test_an_agent_sends_as_nobody_else_not_even_as_one_without_a_mailbox() -> None:
    exchange = Exchange()
    caller = exchange.registry.agent_caller(exchange.agent.uid)
    for source in (exchange.user, UserId.new("nobody"), exchange.create(AgentId[Any].new("other"))):
        with pytest.raises(ForbiddenError):
            exchange.registry.send(Message.create(source, exchange.agent, PingRequest()), caller, Effects())
    assert exchange.registry.take(exchange.agent.uid, exchange.listen(exchange.agent), Window()) == []


def test_an_agent_sees_the_mailboxes_of_its_owner_and_those_its_own_is_shared_with() -> None:
    exchange = Exchange()
    ada, bob = Caller("ada", frozenset({"lab"})), Caller("bob", frozenset({"lab"}))
    theirs = exchange.create(AgentId[Any].new("theirs"), "pkg.Worker", BASE, caller=bob)
    caller = exchange.registry.agent_caller(exchange.agent.uid)
    assert exchange.registry.discover("pkg.Worker", caller, subclasses=True) == [exchange.agent]
    with pytest.raises(ForbiddenError):
        exchange.registry.send(_to(theirs, caller), caller, Effects())
    for entity, owner in ((exchange.agent, ada), (theirs, bob)):
        exchange.registry.share(entity, "lab", owner, Effects())
    assert exchange.registry.discover("pkg.Worker", caller, subclasses=True) == [exchange.agent, theirs]
    exchange.registry.send(_to(theirs, caller), caller, Effects())


# The token


def test_a_token_is_good_for_one_mailbox_of_one_exchange() -> None:
    uid, other = uuid.uuid4(), uuid.uuid4()
    token = agent_token("a secret", uid)
    assert agent_uid(token) == uid
    assert is_agent_token("a secret", token, uid)
    assert not is_agent_token("a secret", token, other)
    assert not is_agent_token("another secret", token, uid)
    for changed in (token[:-1], token + "A", token.replace(uid.hex, other.hex), token.upper(), ""):
        assert not is_agent_token("a secret", changed, uid)
    for malformed in ("", "owner", "agent.x.y", f"agent.{uid.hex}", f"user.{uid.hex}.mac", "a.b.c.d"):
        assert agent_uid(malformed) is None


def test_a_registration_hides_its_token_and_travels_with_it() -> None:
    registration = HttpAgentRegistration(AgentId[Any].new("worker"), token="a-secret-token")  # noqa: S106 - opens nothing
    assert "a-secret-token" not in f"{registration!r} {registration} {registration.__rich_repr__()}"
    assert HttpAgentRegistration[Any].from_json(registration.to_json()) == registration
    assert "a-secret-token" not in repr(wire.Present(uuid.uuid4(), "a-secret-token"))


# At an exchange


async def test_an_agent_lives_and_works_with_nothing_but_its_registration(
    exchange: RunningExchange, owner: UserExchangeClient
) -> None:
    """Many in one process share one connection, each by its own right."""
    registrations = [await registered(owner, f"worker-{number}") for number in range(5)]
    factory = without_owner(exchange.factory)
    runtimes = [Runtime(Worker(), exchange_factory=factory, registration=item) for item in registrations]
    running = [asyncio.create_task(runtime.run_until_complete()) for runtime in runtimes]
    ids = [item.agent_id for item in registrations]
    handles = [Handle[Worker](agent_id, exchange=owner) for agent_id in ids]
    answers = await asyncio.gather(*(handle.ask(ids[n - 1], n) for n, handle in enumerate(handles)))
    assert answers == [0, 2, 4, 6, 8]
    assert len(exchange.server._streams) == 2  # the owner's, and that of the agents
    for handle in handles:
        await handle.shutdown()
    await asyncio.gather(*running)
    assert [await owner.status(agent_id) for agent_id in ids] == [MailboxStatus.TERMINATED] * 5


async def test_an_agent_may_see_who_is_there_and_register_nobody(
    exchange: RunningExchange, owner: UserExchangeClient
) -> None:
    first, second = await registered(owner), await registered(owner)
    async with await transport_of(exchange.factory, first) as transport:
        assert set(await transport.discover(Worker)) == {first.agent_id, second.agent_id}
        assert await transport.status(second.agent_id) is MailboxStatus.INACTIVE
        assert await transport.heartbeat_status(second.agent_id) is None
        with pytest.raises(ForbiddenError):
            await transport.register_agent(Worker)
        with pytest.raises(ForbiddenError):
            await transport.terminate(second.agent_id)
        with pytest.raises(ForbiddenError):
            await transport.agent_stats(second.agent_id)


async def test_an_agent_can_neither_listen_nor_send_for_another(
    exchange: RunningExchange, owner: UserExchangeClient
) -> None:
    mine, other = await registered(owner), await registered(owner)
    async with await transport_of(exchange.factory, mine) as transport:
        with pytest.raises(ForbiddenError):
            await transport.send(Message.create(other.agent_id, owner.client_id, SuccessResponse()))
        with pytest.raises(ForbiddenError):
            await transport.send(Message.create(owner.client_id, other.agent_id, PingRequest()))
    stranger = HttpAgentRegistration(other.agent_id, token=mine.token)
    async with await transport_of(exchange.factory, stranger) as transport:
        with pytest.raises(ForbiddenError):
            await anext(transport.listen(timeout=1))


async def test_a_forged_token_gives_no_right_on_a_connection_that_another_one_opened(
    exchange: RunningExchange, owner: UserExchangeClient
) -> None:
    mine, other = await registered(owner), await registered(owner)
    forged = HttpAgentRegistration(other.agent_id, token=agent_token("a guess", other.agent_id.uid))
    async with await transport_of(exchange.factory, mine), await transport_of(exchange.factory, forged) as transport:
        with pytest.raises(ForbiddenError):
            await transport.send(Message.create(other.agent_id, owner.client_id, SuccessResponse()))
        with pytest.raises(ForbiddenError):
            await anext(transport.listen(timeout=1))


async def test_a_token_opens_nothing_once_its_agent_is_terminated(
    exchange: RunningExchange, owner: UserExchangeClient
) -> None:
    """Neither on the connection that it opened, nor on a new one."""
    mine, other = await registered(owner), await registered(owner)
    async with await transport_of(exchange.factory, mine) as transport:
        await owner.terminate(mine.agent_id)
        await _refused_all(transport, mine.agent_id, other.agent_id)
    async with await transport_of(exchange.factory, mine) as transport:
        await _refused_all(transport, mine.agent_id, other.agent_id)
    runtime = Runtime(Worker(), exchange_factory=without_owner(exchange.factory), registration=mine)
    with pytest.raises(BadEntityIdError):
        await runtime.run_until_complete()


async def _refused_all(transport: HttpExchangeTransport, mine: EntityId, other: EntityId) -> None:
    message = Message.create(mine, other, PingRequest())
    for refused in (transport.discover(Worker), transport.status(other), transport.send(message)):
        with pytest.raises(AgentTerminatedError):
            await refused


async def test_agents_come_back_by_their_own_right_though_the_one_that_opened_the_connection_is_gone(
    exchange: RunningExchange, owner: UserExchangeClient
) -> None:
    first, second = await registered(owner), await registered(owner)
    async with running_proxy(exchange.port) as proxy:
        factory = exchange.factory_at(proxy.port)
        async with await transport_of(factory, first), await transport_of(factory, second) as transport:
            await owner.terminate(first.agent_id)
            proxy.cut()
            message = Message.create(second.agent_id, owner.client_id, SuccessResponse())
            await asyncio.wait_for(transport.send(message), 10)


async def test_without_any_token_nobody_is_let_in(exchange: RunningExchange) -> None:
    with pytest.raises(UnauthorizedError):
        await without_owner(exchange.factory).create_user_client()
    false = HttpAgentRegistration(AgentId[Any].new(), token=agent_token("a guess", uuid.uuid4()))
    with pytest.raises(UnauthorizedError):
        await transport_of(exchange.factory, false)


async def test_an_agents_token_has_the_same_rights_by_rest(
    exchange: RunningExchange, owner: UserExchangeClient
) -> None:
    mine, other = await registered(owner), await registered(owner)
    async with aiohttp.ClientSession() as session:
        rest = Rest(session, f"http://127.0.0.1:{exchange.port}", mine.token)
        me, them = (msgspec.to_builtins(item.agent_id) for item in (mine, other))
        assert (await rest.on(me, "GET", "/message", timeout=0.01)).status == 408
        assert (await rest.on(them, "GET", "/message", timeout=0.01)).status == 403
        assert (await rest.on(them, "DELETE", "/mailbox")).status == 403
        assert (await rest.on(them, "GET", "/mailbox")).json == {"status": "ACTIVE"}
        assert (await rest.on(me, "POST", "/mailbox/share", group_id="lab")).status == 403
        assert (await rest.on(me, "DELETE", "/mailbox")).status == 200
        assert (await rest.on(me, "GET", "/message", timeout=0.01)).status == 419


async def test_only_the_owner_is_given_the_token_of_an_agent(exchange: RunningExchange) -> None:
    """Somebody with whom it is shared may use it, and gets no right that outlives the sharing."""
    service, effects = exchange.server.service, Effects()
    ada, bob = Caller("ada", frozenset({"lab"})), Caller("bob", frozenset({"lab"}))
    agent_id = AgentId[Any].new()
    agent, person = msgspec.to_builtins(agent_id), msgspec.to_builtins(UserId.new())
    operations = Operations(service, exchange.server._agents)
    assert operations.call(ada, effects, "create", [agent, ()]) == agent_token(TOKEN, agent_id.uid)
    with pytest.raises(RefusedError):
        operations.call(bob, effects, "create", [agent, ()])
    operations.call(ada, effects, "share", [agent, "lab"])
    assert operations.call(bob, effects, "create", [agent, ()]) is None
    assert operations.call(ada, effects, "create", [person, ()]) is None


class Curious(Agent):
    @action
    async def register(self) -> None:
        await self.agent_exchange_client.register_agent(Worker)


async def test_a_launched_worker_has_no_token_but_those_of_its_agents(exchange: RunningExchange) -> None:
    """So an agent, or whoever reads its job script, is not the owner of the exchange."""
    async with await Manager.from_exchange_factory(exchange.factory, ThreadPoolExecutor(1)) as manager:
        spec = await manager.make_spec([Curious])
        assert TOKEN not in spec.to_json()
        token = spec.agents[0].registration.token
        assert token is not None and token in spec.to_json() and token not in repr(spec)
        curious = await manager.launch(Curious)
        with pytest.raises(ForbiddenError):
            await curious.register()
