"""The stream: one connection a process, flow control, errors, and what happens when the exchange ends."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import time
import uuid

import aiohttp
import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

from academy_hpc.agent import Agent
from academy_hpc.delivery import Window
from academy_hpc.directory import Caller, Effects
from academy_hpc.errors import (
    AcademyError,
    AgentTerminatedError,
    BadEntityIdError,
    ExchangeChangedError,
    ExchangeFullError,
    ExchangeUnavailableError,
    ExchangeUnreachableError,
    ForbiddenError,
    ListenerSupersededError,
    MailboxFullError,
    MessageTooLargeError,
    UnauthorizedError,
)
from academy_hpc.exchange.http import dial, rest, server_stream, wire
from academy_hpc.exchange.http.certificate import make_certificate
from academy_hpc.exchange.http.client import HttpExchangeFactory, HttpExchangeTransport
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.link import WINDOW_MESSAGES
from academy_hpc.exchange.http.server import ServerConfig
from academy_hpc.exchange.transport import MailboxStatus
from academy_hpc.identifiers import AgentId, UserId
from academy_hpc.message import ActionRequest, Message, PingRequest, SuccessResponse
from academy_hpc.registry import Limits
from tests.exchange_server import TOKEN, RunningExchange, running_exchange
from tests.faults.proxy import running_proxy
from tests.running_agent import until


async def transport(factory: HttpExchangeFactory, name: str = "someone") -> HttpExchangeTransport:
    return await factory.create_transport(name=name)


def text(source: HttpExchangeTransport, dest: HttpExchangeTransport, content: str) -> Message:
    return Message.create(source.mailbox_id, dest.mailbox_id, ActionRequest(content, "", ""))


def content(message: Message) -> str:
    body = message.decoded()
    assert isinstance(body, ActionRequest)
    return body.action


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def test_all_clients_of_a_process_share_one_connection_which_the_last_one_closes() -> None:
    async with running_exchange() as exchange:
        clients = [await exchange.factory.create_user_client(name=str(number)) for number in range(20)]
        assert len(exchange.server._streams) == 1
        for client in clients[1:]:
            await client.close()
        assert len(exchange.server._streams) == 1
        await clients[0].close()
        await asyncio.sleep(0.05)
        assert not exchange.server._streams


async def test_the_first_url_that_answers_is_used_and_the_others_do_no_harm() -> None:
    async with running_exchange() as exchange, running_proxy(exchange.port) as proxy:
        factory = exchange.factory_at(unused_port(), proxy.port, exchange.port, exchange.port)
        async with await factory.create_user_client() as client:
            assert await client.discover(Agent) == ()
            await asyncio.sleep(0.05)
            assert len(exchange.server._streams) == 1


async def test_when_no_url_answers_the_error_names_each_and_why() -> None:
    ports = unused_port(), unused_port()
    async with running_exchange() as exchange:
        with pytest.raises(ExchangeUnreachableError) as caught:
            await exchange.factory_at(*ports).create_user_client()
    assert set(caught.value.attempts) == {f"http://127.0.0.1:{port}" for port in ports}
    assert all("Connect call failed" in reason or "refused" in reason for reason in caught.value.attempts.values())


async def test_a_wrong_token_is_told_as_such() -> None:
    async with running_exchange() as exchange:
        url = exchange.factory.connection_info.urls[0]
        with pytest.raises(UnauthorizedError, match="did not accept the token"):
            await HttpExchangeFactory(url, additional_headers={"Authorization": "Bearer no"}).create_user_client()
        with pytest.raises(UnauthorizedError):
            await HttpExchangeFactory(url).create_user_client()


async def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{unused_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    assert "http_proxy" in os.environ
    async with running_exchange() as exchange, await exchange.factory.create_user_client() as client:
        assert await client.discover(Agent) == ()


async def test_an_unknown_and_a_terminated_destination_have_their_own_errors() -> None:
    async with running_exchange() as exchange, await transport(exchange.factory) as sender:
        unknown: AgentId[Agent] = AgentId.new("nobody")
        with pytest.raises(BadEntityIdError) as caught:
            await sender.send(Message.create(sender.mailbox_id, unknown, PingRequest()))
        assert caught.value.uid == unknown
        agent_id = (await sender.register_agent(Agent, name="short-lived")).agent_id
        await sender.terminate(agent_id)
        with pytest.raises(AgentTerminatedError, match="short-lived"):
            await sender.send(Message.create(sender.mailbox_id, agent_id, PingRequest()))


async def test_a_message_over_the_limit_is_refused_and_harms_nobody() -> None:
    config = ServerConfig(token=TOKEN, limits=Limits(message_bytes=10_000))
    async with running_exchange(config) as exchange:
        async with await transport(exchange.factory) as sender, await transport(exchange.factory) as receiver:
            with pytest.raises(MessageTooLargeError) as caught:
                await sender.send(text(sender, receiver, "x" * 20_000))
            assert caught.value.limit == 10_000 < caught.value.size
            await sender.send(text(sender, receiver, "small"))
            async for message in receiver.listen(5):
                assert content(message) == "small"
                break


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 1_000_000, 16_000_000])
async def test_bodies_of_any_size_pass_unchanged(size: int) -> None:
    async with running_exchange() as exchange:
        async with await transport(exchange.factory) as sender, await transport(exchange.factory) as receiver:
            body = "é" * (size // 2)
            await sender.send(text(sender, receiver, body))
            async for message in receiver.listen(20):
                assert content(message) == body
                break


async def fill(
    exchange: RunningExchange, sender: HttpExchangeTransport, receiver: HttpExchangeTransport, n: int
) -> None:
    for number in range(n):
        await sender.send(text(sender, receiver, str(number)))


async def test_a_sender_into_a_full_mailbox_waits_for_room_and_keeps_its_place() -> None:
    config = ServerConfig(token=TOKEN, limits=Limits(mailbox_messages=10))
    async with running_exchange(config) as exchange:
        async with await transport(exchange.factory) as sender, await transport(exchange.factory) as receiver:
            await fill(exchange, sender, receiver, 10)
            late = [asyncio.create_task(sender.send(text(sender, receiver, str(n)))) for n in range(10, 30)]
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in late)
            got: list[str] = []
            async for message in receiver.listen(5):
                got.append(content(message))
                if len(got) == 30:
                    break
            await asyncio.gather(*late)
            assert got == [str(n) for n in range(30)]


async def test_a_mailbox_that_stays_full_is_an_error_after_a_while() -> None:
    config = ServerConfig(token=TOKEN, limits=Limits(mailbox_messages=3), full_wait_s=0.2)
    async with running_exchange(config) as exchange:
        async with await transport(exchange.factory) as sender, await transport(exchange.factory) as receiver:
            await fill(exchange, sender, receiver, 3)
            with pytest.raises(MailboxFullError, match="stayed full") as caught:
                await sender.send(text(sender, receiver, "one too many"))
            assert caught.value.uid == receiver.mailbox_id


async def test_who_waits_for_room_in_a_mailbox_that_is_terminated_is_told() -> None:
    config = ServerConfig(token=TOKEN, limits=Limits(mailbox_messages=1))
    async with running_exchange(config) as exchange, await transport(exchange.factory) as sender:
        agent_id = (await sender.register_agent(Agent)).agent_id
        await sender.send(Message.create(sender.mailbox_id, agent_id, PingRequest()))
        waiting = asyncio.create_task(sender.send(Message.create(sender.mailbox_id, agent_id, PingRequest())))
        await asyncio.sleep(0.05)
        await sender.terminate(agent_id)
        with pytest.raises(AgentTerminatedError):
            await waiting


async def test_a_reader_that_takes_messages_one_by_one_is_handed_no_more_than_a_window() -> None:
    async with running_exchange() as exchange:
        async with await transport(exchange.factory) as sender, await transport(exchange.factory) as receiver:
            total = 3 * WINDOW_MESSAGES
            await fill(exchange, sender, receiver, total)
            stream = receiver.listen(5)
            first = await anext(stream)
            await asyncio.sleep(0.1)
            mailbox = exchange.server.service.registry._records[receiver.mailbox_id.uid].mailbox
            assert mailbox.ready == total - WINDOW_MESSAGES
            got = [content(first)] + [content(await anext(stream)) for _ in range(total - 1)]
            assert got == [str(n) for n in range(total)]
            await stream.aclose()


async def test_a_newer_listener_ends_the_older_one_which_gets_nothing_more() -> None:
    async with running_exchange() as exchange, await transport(exchange.factory) as owner:
        registration = await owner.register_agent(Agent)
        older = await exchange.factory.create_transport(registration.agent_id)
        newer = await exchange.factory.create_transport(registration.agent_id)
        ends: list[Exception] = []
        got_old: list[Message] = []
        got_new: list[Message] = []
        await older.subscribe(got_old.append, ends.append)
        await newer.subscribe(got_new.append, ends.append)
        await owner.send(Message.create(owner.mailbox_id, registration.agent_id, PingRequest()))
        await asyncio.sleep(0.05)
        assert [type(error) for error in ends] == [ListenerSupersededError]
        assert (len(got_old), len(got_new)) == (0, 1)
        await older.close()
        await newer.close()


@pytest.mark.parametrize("tls", [False, True])
async def test_a_first_connection_that_is_accepted_and_breaks_is_tried_again(tls: bool) -> None:
    """Under a flood of strangers, or while the exchange starts; one that is refused is not there."""
    certificate = make_certificate() if tls else None
    async with running_exchange(ServerConfig(token=TOKEN, certificate=certificate)) as exchange:
        async with running_proxy(exchange.port) as proxy:
            factory = exchange.factory_at(proxy.port)
            proxy.refuse(True)
            with pytest.raises(ExchangeUnreachableError):
                await factory.create_user_client()
            tries = proxy.connections
            assert tries >= 3
            coming = asyncio.create_task(factory.create_user_client())
            await until(lambda: proxy.connections > tries)
            proxy.refuse(False)
            await (await coming).close()


async def test_an_exchange_that_was_restarted_empty_is_told_from_the_old_one() -> None:
    async with running_proxy(0) as proxy:
        async with running_exchange() as first:
            proxy.target_port = first.port
            client = await first.factory_at(proxy.port).create_user_client()
            proxy.refuse(True)
            proxy.cut()
            await asyncio.sleep(0.05)
        async with running_exchange() as second:
            proxy.target_port = second.port
            proxy.refuse(False)
            async with asyncio.timeout(10):
                assert isinstance(await client.wait_ended(), ExchangeChangedError)
            with pytest.raises(ExchangeChangedError, match="restarted without a state directory"):
                await client.discover(Agent)
            await client.close()


async def test_an_exchange_that_ends_in_order_says_so_and_nobody_waits() -> None:
    async with running_exchange() as exchange:
        client = await exchange.factory.create_user_client()
        agent_id = (await client.register_agent(Agent)).agent_id
        call = asyncio.create_task(client.request(agent_id, PingRequest(), tag=agent_id.uid))
        await asyncio.sleep(0.05)
    async with asyncio.timeout(2):
        with pytest.raises(ExchangeUnavailableError, match="was shut down"):
            await call
        with pytest.raises(ExchangeUnavailableError, match="was shut down"):
            await client.discover(Agent)
        await client.close()


async def test_a_route_that_goes_away_without_a_word_is_noticed_by_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "HEARTBEAT_S", 0.2)
    async with running_exchange() as exchange, running_proxy(exchange.port) as proxy:
        async with await transport(exchange.factory_at(proxy.port)) as client:
            before = proxy.connections
            proxy.stall(True)
            asyncio.get_running_loop().call_later(1.0, proxy.stall, False)
            async with asyncio.timeout(10):
                await client.status(client.mailbox_id)
            assert proxy.connections > before


async def test_closing_waits_for_what_is_under_way() -> None:
    async with running_exchange() as exchange, await transport(exchange.factory) as receiver:
        sender = await transport(exchange.factory)
        for number in range(300):
            await sender.post(text(sender, receiver, str(number)), lambda error: pytest.fail(str(error)))
        await sender.close()
        mailbox = exchange.server.service.registry._records[receiver.mailbox_id.uid].mailbox
        assert len(mailbox) == 300


# What a review found


async def test_who_waits_on_a_stream_that_is_closed_under_it_is_told() -> None:
    async with running_exchange() as exchange, running_proxy(exchange.port) as proxy:
        client = await transport(exchange.factory_at(proxy.port))
        proxy.stall(True)
        waiting = asyncio.create_task(client.status(client.mailbox_id))
        await asyncio.sleep(0.05)
        await client.close()
        with pytest.raises(ExchangeUnavailableError, match="was closed"):
            async with asyncio.timeout(2):
                await waiting
        with pytest.raises(ExchangeUnavailableError, match="was closed"):
            await client.status(client.mailbox_id)


async def test_closing_a_transport_that_was_never_used_takes_no_time() -> None:
    async with running_exchange() as exchange:
        user = await exchange.factory.create_transport(name="someone")
        idle = await exchange.factory.create_transport(user.mailbox_id)
        await user.close()
        started = asyncio.get_running_loop().time()
        await idle.close()
        assert asyncio.get_running_loop().time() - started < 0.5


@pytest.mark.parametrize("pause_s", [0, 0.003, 0.006])
async def test_a_client_that_went_without_a_word_is_not_listening_any_more(pause_s: float) -> None:
    """It closes its WebSocket, then its connection, and detaches nothing."""
    async with running_exchange() as exchange, await transport(exchange.factory) as observer:
        agent_id = (await observer.register_agent(Agent)).agent_id
        url = f"http://127.0.0.1:{exchange.port}{wire.STREAM_PATH}"
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {TOKEN}"}) as session:
            socket_ = await session.ws_connect(url, autoclose=False)
            await socket_.receive()
            await socket_.send_bytes(wire.encode_operations([wire.Attach(1, agent_id, uuid.uuid4(), 8, 1 << 20)]))
            await socket_.receive()
            assert await observer.heartbeat_status(agent_id) == 0
            await socket_._writer.close(1000, b"")
            await asyncio.sleep(pause_s)
            socket_._response.close()
        await asyncio.sleep(0.1)
        seen_s = await observer.heartbeat_status(agent_id)
        assert seen_s is not None
        assert seen_s > 0


async def test_a_message_far_over_the_limit_is_refused_here_and_the_connection_stays() -> None:
    config = ServerConfig(token=TOKEN, limits=Limits(message_bytes=100_000))
    async with running_exchange(config) as exchange, running_proxy(exchange.port) as proxy:
        async with (
            await transport(exchange.factory_at(proxy.port)) as sender,
            await transport(exchange.factory_at(proxy.port)) as receiver,
        ):
            with pytest.raises(MessageTooLargeError) as caught:
                await sender.send(text(sender, receiver, "x" * 5_000_000))
            assert caught.value.limit == 100_000
            await sender.send(text(sender, receiver, "small"))
            assert proxy.connections == 1


async def test_a_connection_that_breaks_again_and_again_is_not_opened_without_pauses() -> None:
    async with running_exchange() as exchange, running_proxy(exchange.port) as proxy:
        async with await transport(exchange.factory_at(proxy.port, reconnect_s=1.0)):
            proxy.refuse(True)
            proxy.cut()
            await asyncio.sleep(0.7)
            assert proxy.connections < 12
            proxy.refuse(False)


async def test_what_an_agent_did_before_its_end_is_asked_for_before_it_on_a_new_connection_too() -> None:
    async with running_exchange() as exchange, running_proxy(exchange.port) as proxy:
        async with await transport(exchange.factory) as user:
            registration = await user.register_agent(Agent)
            factory = exchange.factory_at(proxy.port)
            async with await factory.create_transport(registration.agent_id, registration=registration) as agent:
                await user.send(Message.create(user.mailbox_id, registration.agent_id, PingRequest()))
                request = await anext(agent.listen(5))
                proxy.refuse(True)
                proxy.cut()
                await asyncio.sleep(0.05)
                lost: list[AcademyError] = []
                await agent.post(request.create_response(SuccessResponse()), lost.append, acknowledges=request)
                end = asyncio.create_task(agent.terminate(registration.agent_id))
                await asyncio.sleep(0.01)
                proxy.refuse(False)
                await end
                assert isinstance((await anext(user.listen(5))).decoded(), SuccessResponse)
                assert not lost


async def test_what_a_user_sent_before_its_end_is_not_doubled_if_no_answer_to_either_arrives() -> None:
    async with running_exchange() as exchange, running_proxy(exchange.port) as proxy:
        async with await transport(exchange.factory_at(proxy.port)) as user:
            agent_id = (await user.register_agent(Agent)).agent_id
            with proxy.black_hole("down"):
                send = asyncio.create_task(user.send(Message.create(user.mailbox_id, agent_id, PingRequest())))
                end = asyncio.create_task(user.terminate(user.mailbox_id))
                await asyncio.sleep(0.2)
                proxy.cut()
            await asyncio.gather(send, end)
            owner = Caller("owner")
            assert exchange.server.service.registry.counters(agent_id, owner).queued == 1


async def test_listening_twice_goes_on_where_the_first_time_ended() -> None:
    async with running_exchange() as exchange:
        async with await transport(exchange.factory) as sender, await transport(exchange.factory) as receiver:
            await fill(exchange, sender, receiver, 3)
            async for message in receiver.listen(5):
                assert content(message) == "0"
                break
            got = [content(message) async for message in receiver.listen(0.2)]
            assert got == ["0", "1", "2"]  # the first was not acknowledged: the next one was never asked for
            await sender.send(text(sender, receiver, "later"))
            assert [content(message) async for message in receiver.listen(0.2)] == ["later"]


async def test_what_waits_for_room_is_bounded_too() -> None:
    limits = Limits(mailbox_messages=1, total_bytes=1_000_000)
    async with running_exchange(ServerConfig(token=TOKEN, limits=limits, full_wait_s=1.0)) as exchange:
        async with await transport(exchange.factory) as sender, await transport(exchange.factory) as receiver:
            sends = [sender.send(text(sender, receiver, "x" * 100_000)) for _ in range(20)]
            errors = [type(error) for error in await asyncio.gather(*sends, return_exceptions=True) if error]
            assert {ExchangeFullError, MailboxFullError} == set(errors)


async def test_a_chain_of_full_mailboxes_is_admitted_without_recursion() -> None:
    """Each waiting answer makes room in its source's mailbox for the next one. There is room for one answer besides."""
    limits = Limits(mailbox_messages=1)
    async with running_exchange(ServerConfig(token=TOKEN, limits=limits)) as exchange:
        service, owner, effects = exchange.server.service, Caller("owner"), Effects()
        chain = [AgentId.new() for _ in range(1_200)]
        for agent_id in chain:
            service.registry.create(agent_id, (), owner, effects)
        requests = [Message.create(UserId.new(), agent_id, PingRequest()) for agent_id in chain]
        others = [Message.create(UserId.new(), agent_id, SuccessResponse()) for agent_id in chain]
        for message in (*requests, *others):
            service.registry.send(message, owner, effects)
        await service.commit(effects)
        sessions = [uuid.uuid4() for _ in chain]
        for agent_id, session in zip(chain, sessions, strict=True):
            service.registry.attach(agent_id, session, owner, effects, now=0.0)
            assert len(service.registry.take(agent_id.uid, session, Window())) == 2
        told: list[object] = []
        for before, agent_id in itertools.pairwise(chain):
            answer = Message.create(agent_id, before, SuccessResponse(), tag=requests[0].tag)
            assert not service.send(answer, owner, effects, 1, told.append)
        first = Effects()
        service.registry.acknowledge(chain[0].uid, sessions[0], [1], first)
        await service.commit(first)
        assert told == [None] * (len(chain) - 1)


