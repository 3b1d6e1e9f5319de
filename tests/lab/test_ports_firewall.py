"""Published ports and the host's firewall: what stands in their way is told and put right, what fails is taken back."""

import re
import sys
from pathlib import Path

import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host
from tests.lab.published import WEB, fetch, kernel, published, rules


def checked(host: Host, name: str) -> tuple[str, str]:
    """Level and detail of one check of ``host check``."""
    found = host.kvmctl("host", "check", "-o", "json").json()["checks"]
    return next((check["level"], check["detail"]) for check in found if check["name"] == name)


def test_what_is_not_in_force_is_told_and_put_back(
    web_and_sibling: tuple[Guest, Guest], host_a: Host, host_b: Host
) -> None:
    reserved = host_a.kvmctl("net", "info", "default", "-o", "json").json()["reservations"]
    assert [entry["mac"] for entry in reserved] == [WEB]
    assert checked(host_a, "published-ports") == ("ok", "1 port published, all in force")
    trouble = {
        "nft flush chain inet kvmctl prerouting": "missing from the host's firewall",
        "nft delete table inet kvmctl": "missing from the host's firewall",
    }
    if host_a.uses_nftables():
        chain = "ip libvirt_network guest_input"
        number = f"$(nft -a list chain {chain} | sed -n 's/.*\"kvmctl\" # handle //p')"
        known = host_a.run(["nft", "-a", "list", "chain", *chain.split()]).stdout
        accept = re.search(r'oifname "virbr0" .*(?= counter packets)', known)
        assert accept is not None
        trouble |= {
            f"nft delete rule {chain} handle {number}": "accept is missing",
            f"nft delete rule {chain} handle {number}; nft 'add rule {chain} {accept[0]} counter accept "
            'comment "kvmctl"\'': "behind it",
        }
    else:
        trouble |= {
            "iptables -D FORWARD -j KVMCTL_FWD": "libvirt's own chain rejects it",
            "iptables -F KVMCTL_FWD": "was emptied",
            "iptables -D FORWARD -j KVMCTL_FWD && iptables -A FORWARD -j KVMCTL_FWD": "behind it",
        }
    for break_it, reason in trouble.items():
        host_a.run(["sh", "-c", break_it])
        (row,) = host_a.kvmctl("port", "list", "-o", "json").json()
        assert row["active"] is False and reason in row["reason"], break_it
        level, detail = checked(host_a, "published-ports")
        assert level == "warn" and "8080/tcp of web" in detail and reason in detail, break_it
        assert fetch(host_b, host_a.address, 8080).returncode != 0, break_it
        host_a.kvmctl("port", "sync")
        assert fetch(host_b, host_a.address, 8080).stdout.strip() == "web", break_it
    host_a.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward"])
    (row,) = host_a.kvmctl("port", "list", "-o", "json").json()
    told = [checked(host_a, name) for name in ("published-ports", "forwarding")]
    host_a.run(["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"])
    assert row["active"] is False and "ip_forward" in row["reason"]
    assert [level for level, _ in told] == ["warn", "warn"]


def test_without_nft_it_is_said_before_anything_is_made(host_a: Host, tiny: images.Tiny) -> None:
    """libvirt does with iptables alone, and what Debian 13 installs with it brings no nft."""
    (nft,) = host_a.client(["sh", "-c", "command -v nft"]).stdout.split()
    # What is no program any more is not found.
    host_a.client(["mount", "--bind", "/dev/null", nft])
    try:
        options = [*kernel(tiny), "--net", "nat", "-p", "8097:80"]
        told = host_a.kvmctl("create", "half", *options, "-o", "json", check=False)
        assert told.returncode == 7 and "nft, which is not installed" in told.error()["message"]
        assert "undo" not in told.stderr and "nftables" in (told.error()["hint"] or "")
        assert "half" not in [domain.name() for domain in host_a.conn.listAllDomains(0)]
        level, detail = checked(host_a, "published-ports")
        assert level == "warn" and "needs nft" in detail
        host_a.start_default_network()
        if not host_a.uses_nftables():
            # What needs no published ports works, and libvirt's own rules are seen in iptables.
            assert checked(host_a, "networks")[0] == "ok"
            host_a.run(["iptables", "-F", "LIBVIRT_FWO"])
            level, detail = checked(host_a, "networks")
            assert level == "warn" and "libvirt's own rules" in detail
    finally:
        host_a.client(["umount", nft])
        host_a.restart_libvirtd()
        # No hooks are installed here, and libvirtd has put its own rules in anew.
        host_a.kvmctl("port", "sync")
    assert checked(host_a, "published-ports")[0] == "ok"
    assert checked(host_a, "networks")[0] == "ok"


