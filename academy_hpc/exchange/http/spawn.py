"""A private exchange in a process of its own, for as long as a ``with`` block."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from academy_hpc.exchange.http.addresses import advertised_urls, local_addresses
from academy_hpc.exchange.http.certificate import Certificate, choose_certificate, read_certificate
from academy_hpc.exchange.http.client import HttpExchangeFactory
from academy_hpc.exchange.http.connection import ConnectionInfo
from academy_hpc.exchange.http.globus_settings import GlobusSettings
from academy_hpc.exchange.http.handover import Handover, Ready
from academy_hpc.exchange.http.identity import Identity
from academy_hpc.exchange.http.listener import listen
from academy_hpc.exchange.http.origin import ServerOrigin
from academy_hpc.exchange.http.probe import ask_who
from academy_hpc.exchange.http.process import ExchangeProcess
from academy_hpc.exchange.http.restarts import Watch
from academy_hpc.exchange.http.state_lock import lock_state_dir

__all__ = ["spawn_http_exchange"]

DEFAULT_PORT = 5463
"""That of academy-py."""

DEFAULT_TIMEOUT_S = 30.0
"""Of the start. Imports take a third of a second from a local disk, and many from a busy parallel file system."""

LOG_LIMIT_BYTES = 1 << 20
"""Of the temporary log; a log file that the user names is the user's to rotate, if no limit is given."""

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
    tls: bool | None = None,
    certificate: str | os.PathLike[str] | None = None,
    private_key: str | os.PathLike[str] | None = None,
    connection_file: str | os.PathLike[str] | None = None,
    on_end: Callable[[str], None] | None = None,
    globus: GlobusSettings | None = None,
    absent_s: float | None = None,
    log_limit_bytes: int | None = None,
) -> Iterator[HttpExchangeFactory]:
    """Run a private exchange in a new process for the ``with`` block, and yield the factory of its clients.

    The factory works on other hosts, too: its URLs hold the addresses of this machine, never ``0.0.0.0``, its headers
    the random token without which the exchange answers nobody, and its fingerprint is that of the exchange's own
    certificate, without which no client shows the token. The exchange ends with the block, and when
    this process dies, whatever kills it; what it holds is in memory and ends with it. With a state directory it is on
    disk, and an exchange process that is killed or crashes is started again: clients notice no more than a delay.

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
            SIGKILL, it has the same mailboxes, messages, token, certificate, and with port 0 or the default the same
            port.
        tls: Whether it speaks https. Default: unless only this machine can reach it, and `globus` is None.
        certificate: PEM file with a certificate to use instead of one made for this exchange, followed by those of its
            authorities. Clients pin it all the same: with a new one, they need a new connection info.
        private_key: PEM file with its key, for this user's eyes only.
        connection_file: Where to keep the connection info in a file as long as the exchange serves.
        on_end: Called from another thread, with one line that says why, when the exchange has ended before the block
            and is not started again.
        globus: Let in, besides whoever has the token, people and service accounts with a Globus Auth token for this
            exchange. What to give them: ``factory.connection_info.for_globus()``.
        absent_s: Seconds after which callers of an agent that nobody runs get an error; default: the server's, a week.
        log_limit_bytes: Size at which the log file starts again from nothing; default: it only grows.

    Raises:
        ConnectionInfoError: The connection file can't be written.
        ExchangeStartError: The port is in use, the interface or address is not there, the certificate or key can't be
            used, or the process did not come up, with its last log lines.
        StoreError: The state directory can't be used.
        ValueError: An argument makes no sense.
    """
    deadline, log_level = time.monotonic() + _checked_timeout(timeout), _log_level(level)
    given = read_certificate(certificate, private_key, tls=tls)
    with contextlib.ExitStack() as held:
        lock_fd = None if state_dir is None else held.enter_context(lock_state_dir(Path(state_dir)))
        identity = _identity(port, token, state_dir)
        listener = held.enter_context(listen(host, identity.port, interface=interface))
        bound = listener.getsockname()[:2]
        # A Globus token is shown to whoever answers, where there is no certificate to check.
        wanted = True if tls is None and globus is not None else tls
        used = choose_certificate(bound[0], tls=wanted, given=given, kept=identity.certificate)
        if state_dir is not None:
            kept = identity.certificate if used in (None, given) else used
            Identity(bound[1], identity.token, kept).write(Path(state_dir))
        info = _connection_info(
            *bound, token=identity.token, certificate=used, address=address, durable=state_dir is not None
        )
        server = _server_config(identity.token, max_message_bytes, state_dir, used, absent_s) | {"globus": globus}
        limit_bytes = LOG_LIMIT_BYTES if log_path is None else log_limit_bytes
        handover = _handover(listener, server, log_level, log_limit_bytes=limit_bytes)
        with ExchangeProcess(listener, handover, log_path=log_path, lock_fd=lock_fd) as process:
            if state_dir is None:
                listener.close()  # who connects to an exchange that died is to be refused, since it does not come back
            ready = process.wait_ready(deadline)
            _check_answer(process, ready, bound, info=info, token=identity.token, deadline=deadline)
            with info.kept_at(connection_file), Watch(process, listener, restarts=lock_fd is not None, on_end=on_end):
                yield HttpExchangeFactory.from_connection_info(info)


