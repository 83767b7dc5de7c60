"""Finding an exchange: all candidate URLs are tried at once, and the first that answers as it should is kept."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import aiohttp
import msgspec

from academy_hpc.errors import AcademyError, ExchangeUnreachableError, UnauthorizedError
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.wire import (
    HEARTBEAT_S,
    STREAM_PATH,
    STREAM_PROTOCOL,
    Hello,
    decode_from_server,
)

__all__ = ["DIAL_S", "ClientOptions", "Dialled", "NoStreamError", "dial", "new_session"]

DIAL_S = 10.0
# How long the exchange may take to say good-bye.
CLOSE_S = 1.0


class ClientOptions(msgspec.Struct, frozen=True):
    """How a client behaves.

    Attributes:
        ssl_verify: None or True: as the certificate authorities say; False: not at all.
        reconnect_s: Seconds for which a broken connection is tried again before calls fail.
        request_timeout_s: Seconds that one REST request may take.
    """

    ssl_verify: bool | None = None
    reconnect_s: float = 300.0
    request_timeout_s: float = 60.0


class Dialled(msgspec.Struct, frozen=True):
    """An open stream, what the exchange said of itself, and at which URL."""

    url: str
    socket: Any  # aiohttp.ClientWebSocketResponse
    hello: Hello


class NoStreamError(AcademyError):
    """The exchange has no stream: use REST. ``args``: the URL."""

    code = "NO_STREAM"


def new_session(info: ConnectionInfo, options: ClientOptions) -> aiohttp.ClientSession:
    """A session that sends the headers of `info` and checks the server as it says."""
    verify: ssl.SSLContext | aiohttp.Fingerprint | bool = options.ssl_verify is not False
    if info.fingerprint is not None:
        verify = aiohttp.Fingerprint(bytes.fromhex(info.fingerprint))
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=verify, limit=0),
        headers=info.headers,
        trust_env=info.trust_env,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=DIAL_S),
    )


async def dial(session: aiohttp.ClientSession, urls: tuple[str, ...]) -> Dialled:
    """Open a stream at the first of `urls` that answers as an exchange.

    Raises:
        NoStreamError: One answers, and has no stream.
        UnauthorizedError: One answers, and does not accept the token.
        ExchangeUnreachableError: None answers; it says what happened at each.
    """
    pending = {asyncio.create_task(_open(session, url), name=url) for url in dict.fromkeys(urls)}
    outcomes: dict[str, Dialled | AcademyError | str] = {}
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            outcomes.update((task.get_name(), task.result()) for task in done)
            streams = [outcome for outcome in outcomes.values() if isinstance(outcome, Dialled)]
            for surplus in streams[1:]:
                await surplus.socket.close()
            if streams:
                return streams[0]
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    refusals = [outcome for outcome in outcomes.values() if isinstance(outcome, AcademyError)]
    if refusals:
        raise refusals[0]
    raise ExchangeUnreachableError({url: str(outcomes[url]) for url in urls})


async def _open(session: aiohttp.ClientSession, url: str) -> Dialled | AcademyError | str:
    """The stream; or an error that no other try will mend; or what went wrong, as text."""
    try:
        async with asyncio.timeout(DIAL_S):
            socket = await session.ws_connect(
                url.rstrip("/") + STREAM_PATH,
                protocols=(STREAM_PROTOCOL,),
                heartbeat=HEARTBEAT_S,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                max_msg_size=0,  # the exchange has its own limit, and may be configured to any
            )
            return await _greet(url, socket)
    except aiohttp.WSServerHandshakeError as error:
        return _refusal(url, error)
    except TimeoutError:
        return f"no answer within {DIAL_S:.0f} s"
    except (aiohttp.ClientError, AcademyError, OSError, ValueError) as error:
        return str(error) or type(error).__name__


async def _greet(url: str, socket: aiohttp.ClientWebSocketResponse) -> Dialled | str:
    dialled = None
    try:
        frame = await socket.receive()
        if frame.type is aiohttp.WSMsgType.BINARY:
            hello, *rest = decode_from_server(frame.data)
            if isinstance(hello, Hello) and not rest:
                dialled = Dialled(url, socket, hello)
    finally:  # also when another URL was faster
        if dialled is None:
            await socket.close()
    return dialled or "answered, and not as an exchange does"


def _refusal(url: str, error: aiohttp.WSServerHandshakeError) -> AcademyError | str:
    if error.status in (401, 403):
        return UnauthorizedError(f"{url} answered {error.status}")
    if error.status in (404, 405):
        return NoStreamError(url)
    return f"answered {error.status}"
