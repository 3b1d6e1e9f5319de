"""What firewall rules of different makers mean for guests."""

import json
from typing import Any

import pytest

from kvmctl.preflight.host_firewall import from_iptables, from_nft, judge, read


def nft(*chains: tuple[str, str, str, str | None, str | None]) -> str:
    items: list[dict[str, Any]] = [{"metainfo": {"version": "1.0.6"}}]
    items += [{"table": {"family": f, "name": t}} for f, t in dict.fromkeys((c[0], c[1]) for c in chains)]
    for family, table, name, hook, policy in chains:
        chain = {"family": family, "table": table, "name": name}
        items.append({"chain": chain | ({"hook": hook, "policy": policy} if hook else {})})
    items.append({"rule": {"family": "ip", "table": "filter", "chain": "FORWARD", "expr": []}})
    return json.dumps({"nftables": items})


FORWARD_DROP = ("ip", "filter", "FORWARD", "forward", "drop")
DOCKER = (FORWARD_DROP, ("ip", "filter", "DOCKER", None, None), ("ip", "filter", "DOCKER-USER", None, None))
LIBVIRT = tuple(("ip", "filter", name, None, None) for name in ("LIBVIRT_FWI", "LIBVIRT_FWO", "LIBVIRT_FWX"))


def said(text: str, bridged: bool = False) -> tuple[str, str, str]:
    rules = from_nft(text)
    assert rules is not None
    check = judge(rules, bridged)
    return check.level, check.detail, check.hint or ""


def test_no_rules() -> None:
    assert said(nft())[0] == "ok"
    assert said(nft(("ip", "filter", "FORWARD", "forward", "accept")))[0] == "ok"
    assert said(nft(("ip", "filter", "INPUT", "input", "drop")))[0] == "ok"


def test_docker_without_libvirts_exceptions() -> None:
    level, detail, hint = said(nft(*DOCKER))
    assert level == "warn"
    assert "Docker drops" in detail
    assert "DOCKER-USER" in hint


def test_docker_beside_libvirts_nftables_table() -> None:
    level, detail, _hint = said(nft(*DOCKER, ("ip", "libvirt_network", "forward", "forward", "accept")))
    assert level == "warn"
    assert "no exception" in detail


def test_docker_with_libvirts_exceptions() -> None:
    assert said(nft(*DOCKER, *LIBVIRT))[0] == "ok"
    level, detail, _hint = said(nft(*DOCKER, *LIBVIRT), bridged=True)
    assert level == "warn"
    assert "bridge" in detail


def test_ufw() -> None:
    level, detail, hint = said(nft(FORWARD_DROP, ("ip", "filter", "ufw-user-forward", None, None)))
    assert level == "warn"
    assert "ufw drops" in detail
    assert hint.startswith("ufw route")


def test_firewalld() -> None:
    base = ("inet", "firewalld", "filter_FORWARD", "forward", "accept")
    level, detail, hint = said(nft(base))
    assert level == "warn"
    assert "firewalld" in detail
    assert "--zone=libvirt" in hint
    assert said(nft(base, ("inet", "firewalld", "filter_FWD_libvirt", None, None)))[0] == "ok"


def test_an_unknown_table() -> None:
    level, detail, _hint = said(nft(("inet", "mine", "fw", "forward", "drop")))
    assert level == "warn"
    assert "inet mine" in detail


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "{}", '{"nftables": 3}', '{"nftables": [{"chain": 1}]}'])
def test_nonsense(text: str) -> None:
    assert from_nft(text) is None


def test_iptables() -> None:
    text = "-P INPUT ACCEPT\n-P FORWARD DROP\n-P OUTPUT ACCEPT\n-N DOCKER\n-N DOCKER-USER\n-A FORWARD -j DOCKER-USER\n"
    assert judge(from_iptables(text), False).level == "warn"
    assert judge(from_iptables(text + "-N LIBVIRT_FWI\n"), False).level == "ok"
    assert judge(from_iptables(text.replace("FORWARD DROP", "FORWARD ACCEPT")), False).level == "ok"


def test_only_root_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert read() is None
