"""Finding an exchange: all candidate URLs are tried at once, and the first that answers as it should is kept."""

from __future__ import annotations

import asyncio
import errno
import ssl
import time
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

import aiohttp
import msgspec

from academy_hpc.errors import AcademyError, ExchangeUnreachableError, UnauthorizedError
from academy_hpc.exchange.http.challenge import CHALLENGE_HEADER, PROOF_HEADER, UNPROVED, Challenge
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.connector import Connector
from academy_hpc.exchange.http.wire import (
    HEARTBEAT_S,
    STREAM_PATH,
    STREAM_PROTOCOL,
    WHOAMI_PATH,
    Hello,
    decode_from_server,
)

__all__ = ["DIAL_S", "ClientOptions", "Dialled", "NoStreamError", "OtherServerError", "dial", "new_session", "reason"]

DIAL_S = 10.0
# Between tries of a connection that was accepted and broke.
BROKEN_PAUSES_S = (0.1, 0.3)
# How long the exchange may take to say good-bye.
CLOSE_S = 1.0

# Set in a task that has had a proof: what it sends next is for the other end of that connection alone.
_proved: ContextVar[bool] = ContextVar("proved", default=False)


class ClientOptions(msgspec.Struct, frozen=True):
    """How a client behaves.

    Attributes:
        ssl_verify: None or True: as the certificate authorities say; False: not at all. Where a fingerprint is known,
            it alone counts.
        reconnect_s: Seconds for which a broken connection is tried again before calls fail.
        request_timeout_s: Seconds that one REST request may take.
        first_connection_s: Seconds for which a first connection is tried again; 0: an exchange that is out of reach is
            told at once.
        follow: Path of a connection file, in which an exchange that moves says where it is now.
    """

    ssl_verify: bool | None = None
    reconnect_s: float = 300.0
    request_timeout_s: float = 60.0
    first_connection_s: float = 0.0
    follow: str | None = None


class Dialled(msgspec.Struct, frozen=True):
    """An open stream, what the exchange said of itself, at which URL, and by how much its clock is ahead of ours."""

    url: str
    socket: Any  # aiohttp.ClientWebSocketResponse
    hello: Hello
    session: Any  # aiohttp.ClientSession
    ahead_s: float | None = None

    async def close(self) -> None:
        """Close the stream. More than once does no harm."""
        await self.socket.close()
        await self.session.close()


class NoStreamError(AcademyError):
    """The exchange has no stream: use REST. ``args``: the URL."""

    code = "NO_STREAM"


class OtherServerError(ExchangeUnreachableError):
    """What answers at `others` is not the exchange of the connection info: it lacks its certificate, or its token."""

    def __init__(self, attempts: dict[str, str], others: tuple[str, ...]) -> None:
        super().__init__(attempts)
        self.others = others


class _Other(str):
    """Why what answers at a URL is not the exchange."""

    __slots__ = ()


class _Broken(str):
    """How a connection ended that had been accepted: strangers may have displaced it, and not the next one."""

    __slots__ = ()


def new_session(info: ConnectionInfo, options: ClientOptions) -> aiohttp.ClientSession:
    """A session that checks the server as `info` says. It sends no header of `info` by itself."""
    verify: ssl.SSLContext | aiohttp.Fingerprint | bool = options.ssl_verify is not False
    if info.fingerprint is not None:
        verify = aiohttp.Fingerprint(bytes.fromhex(info.fingerprint))
    trace = aiohttp.TraceConfig()
    trace.on_connection_create_start.append(_refuse_if_proved)
    return aiohttp.ClientSession(
        connector=Connector(verify),
        trust_env=info.uses_proxies,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=DIAL_S),
        trace_configs=[trace],
    )


async def _refuse_if_proved(session: object, context: object, parameters: object) -> None:
    if _proved.get():
        raise aiohttp.ClientConnectionError("the connection broke")


async def dial(info: ConnectionInfo, options: ClientOptions, *, authorization: str | None = None) -> Dialled:
    """Open a stream at the first URL of `info` that answers as its exchange; all are tried at once.

    Args:
        info: Which exchange.
        options: How to check it.
        authorization: Value of the Authorization header, in place of that of `info`.

    Raises:
        NoStreamError: One answers, and has no stream.
        UnauthorizedError: One answers, and does not accept the token.
        OtherServerError: Another server answers at some, and the exchange at none.
        ExchangeUnreachableError: None answers; it says what happened at each.
    """
    headers = info.headers if authorization is None else info.headers_with(authorization)
    # A new one: connections to a server that did not prove itself must not be met again in the next try.
    session = new_session(info, options)
    try:
        return await _dial(session, info, headers)
    except BaseException:
        await session.close()
        raise


