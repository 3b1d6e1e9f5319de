"""What a copy's definition changes, and what it leaves as it was."""

from kvmctl.model import clone, xml

SOURCE = """
<domain type='qemu'><name>web</name><uuid>11111111-1111-4111-8111-111111111111</uuid>
<genid>22222222-2222-4222-8222-222222222222</genid>
<sysinfo type='smbios'><system><entry name='uuid'>11111111-1111-4111-8111-111111111111</entry></system></sysinfo>
<os><nvram template='/t.fd'>/n/web_VARS.fd</nvram></os>
<devices>
<disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/><source file='/p/web.img'/>
<backingStore/><target dev='vda' bus='virtio'/><serial>keepme</serial></disk>
<interface type='network'><mac address='52:54:00:AA:00:01'/><source network='default'/><target dev='web0'/></interface>
<hostdev mode='subsystem' type='pci'/>
<graphics type='vnc' port='5950' autoport='no' listen='127.0.0.1'/>
<serial type='pty'><log file='/l/web.log'/></serial>
<channel type='unix'><source mode='bind' path='/run/web.agent'/><target name='org.qemu.guest_agent.0'/></channel>
<vsock><cid auto='no' address='7'/></vsock>
<something other='tools'/>
</devices></domain>
"""


def test_names_and_addresses_are_new_and_the_rest_stays() -> None:
    tree = xml.parse(SOURCE)
    macs = {"52:54:00:aa:00:01": "52:54:00:bb:00:02"}
    clone.rename(tree, clone.Identity("web2", "33333333-3333-4333-8333-333333333333", macs))
    clone.set_disks(tree, {"vda": ("/p/web2.qcow2", "qcow2")})
    clone.set_nvram(tree, "/n/web2_VARS.fd")
    lost = clone.separate(tree)
    assert tree.findtext("name") == "web2"
    assert tree.findtext("uuid") == tree.findtext("sysinfo/system/entry") == "33333333-3333-4333-8333-333333333333"
    assert tree.findtext("genid") == ""
    assert clone.macs_of(tree) == ["52:54:00:bb:00:02"]
    assert tree.find("devices/interface/target") is None
    disk = tree.find("devices/disk")
    assert disk is not None
    assert [child.tag for child in disk] == ["driver", "source", "target", "serial"]
    assert xml.raw(disk).startswith('<disk type="file" device="disk"><driver name="qemu" type="qcow2" cache="none"/>')
    assert tree.findtext("os/nvram") == "/n/web2_VARS.fd"
    assert any("passed through" in text for text in lost)
    assert tree.find("devices/hostdev") is None
    assert tree.find("devices/graphics[@autoport='yes'][@listen='127.0.0.1']") is not None
    assert tree.find("devices/graphics[@port]") is None
    assert tree.find("devices/channel/source") is None
    assert tree.find("devices/serial/log[@file='/l/web.log.web2']") is not None
    assert tree.find("devices/vsock/cid[@auto='yes']") is not None
    assert tree.find("devices/something[@other='tools']") is not None


def test_a_tpm_is_said_aloud() -> None:
    tree = xml.parse("<domain><devices><tpm model='tpm-crb'/></devices></domain>")
    (said,) = clone.separate(tree)
    assert "TPM" in said


def test_a_new_mac_is_in_qemus_range_and_not_taken() -> None:
    taken = {clone.new_mac(()) for _ in range(50)}
    made = clone.new_mac(taken)
    assert made.startswith("52:54:00:")
    assert made not in taken


def test_cut_network_takes_every_cable_out() -> None:
    tree = xml.parse("<domain><devices><interface/><interface><link state='up'/></interface></devices></domain>")
    clone.cut_network(tree)
    assert [link.get("state") for link in tree.iterfind("devices/interface/link")] == ["down", "down"]


def test_cards_in_networks_of_libvirts() -> None:
    cards = (
        "<interface type='network'><mac address='52:54:00:BB:00:01'/><source network='default'/></interface>"
        "<interface type='bridge'><mac address='52:54:00:bb:00:02'/><source bridge='br0'/></interface>"
        "<interface type='user'><mac address='52:54:00:bb:00:03'/></interface>"
    )
    tree = xml.parse(f"<domain><devices>{cards}</devices></domain>")
    assert clone.cards_in_networks(tree) == [("52:54:00:bb:00:01", "default")]


def test_cables_that_are_out_are_seen() -> None:
    cards = "".join(
        f"<interface type='user'><mac address='52:54:00:BB:00:0{n}'/>{link}</interface>"
        for n, link in enumerate(("", "<link state='up'/>", "<link state='down'/>"))
    )
    tree = xml.parse(f"<domain><devices>{cards}</devices></domain>")
    assert clone.cables_out(tree) == {"52:54:00:bb:00:02"}


def test_cards_that_keep_their_mac_in_the_memory_are_named() -> None:
    cards = "".join(
        f"<interface type='user'><mac address='52:54:00:BB:00:0{n}'/><model type='{model}'/></interface>"
        for n, model in enumerate(("virtio", "e1000e", "e1000", "vmxnet3"))
    )
    tree = xml.parse(f"<domain><devices>{cards}</devices></domain>")
    assert clone.cards_bound_to_their_mac(tree) == ["52:54:00:bb:00:01 (e1000e)", "52:54:00:bb:00:03 (vmxnet3)"]
