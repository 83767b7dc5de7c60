"""The listening socket of an exchange, bound by the parent, so that the exchange can't lose its port to a stranger."""

from __future__ import annotations

import errno
import fcntl
import socket
from typing import Any

from academy_hpc.errors import ExchangeStartError
from academy_hpc.exchange.http.addresses import address_of_interface, local_addresses
from academy_hpc.exchange.http.copies import close_in_copies

__all__ = ["listen"]

BACKLOG = 4096
"""Connections that may wait for the exchange: all agents of a job reconnect at once. The kernel may cap it."""

WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 compared with, not bound to


def listen(host: str, port: int, *, interface: str | None = None) -> socket.socket:
    """A listening socket, which no other program can share: bound and listening before anybody hears of it.

    Args:
        host: Address or host name to bind. ``"::"`` takes IPv4 connections, too.
        port: TCP port; 0: any free one.
        interface: Bind only the address of this interface; `host` is then a wildcard and says IPv4 or IPv6.

    Raises:
        ExchangeStartError: The port is in use or not allowed, the address or interface not there.
        ValueError: `port` is no port, or `host` and `interface` contradict each other.
    """
    host = _host_to_bind(host, interface)
    if not 0 <= port <= 65535:
        raise ValueError(f"port={port}: a port is a number from 0 to 65535.")
    family, endpoint = _resolve(host, port)
    listener = close_in_copies(_high_descriptor(socket.socket(family, socket.SOCK_STREAM)))
    try:
        # On Linux, this lets a new exchange have the port of one that has just ended, and no two listen at once.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(endpoint)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ExchangeStartError(_why_not_bound(error, host, port)) from error
    return listener


def _host_to_bind(host: str, interface: str | None) -> str:
    if interface is None:
        return host
    if host not in WILDCARDS:
        raise ValueError(f"host={host!r} and interface={interface!r} both say where to bind: give one.")
    return address_of_interface(interface, local_addresses(), version=6 if host == "::" else 4)


def _resolve(host: str, port: int) -> tuple[int, tuple[Any, ...]]:
    flags = socket.AI_PASSIVE | socket.AI_NUMERICSERV
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    except OSError as error:
        raise ExchangeStartError(
            f"host={host!r} has no address here: {error}. Give an address or interface=."
        ) from error
    # IPv4 first: what a name means is the resolver's choice, and compute nodes without IPv6 are common.
    family, _, _, _, endpoint = min(found, key=lambda item: item[0] != socket.AF_INET)
    return family, endpoint


def _high_descriptor(sock: socket.socket) -> socket.socket:
    """`sock` at a descriptor above 2: in a program without standard input it gets 0, which the child needs."""
    if sock.fileno() > 2:
        return sock
    with sock:
        return socket.socket(fileno=fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))


def _why_not_bound(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"Port {port} of {host} is in use by another program, perhaps an earlier exchange. Take any free port with "
            f"port=0, or another number; `ss -ltnp 'sport = :{port}'` shows who has it, if that is you."
        )
    if error.errno == errno.EADDRNOTAVAIL:
        there = ", ".join(str(item.ip) for item in local_addresses())
        return f"host={host!r} is no address of this machine. It has {there}."
    return f"Port {port} of {host} can't be bound: {error.strerror or error}. Take any free port with port=0."
