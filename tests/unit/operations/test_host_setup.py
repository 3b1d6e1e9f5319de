"""What ``host setup`` decides to do about what it found."""

from dataclasses import replace
from typing import cast

import pytest

from kvmctl.connection import Hypervisor
from kvmctl.errors import KvmctlError
from kvmctl.operations import hooks, host_facts, host_setup
from kvmctl.operations.host_facts import Facts
from kvmctl.operations.host_setup import decide

READY = Facts(
    root=True,
    user="root",
    manager="apt",
    packages=(),
    modules=(),
    systemd=True,
    modular=False,
    virtlogd=True,
    error=None,
    session=False,
    groups=(),
    network="ready",
    pool="ready",
)
DOWN = replace(READY, error="Failed to connect", network="unknown", pool="unknown")


def commands(facts: Facts) -> dict[str, str]:
    return {step.name: step.command for step in decide(facts)}


def test_a_ready_host_needs_nothing() -> None:
    assert decide(READY) == []


def test_a_bare_debian_with_systemd() -> None:
    facts = replace(DOWN, packages=("libvirt-daemon-system", "ovmf"), groups=("libvirt", "kvm"), user="ann")
    found = commands(facts)
    assert list(found) == ["packages", "libvirtd", "user-groups", "network-default", "pool-default"]
    assert found["packages"] == (
        "apt-get update -q; apt-get install -y -q -o DPkg::Lock::Timeout=600 "
        "--no-install-recommends libvirt-daemon-system ovmf"
    )
    assert found["libvirtd"] == "systemctl enable --now libvirtd.service"
    assert found["user-groups"] == "usermod -aG libvirt,kvm ann"


def test_iptables_does_not_stand_for_nft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian 13's libvirt brings iptables alone; ports behind NAT are published through nft."""
    everything = {name for programs, *_ in host_facts._NEEDED for name in programs} | {"iptables"}
    monkeypatch.setattr(host_facts, "program", lambda name: name if name in everything - {"nft"} else None)
    assert "nftables" in host_facts._missing_packages("apt")
    monkeypatch.setattr(host_facts, "program", lambda name: name if name in everything else None)
    assert "nftables" not in host_facts._missing_packages("apt")


def test_fedora_with_modular_daemons() -> None:
    facts = replace(DOWN, manager="dnf", modular=True, packages=("libvirt-daemon-kvm",))
    found = commands(facts)
    assert found["packages"] == "dnf install -y libvirt-daemon-kvm"
    assert "virtqemud.socket" in found["libvirtd"]
    assert "virtnetworkd.socket" in found["libvirtd"]


def test_without_systemd_the_daemons_are_started_as_programs() -> None:
    found = commands(replace(DOWN, systemd=False, virtlogd=False))
    assert list(found)[:2] == ["virtlogd", "libvirtd"]
    assert found["virtlogd"] == "mkdir -p /run/libvirt; virtlogd --daemon"
    assert found["libvirtd"] == "libvirtd --daemon"
    assert "virtlogd" not in commands(replace(DOWN, systemd=False, virtlogd=True))


def test_modules() -> None:
    found = commands(replace(READY, modules=("kvm_intel", "vhost_net")))
    assert found == {"module-kvm_intel": "modprobe kvm_intel", "module-vhost_net": "modprobe vhost_net"}


def test_network_and_pool() -> None:
    found = commands(replace(READY, network="inactive", pool="by-hand"))
    assert found == {
        "network-default": "virsh net-start default; virsh net-autostart default",
        "pool-default": "virsh pool-autostart default",
    }
    assert commands(replace(READY, network="missing"))["network-default"] == "kvmctl net create default"


def test_a_plain_user_in_a_session() -> None:
    own = replace(READY, root=False, user="ann", session=True)
    assert decide(own) == []
    found = decide(replace(own, modules=("kvm_amd", "vhost_net", "tun"), packages=("ovmf",), pool="missing"))
    assert [(step.name, step.needs_root) for step in found] == [
        ("packages", True),
        ("module-kvm_amd", True),
        ("pool-default", False),
    ]


def test_a_plain_user_without_any_libvirt_starts_no_daemon() -> None:
    own = replace(DOWN, root=False, user="ann")
    assert decide(own) == []


def test_names_are_quoted_for_a_shell() -> None:
    found = commands(replace(READY, user="a b", groups=("libvirt",)))
    assert found["user-groups"] == "usermod -aG libvirt 'a b'"


def test_a_kvm_device_that_only_root_may_open_is_given_to_its_group() -> None:
    facts = replace(READY, kvm_for_root_alone=True)
    assert commands(facts) == {"kvm-access": "chgrp kvm /dev/kvm; chmod 660 /dev/kvm"}


def test_where_control_groups_cannot_be_written_libvirt_is_told_to_use_none_before_it_starts() -> None:
    found = commands(replace(DOWN, cgroups_for_reading=True))
    write = "sh -c 'echo '\"'\"'cgroup_controllers = [ ]'\"'\"' >> /etc/libvirt/qemu.conf'"
    assert found["cgroups"] == write
    assert list(found).index("cgroups") < list(found).index("libvirtd")
    (step,) = decide(replace(READY, cgroups_for_reading=True))
    assert "was not restarted" in step.why
    assert decide(replace(DOWN, root=False, user="ann", cgroups_for_reading=True)) == []


def test_after_writing_hooks_only_what_runs_is_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def systemctl(command: tuple[str, ...]) -> None:
        asked.append(command)
        if "is-active" in command and command[-1] != "libvirtd.service":
            raise KvmctlError("systemctl ended with 4: no such unit")

    monkeypatch.setattr(host_setup, "_command", systemctl)
    monkeypatch.setattr(hooks, "install", lambda: ["/etc/libvirt/hooks/qemu.d/kvmctl"])
    (step,) = decide(replace(READY, hooks=("qemu",)))
    assert step.through is not None
    assert "restarted" in step.through(cast("Hypervisor", None))
    assert asked[-1] == ("systemctl", "restart", "libvirtd.service")
