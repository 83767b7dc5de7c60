"""Which addresses an exchange advertises, on machines like those that there are."""

from __future__ import annotations

from ipaddress import ip_address

import psutil
import pytest

from academy_hpc.errors import ExchangeStartError
from academy_hpc.exchange.http.addresses import LocalAddress, address_of_interface, advertised_urls, local_addresses

__all__: list[str] = []

ANY = "0.0.0.0"  # noqa: S104 nothing is bound here


def machine(**interfaces: str) -> list[LocalAddress]:
    """The addresses of a machine; ``__`` in a name stands for ``-``, and several addresses are separated by blanks."""
    return [
        LocalAddress(interface=name.replace("__", "-"), ip=ip_address(ip))
        for name, ips in interfaces.items()
        for ip in ips.split()
    ]


LOGIN_NODE = machine(
    lo="127.0.0.1 ::1",
    docker0="172.17.0.1 fd11::1",
    eth0="128.55.84.10 2620:83::10",
    eth1="10.128.0.7",
    bond0="10.201.1.2",
    ib0="10.149.0.2",
    hsn0="10.249.1.1 fd22::1",
    hsn1="10.249.1.2",
    br__1f2e="172.18.0.1",
    usb0="169.254.3.1",
)


def hosts(bound: str, local: list[LocalAddress], *, address: str | None = None) -> list[str]:
    urls = advertised_urls(bound, 5463, local, address=address)
    assert all(url.startswith("http://") and url.endswith(":5463") for url in urls)
    return [url.removeprefix("http://").removesuffix(":5463") for url in urls]


def test_a_wildcard_becomes_all_addresses_the_most_useful_first() -> None:
    """High-speed, private, public, those that end inside this host, loopback."""
    assert hosts(ANY, LOGIN_NODE) == [
        "10.249.1.1",
        "10.249.1.2",
        "10.149.0.2",
        "10.201.1.2",
        "10.128.0.7",
        "128.55.84.10",
        "172.17.0.1",
        "172.18.0.1",
        "169.254.3.1",
        "127.0.0.1",
    ]


def test_an_ipv6_wildcard_adds_ipv6_addresses_after_those_of_ipv4() -> None:
    found = hosts("::", LOGIN_NODE)
    assert found[:8] == [*hosts(ANY, LOGIN_NODE)[:6], "[fd22::1]", "[2620:83::10]"]
    assert found[-2:] == ["127.0.0.1", "[::1]"]
    assert "[fd11::1]" in found[8:-2]


def test_similar_names_are_not_high_speed_networks() -> None:
    assert hosts(ANY, machine(eth0="10.0.0.1", ifb0="10.0.0.2", wlan0="10.0.0.3")) == [
        "10.0.0.1",
        "10.0.0.2",
        "10.0.0.3",
    ]


@pytest.mark.parametrize("bound", ["127.0.0.1", "10.128.0.7", "172.17.0.1"])
def test_one_address_is_advertised_alone(bound: str) -> None:
    assert hosts(bound, LOGIN_NODE) == [bound]


def test_ipv6_addresses_stand_in_brackets() -> None:
    assert hosts("fd22::1", LOGIN_NODE) == ["[fd22::1]"]
    assert hosts("::1", LOGIN_NODE) == ["[::1]"]


def test_a_machine_without_any_interface_has_loopback() -> None:
    assert hosts(ANY, []) == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("address", "first"),
    [
        ("login1.hpc.example", "login1.hpc.example"),
        ("login_1", "login_1"),
        ("192.0.2.7", "192.0.2.7"),
        ("fd00::7", "[fd00::7]"),
        ("[fd00::7]", "[fd00::7]"),
    ],
)
def test_the_address_that_is_asked_for_comes_first_and_the_others_stay(address: str, first: str) -> None:
    assert hosts(ANY, LOGIN_NODE, address=address) == [first, *hosts(ANY, LOGIN_NODE)]


def test_an_address_that_is_there_anyhow_is_advertised_once() -> None:
    found = hosts(ANY, LOGIN_NODE, address="10.128.0.7")
    assert found[0] == "10.128.0.7"
    assert sorted(found) == sorted(hosts(ANY, LOGIN_NODE))


@pytest.mark.parametrize("address", ["", " ", ANY, "::", "http://host", "host:5463", "a b", "host/path", "u@host"])
def test_what_nobody_could_connect_to_is_not_advertised(address: str) -> None:
    with pytest.raises(ExchangeStartError, match="address="):
        advertised_urls(ANY, 5463, LOGIN_NODE, address=address)


def test_an_interface_gives_its_address() -> None:
    assert address_of_interface("hsn1", LOGIN_NODE) == "10.249.1.2"
    assert address_of_interface("hsn0", LOGIN_NODE, version=6) == "fd22::1"


@pytest.mark.parametrize(("name", "version"), [("hsn9", 4), ("", 4), ("hsn1", 6)])
def test_an_interface_that_is_not_there_is_told_which_are(name: str, version: int) -> None:
    with pytest.raises(ExchangeStartError) as caught:
        address_of_interface(name, LOGIN_NODE, version=version)
    text = str(caught.value)
    assert repr(name) in text
    assert "hsn0 (10.249.1.1)" in text
    assert "eth1 (10.128.0.7)" in text
    assert "\n" not in text


def test_this_machine_has_loopback_and_nothing_that_is_down_or_means_nothing_elsewhere() -> None:
    found = local_addresses()
    states = psutil.net_if_stats()
    assert "127.0.0.1" in [str(item.ip) for item in found]
    assert [item for item in found if not states[item.interface].isup] == []
    assert [item for item in found if item.ip.version == 6 and item.ip.is_link_local] == []
