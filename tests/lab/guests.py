"""Tiny guests for the tests of what is done with a guest that is there already."""

from tests.lab import images
from tests.lab.hosts import Host

AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
NAT = "<interface type='network'><source network='default'/><model type='virtio'/></interface>"

_DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>{head}<memory unit='MiB'>256</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{tiny.kernel}</kernel><initrd>{tiny.initrd}</initrd><cmdline>{tiny.cmdline} {more}</cmdline></os>
  <features><acpi/></features>
  <devices>
    {devices}
    <serial type='pty'/><console type='pty'/>
    <memballoon model='virtio'/>
  </devices>
</domain>
"""


def xml(tiny: images.Tiny, name: str, devices: str = AGENT, more: str = "", head: str = "") -> str:
    """The XML of a tiny guest."""
    return _DOMAIN.format(tiny=tiny, name=name, devices=devices, more=more, head=head)


def define(host: Host, tiny: images.Tiny, name: str, devices: str = AGENT, more: str = "", head: str = "") -> str:
    """Define a tiny guest, as another tool would, and return its name."""
    host.conn.defineXML(xml(tiny, name, devices, more, head))
    return name


def booted(host: Host, tiny: images.Tiny, name: str, devices: str = AGENT, more: str = "") -> str:
    """Define and start a tiny guest, wait for its agent, and return its name."""
    define(host, tiny, name, devices, more)
    host.kvmctl("start", name, "--wait", "agent")
    return name