def _identity(port: int, token: str | None, state_dir: str | os.PathLike[str] | None) -> Identity:
    """Port to bind, token and certificate: what is given, else what the state directory knows, else something new."""
    if token is not None:
        token = _checked_token(token)
    known = None if state_dir is None else Identity.read(Path(state_dir))
    if known is None:
        return Identity(port, token or secrets.token_urlsafe(32))
    wanted = known.port if port in (0, DEFAULT_PORT) else port
    return Identity(wanted, token or known.token, known.certificate)


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


def _connection_info(
    bound: str, port: int, *, token: str, certificate: Certificate | None, address: str | None, durable: bool
) -> ConnectionInfo:
    return ConnectionInfo(
        urls=advertised_urls(bound, port, local_addresses(), address=address, tls=certificate is not None),
        headers={"Authorization": f"Bearer {token}"},
        fingerprint=None if certificate is None else certificate.fingerprint,
        server=ServerOrigin.here(),
        proof=True,
        durable=durable,
    )


def _server_config(
    token: str,
    max_message_bytes: int | None,
    state_dir: str | os.PathLike[str] | None,
    certificate: Certificate | None,
    absent_s: float | None,
) -> dict[str, Any]:
    limits = {} if max_message_bytes is None else {"message_bytes": max_message_bytes}
    given = {} if absent_s is None else {"absent_s": absent_s}
    return given | {
        "token": token,
        "limits": limits,
        "certificate": certificate,
        "state_dir": None if state_dir is None else str(Path(state_dir).absolute()),
    }


def _handover(
    listener: socket.socket, server: dict[str, Any], log_level: int, *, log_limit_bytes: int | None
) -> Handover:
    return Handover(
        socket_fd=listener.fileno(),
        parent_pid=os.getpid(),
        nonce=secrets.token_hex(32),
        log_level=log_level,
        log_limit_bytes=log_limit_bytes,
        server=server,
    )


def _check_answer(
    process: ExchangeProcess,
    ready: Ready,
    bound: tuple[str, int],
    *,
    info: ConnectionInfo,
    token: str,
    deadline: float,
) -> None:
    """Ask the exchange over its socket who it is: what agents will do works before anybody gets the factory."""
    host, port = bound
    timeout_s = max(0.1, deadline - time.monotonic())
    try:
        answer = ask_who(host, port, token=token, fingerprint=info.fingerprint, timeout_s=timeout_s)
    except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
        raise process.failed(f"does not answer at {host}, port {port}: {error!r}") from error
    if (answer.exchange, answer.pid) != (ready.exchange, ready.pid):
        raise process.failed(f"gave the answer of another one at {host}, port {port}")
