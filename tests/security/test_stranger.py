"""Who has no token gets 401, 4xx or a closed connection, whatever is sent; it costs the exchange next to nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hmac
import logging
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from academy_hpc.exchange.http.server_rest import ROUTES
from tests.exchange_server import TOKEN, running_exchange
from tests.security.stranger import UPGRADE, Reply, Spawned, ask, connect, everything, request, spawned_exchange

__all__: list[str] = []

logger = logging.getLogger(__name__)

MIB = 1 << 20
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PURGE", "NOSUCH", "get"]
PATHS = [
    *ROUTES,
    "/stream",
    "/whoami",
    "/",
    "*",
    "/no/such/path",
    "/mailbox/../whoami",
    "/../../../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/whoami%00",
    "/whoami?token=TOKEN",
    "//whoami",
    "http://other.example/whoami",
    "https://user:TOKEN@exchange/whoami",
    "exchange:443",
    "/" + "x" * 100_000,
]
# The one text for each status: it must not tell what was sent, or what there is.
TEXTS = {400: b"400: Bad Request", 401: b"Missing required headers.", 403: b"Token expired or revoked."}


@pytest.fixture(scope="module")
def spawned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spawned]:
    with spawned_exchange(tmp_path_factory.mktemp("stranger")) as running:
        yield running
        # Whatever the tests of this module did: it serves, and nobody could write to its log.
        assert running.whoami().status == 200
        assert running.log.stat().st_size < 1_000, running.log.read_text()[:2_000]


def check_refused(reply: Reply, what: object, *, allowed: tuple[int, ...] = (0, 400, 401)) -> None:
    """Refused, in constant words, at once, and without a word about who we are."""
    assert reply.status in allowed, (what, reply)
    assert reply.body in (b"", TEXTS.get(reply.status, b"")), (what, reply)
    assert reply.after_s < 2, (what, reply)
    for banner in ("python", "aiohttp", "uvloop"):
        assert banner not in reply.head.lower(), (what, reply)


# What is asked for


@pytest.mark.parametrize("method", METHODS)
def test_no_path_and_no_method_is_open(spawned: Spawned, method: str) -> None:
    for path in PATHS:
        data = request(method, path.replace("TOKEN", spawned.token), b"{malformed")
        check_refused(ask(spawned.port, data), (method, path))


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("", 401),
        ("Basic TOKEN", 401),
        ("bearer TOKEN", 401),
        ("BEARER TOKEN", 401),
        ("Bearer", 401),
        ("Bearer  TOKEN", 401),
        ("Bearer\tTOKEN", 401),
        ("Bearer TOKEN,", 403),
        ("Bearer TOKEN TOKEN", 401),
        ("TOKEN", 401),
        ("Digest username=TOKEN", 401),
        ("Bearer wrong", 403),
        ("Bearer " + "x" * 8_000, 403),
        ("Bearer " + "x" * MIB, 400),
        ("Bearer \xff\xfe", 403),
        ("Bearer \x00", 400),
    ],
)
def test_only_the_very_token_opens(spawned: Spawned, authorization: str, status: int) -> None:
    value = authorization.replace("TOKEN", spawned.token)
    for method, path in [("GET", "/whoami"), ("PUT", "/message"), ("GET", "/mailbox/listen")]:
        reply = ask(spawned.port, request(method, path, b"{", Authorization=value))
        check_refused(reply, value[:50], allowed=(status,))


def test_a_token_is_taken_from_nowhere_but_the_authorization_header(spawned: Spawned) -> None:
    """URLs and cookies end in logs, and a browser may send cookies on behalf of any page."""
    token = spawned.token
    for headers in (
        {"Cookie": f"Authorization=Bearer {token}; token={token}"},
        {"Proxy_Authorization": f"Bearer {token}"},
        {"X_Authorization": f"Bearer {token}"},
        {"Sec_WebSocket_Protocol": f"academy-hpc.1, {token}"},
        {"Sec_WebSocket_Protocol": f"Bearer, {token}"},
        {},
    ):
        for path in ("/stream", f"/stream?token={token}", f"/stream?access_token={token}", f"/stream/{token}"):
            for upgrade in (UPGRADE, {}):
                reply = ask(spawned.port, request("GET", path, **upgrade, **headers))
                check_refused(reply, (path, headers), allowed=(401,))


def test_two_authorization_headers_do_not_help(spawned: Spawned) -> None:
    """The first counts, so what a proxy added behind it opens nothing."""
    good, bad = f"Authorization: Bearer {spawned.token}\r\n", "Authorization: Bearer wrong\r\n"
    head = "GET /whoami HTTP/1.1\r\nHost: x\r\n"
    check_refused(ask(spawned.port, f"{head}{bad}{good}\r\n".encode()), "bad first", allowed=(400, 403))


def test_the_right_token_opens(spawned: Spawned) -> None:
    """The tests above would pass with a server that refuses everybody."""
    assert spawned.whoami().status == 200
    opened = request("GET", "/stream", **UPGRADE, Authorization=f"Bearer {spawned.token}")
    assert ask(spawned.port, opened, wait_s=0.5).status == 101


# Heads that are none

GET = b"GET /whoami HTTP/1.1\r\nHost: x\r\n"
HEADS: dict[str, bytes] = {
    "HTTP/0.9": b"GET /whoami\r\n\r\n",
    "HTTP/0.9 with a version": b"GET /whoami HTTP/0.9\r\n\r\n",
    "HTTP/1.0": b"GET /whoami HTTP/1.0\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "h2c upgrade": GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
    "HTTP/9.9": b"GET /whoami HTTP/9.9\r\n\r\n",
    "TLS hello": bytes.fromhex("1603010200010001fc0303") + bytes(range(256)) * 2,
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "SMTP": b"EHLO there\r\nMAIL FROM:<a@b>\r\n\r\n",
    "zeros": bytes(10_000),
    "noise": bytes(range(256)) * 40 + b"\r\n\r\n",
    "line breaks": b"\r\n" * 5_000 + b"x\r\n\r\n",
    "no host": b"GET /whoami HTTP/1.1\r\n\r\n",
    "two hosts": GET + b"Host: y\r\n\r\n",
    "bare line feeds": b"GET /whoami HTTP/1.1\nHost: x\n\n",
    "bare carriage returns": b"GET /whoami HTTP/1.1\rHost: x\r\r",
    "spaces in the line": b"GET  /whoami  HTTP/1.1\r\nHost: x\r\n\r\n",
    "line break in the path": b"GET /whoami\r\nAuthorization: Bearer x HTTP/1.1\r\nHost: x\r\n\r\n",
    "encoded line break in the path": b"GET /whoami%0d%0aAuthorization:%20Bearer%20x HTTP/1.1\r\nHost: x\r\n\r\n",
    "folded header": GET + b"Authorization: Bearer\r\n x\r\n\r\n",
    "space before the colon": GET + b"Authorization : Bearer x\r\n\r\n",
    "a header without a colon": GET + b"Authorization\r\n\r\n",
    "a header without a name": GET + b": x\r\n\r\n",
    "a zero in a header": GET + b"X: a\x00b\r\n\r\n",
    "a long header": GET + b"X: " + b"x" * MIB + b"\r\n\r\n",
    "a long header name": GET + b"x" * MIB + b": x\r\n\r\n",
    "many headers": GET + b"".join(b"X-%d: x\r\n" % number for number in range(100_000)) + b"\r\n",
    "endless line": b"GET /" + b"x" * (4 * MIB),
    "length and chunks": GET + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET + b"\r\n",
    "two lengths": GET + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "negative length": GET + b"Content-Length: -1\r\n\r\n",
    "length with a plus": GET + b"Content-Length: +5\r\n\r\nhello",
    "length beyond reason": GET + b"Content-Length: " + b"9" * 100 + b"\r\n\r\n",
    "chunked twice": GET + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "chunked, disguised": GET + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked before other": GET + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunk garbage": GET + b"Transfer-Encoding: chunked\r\n\r\nzzzz\r\nhello\r\n",
    "chunk size beyond reason": GET + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 100 + b"\r\nx",
    "chunk extension, long": GET + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * MIB + b"\r\nx\r\n0\r\n\r\n",
    "trailers, many": GET
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    + b"".join(b"X-%d: x\r\n" % number for number in range(50_000))
    + b"\r\n",
    "expects what is not there": GET + b"Expect: 200-ok\r\n\r\n",
    "a tunnel": b"CONNECT other.example:443 HTTP/1.1\r\nHost: other.example\r\n\r\n" + bytes(100_000),
    "upgrade and garbage": GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + b"\xff" * 500_000,
    "broken gzip": GET + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
    "unknown encoding": GET + b"Content-Encoding: zstd, br\r\nContent-Length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("name", HEADS)
def test_what_is_no_proper_request_is_refused_or_cut_off(spawned: Spawned, name: str) -> None:
    before = spawned.resident()
    for _ in range(3):
        check_refused(ask(spawned.port, HEADS[name], wait_s=1.5), name)
    assert spawned.resident() - before < 8 * MIB


async def test_what_a_stranger_sends_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A log of millions of refusals hides what matters, and fills the disk."""
    caplog.set_level(logging.INFO)
    async with running_exchange() as exchange:
        for data in HEADS.values():
            await asyncio.to_thread(ask, exchange.port, data, wait_s=0.2)
    assert not caplog.records


