"""Published ports in the firewall's language."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest

from kvmctl.model.port_rules import (
    Redirect,
    Rule,
    guarded,
    iptables_input,
    nft_script,
    our_handles,
    redirects,
    rejected_first,
)

WEB = Rule("tcp", None, 8080, "192.168.122.9", 80, "virbr0", "192.168.122.0/24")
DNS = Rule("udp", "10.0.0.1", 53, "192.168.122.10", 5353, "virbr0", "192.168.122.0/24")


def test_the_whole_table_is_one_script() -> None:
    script = nft_script([WEB, DNS], libvirt_chain=False, stale=[])
    lines = script.splitlines()
    assert lines[0] == "add table inet kvmctl"
    for chain in ("guard", "prerouting", "output", "postrouting"):
        assert f"flush chain inet kvmctl {chain}" in lines
    everywhere = "meta nfproto ipv4 fib daddr type local tcp dport 8080 counter dnat ip to 192.168.122.9:80"
    assert f'add rule inet kvmctl prerouting {everywhere} comment "kvmctl"' in lines
    assert f'add rule inet kvmctl output {everywhere} comment "kvmctl"' in lines
    assert any("prerouting ip daddr 10.0.0.1 udp dport 53 " in line for line in lines)
    # Only what answers on loopback lets loopback's packets out, and then the guests' are kept away from it.
    assert script.count("127.0.0.0/8 drop") == 1
    assert script.count("ip saddr 127.0.0.0/8 ip daddr 192.168.122.9 ") == 1
    assert "ip saddr 127.0.0.0/8 ip daddr 192.168.122.10 " not in script
    assert "libvirt_network" not in script


def test_without_a_forward_the_table_goes() -> None:
    assert nft_script([], libvirt_chain=False, stale=[]) == "add table inet kvmctl\ndelete table inet kvmctl\n"
    assert "delete rule ip libvirt_network guest_input handle 7" in nft_script([], libvirt_chain=True, stale=[7])


def test_libvirts_own_chain_gets_the_accepts() -> None:
    script = nft_script([WEB, WEB], libvirt_chain=True, stale=[4, 5])
    assert script.count("insert rule ip libvirt_network guest_input") == 1
    assert script.index("handle 4") < script.index("insert rule")


@pytest.mark.parametrize(
    ("jump", "chain", "first", "last"),
    [
        ("none", False, ":KVMCTL_FWD - [0:0]", "-I FORWARD 1 -j KVMCTL_FWD"),
        ("ahead", True, ":KVMCTL_FWD - [0:0]", ":KVMCTL_FWD - [0:0]"),
        ("behind", True, ":KVMCTL_FWD - [0:0]", "-I FORWARD 1 -j KVMCTL_FWD"),
    ],
)
def test_the_jump_is_put_first_where_it_is_not_ahead(
    jump: Literal["none", "ahead", "behind"], chain: bool, first: str, last: str
) -> None:
    lines = iptables_input([WEB], jump, chain).splitlines()
    assert (lines[0], lines[1], lines[-1]) == ("*filter", first, "COMMIT")
    heads = [line for line in lines[1:] if not line.startswith("-A ")]
    assert heads[-2] == last
    assert ("-D FORWARD -j KVMCTL_FWD" in lines) is (jump == "behind")
    accepts = [line for line in lines if line.startswith("-A KVMCTL_FWD ")]
    assert len(accepts) == 2 and all("--ctstate DNAT -j ACCEPT" in line for line in accepts)


def test_without_a_forward_chain_and_jump_go() -> None:
    assert iptables_input([], "ahead", True).splitlines() == [
        "*filter",
        ":KVMCTL_FWD - [0:0]",
        "-D FORWARD -j KVMCTL_FWD",
        "-X KVMCTL_FWD",
        "COMMIT",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"guest_ip": "1.2.3.4; drop"},
        {"address": "x"},
        {"subnet": "10.0.0.0/24 accept"},
        {"bridge": 'virbr0" accept'},
        {"host_port": 0},
        {"guest_port": 65536},
    ],
)
def test_nothing_foreign_gets_into_a_rule(change: dict[str, object]) -> None:
    values: dict[str, Any] = {**WEB.__dict__, **change}
    with pytest.raises(ValueError):
        Rule(**values)


def test_nfts_listing_is_read() -> None:
    def match(protocol: str, key: str, right: object) -> dict[str, object]:
        return {"match": {"op": "==", "left": {"payload": {"protocol": protocol, "field": key}}, "right": right}}

    local = {"match": {"op": "==", "left": {"fib": {"result": "type", "flags": ["daddr"]}}, "right": "local"}}
    target = {"dnat": {"family": "ip", "addr": "192.168.122.9", "port": 80}}
    rules = [
        {"rule": {"chain": "prerouting", "expr": [local, match("tcp", "dport", 8080), {"counter": {}}, target]}},
        {
            "rule": {
                "chain": "prerouting",
                "expr": [match("ip", "daddr", "10.0.0.1"), match("udp", "dport", 53), target],
            }
        },
        {"rule": {"chain": "output", "expr": [local, match("tcp", "dport", 9), target]}},
        {"rule": {"chain": "prerouting", "expr": [{"drop": None}]}},
        {"rule": {"chain": "prerouting", "expr": [match("tcp", "dport", {"range": [1, 9]}), target]}},
    ]
    listing = json.loads(json.dumps({"nftables": [{"metainfo": {}}, *rules]}))
    assert redirects(listing) == {
        Redirect("tcp", None, 8080, "192.168.122.9", 80),
        Redirect("udp", "10.0.0.1", 53, "192.168.122.9", 80),
    }
    assert redirects(listing, "output") == {Redirect("tcp", None, 9, "192.168.122.9", 80)}
    guard = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "virbr0"}}
    assert guarded({"nftables": [{"rule": {"chain": "guard", "expr": [guard, {"drop": None}]}}]}) == {"virbr0"}
    handles = {"nftables": [{"rule": {"handle": 3, "comment": "kvmctl"}}, {"rule": {"handle": 4}}]}
    assert our_handles(handles) == [3]


def recorded(name: str) -> dict[str, Any]:
    """What ``nft -j list chain ip libvirt_network guest_input`` printed beside libvirt 11.3.0 of Debian 13."""
    text = (Path(__file__).parent / "data" / f"nft-libvirt-11.3-{name}.json").read_text()
    found: dict[str, Any] = json.loads(text)
    return found


def test_an_accept_behind_libvirts_reject_is_seen() -> None:
    # Another network made after kvmctl's accept, then libvirtd told to reload: it puts its own in front.
    reloaded = recorded("reloaded")
    assert rejected_first(reloaded) == {"virbr0"}
    assert len(our_handles(reloaded)) == 1
    rules = reloaded["nftables"]
    ours = next(entry for entry in rules if entry.get("rule", {}).get("comment") == "kvmctl")
    rules.remove(ours)
    assert rejected_first(reloaded) == set()
    rules.insert(2, ours)
    assert rejected_first(reloaded) == set()
    # Only what is rejected on the same bridge, or on all of them, matters.
    ours["rule"]["expr"][0]["match"]["right"] = "virbr7"
    rules.remove(ours)
    rules.append(ours)
    assert rejected_first(reloaded) == set()
    everywhere = {"rule": {"chain": "guest_input", "handle": 1, "expr": [{"counter": {}}, {"drop": None}]}}
    rules.insert(2, everywhere)
    assert rejected_first(reloaded) == {"virbr7"}


def test_libvirts_chain_without_kvmctls_accept() -> None:
    fresh = recorded("fresh")
    assert rejected_first(fresh) == set() and our_handles(fresh) == []
