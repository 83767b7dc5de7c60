"""Which addresses of this machine others should try, the most useful first.

A login node has many: a management network, the high-speed network of the machine, a public address, bridges of
container runtimes. No rule finds the one that a compute node can reach on every machine, so all that could be are
advertised and the reader tries them; the order only saves time.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address

import msgspec
import psutil

from academy_hpc.errors import ExchangeStartError

__all__ = ["LocalAddress", "address_of_interface", "advertised_urls", "local_addresses"]

_FAST = ("hsn", "ib", "bond")
"""High-speed networks: HPE Slingshot, InfiniBand, bonded links (in this order on machines that have several)."""

_VIRTUAL = ("docker", "podman", "virbr", "veth", "br-", "cni", "flannel", "cali", "lxc", "lxd", "vmnet", "usb")
"""Bridges of container runtimes and hypervisors, and the board controller's USB link: they end inside this host."""

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


class LocalAddress(msgspec.Struct, frozen=True):
    """One address of one interface that is up."""

    interface: str
    ip: IPv4Address | IPv6Address

    @property
    def rank(self) -> tuple[int, int]:
        """The smaller, the more useful to other hosts."""
        speed = next((place for place, prefix in enumerate(_FAST) if self.interface.startswith(prefix)), len(_FAST))
        return self._kind(fast=speed < len(_FAST)), speed

    def _kind(self, *, fast: bool) -> int:
        if self.ip.is_loopback:
            return 5
        if self.ip.is_link_local or self.interface.startswith(_VIRTUAL):
            return 4
        if self.ip.version == 6:
            return 3
        if fast:
            return 0
        # Compute nodes share the private networks of a login node; its public address is often behind a firewall.
        return 2 if self.ip.is_global else 1


def local_addresses() -> list[LocalAddress]:
    """The addresses of all interfaces that are up, without IPv6 link-local ones (they mean nothing elsewhere)."""
    states = psutil.net_if_stats()
    return [
        LocalAddress(interface=name, ip=ip)
        for name, entries in psutil.net_if_addrs().items()
        if name not in states or states[name].isup
        for ip in (ip_address(entry.address.partition("%")[0]) for entry in entries if _is_internet(entry.family))
        if not (ip.version == 6 and ip.is_link_local)
    ]


def _is_internet(family: int) -> bool:
    return family in (socket.AF_INET, socket.AF_INET6)


def address_of_interface(name: str, local: Iterable[LocalAddress], *, version: int = 4) -> str:
    """The first address of the interface `name`.

    Args:
        name: Such as ``hsn0``.
        local: What `local_addresses` said.
        version: 4 or 6.

    Raises:
        ExchangeStartError: No such interface is up with such an address; the text lists those that are.
    """
    addresses = list(local)
    found = [item.ip for item in addresses if item.interface == name and item.ip.version == version]
    if not found:
        there = ", ".join(f"{item.interface} ({item.ip})" for item in sorted(addresses, key=lambda item: item.rank))
        raise ExchangeStartError(
            f"No interface {name!r} is up here with an IPv{version} address. There are: {there or 'none'}."
        )
    return str(found[0])


def advertised_urls(
    bound: str, port: int, local: Iterable[LocalAddress], *, address: str | None = None, tls: bool = False
) -> tuple[str, ...]:
    """The base URLs under which a server can be reached, the most useful first, loopback last.

    Args:
        bound: The address that the server is bound to; a wildcard stands for all in `local`.
        port: Its TCP port.
        local: What `local_addresses` said.
        address: A host name or address to put first, such as the far end of a tunnel.
        tls: Whether it speaks https.

    Raises:
        ExchangeStartError: `address` is neither a host name nor an address that others could use.
    """
    own = ip_address(bound.partition("%")[0])
    hosts = [own] if not own.is_unspecified else _reachable_through_wildcard(own, local)
    first = [] if address is None else [_checked_host(address)]
    scheme = "https" if tls else "http"
    return tuple(dict.fromkeys(f"{scheme}://{host}:{port}" for host in [*first, *map(_bracketed, hosts)]))


def _reachable_through_wildcard(
    wildcard: IPv4Address | IPv6Address, local: Iterable[LocalAddress]
) -> list[IPv4Address | IPv6Address]:
    # A socket bound to :: takes IPv4 connections, too; one bound to 0.0.0.0 takes no IPv6.
    matching = [item for item in local if item.ip.version <= wildcard.version]
    ranked = [item.ip for item in sorted(matching, key=lambda item: item.rank)]
    return ranked or [IPv4Address("127.0.0.1")]


def _checked_host(address: str) -> str:
    try:
        ip = ip_address(address.removeprefix("[").removesuffix("]"))
    except ValueError:
        if _HOST.fullmatch(address):
            return address
        raise ExchangeStartError(
            f"address={address!r} is neither a host name nor an IP address. Give it without http:// and port."
        ) from None
    if ip.is_unspecified:
        raise ExchangeStartError(f"address={address!r} means every address, and can't be advertised. Name one.")
    return _bracketed(ip)


def _bracketed(ip: IPv4Address | IPv6Address) -> str:
    return f"[{ip}]" if ip.version == 6 else str(ip)