def test_what_is_smuggled_behind_a_refused_request_is_refused_as_well(spawned: Spawned) -> None:
    """Whatever is taken for the end of the first one: no part of the connection is ever authenticated."""
    inner = request("POST", "/mailbox", b"{}", Authorization="Bearer wrong")
    outer = request("PUT", "/message", Transfer_Encoding="chunked", Content_Length="5") + b"0\r\n\r\n" + inner
    for data in (outer, HEADS["length and chunks"], request("GET", "/stream", **UPGRADE) + inner, inner * 50):
        with connect(spawned.port) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answers = everything(connection, wait_s=5)
        statuses = {line.split(b" ")[1] for line in answers.split(b"\r\n") if line.startswith(b"HTTP/")}
        assert statuses <= {b"400", b"401", b"403"}


# Bodies


@pytest.mark.parametrize("extra", [b"", b"Expect: 100-continue\r\n", b"Content-Encoding: gzip\r\n"])
def test_a_body_is_not_waited_for(spawned: Spawned, extra: bytes) -> None:
    head = b"PUT /message HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000000\r\n" + extra + b"\r\n"
    reply = ask(spawned.port, head)
    check_refused(reply, extra, allowed=(401,))
    assert reply.after_s < 0.5


@pytest.mark.parametrize("kind", ["plain", "chunked", "gzip"])
def test_a_body_is_not_kept_and_not_unpacked(spawned: Spawned, kind: str) -> None:
    """Ten strangers send as much as they are let: memory stays, and unpacking a bomb would take seconds."""
    if kind == "plain":
        head, part = b"Content-Length: 100000000000\r\n\r\n", bytes(MIB)
    elif kind == "chunked":
        head, part = b"Transfer-Encoding: chunked\r\n\r\n", b"100000\r\n" + bytes(MIB) + b"\r\n"
    else:
        bomb = gzip.compress(bytes(200 * MIB), compresslevel=1)
        head, part = b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb), bomb
    memory, work = spawned.resident(), sum(spawned.process.cpu_times()[:2])
    for _ in range(10):
        with connect(spawned.port) as connection, contextlib.suppress(ConnectionError, TimeoutError):
            connection.sendall(b"PUT /message HTTP/1.1\r\nHost: x\r\n" + head)
            for _ in range(1 if kind == "gzip" else 30):
                connection.sendall(part)
    assert spawned.resident() - memory < 16 * MIB
    assert sum(spawned.process.cpu_times()[:2]) - work < 1.0


