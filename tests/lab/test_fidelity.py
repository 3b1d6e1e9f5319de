"""What kvmctl does not model survives kvmctl's edits: another tool's domains, before and after each command."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import libvirt
import pytest
from lxml import etree

from tests.lab.hosts import Host

Named = Callable[[str], str]
KVMCTL = "{urn:kvmctl:vm:1}vm"
MAC = "52:54:00:fa:ce:01"

# As much of what kvmctl has no word for as libvirt takes on such a host.
RICH = """
<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{name}</name>
  <genid>43dc0cf8-809b-4adb-9bea-a9abb5f3d90e</genid>
  <title>Other tool's</title>
  <metadata>
    <app:note xmlns:app="http://example.org/app/1.0" key="a">
      <app:deep>text &amp; more</app:deep><!-- kept -->
    </app:note>
    <two:note xmlns:two="urn:two"/>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1"><nova:name>n</nova:name></nova:instance>
  </metadata>
  <maxMemory slots='4' unit='KiB'>1048576</maxMemory>
  <memory unit='KiB'>262144</memory>
  <currentMemory unit='KiB'>262144</currentMemory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <vcpu placement='static' current='1'>2</vcpu>
  <iothreads>2</iothreads>
  <iothreadids><iothread id='3'/><iothread id='7'/></iothreadids>
  <cputune><shares>512</shares><period>100000</period><quota>80000</quota></cputune>
  <blkiotune><weight>200</weight></blkiotune>
  <memtune><swap_hard_limit unit='KiB'>4194304</swap_hard_limit></memtune>
  <resource><partition>/machine</partition></resource>
  <sysinfo type='smbios'><bios><entry name='vendor'>LENOVO</entry></bios>
    <oemStrings><entry>a=b</entry></oemStrings></sysinfo>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <boot dev='network'/><bootmenu enable='yes' timeout='3000'/><smbios mode='sysinfo'/>
    <bios useserial='yes' rebootTimeout='0'/>
  </os>
  <features><acpi/><apic/><pae/><kvm><hidden state='on'/></kvm><vmport state='off'/></features>
  <cpu mode='custom' match='exact' check='none'>
    <model fallback='forbid'>qemu64</model>
    <topology sockets='1' dies='1' cores='2' threads='1'/>
    <feature policy='require' name='pdpe1gb'/>
    <numa><cell id='0' cpus='0-1' memory='262144' unit='KiB'/></numa>
  </cpu>
  <clock offset='variable' adjustment='12' basis='utc'><timer name='rtc' tickpolicy='catchup'/></clock>
  <on_poweroff>restart</on_poweroff><on_reboot>restart</on_reboot><on_crash>coredump-destroy</on_crash>
  <pm><suspend-to-mem enabled='yes'/><suspend-to-disk enabled='no'/></pm>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='scsi' index='0' model='virtio-scsi'><driver queues='2' iothread='3'/></controller>
    <controller type='virtio-serial' index='0' ports='16' vectors='4'/>
    <interface type='user'>
      <mac address='52:54:00:12:34:99'/><model type='virtio'/>
      <driver name='qemu' queues='1' event_idx='off'/><link state='up'/><alias name='ua-first'/>
    </interface>
    <serial type='file'><source path='/var/log/libvirt/{name}.log' append='on'/><target port='0'/></serial>
    <serial type='pty'><target port='1'/></serial>
    <parallel type='null'><target port='0'/></parallel>
    <channel type='unix'><target type='virtio' name='org.example.port.0'/><alias name='ua-channel'/></channel>
    <input type='keyboard' bus='usb'/>
    <graphics type='vnc' port='-1' autoport='yes' keymap='de' sharePolicy='ignore'>
      <listen type='address' address='127.0.0.1'/>
    </graphics>
    <video><model type='vga' vram='32768' heads='1' primary='yes'/></video>
    <watchdog model='i6300esb' action='poweroff'/>
    <panic model='isa'/>
    <memballoon model='virtio' autodeflate='on' freePageReporting='on'><stats period='7'/></memballoon>
    <rng model='virtio'><rate bytes='1024' period='2000'/><backend model='random'>/dev/urandom</backend></rng>
  </devices>
  <seclabel type='none'/>
  <qemu:commandline>
    <qemu:arg value='-name'/><qemu:arg value='guest={name},debug-threads=on'/><qemu:env name='A' value='b'/>
  </qemu:commandline>
</domain>
"""
SYSTEMS = ("linux2022", "debian11", "win11")


def rich(host: Host, name: str, *, leave_out: tuple[str, ...] = ()) -> str:
    """Define the rich domain."""
    tree = etree.fromstring(RICH.format(name=name))
    for tag in leave_out:
        for element in tree.findall(tag):
            tree.remove(element)
    host.conn.defineXML(etree.tostring(tree).decode())
    return name


def installed(host: Host, name: str, system: str) -> str:
    """Define what virt-install would make for ``system``."""
    words = f"virt-install --connect qemu:///system --name {name} --memory 512 --vcpus 1,maxvcpus=2 --osinfo {system}"
    devices = "--virt-type qemu --disk none --network user,mac=52:54:00:12:34:99 --graphics vnc --pxe --print-xml 1"
    done = host.run([*words.split(), *devices.split()])
    host.conn.defineXML(done.stdout)
    return name


def saved(host: Host, name: str) -> etree._Element:
    """The saved definition, white space between elements aside."""
    text = host.conn.lookupByName(name).XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
    return etree.fromstring(text, etree.XMLParser(remove_blank_text=True))


def without(tree: etree._Element, *paths: str) -> str:
    """``tree`` as canonical text, what ``paths`` find taken out, and an empty <metadata> too."""
    for path in (*paths, f"metadata/{KVMCTL}"):
        for element in tree.findall(path):
            parent = element.getparent()
            assert parent is not None
            parent.remove(element)
    for holder in tree.findall("metadata"):
        if len(holder) == 0:
            tree.remove(holder)
    etree.cleanup_namespaces(tree)
    return etree.tostring(tree, method="c14n").decode()


@pytest.fixture(params=["rich", *SYSTEMS])
def foreign(request: pytest.FixtureRequest, host_a: Host, vm_name: Named) -> str:
    """Another tool's VM, off."""
    name = vm_name("foreign")
    kind: str = request.param
    return rich(host_a, name) if kind == "rich" else installed(host_a, name, kind)