def test_docker_dropping_in_forward_does_not_stop_it(
    web_and_sibling: tuple[Guest, Guest], host_a: Host, host_b: Host
) -> None:
    host_a.run(["iptables", "-P", "FORWARD", "DROP"])
    try:
        if host_a.uses_nftables():
            # kvmctl has nothing in iptables until somebody drops there: that is told, and put right when asked.
            (row,) = host_a.kvmctl("port", "list", "-o", "json").json()
            assert row["active"] is False and "FORWARD chain's policy drops it" in row["reason"]
            host_a.kvmctl("port", "sync")
            assert published(host_a) == [("tcp", "0.0.0.0", 8080, 80, True)]
        assert fetch(host_b, host_a.address, 8080).stdout.strip() == "web"
    finally:
        host_a.run(["iptables", "-P", "FORWARD", "ACCEPT"])
    # What was put there for it goes again with its forward, though nobody drops any more.
    host_a.kvmctl("port", "add", "web", "8089:89")
    host_a.kvmctl("port", "remove", "web", "8089")
    assert "dport 89 " not in rules(host_a)


def test_libvirts_nftables_back_end(web_and_sibling: tuple[Guest, Guest], host_a: Host, host_b: Host) -> None:
    """What libvirt 11.3 of Debian 13 made for its network ``default``, beside the iptables rules of this one."""
    if host_a.uses_nftables():
        pytest.skip("libvirt's real nftables back end is at work here, in every other test of this file")
    table = f"""
        table ip libvirt_network {{
            chain forward {{ type filter hook forward priority filter; policy accept;
                counter jump guest_cross; counter jump guest_input; counter jump guest_output; }}
            chain guest_output {{
                ip saddr {host_a.subnet}.0/24 iif "virbr0" counter accept
                iif "virbr0" counter reject
            }}
            chain guest_input {{
                oif "virbr0" ip daddr {host_a.subnet}.0/24 ct state established,related counter accept
                oif "virbr0" counter reject
            }}
            chain guest_cross {{ iif "virbr0" oif "virbr0" counter accept; }}
        }}
    """
    host_a.run(["nft", "-f", "-"], input=table)
    try:
        (row,) = host_a.kvmctl("port", "list", "-o", "json").json()
        assert row["active"] is False and "guest_input" in row["reason"]
        assert fetch(host_b, host_a.address, 8080).returncode != 0
        host_a.kvmctl("port", "sync")
        assert fetch(host_b, host_a.address, 8080).stdout.strip() == "web"
        host_a.kvmctl("port", "sync")
        chain = host_a.run(["nft", "list", "chain", "ip", "libvirt_network", "guest_input"]).stdout
        assert chain.count('comment "kvmctl"') == 1
        # Told to reload, libvirt puts its own rules in front again.
        host_a.run(["nft", "insert", "rule", "ip", "libvirt_network", "guest_input", 'oif "virbr0" counter reject'])
        assert fetch(host_b, host_a.address, 8080).returncode != 0
        (row,) = host_a.kvmctl("port", "list", "-o", "json").json()
        assert row["active"] is False and "guest_input" in row["reason"] and "behind it" in row["reason"]
        host_a.kvmctl("port", "sync")
        assert fetch(host_b, host_a.address, 8080).stdout.strip() == "web"
        host_a.kvmctl("port", "remove", "web", "8080")
        chain = host_a.run(["nft", "list", "chain", "ip", "libvirt_network", "guest_input"]).stdout
        assert "kvmctl" not in chain and rules(host_a) == ""
    finally:
        host_a.run(["nft", "delete", "table", "ip", "libvirt_network"])
        host_a.kvmctl("port", "add", "web", "8080:80")


# What fails at each of them: it does nothing, or ("-done") all that it has to and then fails.
STEPS = [
    *("reservation", "reservation-done", "metadata", "metadata-done", "looking", "iptables-restore"),
    *("iptables-restore-done", "route_localnet", "route_localnet-done", "nft", "nft-done"),
]