def test_no_body_is_unpacked(spawned: Spawned) -> None:
    """Not even the owner's: it would be unpacked while it comes in, before the token was looked at."""
    body = gzip.compress(b'{"agent": "no.such.Class", "allow_subclasses": true}')
    owner = {"Authorization": f"Bearer {spawned.token}"}
    assert ask(spawned.port, request("GET", "/discover", gzip.decompress(body), **owner)).status == 200
    assert ask(spawned.port, request("GET", "/discover", body, **owner, Content_Encoding="gzip")).status == 400


def test_a_flood_of_pipelined_requests_that_nobody_reads_the_answers_of_takes_no_memory(spawned: Spawned) -> None:
    memory, flood = spawned.resident(), request("GET", "/whoami") * 2_000
    with connect(spawned.port) as connection:
        connection.settimeout(0.5)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(100):
                connection.sendall(flood)
        assert spawned.whoami().after_s < 1
        assert spawned.resident() - memory < 16 * MIB


# Time


async def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Any] = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or compare(a, b))
    async with running_exchange() as exchange:
        wrong = TOKEN[:-1] + "x"
        await asyncio.to_thread(ask, exchange.port, request("GET", "/whoami", Authorization=f"Bearer {wrong}"))
    assert (wrong.encode(), TOKEN.encode()) in compared
