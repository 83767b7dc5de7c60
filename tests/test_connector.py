"""A client that is closed leaves no connection behind, whatever the event loop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator

import msgspec
import psutil
import pytest
import uvloop

from academy_hpc import (
    ConnectionInfo,
    ExchangeFactory,
    ExchangeUnavailableError,
    HttpExchangeFactory,
    UserId,
    spawn_http_exchange,
)
from academy_hpc.exchange.http.dial import ClientOptions
from academy_hpc.exchange.http.rest import RestChannel

__all__: list[str] = []

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture(params=[True, False], ids=["https", "http"])
def factory(request: pytest.FixtureRequest) -> Iterator[ExchangeFactory]:
    with spawn_http_exchange("127.0.0.1", 0, tls=request.param) as factory:
        yield factory


async def use_a_stream(factory: HttpExchangeFactory) -> None:
    async with await factory.create_user_client() as client:
        await client.discover("no.such.Class")


async def use_rest(factory: HttpExchangeFactory) -> None:
    """With an event stream that is open at the end."""
    user = UserId.new()
    channel = RestChannel(factory.connection_info, ClientOptions(), user)
    await channel.call("create", user, ())
    await channel.attach(lambda message: None, lambda error: None)
    await asyncio.sleep(0.1)
    await channel.close()


@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS)
def test_an_exchange_that_is_killed_leaves_no_error_that_nobody_looks_at(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """It would be shown, with a traceback, whenever Python comes to throw it away."""
    shown: list[dict[str, object]] = []
    others = set(psutil.Process().children())  # of other tests
    with (
        spawn_http_exchange("0.0.0.0", 0, tls=True) as factory,  # noqa: S104 - with a certificate
        asyncio.Runner(loop_factory=make_loop) as runner,
    ):
        runner.get_loop().set_exception_handler(lambda _, context: shown.append(context))
        [exchange] = set(psutil.Process().children()) - others
        runner.run(survive_the_end_of(exchange, factory.connection_info))
        gc.collect()
    assert shown == []


async def survive_the_end_of(exchange: psutil.Process, info: ConnectionInfo) -> None:
    port = info.urls[0].rpartition(":")[2]
    several = tuple(f"https://127.0.0.{number}:{port}" for number in range(1, 5))
    info = msgspec.structs.replace(info, urls=several)
    factory = HttpExchangeFactory.from_connection_info(info, options=ClientOptions(reconnect_s=0.2))
    client = await factory.create_user_client()
    exchange.suspend()
    asking = asyncio.create_task(client.discover("no.such.Class"))
    await asyncio.sleep(0.1)
    exchange.kill()  # with something unread, for which the kernel resets the connection
    await client.wait_ended()
    await asyncio.wait([asking])
    assert isinstance(asking.exception(), ExchangeUnavailableError)
    await client.close()


# An event loop warns of what is open when it ends, and a warning fails the test.
@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("use", [use_a_stream, use_rest])
def test_nothing_is_open_when_the_event_loop_ends(
    make_loop: Callable[[], asyncio.AbstractEventLoop], use: Callable[..., object], factory: HttpExchangeFactory
) -> None:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(use(factory))  # type: ignore[arg-type]
    gc.collect()