def test_no_error_shows_the_token() -> None:
    info = ConnectionInfo(("http://127.0.0.1:9",), {"Authorization": f"Bearer {TOKEN}"})
    request = aiohttp.RequestInfo(
        URL(info.urls[0]), "GET", CIMultiDictProxy(CIMultiDict(info.headers)), URL(info.urls[0])
    )
    error = aiohttp.ClientResponseError(request, (), status=400, message="garbage")
    assert TOKEN in repr(error)
    assert TOKEN not in rest._reason(error)


class ShortRights:
    """Lets everybody in, for a moment each time; `revoked` ends that."""

    def __init__(self) -> None:
        self.asked = asyncio.Semaphore(0)
        self.revoked = asyncio.Event()

    async def authenticate(self, authorization: str | None) -> Caller:
        self.asked.release()
        if self.revoked.is_set():
            raise ForbiddenError("Token expired or revoked.")
        return Caller("somebody", expires_s=time.monotonic() + 0.05)


async def test_a_right_that_ends_is_asked_for_again_and_the_connection_ends_when_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller notices nothing of the first, and gets an error at once of the second."""
    monkeypatch.setattr(server_stream, "SHORTEST_RIGHT_S", 0.05)
    rights = ShortRights()
    async with running_exchange(authenticator=rights) as exchange:
        async with await transport(exchange.factory) as one:
            for _ in range(4):
                await rights.asked.acquire()
            assert await one.status(one.mailbox_id) is MailboxStatus.INACTIVE
            assert len(exchange.server._streams) == 1
            rights.revoked.set()
            with pytest.raises(UnauthorizedError):
                async with asyncio.timeout(5):
                    while True:
                        await one.status(one.mailbox_id)
                        await asyncio.sleep(0.01)