@pytest.mark.parametrize("first", [False, True], ids=["another", "the-first"])
@pytest.mark.parametrize("step", STEPS)
def test_a_failure_at_any_step_leaves_everything_as_before(
    web_and_sibling: tuple[Guest, Guest], host_a: Host, tmp_path: Path, step: str, first: bool
) -> None:
    def now() -> tuple[str, str, str, str]:
        # libvirt counts the running guests in it while the definition stays the same.
        network = re.sub(r" connections='\d+'", "", host_a.virsh("net-dumpxml", "default").stdout)
        ruleset = re.sub(r"packets \d+ bytes \d+", "", host_a.run(["nft", "list", "ruleset"]).stdout)
        loopback = host_a.run(["sysctl", "net.ipv4.conf.virbr0.route_localnet"]).stdout
        return ruleset, loopback, network, host_a.virsh("dumpxml", "sibling").stdout

    if step.startswith("iptables-restore") and host_a.uses_nftables():
        pytest.skip("nothing is put into iptables where libvirt uses nftables and nobody drops there")
    if first:
        host_a.kvmctl("port", "remove", "web", "8080")
        assert rules(host_a) == ""
    before = now()
    broken = """
import runpy, sys
import kvmctl.operations.{module} as module
def fail(*args, **kwargs):
    raise OSError(28, "injected failure")
{patch}
sys.argv = ["kvmctl", "port", "add", "sibling", "8099:80"]
runpy.run_module("kvmctl", run_name="__main__")
"""
    # Once: what is undone afterwards must not fail again.
    once = """
old = module.{name}
def broken(*args, **kwargs):
    if {only}:
        module.{name} = old
        if {done}:
            old(*args, **kwargs)
        fail()
    return old(*args, **kwargs)
module.{name} = broken
"""
    what = step.removesuffix("-done")
    module, name = {
        "iptables-restore": ("firewall", "_run"),
        "nft": ("firewall", "_run"),
        "route_localnet": ("firewall", "_localnet"),
        "looking": ("ports", "wanted_rules"),
        "reservation": ("reservations", "_update"),
        "metadata": ("metadata", "write"),
    }[what]
    only = f"args[0] == {what!r}" if name == "_run" else "True"
    patch = once.format(name=name, only=only, done=step.endswith("-done"))
    script = tmp_path / "broken.py"
    script.write_text(broken.format(module=module, patch=patch))
    done = host_a.client([sys.executable, str(script)], env=host_a.environment(), check=False)
    assert done.returncode == 1 and "injected failure" in done.stderr, done.stderr
    after = now()
    if first:
        host_a.kvmctl("port", "add", "web", "8080:80")
    assert after == before


@pytest.mark.parametrize("program", ["iptables-restore", "nft"])
def test_a_creation_whose_ports_cannot_be_published_leaves_nothing(
    web_and_sibling: tuple[Guest, Guest], host_a: Host, tiny: images.Tiny, tmp_path: Path, program: str
) -> None:
    def now() -> tuple[str, str, list[str]]:
        network = re.sub(r" connections='\d+'", "", host_a.virsh("net-dumpxml", "default").stdout)
        ruleset = re.sub(r"packets \d+ bytes \d+", "", host_a.run(["nft", "list", "ruleset"]).stdout)
        return ruleset, network, sorted(domain.name() for domain in host_a.conn.listAllDomains(0))

    if program == "iptables-restore" and host_a.uses_nftables():
        pytest.skip("nothing is put into iptables where libvirt uses nftables and nobody drops there")
    before = now()
    argv = ["kvmctl", "create", "half", *kernel(tiny), "--net", "nat", "-p", "8098:80"]
    script = tmp_path / "broken.py"
    script.write_text(
        "import runpy, sys\n"
        "import kvmctl.operations.firewall as module\n"
        "old = module._run\n"
        "def run(*command, input):\n"
        f"    if command[0] == {program!r}:\n"
        "        module._run = old\n"
        "        raise OSError(28, 'injected failure')\n"
        "    return old(*command, input=input)\n"
        "module._run = run\n"
        f"sys.argv = {argv!r}\n"
        "runpy.run_module('kvmctl', run_name='__main__')\n"
    )
    done = host_a.client([sys.executable, str(script)], env=host_a.environment(), check=False)
    assert done.returncode == 1 and "injected failure" in done.stderr, done.stderr
    assert now() == before
