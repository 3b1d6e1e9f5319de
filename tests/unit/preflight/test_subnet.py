"""Which subnets, DHCP ranges and reservations a new network may have."""

import ipaddress

import pytest

from kvmctl.errors import Conflict, Refused, UsageProblem
from kvmctl.model.network import Host
from kvmctl.preflight.subnet import (
    Taken,
    addressing,
    free_subnet,
    is_host_name,
    parse_host,
    parse_range,
    parse_subnet,
    refuse_overlap,
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.0/33", "not a subnet"),
        ("10.0.0.0", "no prefix"),
        ("10.0.0.0/", "not a subnet"),
        ("10.0.0.0/-1", "not a subnet"),
        ("0.0.0.0/0", "no size"),
        ("::/0", "no size"),
        ("10.0.0.1/24", "behind its prefix"),
        ("fd00::1/64", "behind its prefix"),
        ("10.0.0.0/7", "no size"),
        ("16.0.0.0/5", "no size"),
        ("10.0.0.0/31", "no size"),
        ("fd00::/63", "no size"),
        ("127.0.1.0/24", "loopback"),
        ("169.254.7.0/24", "link-local"),
        ("224.0.1.0/24", "multicast"),
        ("fe80::/64", "link-local"),
        ("ff02::/64", "multicast"),
        ("$(id)/24", "not a subnet"),
        ("\x1b[2J/24", "not a subnet"),
    ],
)
def test_subnets_that_none_can_have(text: str, reason: str) -> None:
    with pytest.raises(UsageProblem, match=reason) as caught:
        parse_subnet(text)
    assert caught.value.message.isprintable()


def test_the_subnet_that_was_meant_is_told() -> None:
    with pytest.raises(UsageProblem) as caught:
        parse_subnet("192.168.50.7/24")
    assert caught.value.hint is not None and "192.168.50.0/24" in caught.value.hint


@pytest.mark.parametrize(
    ("subnet", "ranges", "reason"),
    [
        ("10.0.0.0/24", "10.0.1.1-10.0.1.9", "outside"),
        ("10.0.0.0/24", "10.0.0.200-10.0.1.9", "ends outside"),
        ("10.0.0.0/24", "10.0.0.1-10.0.0.9", "the host's own"),
        ("10.0.0.0/24", "10.0.0.200-10.0.0.255", "broadcast"),
        ("10.0.0.0/24", "fd00::1-fd00::9", "outside"),
    ],
)
def test_ranges_must_lie_in_the_subnet(subnet: str, ranges: str, reason: str) -> None:
    with pytest.raises(UsageProblem, match=reason):
        addressing([parse_subnet(subnet)], [parse_range(ranges)], [])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("10.0.0.9-10.0.0.2", "backwards"),
        ("10.0.0.9", "not a DHCP range"),
        ("10.0.0.9-", "not a DHCP range"),
        ("10.0.0.9-fd00::1", "mixes"),
        ("10.0.0.0-10.1.255.255", "more addresses"),
    ],
)
def test_ranges_that_are_none(text: str, reason: str) -> None:
    with pytest.raises(UsageProblem, match=reason):
        parse_range(text)


def test_without_a_range_all_of_an_ipv4_subnet_is_given_out() -> None:
    four, six = addressing([parse_subnet("10.0.0.0/29"), parse_subnet("fd00:7::/64")], None, [])
    assert str(four.gateway) == "10.0.0.1" and [str(r) for r in four.ranges] == ["10.0.0.2-10.0.0.6"]
    assert str(six.gateway) == "fd00:7::1" and six.ranges == ()
    (wide,) = addressing([parse_subnet("10.0.0.0/8")], None, [])
    assert [str(r) for r in wide.ranges] == ["10.0.0.2-10.0.255.255"]
    (silent,) = addressing([parse_subnet("10.0.0.0/24")], [], [])
    assert silent.ranges == ()


def test_two_subnets_of_one_network_may_not_overlap() -> None:
    with pytest.raises(UsageProblem, match="overlap"):
        addressing([parse_subnet("10.0.0.0/24"), parse_subnet("10.0.0.0/16")], None, [])


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("52:54:00:00:00:01=10.0.0.1", "the host's own"),
        ("52:54:00:00:00:01=10.0.0.255", "broadcast"),
        ("52:54:00:00:00:01=10.0.0.0", "network's own"),
        ("52:54:00:00:00:01=10.0.9.9", "outside"),
        ("52:54:00:00:00:01", "not a reservation"),
        ("52:54:00:00:00:01=x", "not an IP"),
        ("53:54:00:00:00:01=10.0.0.9", "multicast"),
        ("52:54:00:00:00:01=10.0.0.9,a\x1bb", "not a host name"),
        ("52:54:00:00:00:01=10.0.0.9,-a", "not a host name"),
        ("52:54:00:00:00:01=fd00::9", "by its name"),
    ],
)
def test_reservations_that_none_can_have(host: str, reason: str) -> None:
    with pytest.raises(UsageProblem, match=reason):
        addressing([parse_subnet("10.0.0.0/24")], None, [parse_host(host)])


def test_nothing_is_reserved_twice() -> None:
    one = Host("10.0.0.9", "52:54:00:00:00:01")
    for twin in (Host("10.0.0.9", "52:54:00:00:00:02"), Host("10.0.0.8", "52:54:00:00:00:01")):
        with pytest.raises(UsageProblem, match="twice"):
            addressing([parse_subnet("10.0.0.0/24")], None, [one, twin])


def test_an_overlap_names_who_has_it() -> None:
    taken = [
        Taken(ipaddress.ip_network("0.0.0.0/0"), "the host's route over eth0"),
        Taken(ipaddress.ip_network("10.0.0.0/16"), "the network 'lab'"),
    ]
    refuse_overlap([parse_subnet("10.1.0.0/24"), parse_subnet("fd00::/64")], taken)
    with pytest.raises(Refused, match=r"10\.0\.7\.0/24 overlaps 10\.0\.0\.0/16, which is the network 'lab'"):
        refuse_overlap([parse_subnet("10.0.7.0/24")], taken)
    with pytest.raises(Refused, match="lab"):
        refuse_overlap([parse_subnet("10.0.0.0/8")], taken)


def test_a_free_subnet_is_one_that_nobody_has() -> None:
    assert str(free_subnet([])) == "192.168.100.0/24"
    taken = [Taken(ipaddress.ip_network("192.168.100.0/23"), "x"), Taken(ipaddress.ip_network("0.0.0.0/0"), "y")]
    assert str(free_subnet(taken)) == "192.168.102.0/24"
    assert str(free_subnet([Taken(ipaddress.ip_network("192.168.0.0/16"), "x")])) == "10.100.0.0/24"
    with pytest.raises(Conflict):
        free_subnet([Taken(ipaddress.ip_network(t), "x") for t in ("192.168.0.0/16", "10.0.0.0/8")])


@pytest.mark.parametrize(
    ("text", "good"),
    [("a", True), ("a-1.b", True), ("", False), ("a..b", False), ("a_b", False), ("é", False), ("a" * 64, False)],
)
def test_host_names(text: str, good: bool) -> None:
    assert is_host_name(text) is good
