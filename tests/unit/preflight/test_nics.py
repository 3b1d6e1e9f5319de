"""Who may have which MAC and which device for macvtap."""

import ipaddress

import pytest

from kvmctl.errors import Conflict, NotFound, Refused, UsageProblem
from kvmctl.model.network import Network
from kvmctl.preflight.cards import Card
from kvmctl.preflight.hostnet import HostNetwork, Link, Route, check_bridge, check_macvtap
from kvmctl.preflight.nics import check_device_free, check_mac_free, free_mac
from kvmctl.preflight.subnet import parse_subnet

OWNER = Card("owner", "u1", True, "52:54:00:00:00:01", "direct", "eth1", "passthrough")
SHARER = Card("sharer", "u2", False, "52:54:00:00:00:02", "direct", "eth2", "bridge")
HOST = HostNetwork(
    {
        link.name: link
        for link in (
            Link("lo"),
            Link("eth0", mac="52:54:00:00:00:09"),
            Link("eth1"),
            Link("eth2"),
            Link("port", master="br0"),
            Link("br0", "bridge"),
            Link("uplink", "bridge"),
            Link("under", master="uplink"),
            Link("vlan", "vlan", parent="eth0"),
        )
    },
    (
        Route(parse_subnet("10.0.0.0/24"), "eth1"),
        Route(parse_subnet("10.0.1.0/24"), "eth0"),
    ),
)


@pytest.mark.parametrize("mode", ["bridge", "vepa", "private", "passthrough"])
def test_nobody_shares_a_passthrough_device(mode: str) -> None:
    with pytest.raises(Refused, match="eth1 is in use by owner in passthrough mode"):
        check_device_free("eth1", mode, [OWNER, SHARER])
    # The guest's own second card is its own affair.
    check_device_free("eth1", mode, [OWNER, SHARER], "u1")


def test_a_shared_device_is_not_taken_away() -> None:
    with pytest.raises(Refused, match="eth2 is in use by sharer in bridge mode"):
        check_device_free("eth2", "passthrough", [OWNER, SHARER])
    check_device_free("eth2", "private", [OWNER, SHARER])
    check_device_free("eth3", "passthrough", [OWNER, SHARER])


def test_a_device_that_a_network_gave_to_a_guest_counts() -> None:
    given = Card("pooled", "u3", True, None, "network", "pool", "passthrough", actual="eth5")
    with pytest.raises(Refused, match="pooled"):
        check_device_free("eth5", "bridge", [given])


def test_a_mac_has_one_owner() -> None:
    with pytest.raises(Conflict, match="owner's already"):
        check_mac_free("52:54:00:00:00:01", [OWNER, SHARER], None)
    with pytest.raises(Conflict, match="the host's eth0"):
        check_mac_free("52:54:00:00:00:09", [OWNER], HOST)
    check_mac_free("52:54:00:00:00:03", [OWNER, SHARER], HOST)
    assert free_mac([OWNER, SHARER]) not in {OWNER.mac, SHARER.mac}


@pytest.mark.parametrize(
    ("device", "mode", "error"),
    [
        ("nosuch", "bridge", NotFound),
        ("lo", "bridge", UsageProblem),
        ("port", "bridge", Refused),
    ],
)
def test_devices_that_macvtap_cannot_stand_on(device: str, mode: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        check_macvtap(HOST, device, mode)
    check_macvtap(None, device, mode)


@pytest.mark.parametrize("out", ["eth0", "vlan"])
def test_the_way_out_is_not_passed_through(out: str) -> None:
    host = HostNetwork(HOST.links, (Route(ipaddress.ip_network("0.0.0.0/0"), out),))
    with pytest.raises(Refused, match="default route"):
        check_macvtap(host, "eth0", "passthrough")
    check_macvtap(host, "eth0", "bridge")
    check_macvtap(host, "eth1", "passthrough")


def test_a_bridge_is_a_bridge() -> None:
    check_bridge(HOST, "br0")
    check_bridge(None, "anything")
    with pytest.raises(UsageProblem, match="eth0 is not a bridge but a network card"):
        check_bridge(HOST, "eth0")
    with pytest.raises(UsageProblem, match="a vlan device"):
        check_bridge(HOST, "vlan")
    with pytest.raises(NotFound):
        check_bridge(HOST, "br9")


def test_networks_of_devices_have_no_addresses() -> None:
    assert Network("pool", "macvtap", devices=("eth1",), macvtap_mode="passthrough").subnets == []
