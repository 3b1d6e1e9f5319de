"""--net's grammar and the <interface> made of it."""

import pytest

from kvmctl.errors import UsageProblem
from kvmctl.model import xml
from kvmctl.model.nic import (
    MODELS,
    BridgeNic,
    MacvtapNic,
    NetworkNic,
    Nic,
    UserNic,
    check_mac,
    parse_nic,
    random_mac,
    to_element,
)


@pytest.mark.parametrize(
    ("text", "nic"),
    [
        ("nat", NetworkNic("default", nat=True)),
        ("nat:lab", NetworkNic("lab", nat=True)),
        ("network:lab net", NetworkNic("lab net")),
        ("bridge:br0", BridgeNic("br0")),
        ("macvtap:eth0", MacvtapNic("eth0", "bridge")),
        ("macvtap:eth0.100:vepa", MacvtapNic("eth0.100", "vepa")),
        ("macvtap:eth0:passthrough,model=e1000e", MacvtapNic("eth0", "passthrough", model="e1000e")),
        ("user", UserNic()),
        ("user,mac=52:54:00:AA:bb:0c", UserNic(mac="52:54:00:aa:bb:0c")),
        ("nat,ip=192.168.122.9", NetworkNic(nat=True, ip="192.168.122.9")),
        ("network:six,ip=FD00:0::5,model=pcnet", NetworkNic("six", ip="fd00::5", model="pcnet")),
        ("none", None),
    ],
)
def test_what_the_grammar_says(text: str, nic: Nic | None) -> None:
    assert parse_nic(text) == nic


def test_the_general_model_is_for_cards_that_name_none() -> None:
    assert parse_nic("user", "e1000") == UserNic(model="e1000")
    assert parse_nic("user,model=virtio", "e1000") == UserNic(model="virtio")
    assert parse_nic("none", "e1000") is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no network that kvmctl knows"),
        ("Nat", "no network that kvmctl knows"),
        ("user:x", "no network that kvmctl knows"),
        ("nat:", "no network is named"),
        ("network", "no network is named"),
        ("network:a/b", "cannot be the name of a network"),
        ("network:a\x1b[2J", "cannot be the name of a network"),
        ("bridge", "no bridge is named"),
        ("bridge:0123456789abcdef", "too long"),
        ("bridge:éééééééé", "too long"),
        ("bridge:br0;reboot", "cannot be the name of a bridge"),
        ("bridge:$(id)", "cannot be the name of a bridge"),
        ("bridge:-rf", "cannot be the name of a bridge"),
        ("bridge:..", "cannot be the name of a bridge"),
        ("macvtap:", "no device is named"),
        ("macvtap:eth0:", "no macvtap mode"),
        ("macvtap:eth0:Bridge", "no macvtap mode"),
        ("none,model=virtio", "takes nothing after it"),
        ("none:x", "takes nothing after it"),
        ("nat,model=ne2k", "no NIC model"),
        ("nat,model=", "none of model=, mac=, ip=, in= and out="),
        ("nat,vlan=3", "none of model=, mac=, ip=, in= and out="),
        ("nat,", "none of model=, mac=, ip=, in= and out="),
        ("nat,model=virtio,model=virtio", "twice"),
        ("nat,mac=52:54:00:12:34", "not a MAC"),
        ("nat,mac=52:54:00:12:34:5g", "not a MAC"),
        ("nat,mac=52:54:00:12:34:56\n", "not a MAC"),
        ("nat,mac=01:00:5e:00:00:01", "multicast"),
        ("nat,mac=ff:ff:ff:ff:ff:ff", "multicast"),
        ("nat,mac=00:00:00:00:00:00", "cannot have the MAC"),
        ("nat,ip=300.1.1.1", "not an IP"),
        ("nat,ip=192.168.122.0/24", "not an IP"),
        ("nat,ip=224.0.0.1", "no guest can have"),
        ("nat,ip=::", "no guest can have"),
        ("nat,ip=fe80::1%eth0", "zone"),
        ("user,in=1M", "no rate limits"),
        ("nat,in=1000B", "least rate"),
        ("nat,out=fast", "is not a size"),
        ("user,ip=10.0.2.20", "DHCP server to reserve"),
        ("bridge:br0,ip=10.0.2.20", "DHCP server to reserve"),
    ],
)
def test_what_it_does_not_say(text: str, reason: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse_nic(text)
    assert reason in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("user", '<interface type="user"/>'),
        (
            "nat,mac=52:54:00:00:00:01,model=virtio",
            '<interface type="network"><mac address="52:54:00:00:00:01"/>'
            '<source network="default"/><model type="virtio"/></interface>',
        ),
        ("bridge:br0", '<interface type="bridge"><source bridge="br0"/></interface>'),
        ("macvtap:eth1:private", '<interface type="direct"><source dev="eth1" mode="private"/></interface>'),
    ],
)
def test_the_element(text: str, expected: str) -> None:
    nic = parse_nic(text)
    assert nic is not None
    assert xml.raw(to_element(nic)) == expected


@pytest.mark.parametrize("model", MODELS)
def test_every_model_reaches_the_element(model: str) -> None:
    nic = parse_nic("user", model)
    assert nic is not None
    found = to_element(nic).find("model")
    assert found is not None and found.get("type") == model


def test_a_random_mac_is_one_that_a_card_may_have() -> None:
    macs = {random_mac() for _ in range(50)}
    assert len(macs) > 45
    assert all(check_mac(mac) == mac and mac.startswith("52:54:00:") for mac in macs)


def test_rates_are_written_in_kib() -> None:
    nic = parse_nic("nat,in=10M,out=1536K")
    assert nic is not None and (nic.inbound, nic.outbound) == (10 << 20, 1536 << 10)
    bandwidth = to_element(nic).find("bandwidth")
    assert bandwidth is not None
    assert xml.raw(bandwidth) == '<bandwidth><inbound average="10240"/><outbound average="1536"/></bandwidth>'
    none = parse_nic("user,in=0")
    assert none is not None and to_element(none).find("bandwidth") is None