async def _dial(session: aiohttp.ClientSession, info: ConnectionInfo, headers: Mapping[str, str]) -> Dialled:
    urls = dict.fromkeys(info.candidates())
    pending = {asyncio.create_task(_open(session, url, headers, info.proof), name=url) for url in urls}
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
    attempts = {url: str(outcomes[url]) for url in urls}
    if others := tuple(url for url in urls if isinstance(outcomes[url], _Other)):
        raise OtherServerError(attempts, others)
    raise ExchangeUnreachableError(attempts)


async def _open(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], proof: bool
) -> Dialled | AcademyError | str:
    """The stream; or an error that no other try will mend; or what went wrong, as text."""
    for pause_s in BROKEN_PAUSES_S:
        outcome = await _open_once(session, url, headers, proof)
        if not isinstance(outcome, _Broken):
            return outcome
        await asyncio.sleep(pause_s)
    return await _open_once(session, url, headers, proof)


async def _open_once(
    session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], proof: bool
) -> Dialled | AcademyError | str:
    _proved.set(False)
    try:
        async with asyncio.timeout(DIAL_S):
            token = _token(headers)
            if proof and token and url.startswith("http://"):
                if not await _proves_itself(session, url, token):
                    return _Other(UNPROVED)
                _proved.set(True)
            socket = await session.ws_connect(
                url.rstrip("/") + STREAM_PATH,
                headers=headers,
                protocols=(STREAM_PROTOCOL,),
                heartbeat=HEARTBEAT_S,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
                max_msg_size=0,  # the exchange has its own limit, and may be configured to any
            )
            return await _greet(session, url, socket)
    except aiohttp.WSServerHandshakeError as error:
        return _refusal(url, error)
    except TimeoutError:
        return f"no answer within {DIAL_S:.0f} s"
    except aiohttp.ServerFingerprintMismatch as error:
        return _Other(reason(error))
    except (aiohttp.ClientError, AcademyError, OSError, ValueError) as error:
        return _Broken(reason(error)) if _broke(error) else reason(error)


def _broke(error: Exception) -> bool:
    cause = getattr(error, "os_error", error)
    kinds = (aiohttp.ServerDisconnectedError, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError)
    return isinstance(cause, kinds) or getattr(cause, "errno", None) in (errno.ECONNRESET, errno.EPIPE)


async def _proves_itself(session: aiohttp.ClientSession, url: str, token: str) -> bool:
    """Whether the server at `url` knows `token`, which it is not shown."""
    challenge = Challenge.new(token, url)
    question = {CHALLENGE_HEADER: challenge.text}
    async with session.get(url.rstrip("/") + WHOAMI_PATH, headers=question, allow_redirects=False) as response:
        if challenge.is_met_by(response.headers.get(PROOF_HEADER)):
            await response.read()  # so that the connection can be used again
            return True
        response.close()
    return False


def _token(headers: Mapping[str, str]) -> str:
    values = [value for name, value in headers.items() if name.lower() == "authorization"]
    return values[0].rpartition(" ")[2] if values else ""


def reason(error: Exception) -> str:
    """What went wrong at a URL, for people, in one line and without secrets."""
    if isinstance(error, aiohttp.ServerFingerprintMismatch):
        return "another server answers there: its certificate is not the one of this exchange"
    return " ".join(str(error).split()) or type(error).__name__


async def _greet(session: aiohttp.ClientSession, url: str, socket: aiohttp.ClientWebSocketResponse) -> Dialled | str:
    dialled = None
    try:
        frame = await socket.receive()
        if frame.type is aiohttp.WSMsgType.BINARY:
            hello, *rest = decode_from_server(frame.data)
            if isinstance(hello, Hello) and not rest:
                ahead_s = None if hello.unix_s is None else hello.unix_s - time.time()
                dialled = Dialled(url, socket, hello, session, ahead_s)
    finally:  # also when another URL was faster
        if dialled is None:
            await socket.close()
    return dialled or "answered, and not as an exchange does"


def _refusal(url: str, error: aiohttp.WSServerHandshakeError) -> AcademyError | str:
    if error.status in (401, 403):
        return UnauthorizedError(f"{url} answered {error.status}")
    if error.status in (404, 405) and not _proved.get():  # REST would open connections to who knows whom
        return NoStreamError(url)
    return f"answered {error.status}"
