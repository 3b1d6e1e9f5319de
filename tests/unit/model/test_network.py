"""<network>, read and written."""

import ipaddress
from pathlib import Path

import pytest
from lxml import etree

from kvmctl.model import xml
from kvmctl.model.network import Addressing, Host, Network, Range, from_element, host_element, to_element

SCHEMA = Path("/usr/share/libvirt/schemas/network.rng")
FOUR = Addressing(
    ipaddress.ip_address("10.0.0.1"),
    ipaddress.ip_network("10.0.0.0/24"),
    (Range(ipaddress.ip_address("10.0.0.5"), ipaddress.ip_address("10.0.0.9")),),
    (Host("10.0.0.7", "52:54:00:00:00:01", "seven"),),
)
SIX = Addressing(
    ipaddress.ip_address("fd00::1"), ipaddress.ip_network("fd00::/64"), hosts=(Host("fd00::7", None, "seven"),)
)
NETWORKS = [
    Network("nat", "nat", addressing=(FOUR,)),
    Network("both", "nat", bridge="virbr9", domain="lab.example", addressing=(FOUR, SIX)),
    Network("routed", "route", devices=("eth0",), addressing=(FOUR,)),
    Network("alone", "isolated", addressing=(FOUR,)),
    Network("open", "open", addressing=(SIX,)),
    Network("joined", "bridge", bridge="br0"),
    *(
        Network(f"mv-{mode}", "macvtap", devices=("eth1", "eth2"), macvtap_mode=mode)
        for mode in ("bridge", "vepa", "private", "passthrough")
    ),
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_what_is_written_reads_the_same(network: Network) -> None:
    assert from_element(xml.parse(xml.text(to_element(network)))) == network


@pytest.mark.skipif(not SCHEMA.exists(), reason="libvirt's schemas are not installed")
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_libvirts_schema_takes_it(network: Network) -> None:
    etree.RelaxNG(etree.parse(str(SCHEMA))).assertValid(to_element(network))


def test_ipv6_of_a_nat_network_is_nat_too() -> None:
    found = to_element(NETWORKS[1]).find("forward/nat")
    assert found is not None and found.get("ipv6") == "yes"
    assert to_element(NETWORKS[0]).find("forward/nat") is None


def test_other_tools_networks_are_read() -> None:
    read = from_element(
        xml.parse(
            "<network><name>x</name><forward dev='eth0' mode='nat'/><bridge name='virbr0'/>"
            "<ip address='192.168.122.1' netmask='255.255.255.0'><dhcp><range start='nonsense' end='x'/>"
            "<host mac='52:54:00:AA:00:01' ip='192.168.122.9'/></dhcp></ip><ip address='broken' prefix='64'/></network>"
        )
    )
    assert read.mode == "nat" and read.devices == ("eth0",)
    assert [str(subnet) for subnet in read.subnets] == ["192.168.122.0/24"]
    assert read.addressing[0].ranges == ()
    assert read.reserved("52:54:00:aa:00:01") == "192.168.122.9"
    assert read.reserved("52:54:00:aa:00:02") is None
    assert read.reserved("52:54:00:aa:00:01", 6) is None
    hostdev = from_element(
        xml.parse("<network><name>h</name><forward mode='hostdev'><pf dev='eth0'/></forward></network>")
    )
    assert (hostdev.mode, hostdev.macvtap_mode) == ("hostdev", None)


def test_the_addressing_that_holds_an_address() -> None:
    network = Network("n", "nat", addressing=(FOUR, SIX))
    assert network.holding(ipaddress.ip_address("fd00::9")) == SIX
    assert network.holding(ipaddress.ip_address("10.0.1.1")) is None


def test_a_reservation_as_libvirt_takes_it() -> None:
    assert xml.raw(host_element(FOUR.hosts[0])) == '<host mac="52:54:00:00:00:01" name="seven" ip="10.0.0.7"/>'


def test_a_new_port_lets_nothing_through_while_the_bridge_looks_for_loops() -> None:
    def seconds(bridge: str) -> int:
        return from_element(xml.parse(f"<network><name>n</name>{bridge}</network>")).opening_seconds

    assert seconds("<bridge name='virbr0' stp='on' delay='0'/>") == 4
    assert seconds("<bridge name='virbr0' stp='on' delay='5'/>") == 10
    assert seconds("<bridge name='virbr0' stp='off' delay='5'/>") == 0
    # The kernel's own default of a bridge that somebody else made cannot be known.
    assert seconds("<forward mode='bridge'/><bridge name='br0'/>") == 0
