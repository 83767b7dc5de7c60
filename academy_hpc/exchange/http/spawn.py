"""A private exchange in a process of its own, for as long as a ``with`` block."""

from __future__ import annotations

import contextlib
import hmac
import http.client
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import msgspec

from academy_hpc.exchange.http.addresses import advertised_urls, local_addresses
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo, boot_id
from academy_hpc.exchange.http.handover import Handover, Ready
from academy_hpc.exchange.http.identity import Identity
from academy_hpc.exchange.http.listener import listen
from academy_hpc.exchange.http.process import ExchangeProcess
from academy_hpc.exchange.http.tokens import proof
from academy_hpc.exchange.http.wire import WHOAMI_PATH

__all__ = ["spawn_http_exchange"]

DEFAULT_PORT = 5463
"""That of academy-py."""

DEFAULT_TIMEOUT_S = 30.0
"""Of the start. Imports take a third of a second from a local disk, and many from a busy parallel file system."""

LOG_LIMIT_BYTES = 1 << 20
"""Of the temporary log; a log file that the user names is the user's to rotate."""

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 compared with, not bound to
"""Where this machine reaches a server that is bound to a wildcard."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{32,}=*")  # RFC 6750, 2.1


@contextlib.contextmanager
def spawn_http_exchange(
    host: str = "0.0.0.0",  # noqa: S104 agents are on other hosts; a token guards every route
    port: int = DEFAULT_PORT,
    *,
    level: int | str = logging.WARNING,
    timeout: float | None = None,
    address: str | None = None,
    interface: str | None = None,
    token: str | None = None,
    max_message_bytes: int | None = None,
    log_path: str | os.PathLike[str] | None = None,
    state_dir: str | os.PathLike[str] | None = None,
) -> Iterator[HttpExchangeFactory]:
    """Run a private exchange in a new process for the ``with`` block, and yield the factory of its clients.

    The factory works on other hosts, too: its URLs hold the addresses of this machine, never ``0.0.0.0``, and its
    headers the random token without which the exchange answers nobody. The exchange ends with the block, and when
    this process dies, whatever kills it; what it holds is in memory and ends with it.

    Args:
        host: Address or host name to bind; ``"0.0.0.0"``: all IPv4, ``"::"``: all IPv6 and IPv4 addresses,
            ``"127.0.0.1"``: reachable from this machine only.
        port: TCP port; 0 takes any free one, the right choice on a shared login node.
        level: Level of the exchange's log, as in `logging`.
        timeout: Seconds that the start may take; default 30.
        address: Host name or IP to advertise before all others, such as the near end of a tunnel.
        interface: Bind and advertise this network interface only, such as ``"hsn0"``.
        token: Bearer token to use instead of a random one: 32 characters or more.
        max_message_bytes: Size over which a message is refused; default: the server's.
        log_path: File to which the exchange appends its log, made 0600. Default: a temporary one, whose end is logged
            here when the exchange stops.
        state_dir: Directory on a local disk for all that the exchange accepted: started again with it, even after
            SIGKILL, it has the same mailboxes, messages, token, and with port 0 or the default the same port.

    Raises:
        ExchangeStartError: The port is in use, the interface or address is not there, or the process did not come
            up, with its last log lines.
        StoreError: The state directory can't be used.
        ValueError: An argument makes no sense.
    """
    deadline, log_level = time.monotonic() + _checked_timeout(timeout), _log_level(level)
    port, token = _identity(port, token, state_dir)
    with listen(host, port, interface=interface) as listener:
        bound = listener.getsockname()[:2]
        if state_dir is not None:
            Identity(bound[1], token).write(Path(state_dir))
        factory = HttpExchangeFactory.from_connection_info(_connection_info(*bound, token=token, address=address))
        server = _server_config(token, max_message_bytes, state_dir)
        handover = _handover(listener, server, log_level, bounded=log_path is None)
        with ExchangeProcess(listener, handover, log_path=log_path) as process:
            ready = process.wait_ready(deadline)
            _check_proof(process, ready, handover)
            _check_answer(process, ready, bound, token=token, deadline=deadline)
            yield factory


def _identity(port: int, token: str | None, state_dir: str | os.PathLike[str] | None) -> tuple[int, str]:
    """The port to bind and the token: what is given, else what the state directory knows, else something new."""
    if token is not None:
        token = _checked_token(token)
    known = None if state_dir is None else Identity.read(Path(state_dir))
    if known is None:
        return port, token or secrets.token_urlsafe(32)
    return known.port if port in (0, DEFAULT_PORT) else port, token or known.token


def _checked_timeout(timeout: float | None) -> float:
    if timeout is None:
        return DEFAULT_TIMEOUT_S
    if not 0 < timeout < float("inf"):
        raise ValueError(f"timeout={timeout!r}: give seconds, more than 0.")
    return timeout


def _checked_token(token: str) -> str:
    if not _TOKEN.fullmatch(token):
        raise ValueError("A token has 32 characters or more, of letters, digits and -._~+/; better, leave it out.")
    return token


def _log_level(level: int | str) -> int:
    names = logging.getLevelNamesMapping()
    if isinstance(level, str) and level.upper() not in names:
        raise ValueError(f"level={level!r} is no level of logging.")
    return names[level.upper()] if isinstance(level, str) else level


def _connection_info(bound: str, port: int, *, token: str, address: str | None) -> ConnectionInfo:
    urls = advertised_urls(bound, port, local_addresses(), address=address)
    return ConnectionInfo(urls=urls, headers={"Authorization": f"Bearer {token}"}, boot_id=boot_id())


def _server_config(
    token: str, max_message_bytes: int | None, state_dir: str | os.PathLike[str] | None
) -> dict[str, Any]:
    limits = {} if max_message_bytes is None else {"message_bytes": max_message_bytes}
    return {
        "token": token,
        "limits": limits,
        "state_dir": None if state_dir is None else str(Path(state_dir).absolute()),
    }


def _handover(listener: socket.socket, server: dict[str, Any], log_level: int, *, bounded: bool) -> Handover:
    return Handover(
        socket_fd=listener.fileno(),
        parent_pid=os.getpid(),
        nonce=secrets.token_hex(32),
        log_level=log_level,
        log_limit_bytes=LOG_LIMIT_BYTES if bounded else None,
        server=server,
    )


def _check_proof(process: ExchangeProcess, ready: Ready, handover: Handover) -> None:
    expected = proof(handover.server["token"], handover.nonce)
    if not hmac.compare_digest(ready.proof, expected) or ready.pid != process.pid:
        raise process.failed("did not prove that it holds the token")


def _check_answer(
    process: ExchangeProcess, ready: Ready, bound: tuple[str, int], *, token: str, deadline: float
) -> None:
    """Ask the exchange over its socket who it is: what agents will do works before anybody gets the factory."""
    host, port = bound
    try:
        status, body = _get(LOOPBACK.get(host, host), port, WHOAMI_PATH, token=token, deadline=deadline)
        answer = msgspec.json.decode(body, type=_WhoAmI) if status == HTTPStatus.OK else None
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        raise process.failed(f"does not answer at {host}, port {port}: {error!r}") from error
    if answer is None or (answer.exchange, answer.pid) != (ready.exchange, ready.pid):
        raise process.failed(f"gave a wrong answer at {host}, port {port}: status {status}")


class _WhoAmI(msgspec.Struct):
    exchange: str
    pid: int


def _get(host: str, port: int, path: str, *, token: str, deadline: float) -> tuple[int, bytes]:
    # http.client knows nothing of proxy variables, which would send the token to the site's proxy.
    connection = http.client.HTTPConnection(host, port, timeout=max(0.1, deadline - time.monotonic()))
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        response = connection.getresponse()
        return response.status, response.read(1 << 16)
