"""Single frames and single directions of a connection break: nothing is lost, doubled or reordered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from academy_hpc.exchange.http import dial, server
from academy_hpc.exchange.http.wire import Acknowledge, Deliver, Hello, Reply, Send, Sent
from academy_hpc.message import Message, PingRequest
from tests.exchange_server import RunningExchange, running_exchange
from tests.faults.proxy import Direction, Proxy, running_proxy
from tests.faults.scene import Scene, acting, eventually

__all__: list[str] = []

pytestmark = pytest.mark.faults

HEARTBEAT_S = 0.4
"""Instead of 15 s; a side that hears nothing gives up after half of this more."""


class Stage:
    """An exchange of this process, and a proxy in front of it."""

    def __init__(self, exchange: RunningExchange, proxy: Proxy) -> None:
        self.exchange = exchange
        self.proxy = proxy

    def acting(self, *sides: str) -> Any:
        """User and agent; those named in `sides` go through the proxy."""
        direct, through = self.exchange.factory, self.exchange.factory_at(self.proxy.port)
        return acting(through if "user" in sides else direct, through if "agent" in sides else direct)

    def is_empty(self) -> bool:
        """Whether everything was acknowledged."""
        records = self.exchange.server.service.registry._records
        return not any(len(record.mailbox) for record in records.values())


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with running_exchange() as exchange, running_proxy(exchange.port) as proxy:
        yield Stage(exchange, proxy)


@pytest.fixture
def _quick_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dial, server):
        monkeypatch.setattr(module, "HEARTBEAT_S", HEARTBEAT_S)


async def break_once(scene: Scene, stage: Stage, faults: Any) -> None:
    """Calls before, while and after one frame is lost; in the end, nothing is left over."""
    await scene.calls(5)
    connections = stage.proxy.connections
    with faults as trap:
        for _ in range(4):
            await scene.calls(5, pause_s=0.02)
        await eventually(lambda: trap.hits == 1)
    await scene.calls(5)
    assert stage.proxy.connections > connections
    await eventually(stage.is_empty)


# A user sends requests and gets answers; an agent is delivered requests, and sends answers that acknowledge them.
UP = [("user", Send), ("agent", Send), ("user", Acknowledge)]
DOWN = [("user", Sent), ("user", Deliver), ("agent", Sent), ("agent", Deliver)]


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize(("side", "kind"), UP)
async def test_a_lost_request_is_made_again(side: str, kind: type, skip: int, stage: Stage) -> None:
    async with stage.acting(side) as scene:
        await break_once(scene, stage, stage.proxy.lose_requests(kind, skip=skip))


@pytest.mark.parametrize(("side", "kind"), DOWN)
async def test_a_lost_answer_is_asked_for_again_and_what_it_answered_is_not_done_twice(
    side: str, kind: type, stage: Stage
) -> None:
    async with stage.acting(side) as scene:
        await break_once(scene, stage, stage.proxy.lose_answers(kind))


@pytest.mark.parametrize(
    ("side", "direction", "kind"),
    [(side, "up", kind) for side, kind in UP] + [(side, "down", kind) for side, kind in DOWN],
)
async def test_a_connection_may_be_reset_in_the_middle_of_a_frame(
    side: str, direction: Direction, kind: type, stage: Stage
) -> None:
    async with stage.acting(side) as scene:
        await break_once(scene, stage, stage.proxy.tear(direction, kind))


@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("size", [1, 40_000, 200_000])
async def test_a_connection_may_be_reset_after_any_byte(direction: Direction, size: int, stage: Stage) -> None:
    async with stage.acting("user", "agent") as scene:
        await scene.calls(3)
        connections = stage.proxy.connections
        stage.proxy.cut_after(direction, size)
        await scene.calls(3, size=150_000)
        await eventually(lambda: stage.proxy.connections > connections)


async def test_a_lost_answer_of_a_registration_makes_no_second_mailbox(stage: Stage) -> None:
    async with stage.acting("user") as scene:
        before = len(stage.exchange.server.service.registry)
        with stage.proxy.lose_answers(Reply) as trap:
            await scene.user.register_agent(Scene)
        assert trap.hits == 1
        assert len(stage.exchange.server.service.registry) == before + 1


@pytest.mark.parametrize("side", ["user", "agent"])
async def test_frames_that_come_twice_are_done_once(side: str, stage: Stage) -> None:
    with stage.proxy.twice() as trap:
        async with stage.acting(side) as scene:
            for _ in range(20):
                await scene.calls(10, pause_s=0.002)
            for _ in range(5):  # what comes twice takes up the work of an earlier connection, too
                calls = [scene.call(pause_s=0.1) for _ in range(20)]
                await asyncio.sleep(0.05)
                stage.proxy.cut()
                await asyncio.gather(*calls)
            assert trap.hits > 20
            await eventually(stage.is_empty)


@pytest.mark.usefixtures("_quick_pings")
@pytest.mark.parametrize("directions", [("up",), ("down",), ("up", "down")])
@pytest.mark.parametrize("side", ["user", "agent"])
async def test_a_connection_that_is_dead_and_not_closed_is_replaced(
    side: str, directions: tuple[Direction, ...], stage: Stage
) -> None:
    """Half-open: no FIN, no RST, and in one direction all seems well."""
    async with stage.acting(side) as scene:
        await scene.calls(5)
        connections = stage.proxy.connections
        with stage.proxy.black_hole(*directions):
            calls = [scene.call() for _ in range(10)]
            await eventually(lambda: stage.proxy.connections > connections, within_s=5)
        async with asyncio.timeout(10):
            await asyncio.gather(*calls)


@pytest.mark.usefixtures("_quick_pings")
@pytest.mark.parametrize(("direction", "kind"), [("up", Send), ("down", Deliver), ("down", Sent)])
async def test_a_connection_that_dies_at_a_frame_and_is_not_closed_is_replaced(
    direction: Direction, kind: type, stage: Stage
) -> None:
    async with stage.acting("user") as scene:
        await break_once(scene, stage, stage.proxy.swallow(direction, kind))


@pytest.mark.usefixtures("_quick_pings")
@pytest.mark.parametrize("directions", [("up",), ("down",), ("up", "down")])
async def test_the_exchange_notices_a_listener_that_is_not_there_any_more(
    directions: tuple[Direction, ...], stage: Stage
) -> None:
    async with stage.acting("agent") as scene:
        agent_id = scene.handle.agent_id
        assert await scene.user.heartbeat_status(agent_id) == 0.0
        stage.proxy.refuse(True)
        with stage.proxy.black_hole(*directions):
            async with asyncio.timeout(5):
                while await scene.user.heartbeat_status(agent_id) == 0.0:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        stage.proxy.refuse(False)
        await scene.calls(5)


@pytest.mark.parametrize("kind", [Hello, Reply])
async def test_an_exchange_that_hangs_while_it_is_called_is_given_up_in_time(
    kind: type, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dial, "DIAL_S", 0.3)
    monkeypatch.setattr(dial, "HEARTBEAT_S", HEARTBEAT_S)
    async with stage.acting("user") as scene:
        with stage.proxy.swallow("down", kind) as trap:
            stage.proxy.cut()
            await scene.user.discover(Scene)
            await scene.calls(3)
        assert trap.hits == 1


async def test_a_late_acknowledgement_of_an_older_listener_is_without_effect(stage: Stage) -> None:
    """It arrives after the message was given to a newer listener, which has not done with it."""
    exchange = stage.exchange
    async with await exchange.factory.create_transport(name="sender") as sender:
        registration = await sender.register_agent(Scene)
        older = await exchange.factory_at(stage.proxy.port).create_transport(registration.agent_id)
        newer = await exchange.factory.create_transport(registration.agent_id)
        await sender.send(_ping(sender, registration.agent_id))
        got = await anext(older.listen(5))
        with stage.proxy.notice("up", Acknowledge) as late:
            with stage.proxy.black_hole("up"):
                older.acknowledge(got)
                assert (await anext(newer.listen(5))).tag == got.tag
            await eventually(lambda: late.hits)
        await older.close()
        mailbox = exchange.server.service.registry._records[registration.agent_id.uid].mailbox
        assert len(mailbox) == 1
        await newer.close()


def _ping(sender: Any, dest: Any) -> Message:
    return Message.create(sender.mailbox_id, dest, PingRequest())
