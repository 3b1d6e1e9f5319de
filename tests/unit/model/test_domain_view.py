from kvmctl.model import domain_view
from kvmctl.model.domain_view import DiskView, GraphicsView, NicView

TEXT = """
<domain type='kvm'>
  <name>foreign</name><uuid>c0ffee00-0000-4000-8000-000000000000</uuid><title>t</title>
  <metadata>
    <l:libosinfo xmlns:l="http://libosinfo.org/xmlns/libvirt/domain/1.0"><l:os id="http://debian.org/debian/12"/></l:libosinfo>
    <k:vm xmlns:k="urn:kvmctl:vm:1"><k:protected/><k:image>debian-12</k:image></k:vm>
  </metadata>
  <memory unit='GiB'>2</memory><currentMemory unit='MiB'>512</currentMemory><vcpu current='1'>4</vcpu>
  <os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type><loader secure='yes' type='pflash'>/x</loader></os>
  <devices>
    <disk type='file' device='disk'><driver type='qcow2'/>
      <source file='/a b.qcow2'/><target dev='vda' bus='virtio'/></disk>
    <disk type='network' device='disk'><source protocol='nbd' name='x'>
      <host name='h' port='1'/></source><target dev='vdb'/></disk>
    <disk type='volume'><source pool='p' volume='v'/><target dev='vdc'/><readonly/></disk>
    <disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
    <interface type='direct'><mac address='52:54:00:00:00:01'/><source dev='eth0' mode='private'/>
      <model type='e1000'/></interface>
    <interface type='user'><mac address='52:54:00:00:00:02'/><link state='down'/></interface>
    <interface type='vhostuser'/>
    <hostdev type='pci'><source><address domain='0x0000' bus='0x01' slot='0x1f' function='0x7'/></source></hostdev>
    <hostdev type='pci'><source><address domain='zero'/></source></hostdev>
    <graphics type='vnc' port='-1'/>
    <graphics type='spice' port='5901' tlsPort='5902'><listen type='address' address='::1'/></graphics>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>
  </devices>
</domain>
"""


def test_what_another_tool_wrote_is_read() -> None:
    seen = domain_view.read(TEXT)
    assert (seen.accel, seen.arch, seen.firmware, seen.os) == ("kvm", "x86_64", "uefi-secure", "debian12")
    assert (seen.vcpus, seen.max_vcpus) == (1, 4)
    assert (seen.memory_bytes, seen.max_memory_bytes) == (512 * 2**20, 2 * 2**30)
    assert seen.disks == (
        DiskView("vda", "virtio", "/a b.qcow2", "qcow2", "disk", False),
        DiskView("vdb", None, "nbd://h:1/x", None, "disk", False),
        DiskView("vdc", None, "p/v", None, "disk", True),
        DiskView("sda", "sata", None, None, "cdrom", False),
    )
    assert seen.nics == (
        NicView("52:54:00:00:00:01", "e1000", "macvtap", "eth0", None, True, "private"),
        NicView("52:54:00:00:00:02", None, "user", None, None, False, None),
        NicView(None, None, "vhostuser", None, None, True, None),
    )
    assert seen.pci == ("0000:01:1f.7",)
    assert seen.graphics == (GraphicsView("vnc", None, None, None), GraphicsView("spice", "::1", 5901, 5902))
    assert (seen.agent_channel, seen.kvmctl.protected) == ("connected", True)


def test_the_least_a_domain_can_have_is_enough() -> None:
    seen = domain_view.read("<domain type='qemu'><name>x</name></domain>")
    assert (seen.accel, seen.firmware, seen.vcpus, seen.memory_bytes, seen.os) == ("tcg", None, 1, None, None)
    assert (seen.disks, seen.nics, seen.pci, seen.agent_channel) == ((), (), (), None)


def test_sizes_are_read_in_every_unit_libvirt_has() -> None:
    for unit, size in (("KiB", 1024), ("b", 1), ("KB", 1000), ("MiB", 2**20), ("G", 2**30), ("TB", 10**12)):
        text = f"<domain><name>x</name><memory unit='{unit}'>3</memory></domain>"
        assert domain_view.read(text).memory_bytes == 3 * size
    assert domain_view.read(f"<domain><name>x</name><memory>{'9' * 40}</memory></domain>").memory_bytes is None
