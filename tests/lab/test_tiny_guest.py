"""The lab's own guests, before anything is tested with them."""

from collections.abc import Callable

import pytest

from tests.lab import images
from tests.lab.guest import Guest
from tests.lab.hosts import Host
from tests.lab.lab import Lab

_DOMAIN = """
<domain type='qemu'>
  <name>{name}</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{tiny.kernel}</kernel><initrd>{tiny.initrd}</initrd><cmdline>{tiny.cmdline} {more}</cmdline></os>
  <features><acpi/></features>
  <devices>
    {nics}
    <serial type='pty'/><console type='pty'/>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
</domain>
"""


def test_tiny_guest_has_network_agent_ssh_and_powers_off(
    host_a: Host, tiny: images.Tiny, console: Callable[[Host, str], Guest]
) -> None:
    host_a.start_default_network()
    nic = "<interface type='network'><source network='default'/><model type='virtio'/></interface>"
    domain = host_a.conn.createXML(_DOMAIN.format(name="tiny", tiny=tiny, nics=nic, more="lab.hostname=inside"), 0)
    guest = console(host_a, "tiny").ready()
    assert guest.run("hostname") == "inside"
    assert guest.run("echo one; echo two >&2") == "one\ntwo"
    assert guest.run("exit 3", check=False) == ""
    address = guest.address()
    assert address.startswith(f"{host_a.subnet}.")
    banner = host_a.client(["socat", "-t", "3", f"TCP:{address}:22", "STDIO"], input="")
    assert banner.stdout.startswith("SSH-2.0-")
    guest.wait_for("agent started")
    assert host_a.virsh("domtime", "tiny").stdout.startswith("Time: ")
    host_a.virsh("shutdown", "tiny", "--mode", "acpi")
    host_a.run(["sh", "-c", "while virsh -q domid tiny; do sleep 0.1; done"], timeout=60)
    assert domain.name() not in [other.name() for other in host_a.conn.listAllDomains(0)]


@pytest.mark.full
def test_all_nic_models_have_drivers(
    host_a: Host, tiny_full: images.Tiny, console: Callable[[Host, str], Guest]
) -> None:
    host_a.start_default_network()
    models = {
        "virtio": "virtio_net",
        "e1000": "e1000",
        "e1000e": "e1000e",
        "rtl8139": "8139cp",
        "pcnet": "pcnet32",
        "ne2k_pci": "ne2k-pci",
        "vmxnet3": "vmxnet3",
    }
    nics = "".join(
        f"<interface type='network'><source network='default'/><model type='{model}'/></interface>" for model in models
    )
    host_a.conn.createXML(_DOMAIN.format(name="nics", tiny=tiny_full, nics=nics, more=""), 0)
    guest = console(host_a, "nics").ready()
    for number in range(len(models)):
        guest.address(f"eth{number}")
    drivers = guest.run("for n in /sys/class/net/eth*; do basename $(readlink $n/device/driver); done").split()
    assert sorted(drivers) == sorted(models.values())


def test_macvtap_on_both_hosts_reaches_the_wire_and_each_other(
    lab: Lab, host_a: Host, host_b: Host, tiny: images.Tiny, console: Callable[[Host, str], Guest]
) -> None:
    nic = "<interface type='direct'><source dev='lan0' mode='bridge'/><model type='virtio'/></interface>"
    for number, host in enumerate((host_a, host_b), 1):
        more = f"lab.address=10.78.0.{number}/24"
        host.conn.createXML(_DOMAIN.format(name="tap", tiny=tiny, nics=nic, more=more), 0)
    on_a, on_b = console(host_a, "tap").ready(), console(host_b, "tap").ready()
    for guest in (on_a, on_b):
        guest.address()
    for address in ("10.78.0.1", "10.78.0.2"):
        lab.wire.run(["ping", "-c", "1", "-w", "10", address])
    on_a.run("ping -c 1 -w 10 10.78.0.2")
    on_b.run("ping -c 1 -w 10 10.78.0.1")
