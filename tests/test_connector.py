"""A client that is closed leaves no connection behind, whatever the event loop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator

import pytest
import uvloop

from academy_hpc import ExchangeFactory, HttpExchangeFactory, UserId, spawn_http_exchange
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


# An event loop warns of what is open when it ends, and a warning fails the test.
@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS)
@pytest.mark.parametrize("use", [use_a_stream, use_rest])
def test_nothing_is_open_when_the_event_loop_ends(
    make_loop: Callable[[], asyncio.AbstractEventLoop], use: Callable[..., object], factory: HttpExchangeFactory
) -> None:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(use(factory))  # type: ignore[arg-type]
    gc.collect()
