"""Asking an exchange who it is, in plain blocking code: for the program that started it, and at the command line."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import queue
import ssl
import threading
import time
from http import HTTPStatus
from urllib.parse import urlsplit

import msgspec

from academy_hpc.errors import ExchangeUnreachableError, UnauthorizedError
from academy_hpc.exchange.http.challenge import CHALLENGE_HEADER, PROOF_HEADER, UNPROVED, Challenge
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.wire import WHOAMI_PATH

__all__ = ["WhoAmI", "ask_first", "ask_who", "reach"]

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 compared with, not bound to
"""Where this machine reaches a server that is bound to a wildcard."""

MAX_BYTES = 1 << 16

STEPS = 4
"""Connection, TLS handshake, proof and answer."""


class WhoAmI(msgspec.Struct):
    """What an exchange says of itself. Older ones say less; how many mailboxes there are, no agent is told."""

    exchange: str
    pid: int
    version: str | None = None
    uptime_s: float | None = None
    mailboxes: int | None = None


def ask_who(host: str, port: int, *, token: str, fingerprint: str | None, timeout_s: float) -> WhoAmI:
    """What the exchange at `host` and `port` says of itself. It sees the token when it has shown who it is.

    Args:
        host: Address that it is bound to.
        port: TCP port.
        token: Of its owner.
        fingerprint: Of its certificate; None: it speaks plain http, and has to prove that it knows the token.
        timeout_s: Of each step.

    Raises:
        OSError, http.client.HTTPException, msgspec.DecodeError: It is not there, not ours, or does not answer as one.
    """
    host = LOOPBACK.get(host, host)
    connection = _connection(host, port, timeout_s, tls=fingerprint is not None)
    with contextlib.closing(connection):
        connection.connect()
        connection.auto_open = 0  # whoever proves himself is at the other end of this connection, not of another
        if fingerprint is None:
            _demand_proof(connection, Challenge.new(token, f"http://localhost:{port}"))  # the proof is of the port
        else:
            assert isinstance(connection.sock, ssl.SSLSocket)
            _check_certificate(connection.sock, fingerprint)
        response = _get(connection, {"Authorization": f"Bearer {token}"})
        body = response.read(MAX_BYTES)
    if response.status != HTTPStatus.OK:
        raise http.client.HTTPException(f"status {response.status}")
    return msgspec.json.decode(body, type=WhoAmI)


def ask_first(info: ConnectionInfo, *, timeout_s: float) -> tuple[str, WhoAmI]:
    """Ask at all URLs of `info` at once; the first that answers, and what it says.

    Raises:
        UnauthorizedError: `info` holds no bearer token.
        ExchangeUnreachableError: None answers as this exchange; it says what happened at each.
    """
    scheme, _, token = info.headers.get("Authorization", "").partition(" ")
    if scheme != "Bearer":
        raise UnauthorizedError("This connection info holds no token")

    outcomes: queue.SimpleQueue[tuple[str, WhoAmI | str]] = queue.SimpleQueue()

    def ask(url: str) -> None:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            answer = ask_who(parts.hostname or "", port, token=token, fingerprint=info.fingerprint, timeout_s=timeout_s)
            outcomes.put((url, answer))
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
            outcomes.put((url, str(error) or type(error).__name__))

    for url in info.candidates():
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    failures = dict.fromkeys(info.candidates(), "no whole answer in time")
    deadline = time.monotonic() + STEPS * timeout_s  # each byte of an answer restarts the time of its step
    with contextlib.suppress(queue.Empty):
        for _ in info.candidates():
            url, outcome = outcomes.get(timeout=max(0.0, deadline - time.monotonic()))
            if isinstance(outcome, WhoAmI):
                return url, outcome
            failures[url] = outcome
    raise ExchangeUnreachableError(failures)


def reach(url: str, *, fingerprint: str | None, timeout_s: float) -> float:
    """Seconds that it takes to be connected to a server, to which nothing is shown.

    Args:
        url: Its base URL.
        fingerprint: Of its certificate; None: any server will do.
        timeout_s: Of each step.

    Raises:
        OSError: There is none, or its certificate is another one.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    start = time.monotonic()
    with contextlib.closing(
        _connection(parts.hostname or "", port, timeout_s, tls=parts.scheme == "https")
    ) as connection:
        connection.connect()
        if fingerprint is not None:
            assert isinstance(connection.sock, ssl.SSLSocket)
            _check_certificate(connection.sock, fingerprint)
    return time.monotonic() - start


def _connection(host: str, port: int, timeout_s: float, *, tls: bool) -> http.client.HTTPConnection:
    # http.client knows nothing of proxy variables, which would send the token to the site's proxy.
    if not tls:
        return http.client.HTTPConnection(host, port, timeout=timeout_s)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the fingerprint says more
    return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)


def _check_certificate(sock: ssl.SSLSocket, fingerprint: str) -> None:
    if hashlib.sha256(sock.getpeercert(binary_form=True) or b"").hexdigest() != fingerprint:
        raise ConnectionRefusedError("its certificate is another one")


def _demand_proof(connection: http.client.HTTPConnection, challenge: Challenge) -> None:
    response = _get(connection, {CHALLENGE_HEADER: challenge.text})
    response.read(MAX_BYTES)
    if not challenge.is_met_by(response.getheader(PROOF_HEADER)):
        raise ConnectionRefusedError(UNPROVED)


def _get(connection: http.client.HTTPConnection, headers: dict[str, str]) -> http.client.HTTPResponse:
    connection.request("GET", WHOAMI_PATH, headers=headers)
    return connection.getresponse()
