"""libvirt's hooks: published ports follow whatever starts and stops guests and networks, without kvmctl."""

import sys
from collections.abc import Iterator

import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import REPOSITORY, Host, wait_until
from tests.lab.lab import Lab


def on_host(host: Host, code: str) -> str:
    """Run Python with kvmctl on the host itself."""
    program = ["env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-c", code]
    return host.run(program).stdout.strip()


@pytest.fixture(scope="module")
def web(lab: Lab, tiny: images.Tiny) -> Iterator[Guest]:
    """A guest with a published port, on a host that ``host setup`` has made ready: with the hooks."""
    host = lab.a
    on_host(host, "from kvmctl.operations import hooks; hooks.remove()")
    steps = host.kvmctl("host", "setup", "-o", "json", local=True, env={"SUDO_USER": None}).json()["steps"]
    assert [step["done"] for step in steps if step["name"] == "hooks"] == [True]
    assert on_host(host, "from kvmctl.operations import hooks; print(hooks.install(), hooks.missing())") == "[] []"
    # Without systemd libvirtd is not started anew by it, and libvirtd looks for hooks only then.
    host.restart_libvirtd()
    boot = ["--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline]
    host.kvmctl("create", "hooked", *boot, "--memory", "256M", "--vcpus", "1", "--net", "nat", "-p", "8080:80")
    with Guest(host, "hooked").open() as guest:
        guest.address()
        yield guest
    host.kvmctl("delete", "--yes", "hooked")
    wait_until(lambda: settled(host), "the end of the hooks")
    on_host(host, "from kvmctl.operations import hooks; hooks.remove()")
    host.virsh("net-autostart", "--disable", "default")
    host.restart_libvirtd()


def settled(host: Host) -> bool:
    """Whether no hook is at work any more: libvirt does not wait for them, and they would act on the next test."""
    processes = host.run(["ps", "-eo", "args"]).stdout
    return not any(words in processes for words in ("hooks/", "port sync", "host autostart"))


@pytest.fixture(autouse=True)
def quiet(web: Guest, host_a: Host) -> None:
    """Each test begins when the hooks of the one before are done."""
    wait_until(lambda: settled(host_a), "the end of the hooks")


def in_force(host: Host) -> bool:
    """Whether kvmctl's rules are in the firewall, in both places."""
    ruleset = host.run(["nft", "list", "ruleset"]).stdout
    accepted = 'accept comment "kvmctl"' if host.uses_nftables() else "KVMCTL_FWD"
    return "table inet kvmctl" in ruleset and accepted in ruleset


def gone(host: Host) -> bool:
    """Whether nothing of kvmctl's is in the firewall."""
    return "kvmctl" not in host.run(["nft", "list", "ruleset"]).stdout.lower()


def answers(host_a: Host, asking: Host, address: str | None = None, port: int = 8080) -> bool:
    """Whether host a's published port answers ``asking``, at ``address`` (its own on the wire)."""
    url = f"http://{address or host_a.address}:{port}/hostname"
    asked = asking.client(["curl", "-sS", "--max-time", "4", url], check=False)
    return asked.stdout.strip() == "tiny"


def test_virsh_stops_and_starts_the_guest(web: Guest, host_a: Host, host_b: Host) -> None:
    wait_until(lambda: answers(host_a, host_b), "the port")
    host_a.virsh("destroy", "hooked")
    wait_until(lambda: gone(host_a), "the end of the rules")
    host_a.virsh("start", "hooked")
    wait_until(lambda: in_force(host_a), "the rules")
    web.text = ""
    web.open().address()
    wait_until(lambda: answers(host_a, host_b), "the port")


def test_virsh_starts_a_guest_in_user_networking(web: Guest, host_a: Host, tiny: images.Tiny) -> None:
    boot = ["--kernel", str(tiny.kernel), "--initrd", str(tiny.initrd), "--cmdline", tiny.cmdline]
    ports = ["--net", "user", "-p", "8081:80", "--no-start"]
    host_a.kvmctl("create", "inner", *boot, "--memory", "256M", "--vcpus", "1", *ports)
    host_a.virsh("start", "inner")
    wait_until(lambda: answers(host_a, host_a, "127.0.0.1", 8081), "the port that QEMU publishes")
    wait_until(lambda: settled(host_a), "the end of the hooks")
    # Started by kvmctl both do it, and neither is in the other's way.
    host_a.kvmctl("destroy", "inner")
    assert host_a.kvmctl("start", "inner", "-o", "json").stderr == ""
    wait_until(lambda: answers(host_a, host_a, "127.0.0.1", 8081), "the port that QEMU publishes")
    host_a.kvmctl("delete", "--yes", "inner")


def test_libvirtd_restarts_and_reloads(web: Guest, host_a: Host, host_b: Host) -> None:
    host_a.run(["nft", "delete", "table", "inet", "kvmctl"])
    host_a.restart_libvirtd()
    wait_until(lambda: answers(host_a, host_b), "the port after a restart of libvirtd")
    wait_until(lambda: settled(host_a), "the end of the hooks")
    host_a.run(["nft", "delete", "table", "inet", "kvmctl"])
    host_a.run(["sh", "-c", "kill -HUP $(cat /run/libvirt/libvirtd.pid)"])
    wait_until(lambda: answers(host_a, host_b), "the port after a reload of libvirtd")


def test_the_firewall_is_flushed_and_libvirtd_restarted(web: Guest, host_a: Host, host_b: Host) -> None:
    """What a reload of nftables.service or iptables-restore does, and how libvirt's own rules come back."""
    host_a.run(["nft", "flush", "ruleset"])
    assert not answers(host_a, host_b)
    host_a.restart_libvirtd()
    wait_until(lambda: in_force(host_a) and answers(host_a, host_b), "the port after a flush")
    wait_until(lambda: settled(host_a), "the end of the hooks")
    assert in_force(host_a)
    (row,) = host_a.kvmctl("port", "list", "-o", "json").json()
    assert row["active"] is True


def test_the_network_is_stopped_and_started(web: Guest, host_a: Host, host_b: Host) -> None:
    host_a.virsh("net-destroy", "default")
    wait_until(lambda: gone(host_a), "the end of the rules")
    (row,) = host_a.kvmctl("port", "list", "-o", "json").json()
    assert row["active"] is False and "default is not running" in row["reason"]
    host_a.virsh("net-start", "default")
    wait_until(lambda: in_force(host_a) and answers(host_a, host_b), "the port, with the guest in the network again")


def test_a_host_that_boots_has_all_of_it_again(web: Guest, lab: Lab, host_a: Host, host_b: Host) -> None:
    """Nothing of before but what is on disk: no process, interface, rule, sysctl or /run, and no kvmctl called."""
    wait_until(lambda: answers(host_a, host_b), "the port")
    web.text = ""
    address = web.open().address()
    host_a.kvmctl("autostart", "hooked")
    # libvirt starts all of its own at once; kvmctl's follow one after the other.
    for name, order in (("late", "2"), ("early", "1"), ("never", "0")):
        host_a.kvmctl("create", name, "--pxe", "--net", "user", "--memory", "64M", "--no-start", "-q")
        ordered = ["set", name, "--autostart-order", order, "--autostart-delay", "1s"]
        assert "host setup" not in host_a.kvmctl(*ordered, local=True).stderr
    listed = {row["name"]: row["autostart"] for row in host_a.kvmctl("list", "-o", "json", local=True).json()}
    assert listed == {"hooked": True, "early": True, "late": True, "never": False}
    pools = [pool.name() for pool in host_a.conn.listAllStoragePools(0) if pool.isActive()]
    lab.reboot(host_a)
    try:
        wait_until(lambda: answers(host_a, host_b), "the port after a boot")
        wait_until(lambda: settled(host_a), "the end of the hooks")
        # What the hooks have put in force by themselves is all that it needs.
        assert in_force(host_a) and answers(host_a, host_b) and answers(host_a, host_a, "127.0.0.1")
        (row,) = host_a.kvmctl("port", "list", "-o", "json").json()
        assert (row["active"], row["reason"]) == (True, None)
        web.text = ""
        assert web.open().address() == address
        wait_until(
            lambda: [r["name"] for r in host_a.kvmctl("ps", "late", "-o", "json").json()], "the last in the order"
        )
        # libvirt numbers VMs as they start.
        numbers = {row["name"]: row["id"] for row in host_a.kvmctl("list", "-o", "json").json()}
        assert numbers["hooked"] < numbers["early"] < numbers["late"]
        assert numbers["never"] is None
        # Once a boot: what is switched off stays off when libvirtd starts again.
        host_a.kvmctl("destroy", "late")
        host_a.restart_libvirtd()
        wait_until(lambda: settled(host_a), "the end of the hooks")
        assert host_a.kvmctl("info", "late", "-o", "json").json()["state"] == "shutoff"
    finally:
        host_a.kvmctl("delete", "early", "late", "never", "-y")
        for pool in map(host_a.conn.storagePoolLookupByName, pools):
            if not pool.isActive():
                pool.create()
    host_a.kvmctl("autostart", "--off", "hooked")