@pytest.fixture
def editor(tmp_path: Path) -> Iterator[Path]:
    """An editor that changes one word."""
    path = tmp_path / "editor.sh"
    path.write_text('#!/bin/sh\nsed -i "s/<on_crash>[a-z-]*/<on_crash>preserve/" "$1"\n')
    path.chmod(0o755)
    yield path


def test_an_edit_changes_what_it_names_and_nothing_else(
    host_a: Host, foreign: str, editor: Path, tmp_path: Path
) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(f"name: {foreign}\ntitle: By a spec\n")
    edits: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
        (("set", foreign, "--title", "T", "--description", "D"), ("title", "description")),
        (("set", foreign, "--vcpus", "2"), ("vcpu",)),
        (("set", foreign, "--memory", "200M"), ("currentMemory",)),
        (("autostart", foreign), ()),
        (("protect", foreign), ()),
        (("unprotect", foreign), ()),
        (("port", "add", foreign, "127.0.0.1:8089:80"), ()),
        (("port", "remove", foreign, "--all"), ()),
        (("nic", "link", foreign, "52:54:00:12:34:99", "down"), ("devices/interface/link",)),
        (("nic", "link", foreign, "52:54:00:12:34:99", "up"), ("devices/interface/link",)),
        (("apply", "-f", str(spec)), ("title", "description")),
        (("edit", foreign), ("on_crash",)),
    )
    for command, paths in edits:
        before, whole = without(saved(host_a, foreign), *paths), without(saved(host_a, foreign))
        host_a.kvmctl(*command, env={"EDITOR": str(editor), "PATH": os.environ["PATH"]})
        assert without(saved(host_a, foreign), *paths) == before, command
        if paths:
            assert without(saved(host_a, foreign)) != whole, f"{command} changed nothing"


def test_what_is_plugged_in_and_out_leaves_no_trace(host_a: Host, foreign: str) -> None:
    ports = "devices/controller[@type='pci']"
    before = without(saved(host_a, foreign), ports)
    host_a.kvmctl("nic", "attach", foreign, f"user,mac={MAC}")
    tree = saved(host_a, foreign)
    (mac,) = tree.findall(f"devices/interface/mac[@address='{MAC}']")
    card = mac.getparent()
    assert card is not None
    devices = card.getparent()
    assert devices is not None
    devices.remove(card)
    # A new device may need one more of the root ports, which libvirt itself adds.
    assert without(tree, ports) == before
    host_a.kvmctl("nic", "detach", foreign, MAC)
    assert without(saved(host_a, foreign), ports) == before
    row = host_a.kvmctl("disk", "attach", foreign, "64M", "-o", "json").json()
    tree = saved(host_a, foreign)
    (target,) = tree.findall(f"devices/disk/target[@dev='{row['target']}']")
    disk = target.getparent()
    assert disk is not None
    next(tree.iter("devices")).remove(disk)
    assert without(tree, ports) == before
    host_a.kvmctl("disk", "detach", foreign, row["target"])
    assert without(saved(host_a, foreign), ports) == before


def test_a_rename_changes_the_name_alone(host_a: Host, foreign: str, vm_name: Named) -> None:
    other = vm_name("renamed")
    before = without(saved(host_a, foreign), "name", "os/nvram")
    host_a.kvmctl("rename", foreign, other)
    assert without(saved(host_a, other), "name", "os/nvram") == before


def test_a_running_guest_keeps_it_too(host_a: Host, vm_name: Named) -> None:
    # A host of the lab has no control groups of its own.
    name = rich(host_a, vm_name("running"), leave_out=("cputune", "blkiotune", "memtune", "resource"))
    host_a.kvmctl("start", name)
    before = without(saved(host_a, name), "title", "description")
    for command in (
        ("set", name, "--title", "live"),
        ("set", name, "--description", "two\nlines"),
        ("port", "add", name, "127.0.0.1:8088:80"),
        ("nic", "attach", name, f"user,mac={MAC}"),
        ("nic", "detach", name, MAC),
        ("protect", name),
        ("unprotect", name),
        ("port", "remove", name, "--all"),
    ):
        host_a.kvmctl(*command, check=command[:2] != ("nic", "detach"))
    ports = "devices/controller[@type='pci']"
    tree = etree.fromstring(before)
    # Without a guest system nobody answers the request to let the card go: it may still be there.
    assert without(
        saved(host_a, name), "title", "description", ports, f"devices/interface/mac[@address='{MAC}']/.."
    ) == without(tree, ports)
    live = etree.fromstring(host_a.conn.lookupByName(name).XMLDesc(0))
    assert live.findtext("metadata/{http://example.org/app/1.0}note/{http://example.org/app/1.0}deep") == "text & more"
    assert live.find("{http://libvirt.org/schemas/domain/qemu/1.0}commandline") is not None
    host_a.kvmctl("destroy", name)
